import re
from pathlib import Path

from tensord.daemon.exits import Exit

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md"


def test_the_page_lists_exactly_the_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", PAGE.read_text(), flags=re.M)
    assert [(int(code), name) for code, name in rows] == [(code.value, code.name) for code in Exit]
