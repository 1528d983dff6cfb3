"""The arithmetic of the benchmarks, without a measurement."""

import math

import pytest
from benchmarks.figures import Relation, Spread, Verdict, differences, ratios, shown, shown_spread, spread


def test_spread_is_median_least_and_most() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_ratios_and_differences_pair_repetitions() -> None:
    assert ratios([2.0, 9.0], [4.0, 3.0]) == [0.5, 3.0]
    assert differences([2.0, 9.0], [4.0, 3.0]) == [-2.0, 6.0]


def test_repetitions_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0, 2.0], [1.0])


def verdict(relation: Relation, measured: float) -> Verdict:
    return Verdict("", relation, 2.0, Spread(measured, measured, measured))


@pytest.mark.parametrize(
    ("relation", "kept"),
    [("≤", [True, True, False]), ("<", [True, False, False]), ("≥", [False, True, True])],
)
def test_verdict_at_its_budget(relation: Relation, kept: list[bool]) -> None:
    assert [verdict(relation, value).kept for value in (1.999, 2.0, 2.001)] == kept


@pytest.mark.parametrize("relation", ["≤", "<", "≥"])
def test_nothing_measured_keeps_no_budget(relation: Relation) -> None:
    assert not Verdict("", relation, 2.0, None).kept
    assert not verdict(relation, spread(ratios([1.0], [0.0])).median).kept


def test_verdict_is_judged_by_the_median_before_rounding() -> None:
    assert not Verdict("", "≥", 3.0, Spread(2.9999, 1.0, 100.0)).kept
    assert shown(2.9999) == "3.00"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.012345, "0.0123"),
        (1.0, "1.00"),
        (99.96, "100.0"),
        (123.4, "123"),
        (12345.0, "12,300"),
        (1234567.0, "1,230,000"),
        (-4.5678, "-4.57"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_shown_has_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_shown_spread_has_median_and_extremes() -> None:
    assert shown_spread(Spread(2.0, 1.0, 3.0)) == "2.00 (1.00–3.00)"
