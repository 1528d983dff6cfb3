import numpy as np
import pytest

from tensord.daemon.simulation.intervals import Estimate, controlled, estimate, student_t


@pytest.mark.parametrize(
    ("freedom", "at_95", "at_99"),
    [
        (1, 12.706, 63.657),
        (4, 2.776, 4.604),
        (5, 2.571, 4.032),
        (9, 2.262, 3.250),
        (30, 2.042, 2.750),
        (999, 1.962, 2.581),
    ],
)
def test_students_t_is_that_of_the_tables(freedom: int, at_95: float, at_99: float) -> None:
    assert student_t(freedom, 0.95) == pytest.approx(at_95, rel=5e-3)
    assert student_t(freedom, 0.99) == pytest.approx(at_99, rel=5e-3)


def test_one_value_has_no_interval() -> None:
    assert estimate([3.0]) == Estimate(3.0, None)
    assert not estimate([3.0]).contains(3.0)


def test_an_interval_is_that_of_students_t() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / 3**0.5)
    assert found.relative == pytest.approx(4.303 / 3**0.5 / 2)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    held = [estimate(random.normal(5.0, 2.0, 8).tolist(), 0.95).contains(5.0) for _ in range(2_000)]
    assert 0.93 < sum(held) / 2_000 < 0.97


def test_a_control_takes_out_what_it_explains() -> None:
    random = np.random.default_rng(2)
    noise = random.normal(0.0, 1.0, 40)
    values = 7.0 + 3.0 * noise + random.normal(0.0, 0.1, 40)
    plain, better = estimate(values.tolist()), controlled(values.tolist(), noise[:, None].tolist())
    assert plain.half_width is not None
    assert better.half_width is not None
    assert better.half_width < plain.half_width / 10
    assert better.contains(7.0)


def test_controls_that_explain_nothing_do_not_narrow_the_interval_and_keep_its_promise() -> None:
    random = np.random.default_rng(3)
    held, narrower = 0, 0
    for _ in range(1_000):
        values, controls = random.normal(5.0, 2.0, 12).tolist(), random.normal(0.0, 1.0, (12, 3)).tolist()
        found, plain = controlled(values, controls, 0.99), estimate(values, 0.99)
        held += found.contains(5.0)
        narrower += (found.half_width or 0) < (plain.half_width or 0)
    assert held > 970
    assert narrower < 500
