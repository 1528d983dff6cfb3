import pytest

from tensord.daemon.scheduling import Request
from tensord.daemon.scheduling.concurrency import GradientLimit
from tensord.ipc.errors import ConcurrencyLimit, TensordError

from .rig import MS, Rig
from .virtual import BATCH_NS, poisson, serve


def learn(limit: GradientLimit, latency_ms: float, inside: int, times: int) -> int:
    for _ in range(times):
        limit.learn(latency_ms * MS, inside, least=8, most=1_000, pipeline_ns=10 * MS)
    return limit.limit


def test_it_grows_while_latency_stays() -> None:
    limit = GradientLimit(8)
    assert learn(limit, 5, 1_000, 20) > learn(GradientLimit(8), 5, 1_000, 10) > 16


def test_it_shrinks_in_proportion_when_latency_rises() -> None:
    limit = GradientLimit(8)
    before = learn(limit, 5, 1_000, 100)
    assert learn(limit, 50, 1_000, 10) < before / 2


def test_it_stays_where_it_is_not_used() -> None:
    limit = GradientLimit(8)
    before = learn(limit, 5, 1_000, 10)
    assert learn(limit, 5, before // 2 - 1, 10) == before


def test_it_keeps_its_bounds() -> None:
    limit = GradientLimit(8)
    assert learn(limit, 5, 10_000, 5_000) == 1_000
    assert learn(limit, 10_000, 10_000, 500) == 8


def test_an_overload_that_lasts_does_not_raise_its_own_yardstick() -> None:
    """Latency is what the limit lets in: 1 ms per request inside."""
    limit = GradientLimit(8)
    for _ in range(5_000):
        latency_ms = limit.limit * 1.0
        limit.learn(latency_ms * MS, limit.limit, least=8, most=1_000, pipeline_ns=10 * MS)
    assert limit.limit < 50


def test_overload_is_refused_with_the_limit_and_the_device_stays_busy() -> None:
    rig = Rig()
    rig.model(max_batch=16, adaptive_concurrency=True)
    arrivals = poisson(1, BATCH_NS / 16 / 3, 300 * 16 * 3)
    outcome = serve(rig.scheduler, arrivals, lambda _: BATCH_NS)
    (model,) = rig.scheduler.statistics().models
    assert {type(error) for _, error in outcome.refused} == {ConcurrencyLimit}
    assert outcome.queued_most < 300
    assert 32 <= model.concurrency_limit < 300
    assert len(outcome.done) > 0.95 * 300 * 16
    assert all(error.retry_after_ms for _, error in outcome.refused)


def test_below_the_capacity_nobody_is_refused() -> None:
    rig = Rig()
    rig.model(max_batch=16, adaptive_concurrency=True)
    outcome = serve(rig.scheduler, poisson(1, BATCH_NS / 16 / 0.7, 5_000), lambda _: BATCH_NS)
    assert outcome.refused == []


def test_turned_off_it_limits_nothing_and_forgets() -> None:
    rig = Rig()
    rig.model(max_batch=16, adaptive_concurrency=True)
    serve(rig.scheduler, poisson(1, BATCH_NS / 16 / 3, 5_000), lambda _: BATCH_NS)
    rig.set_policy(max_batch=16)
    assert rig.scheduler.statistics().models[0].concurrency_limit == 0


@pytest.mark.parametrize("load", [0.7, 3.0])
def test_the_limit_holds_although_few_are_looked_at_closely(load: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.model(max_batch=16, adaptive_concurrency=True)
    model = rig.scheduler._models[0]
    submit = rig.scheduler.submit
    easy: list[bool] = []

    def watched(now: int, request: Request) -> TensordError | None:
        limit = model.concurrency.limit if model.concurrency else 1
        inside = model.queued + model.running
        easy.append(sum(model.class_rows) + request.rows <= model.ease_rows)
        error = submit(now, request)
        assert (error is None) == (inside < limit)
        return error

    monkeypatch.setattr(rig.scheduler, "submit", watched)
    serve(rig.scheduler, poisson(1, BATCH_NS / 16 / load, 5_000), lambda _: BATCH_NS)
    assert len(easy) == 5_000
    if load < 1:
        assert sum(easy) > 0.8 * len(easy)
