import math

import pytest

from tensord.daemon.simulation import theory


def test_mm1_at_half_load_waits_as_long_as_it_serves() -> None:
    assert theory.mm1(0.5, 1.0) == theory.Queue(1.0, 0.5)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.95])
def test_little_holds(load: float) -> None:
    queues = [
        theory.mm1(load, 1.0),
        theory.mg1(load, 1.0, 4.0),
        theory.mmc(load, 1.0, 2),
        theory.mg1_sjf(load, [1], [1]),
    ]
    assert [queue.length for queue in queues] == pytest.approx([load * queue.wait_s for queue in queues])


def test_mg1_is_mm1_for_exponential_service_and_half_of_it_for_constant() -> None:
    assert theory.mg1(0.8, 1.0, 1.0).wait_s == pytest.approx(theory.mm1(0.8, 1.0).wait_s)
    assert theory.mg1(0.8, 1.0, 0.0).wait_s == pytest.approx(theory.mm1(0.8, 1.0).wait_s / 2)


@pytest.mark.parametrize(
    ("servers", "offered", "waiting"),
    [(1, 0.8, 0.8), (2, 1.0, 1 / 3), (5, 4.0, 0.5541), (10, 8.0, 0.4092), (100, 80.0, 0.0196)],
)
def test_erlang_c_gives_the_values_of_the_tables(servers: int, offered: float, waiting: float) -> None:
    assert theory.erlang_c(servers, offered) == pytest.approx(waiting, abs=5e-5)


def test_erlang_c_is_the_ratio_of_its_definition() -> None:
    servers, offered = 7, 5.5
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    whole = sum(offered**number / math.factorial(number) for number in range(servers)) + last
    assert theory.erlang_c(servers, offered) == pytest.approx(last / whole)


def test_mmc_of_one_is_mm1() -> None:
    assert theory.mmc(0.7, 1.0, 1).wait_s == pytest.approx(theory.mm1(0.7, 1.0).wait_s)


def test_sjf_with_one_duration_is_md1() -> None:
    assert theory.mg1_sjf(0.8, [1.0], [5.0]).wait_s == pytest.approx(theory.mg1(0.8, 1.0, 0.0).wait_s)


def test_sjf_with_two_classes_is_cobhams_formula_by_hand() -> None:
    """λ = 0.5, half of it takes 0.5, half 1.5: W₀ = 0.3125, σ = 0, 0.125, 0.5."""
    expected = 0.5 * 0.3125 / 0.875 + 0.5 * 0.3125 / (0.875 * 0.5)
    assert theory.mg1_sjf(0.5, [0.5, 1.5], [1, 1]).wait_s == pytest.approx(expected)


def test_fine_classes_are_phipps_integral() -> None:
    """For exponential service W = ρ ∫ e^(−x) / (1 − ρ(1 − e^(−x)(1 + x)))² dx, here by Simpson's rule."""
    load, steps, end = 0.8, 20_000, 40.0

    def integrand(x: float) -> float:
        return math.exp(-x) / (1 - load * (1 - math.exp(-x) * (1 + x))) ** 2

    width = end / steps
    weights = [1, *([4, 2] * (steps // 2))[:-1], 1]
    integral = sum(weight * integrand(number * width) for number, weight in enumerate(weights)) * width / 3
    middles = [(number + 0.5) / 500 for number in range(20_000)]
    shares = [math.exp(-middle) for middle in middles]
    assert theory.mg1_sjf(load, middles, shares).wait_s == pytest.approx(load * integral, rel=1e-4)


def test_a_closed_loop_of_one_client_alternates() -> None:
    assert theory.closed_mm1(1, 3.0, 1.0) == pytest.approx(0.25)


def test_a_closed_loop_saturates() -> None:
    assert theory.closed_mm1(1_000, 3.0, 0.5) == pytest.approx(2.0)


def test_there_is_no_equilibrium_at_full_load() -> None:
    with pytest.raises(AssertionError):
        theory.mm1(1.0, 1.0)
