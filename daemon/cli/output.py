"""How commands speak: results on standard output, one line per error on standard error."""

import sys

from rich.console import Console

from ..exits import Exit

console = Console(highlight=False)
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


def microseconds(value: float | None) -> str:
    """A duration with three digits and its unit."""
    if value is None:
        return "–"
    for limit, divisor, unit in ((1e3, 1, "µs"), (1e6, 1e3, "ms")):
        if value < limit:
            return f"{value / divisor:.3g} {unit}"
    return f"{value / 1e6:.3g} s"


def nbytes(value: float) -> str:
    """A size with three digits and its unit."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"
