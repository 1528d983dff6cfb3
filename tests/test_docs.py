"""The pages agree with the code and with one another, beyond what tests/test_protocol_document.py compares."""

import re
from pathlib import Path

import pytest

from tensord.ipc import limits
from tensord.ipc.errors import ERRORS
from tensord.ipc.wire import FrameType

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")})
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()

OF_THE_DAEMON = {
    "PRIORITY_NORMAL",
    "SOCKET_BUFFER_BYTES",
    "CLIENT_TIMEOUT_S",
    "BATCH_REQUESTS_MAX",
    "RING_BYTES",
    "DONE_RING_BYTES",
    "ERROR_BYTES_MAX",
    "PIPELINE_DEPTH_MAX",
    "DATA_DIMENSIONS_MAX",
    "ARENA_PAGE_BYTES",
    "PARTS_MAX",
}
"""Limits between the daemon's own processes, or of our library: no other client meets them."""


@pytest.mark.parametrize("limit", [name for name in vars(limits) if name.isupper() and name not in OF_THE_DAEMON])
def test_the_protocol_has_every_limit_that_clients_meet(limit: str) -> None:
    assert f"| `{limit}` |" in PROTOCOL


def test_limits_of_the_daemon_exist() -> None:
    assert set(vars(limits)) >= OF_THE_DAEMON


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_the_protocol_has_every_error(code: int) -> None:
    assert f"| {code} | `{ERRORS[code].__name__}` |" in PROTOCOL


@pytest.mark.parametrize("frame_type", FrameType)
def test_the_protocol_has_every_frame_type(frame_type: FrameType) -> None:
    assert f"| {int(frame_type)} | `{frame_type.name}` |" in PROTOCOL


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    without_code = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors_of(found)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_a_page_exist(page: Path) -> None:
    folders = "|".join(
        ("ipc", "daemon", "admin", "configs", "systemd", "tests", "benchmarks", "examples", "docs", "src")
    )
    named = re.findall(rf"`((?:{folders})/[\w./-]*\.(?:py|md|toml|c|service|socket))`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_decisions_are_numbered_without_gap() -> None:
    pages = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
