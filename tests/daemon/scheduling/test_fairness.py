import pytest

from tensord.daemon.scheduling.fairness import ShareClock


def serve(clock: ShareClock, weights: dict[int, float], costs: dict[int, int], total_ns: int) -> dict[int, int]:
    """Serve backlogged models by start tag; the device time that each got."""
    got = dict.fromkeys(weights, 0)
    while sum(got.values()) < total_ns:
        model = min(weights, key=clock.start_tag)
        clock.charge(model, costs[model], weights[model])
        got[model] += costs[model]
    return got


def test_backlogged_models_share_by_weight_whatever_their_batches_cost() -> None:
    got = serve(ShareClock(), {1: 1.0, 2: 3.0}, {1: 70, 2: 5}, 100_000)
    assert got[2] / got[1] == pytest.approx(3.0, rel=0.01)


def test_an_idle_model_gets_no_credit() -> None:
    clock = ShareClock()
    serve(clock, {1: 1.0}, {1: 10}, 10_000)
    got = serve(clock, {1: 1.0, 2: 1.0}, {1: 10, 2: 10}, 1_000)
    assert got[2] == pytest.approx(500, abs=20)


def test_a_batch_that_took_longer_is_paid_for() -> None:
    clock = ShareClock()
    clock.charge(1, 10, 1.0)
    clock.correct(1, 90, 1.0)
    clock.charge(2, 50, 1.0)
    assert clock.start_tag(2) < clock.start_tag(1)


def test_a_forgotten_model_starts_at_the_present() -> None:
    clock = ShareClock()
    clock.charge(1, 1_000, 1.0)
    clock.forget(1)
    assert clock.start_tag(1) == 0.0


def test_correcting_a_forgotten_model_does_nothing() -> None:
    clock = ShareClock()
    clock.correct(1, 1_000, 1.0)
    assert clock.start_tag(1) == 0.0
