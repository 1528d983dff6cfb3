"""How commands speak: results on standard output, one line per error on standard error."""

import os
import sys
from typing import Final

from rich.console import Console
from rich.table import Table

from ..exits import Exit

PIPE_COLUMNS: Final = 240
"""Width where no terminal says its own: a line of a table must stay one line for who reads it with grep or awk."""

console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS)
errors = Console(stderr=True, highlight=False)


class Failure(Exception):
    """A command could not do what was asked; `str()` is one line."""


class Refusal(Failure):
    """The daemon refused, with an exit code of its own."""

    def __init__(self, sentence: str, code: Exit) -> None:
        super().__init__(sentence)
        self.exit = code


def complain(sentence: str, code: Exit) -> int:
    """Say why in one line, and return the exit code."""
    line = " ".join(sentence.split())
    print(f"tensord: {line}", file=sys.stderr)  # noqa: T201 - rich would wrap it
    return int(code)


def examples(*lines: str) -> str:
    """The end of a command's help: what one would really type."""
    return "\n\n".join(["Examples:", *(f"[cyan]{line}[/]" for line in lines)])


def table(name: str, *headings: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table: the column `name` gives way where the terminal is narrow, the others, `right` last, do not."""
    made = Table(box=None, header_style="dim", pad_edge=False)
    made.add_column(name, overflow="fold")
    for heading in headings:
        made.add_column(heading, no_wrap=True)
    for heading in right:
        made.add_column(heading, no_wrap=True, justify="right")
    return made


def microseconds(value: float | None) -> str:
    """A duration with three digits and its unit."""
    if value is None:
        return "–"
    for limit, divisor, unit in ((999.5, 1, "µs"), (999.5e3, 1e3, "ms")):
        if value < limit:
            return f"{_digits(value / divisor)} {unit}"
    return f"{_digits(value / 1e6)} s"


def nbytes(value: float) -> str:
    """A size with three digits and its unit."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1023.5:
            return f"{_digits(value)} {unit}"
        value /= 1024
    return f"{_digits(value)} GiB"


def count(value: int) -> str:
    """A number to read at a glance: exact up to 99,999, then three digits with k, M or G."""
    if value < 100_000:
        return f"{value:,}"
    for limit, divisor, suffix in ((999.5e3, 1e3, "k"), (999.5e6, 1e6, "M")):
        if value < limit:
            return f"{_digits(value / divisor)} {suffix}"
    return f"{_digits(value / 1e9)} G"


def duration(seconds: float) -> str:
    """The two largest units of a time span: `3 d 4 h`, `12 min 5 s`."""
    whole = int(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
