from collections.abc import Callable
from random import Random

import pytest

from tensord.daemon.scheduling import Batch, ModelPolicy, Request, TenantPolicy
from tensord.daemon.scheduling.feasibility import PROBE_NS, Forecast, drain_ns, rows_before, water_level
from tensord.ipc.errors import DeadlineInfeasible

from .rig import FAR_NS, MS, Rig, make
from .virtual import BATCH_NS, Outcome, poisson, serve

ROWS = 64

LEARNED_NS = 20 * BATCH_NS
"""Until then nothing or little has been measured, so nearly all are let in."""


def batch_time(noise: float) -> Callable[[Batch[Request]], float]:
    """A quarter of the time of a full batch for any, and as much per row as is left."""
    random = Random(3)
    return lambda batch: BATCH_NS * (0.25 + 0.75 * batch.rows / ROWS) * random.uniform(1 - noise, 1 + noise)


def overload(rows: int, patience: float, noise: float, load: float, workers: int = 1, batches: int = 250) -> Outcome:
    rig = Rig()
    for worker in range(2, workers + 1):
        rig.scheduler.add_worker(worker, "cpu:0")
    rig.model(workers=tuple(range(1, workers + 1)), max_batch=ROWS, queue_max=10**6, deadline_check=True)
    every_ns = BATCH_NS * rows / ROWS / load / workers
    arrivals = poisson(1, every_ns, int(batches * BATCH_NS / every_ns), int(patience * BATCH_NS), rows=rows)
    return serve(rig.scheduler, arrivals, batch_time(noise))


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("patience", [3, 20])
@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_under_overload_who_is_admitted_is_in_time_and_goodput_keeps_its_peak(
    rows: int, patience: float, noise: float
) -> None:
    def goodput(load: float) -> int:
        outcome = overload(rows, patience, noise, load)
        assert outcome.in_time(LEARNED_NS) >= 0.99 * outcome.admitted(LEARNED_NS)
        return outcome.in_time()

    assert goodput(5.0) >= 0.95 * max(goodput(0.9), goodput(1.3))


def test_replicas_share_what_waits() -> None:
    outcome = overload(1, 20, 0.25, 5.0, workers=3, batches=100)
    assert outcome.in_time() >= 0.99 * outcome.admitted()
    assert outcome.in_time() >= 0.9 * 100 * ROWS * 3


def learned() -> Rig:
    """A model whose batches take 4 ms, with two of them in flight since now."""
    rig = Rig()
    rig.model(max_batch=1, deadline_check=True)
    for _ in range(10):
        rig.submit(make(deadline_ns=FAR_NS))
        rig.now += BATCH_NS
        rig.complete(rig.only(), BATCH_NS)
    rig.submit(make(), make())
    assert len(rig.dispatch()) == 2
    return rig


def test_an_infeasible_deadline_is_refused_with_the_time_that_would_do() -> None:
    rig = learned()
    rig.submit(make())
    error = rig.scheduler.submit(rig.now, make(deadline_ns=rig.now + 10 * MS))
    assert isinstance(error, DeadlineInfeasible)
    assert error.predicted_ms == pytest.approx(16, abs=1)
    assert error.allowed_ms == 10
    assert error.retry_after_ms == pytest.approx(6, abs=1)
    rig.submit(make(deadline_ns=rig.now + 17 * MS))


def test_after_the_hint_the_same_request_is_feasible() -> None:
    rig = learned()
    rig.submit(make())
    error = rig.scheduler.submit(rig.now, make(deadline_ns=rig.now + 10 * MS))
    assert error is not None
    assert error.retry_after_ms is not None
    batches = list(rig.scheduler._workers[1].in_flight.values())
    rig.now += BATCH_NS
    rig.complete(batches[0], BATCH_NS)
    rig.dispatch()
    rig.now += (error.retry_after_ms + 1) * MS - BATCH_NS
    rig.submit(request := make())
    rig.scheduler.cancel(rig.now, request)
    assert rig.scheduler.submit(rig.now, make(deadline_ns=rig.now + 10 * MS)) is None


def test_a_deadline_shorter_than_a_batch_has_no_time_to_retry_after() -> None:
    rig = learned()
    error = rig.scheduler.submit(rig.now, make(deadline_ns=rig.now + MS))
    assert isinstance(error, DeadlineInfeasible)
    assert error.retry_after_ms is None


def test_what_was_never_measured_is_not_judged() -> None:
    rig = learned()
    rig.submit(make(bucket="new", deadline_ns=rig.now + 1))


def test_after_long_silence_one_request_is_let_in_against_the_prediction() -> None:
    rig = learned()
    for batch in list(rig.scheduler._workers[1].in_flight.values()):
        rig.complete(batch, BATCH_NS)
    rig.now += PROBE_NS
    rig.submit(make(deadline_ns=rig.now + MS))
    assert isinstance(rig.scheduler.submit(rig.now, make(deadline_ns=rig.now + MS)), DeadlineInfeasible)
    assert len(rig.dispatch()) == 1


def test_lower_classes_go_behind() -> None:
    rig = learned()
    rig.submit(*(make(priority=2) for _ in range(10)))
    assert isinstance(
        rig.scheduler.submit(rig.now, make(priority=2, deadline_ns=rig.now + 20 * MS)), DeadlineInfeasible
    )
    rig.submit(make(priority=1, deadline_ns=rig.now + 20 * MS))


def test_only_what_fair_shares_let_pass_goes_before() -> None:
    rig = learned()
    users = lambda tenant: (tenant.partition("/")[0], TenantPolicy(weight=3.0 if tenant == "b" else 1.0))  # noqa: E731
    rig.scheduler.set_tenants(users)
    rig.submit(*(make(tenant="a") for _ in range(30)), *(make(tenant="b") for _ in range(6)))
    rig.submit(*(make(tenant=f"c/{name}") for name in "xxxxy"))
    model = rig.scheduler._models[0]
    assert rows_before(make(tenant="new"), model) == 0
    assert rows_before(make(tenant="b"), model) == pytest.approx(6 * 5 / 3)
    assert rows_before(make(tenant="a"), model) == 41
    assert rows_before(make(tenant="c/y"), model) == pytest.approx(2 * 5)


def test_other_models_take_their_share() -> None:
    rig = learned()
    rig.model(1, weight=3.0)
    model = rig.scheduler._models[0]
    alone_ns = drain_ns(rig.now, model, 4) - drain_ns(rig.now, model, 0)
    rig.submit(make(model=1))
    assert drain_ns(rig.now, model, 4) - drain_ns(rig.now, model, 0) == pytest.approx(4 * alone_ns)


def test_work_fills_the_workers_like_water() -> None:
    assert water_level([(5, 1.0), (1, 1.0)], 0) == 1
    assert water_level([(5, 1.0), (1, 1.0)], 3) == 4
    assert water_level([(5, 1.0), (1, 1.0)], 8) == 7
    assert water_level([(0, 0.5)], 3) == 6


def test_the_margin_follows_mean_and_deviation() -> None:
    forecast = Forecast()
    for _ in range(2_000):
        forecast.learn(5 * MS)
    assert forecast.margin_ns == pytest.approx(5 * MS, rel=0.01)
    for number in range(2_000):
        forecast.learn((4 if number % 2 else 6) * MS)
    assert forecast.margin_ns == pytest.approx(9 * MS, rel=0.1)


def test_turned_off_nothing_is_judged() -> None:
    rig = learned()
    rig.scheduler.set_policy(0, ModelPolicy(max_batch=1, deadline_check=False))
    rig.submit(make(deadline_ns=rig.now + 1))
