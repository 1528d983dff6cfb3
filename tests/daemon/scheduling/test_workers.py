import pytest

from tensord.daemon.scheduling import Batch, ModelPolicy, ReleaseReason, Request
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.scheduling.workers import Worker

from .rig import make

DEPTH = 2


@pytest.fixture
def worker() -> Worker:
    return Worker(4, "cpu:0", DEPTH)


def batch(number: int, *, model: int = 0, predicted_ns: int = 100, priority: int = 1) -> Batch[Request]:
    queue = ModelQueue(model, f"m{model}", ModelPolicy(), idempotent=True)
    return Batch(number, queue, "b", 4, [make(model=model)], 1, ReleaseReason.IDLE, 0, predicted_ns, priority)


def test_a_new_worker_is_idle(worker: Worker) -> None:
    assert (worker.id, worker.device, worker.models, worker.in_flight) == (4, "cpu:0", {}, {})
    assert (worker.outstanding_ns, worker.used_at, worker.reserved_for) == (0, 0, None)
    assert (worker.weight, worker.health.factor, worker.failed) == (1.0, 1.0, 0)
    assert worker.has_place()


def test_a_worker_has_place_until_its_pipeline_is_full(worker: Worker) -> None:
    for number in range(1, DEPTH + 1):
        assert worker.has_place()
        worker.start(batch(number), 1.0)
    assert not worker.has_place()
    worker.pipeline_depth += 1
    assert worker.has_place()


def test_what_is_in_flight_beyond_a_smaller_pipeline_runs_to_its_end(worker: Worker) -> None:
    started = [batch(1), batch(2)]
    for one in started:
        worker.start(one, 1.0)
    worker.pipeline_depth = 1
    assert worker.finish(started[0])
    assert not worker.has_place()
    assert worker.finish(started[1])
    assert worker.has_place()


def test_work_in_flight_is_counted_from_start_to_finish(worker: Worker) -> None:
    first, second = batch(8, predicted_ns=100), batch(9, predicted_ns=30)
    worker.start(first, 1.0)
    worker.start(second, 1.0)
    assert (list(worker.in_flight), worker.outstanding_ns, worker.used_at) == ([8, 9], 130, 9)
    assert worker.finish(first)
    assert (list(worker.in_flight), worker.outstanding_ns, worker.used_at) == ([9], 30, 9)
    assert worker.finish(second)
    assert (worker.in_flight, worker.outstanding_ns) == ({}, 0)


def test_a_batch_that_is_not_in_flight_here_changes_nothing(worker: Worker) -> None:
    running = batch(1)
    worker.start(running, 1.0)
    assert not worker.finish(batch(2))
    assert worker.finish(running)
    assert not worker.finish(running)
    assert worker.outstanding_ns == 0


def test_a_reservation_holds_until_the_pipeline_is_empty(worker: Worker) -> None:
    first, suspect = batch(1), make()
    worker.start(first, 1.0)
    worker.reserved_for = suspect
    assert not worker.has_place()
    worker.start(alone := batch(2), 1.0)
    worker.finish(first)
    assert worker.reserved_for is suspect
    worker.finish(alone)
    assert worker.reserved_for is None
    assert worker.has_place()


def test_a_batch_is_charged_to_its_model_by_weight_in_its_class_alone(worker: Worker) -> None:
    worker.start(batch(1, model=7, predicted_ns=100, priority=2), 4.0)
    assert [clock.start_tag(7) for clock in worker.clocks] == [0.0, 0.0, 25.0]
    assert worker.clocks[2].start_tag(8) == 0.0


def test_a_removed_model_is_forgotten_and_what_runs_of_it_ends(worker: Worker) -> None:
    for key in (7, 8):
        worker.models[key] = ModelQueue(key, f"m{key}", ModelPolicy(), idempotent=True)
    running = [batch(number, model=key, priority=number) for number, key in enumerate((7, 8, 7))]
    for one in running:
        worker.start(one, 1.0)
    worker.remove_model(7)
    assert list(worker.models) == [8]
    assert [clock.start_tag(7) for clock in worker.clocks] == [0.0, 0.0, 0.0]
    assert worker.clocks[1].start_tag(8) == 100.0
    assert worker.finish(running[0])
    assert list(worker.in_flight) == [1, 2]
