from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.scheduling.policy import ModelPolicy
from tensord.daemon.scheduling.request import Batch, ReleaseReason, Request, RequestState

from .rig import Rig, make


def test_a_new_request_is_its_callers() -> None:
    request = Request(model=3, bucket="b", tenant="t", priority=2, rows=5, arrival_ns=7, deadline_ns=11, session=13)
    callers = (request.model, request.bucket, request.tenant, request.priority, request.rows)
    assert (*callers, request.arrival_ns, request.deadline_ns, request.session) == (3, "b", "t", 2, 5, 7, 11, 13)
    schedulers = (request.state, request.seq, request.attempts, request.solo, request.home)
    assert schedulers == (RequestState.NEW, 0, 0, False, None)


def test_a_request_has_no_dictionary() -> None:
    assert not hasattr(make(), "__dict__")


def test_a_request_goes_from_new_over_queued_and_running_to_done() -> None:
    rig = Rig()
    rig.model()
    request = make()
    states = [request.state]
    rig.submit(request)
    states.append(request.state)
    assert request.home is not None
    batch = rig.only()
    states.append(request.state)
    assert request.home is None
    rig.complete(batch)
    states.append(request.state)
    assert states == [RequestState.NEW, RequestState.QUEUED, RequestState.RUNNING, RequestState.DONE]


def test_a_batch_names_its_model_though_that_is_gone() -> None:
    queue = ModelQueue(7, "seven", ModelPolicy(), idempotent=True)
    requests = [make(model=7, rows=2), make(model=7)]
    batch = Batch(5, queue, "b", 1, requests, 3, ReleaseReason.WINDOW, 100, 40, 2)
    queue.removed = True
    assert (batch.id, batch.model, batch.queue, batch.bucket, batch.worker) == (5, 7, queue, "b", 1)
    assert (batch.requests, batch.rows) == (requests, 3)
    assert (batch.reason, batch.released_ns, batch.predicted_ns, batch.priority) == (ReleaseReason.WINDOW, 100, 40, 2)
    assert not hasattr(batch, "__dict__")


def test_a_reason_reads_as_its_word() -> None:
    assert [str(reason) for reason in ReleaseReason] == ["full", "idle", "window", "deadline", "drain"]
