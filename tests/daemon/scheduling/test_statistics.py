from dataclasses import FrozenInstanceError

import pytest

from tensord.daemon.scheduling import ReleaseReason
from tensord.daemon.scheduling.statistics import (
    ModelStatistics,
    SchedulerStatistics,
    WorkerStatistics,
    model_statistics,
    worker_statistics,
)
from tensord.ipc.errors import QueueFull

from .rig import MS, Rig, make


def model_of(rig: Rig) -> ModelStatistics:
    (model,) = rig.scheduler.statistics().models
    return model


def adds_up(model: ModelStatistics) -> bool:
    left = model.completed + model.expired + model.cancelled + model.refused_accepted
    return model.submitted == model.queued_requests + model.running_requests + left


def test_a_new_model_has_counted_nothing() -> None:
    rig = Rig()
    rig.model(3, workers=())
    assert model_of(rig) == ModelStatistics(
        key=3,
        name="m3",
        replicas=0,
        queued_requests=0,
        queued_rows=0,
        queued_bytes=0,
        running_requests=0,
        concurrency_limit=0,
        margin_ns=0,
        submitted=0,
        completed=0,
        expired=0,
        cancelled=0,
        requeued=0,
        refused={},
        refused_accepted=0,
        released={},
        released_rows=0,
        batch_rows_max=32,
        window_ns=500_000,
        device_ns=0,
    )


def test_every_accepted_request_is_in_exactly_one_place() -> None:
    """One request ends in each way that there is, and the sum is right after each event."""
    rig = Rig()
    rig.model(max_batch=2, queue_max=4, retries=0)
    seen = []

    def look() -> None:
        seen.append(adds_up(model_of(rig)))

    rig.submit(make(), make(), make(), make())
    look()
    done, lost = rig.dispatch()
    look()
    rig.submit(cancelled := make(rows=3), make(rows=3, deadline_ns=MS), make(rows=3), make(rows=3))
    refused = rig.scheduler.submit(rig.now, make())
    look()
    rig.complete(done, 5 * MS)
    look()
    rig.scheduler.cancel(rig.now, cancelled)
    look()
    rig.now = MS
    rig.scheduler.expire(rig.now)
    look()
    rig.scheduler.remove_worker(rig.now, lost.worker)
    look()
    model = model_of(rig)
    assert seen == [True] * 7
    assert (model.submitted, model.queued_requests, model.queued_rows, model.running_requests) == (8, 2, 6, 0)
    assert (model.completed, model.cancelled, model.expired, model.refused_accepted) == (2, 1, 1, 2)
    assert isinstance(refused, QueueFull)
    assert model.refused[refused.code] == 1
    assert sum(model.refused.values()) == 1 + model.refused_accepted
    assert (model.replicas, model.released, model.device_ns) == (0, {ReleaseReason.FULL: 2}, 5 * MS)


def test_a_request_that_runs_again_is_counted_as_requeued_and_not_as_completed() -> None:
    rig = Rig()
    rig.model()
    rig.submit(make(), make())
    rig.complete(batch := rig.only())
    rig.scheduler.retry_alone(rig.now, batch)
    model = model_of(rig)
    assert (model.requeued, model.completed, model.queued_requests) == (2, 0, 2)
    assert adds_up(model)


def test_a_worker_is_told_with_what_it_has_in_flight() -> None:
    rig = Rig()
    rig.model(0)
    rig.model(1)
    rig.submit(make())
    batch = rig.only()
    (worker,) = rig.scheduler.statistics().workers
    assert worker == WorkerStatistics(
        worker_id=1,
        device="cpu:0",
        models=2,
        in_flight_batches=1,
        outstanding_ns=batch.predicted_ns,
        reserved=False,
        weight=1.0,
        health=1.0,
        failed_batches=0,
    )
    rig.scheduler._workers[1].reserved_for = make()
    assert worker_statistics(rig.scheduler._workers[1]).reserved


def test_the_whole_is_the_sum_of_its_models() -> None:
    rig = Rig()
    rig.scheduler.add_worker(2, "cpu:1")
    rig.model(0, max_batch=1)
    rig.model(1, workers=(2,), max_batch=1)
    rig.submit(*(make(model=model, rows=2) for model in (0, 0, 0, 1, 1, 1, 1)))
    assert len(rig.dispatch()) == 4
    whole = rig.scheduler.statistics()
    assert whole == SchedulerStatistics(
        queued_requests=3,
        queued_rows=6,
        running_requests=4,
        running_batches=4,
        draining=False,
        models=whole.models,
        workers=whole.workers,
        users=whole.users,
    )
    assert [model.queued_requests for model in whole.models] == [1, 2]
    rig.scheduler.drain(rig.now)
    assert rig.scheduler.statistics().draining


def test_what_was_read_does_not_change_with_the_model() -> None:
    rig = Rig()
    rig.model()
    queue = rig.scheduler._models[0]
    before = model_statistics(queue)
    rig.submit(make())
    rig.complete(rig.only())
    assert (before.submitted, before.released, before.refused) == (0, {}, {})
    assert model_statistics(queue).released == {ReleaseReason.IDLE: 1}
    with pytest.raises(FrozenInstanceError):
        before.submitted = 1  # type: ignore[misc]
