import pytest

from tensord.daemon.scheduling import Lost, Request, RequestState
from tensord.ipc.errors import ModelUnavailable, PoisonousRequest, WorkerLost

from .rig import FAR_NS, MS, Rig, make


def kill(rig: Rig, worker_id: int = 1) -> Lost[Request]:
    """The worker dies and its successor has loaded everything."""
    lost = rig.scheduler.remove_worker(rig.now, worker_id)
    rig.scheduler.add_worker(worker_id, "cpu:0")
    for model in rig.scheduler.statistics().models:
        rig.scheduler.add_replica(rig.now, worker_id, model.key)
    return lost


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.model(max_batch=4)
    return rig


def test_lost_requests_run_again_each_alone_and_in_front(rig: Rig) -> None:
    suspects = [make() for _ in range(3)]
    rig.submit(*suspects)
    rig.only()
    rig.submit(*(others := [make() for _ in range(2)]))
    lost = kill(rig)
    assert (lost.requeued, lost.refused) == (suspects, [])
    assert [batch.requests for batch in rig.run_all()] == [[one] for one in suspects] + [others]


def test_every_batch_in_flight_is_lost(rig: Rig) -> None:
    rig.submit(*(make() for _ in range(8)))
    assert len(rig.dispatch()) == 2
    assert len(kill(rig).requeued) == 8


def test_a_suspect_has_the_worker_to_itself(rig: Rig) -> None:
    rig.submit(make(), make())
    rig.only()
    kill(rig)
    rig.submit(*(make() for _ in range(8)))
    assert len(rig.only().requests) == 1
    assert rig.dispatch() == []


def test_nobody_takes_a_suspect_along() -> None:
    rig = Rig()
    rig.model(max_batch=4)
    rig.submit(make())
    rig.only()
    kill(rig)
    rig.submit(high := make(priority=0))
    assert rig.only().requests == [high]


def test_a_suspect_waits_until_the_pipeline_is_empty(rig: Rig) -> None:
    rig.scheduler.add_worker(2, "cpu:0")
    rig.model(1, workers=(2,))
    rig.submit(make())
    rig.only()
    rig.submit(make(model=1))
    running = rig.only()
    rig.scheduler.remove_worker(rig.now, 1)
    rig.scheduler.add_replica(rig.now, 2, 0)
    rig.now += MS
    assert rig.dispatch() == []
    assert rig.scheduler.wake_at() == FAR_NS
    rig.complete(running)
    assert rig.only().requests[0].solo


def test_a_suspect_that_kills_again_is_poisonous(rig: Rig) -> None:
    rig.submit(innocent := make(), poison := make())
    rig.only()
    kill(rig)
    rig.complete(rig.only())
    assert rig.only().requests == [poison]
    ((refused, error),) = kill(rig).refused
    assert refused is poison
    assert isinstance(error, PoisonousRequest)
    assert error.data() == {"model": "m0", "attempts": 2}
    assert (innocent.state, poison.state) == (RequestState.DONE, RequestState.REFUSED)


def test_more_retries_let_a_suspect_kill_more_often() -> None:
    rig = Rig()
    rig.model(retries=3)
    rig.submit(make())
    for _ in range(3):
        rig.only()
        assert len(kill(rig).requeued) == 1
    rig.only()
    assert isinstance(kill(rig).refused[0][1], PoisonousRequest)


def test_without_retries_a_lost_request_is_refused_but_not_accused() -> None:
    rig = Rig()
    rig.model(retries=0)
    rig.submit(make())
    rig.only()
    assert isinstance(kill(rig).refused[0][1], WorkerLost)


def test_what_is_not_idempotent_never_runs_twice() -> None:
    rig = Rig()
    rig.model(idempotent=False)
    rig.submit(make())
    batch = rig.only()
    assert isinstance(kill(rig).refused[0][1], WorkerLost)
    assert rig.scheduler.retry_alone(rig.now, batch) == []


def test_lost_requests_wait_for_the_successor(rig: Rig) -> None:
    rig.submit(make())
    rig.only()
    rig.scheduler.expect_replica(rig.now, 0, True, "the worker restarts")
    rig.scheduler.remove_worker(rig.now, 1)
    assert rig.dispatch() == []
    assert rig.scheduler.queued == 1


def test_a_late_suspect_expires(rig: Rig) -> None:
    rig.submit(late := make(deadline_ns=2 * MS))
    rig.only()
    rig.now = 3 * MS
    assert rig.expired() == []
    assert kill(rig).requeued == [late]
    assert rig.expired() == [late]


def test_a_dead_workers_batch_cannot_be_completed(rig: Rig) -> None:
    rig.submit(make())
    stale = rig.only()
    kill(rig)
    rig.complete(stale)
    assert rig.scheduler.statistics().models[0].completed == 0
    assert rig.only().id != stale.id


def test_a_cancelled_suspect_does_not_block_the_worker(rig: Rig) -> None:
    rig.submit(suspect := make())
    rig.only()
    kill(rig)
    rig.submit(other := make())
    assert rig.scheduler.cancel(rig.now, suspect)
    assert rig.only().requests == [other]


def test_lost_requests_of_a_removed_model_are_unavailable(rig: Rig) -> None:
    rig.submit(make())
    rig.only()
    rig.scheduler.remove_model(rig.now, 0)
    assert isinstance(kill(rig).refused[0][1], ModelUnavailable)


def test_a_batch_that_its_model_failed_on_runs_again_one_by_one(rig: Rig) -> None:
    rig.submit(*(requests := [make() for _ in range(3)]))
    batch = rig.only()
    rig.complete(batch)
    assert rig.scheduler.retry_alone(rig.now, batch) == requests
    assert [again.requests for again in rig.run_all()] == [[one] for one in requests]
    model = rig.scheduler.statistics().models[0]
    assert (model.submitted, model.completed, model.requeued) == (3, 3, 3)


def test_a_single_request_that_its_model_failed_on_is_not_tried_again(rig: Rig) -> None:
    rig.submit(make())
    rig.complete(batch := rig.only())
    assert rig.scheduler.retry_alone(rig.now, batch) == []


def test_only_one_worker_empties_its_pipeline_for_a_suspect() -> None:
    rig = Rig()
    rig.scheduler.add_worker(2, "cpu:1")
    rig.scheduler.add_worker(3, "cpu:2")
    rig.model(0, workers=(1, 2, 3), window_ns=0)
    rig.model(1, workers=(1, 2), max_batch=1, window_ns=0)
    rig.submit(*(make(model=1) for _ in range(2)))
    running = rig.dispatch()
    rig.submit(make(model=0))
    assert rig.only().worker == 3
    rig.scheduler.remove_worker(rig.now, 3)
    assert rig.dispatch() == []
    assert sum(worker.reserved for worker in rig.scheduler.statistics().workers) == 1
    rig.submit(*(make(model=1) for _ in range(2)))
    assert len(rig.dispatch()) == 1
    for batch in running:
        rig.complete(batch)
    assert any(batch.requests[0].solo for batch in rig.dispatch())


def test_a_reserved_worker_leaves_the_rest_to_others_in_the_same_dispatch() -> None:
    """Worker 1 is asked first, while worker 2 is still the better one for model 0."""
    rig = Rig()
    rig.scheduler.add_worker(2, "cpu:1")
    rig.scheduler.add_worker(3, "cpu:2")
    rig.model(0, workers=(1, 2), window_ns=0)
    rig.model(1, workers=(3,), window_ns=0)
    rig.model(2, workers=(1,), max_batch=64)
    for worker, request in ((1, make(model=2, rows=64)), (2, make(model=0)), (3, make(model=1, priority=0))):
        rig.submit(request)
        assert rig.only().worker == worker
    rig.scheduler.remove_worker(rig.now, 3)
    rig.scheduler.add_replica(rig.now, 2, 1)
    rig.submit(request := make(model=0))
    batch = rig.only()
    assert (batch.worker, batch.requests) == (1, [request])
    assert rig.scheduler.statistics().workers[1].reserved
