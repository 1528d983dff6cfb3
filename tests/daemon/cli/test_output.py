import importlib.util
from io import StringIO
from itertools import pairwise
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from tensord.daemon.cli import output
from tensord.daemon.cli.output import Failure, Refusal, complain, count, duration, examples, microseconds, nbytes, table
from tensord.daemon.exits import Exit

SCALES = {
    "µs": 1.0,
    "ms": 1e3,
    "s": 1e6,
    "B": 1.0,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
}
SECONDS = {"d": 86400, "h": 3600, "min": 60, "s": 1}


def meant(text: str) -> float:
    """The quantity that a person reads."""
    number, _, unit = text.partition(" ")
    return float(number.replace(",", "")) * SCALES.get(unit, 1.0)


def rendered(made: object, columns: int) -> list[str]:
    """The lines of a table in a terminal of this width."""
    paper = StringIO()
    Console(file=paper, width=columns).print(made)
    return [line.rstrip() for line in paper.getvalue().splitlines()]


# ── quantities ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0 µs"),
        (0.123456, "0.123 µs"),
        (99.94, "99.9 µs"),
        (99.95, "100 µs"),
        (999.49, "999 µs"),
        (999.5, "1 ms"),
        (999_499.0, "999 ms"),
        (999_500.0, "1 s"),
        (3.6e9, "3600 s"),
    ],
)
def test_a_time_changes_its_unit_before_it_has_four_digits(value: float | None, text: str) -> None:
    assert microseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1023.5, "1 KiB"),
        (1024, "1 KiB"),
        (2**20 - 1, "1 MiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**43, "8192 GiB"),
    ],
)
def test_a_size_changes_its_unit_at_1024(value: float, text: str) -> None:
    assert nbytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (99_999, "99,999"), (100_000, "100 k"), (999_499, "999 k"), (999_500, "1 M"), (2 * 10**12, "2000 G")],
)
def test_a_count_is_exact_until_it_is_long(value: int, text: str) -> None:
    assert count(value) == text


@given(st.integers(1, 10**15))
def test_what_is_read_is_what_was_meant_to_half_a_percent(value: int) -> None:
    for show in (microseconds, nbytes, count):
        assert meant(show(value)) == pytest.approx(value, rel=0.005)


@given(st.floats(0, 1e8))
@example(60.0)
@example(86_400.0)
def test_a_duration_has_two_neighbouring_units_and_never_runs_ahead(seconds: float) -> None:
    words = duration(seconds).split()
    numbers, units = [int(number) for number in words[::2]], words[1::2]
    assert tuple(units) in [*pairwise(SECONDS), ("s",)]
    said = sum(number * SECONDS[unit] for number, unit in zip(numbers, units, strict=True))
    assert said <= seconds < said + SECONDS[units[-1]]
    assert seconds < 60 if len(units) == 1 else numbers[0] >= 1


# ── lines ───────────────────────────────────────────────────────────────────────────────────────


def test_a_complaint_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain("a path with [brackets]\n  and a second line " + "x" * 300, Exit.MODELS) == Exit.MODELS
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == "tensord: a path with [brackets] and a second line " + "x" * 300 + "\n"


def test_a_refusal_is_a_failure_with_a_code() -> None:
    error: Failure = Refusal("no", Exit.CONFIG)
    assert (str(error), getattr(error, "exit", None)) == ("no", Exit.CONFIG)


def test_examples_stand_in_paragraphs_of_their_own() -> None:
    assert examples("a --b", "c").split("\n\n") == ["Examples:", "[cyan]a --b[/]", "[cyan]c[/]"]


def test_a_narrow_table_folds_its_name_and_nothing_else() -> None:
    made = table("NAME", "STATE", right=("ROWS",))
    made.add_row("a-long-name", "ready", "7")
    made.add_row("b", "–", "1,234")
    assert rendered(made, 40) == [
        "NAME         STATE   ROWS",
        "a-long-name  ready      7",
        "b            –      1,234",
    ]
    assert rendered(made, 20) == [
        "NAME    STATE   ROWS",
        "a-long  ready      7",
        "-name",
        "b       –      1,234",
    ]


@pytest.mark.parametrize(("environment", "columns"), [({}, output.PIPE_COLUMNS), ({"COLUMNS": "57"}, 57)])
def test_a_pipe_gets_wide_lines_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], columns: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert imported_anew().console.width == columns


def imported_anew() -> ModuleType:
    """Another copy of the module, as a process has it that starts now."""
    spec = importlib.util.spec_from_file_location("tensord.daemon.cli.another_output", output.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
