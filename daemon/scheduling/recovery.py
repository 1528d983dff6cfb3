"""What becomes of the requests that a worker held when it died."""

from typing import Generic

from tensord.ipc.errors import PoisonousRequest, TensordError, WorkerLost

from .admission import deadline_exceeded, unserved
from .model import ModelQueue
from .request import Batch, R, Request, RequestState


class Lost(Generic[R]):
    """The requests that were in flight on a worker that is gone."""

    __slots__ = ("refused", "requeued")

    def __init__(self, requeued: list[R], refused: list[tuple[R, TensordError]]) -> None:
        self.requeued = requeued
        """They run again, each alone, as soon as a replica can take them."""
        self.refused = refused
        """They get this error now."""


def verdict(request: Request, model: ModelQueue) -> TensordError | None:
    """Count the death against the request; None: it runs again, alone.

    Nobody knows which request of a batch killed the worker, so all of them become suspects. A suspect runs
    with nothing else in flight on its worker: the next death convicts it beyond doubt.
    """
    request.attempts += 1
    if not model.idempotent:
        return WorkerLost(model.name)
    if request.attempts > model.policy.retries:
        return PoisonousRequest(model.name, request.attempts) if request.solo else WorkerLost(model.name)
    if model.removed:
        return unserved(model)
    request.solo = True
    return None


def take_back(batch: Batch[R]) -> Lost[R]:
    """Requeue or refuse the requests of a batch whose worker is gone."""
    model = batch.queue
    lost: Lost[R] = Lost([], [])
    for request in batch.requests:
        error = verdict(request, model)
        if error is None:
            model.push(request)
            lost.requeued.append(request)
        else:
            model.users.of(request.tenant).rows -= request.rows
            lost.refused.append((request, model.refuse_accepted(request, error)))
    for user, rows in batch.users.items():
        user.running_rows -= rows
    model.running -= len(batch.requests)
    model.requeued += len(lost.requeued)
    return lost


def run_alone(batch: Batch[R]) -> list[R]:
    """Queue the requests of a completed batch again, each alone, to find the one that its model fails on."""
    model = batch.queue
    if len(batch.requests) == 1 or model.removed or not model.idempotent or not model.policy.retries:
        return []
    for request in batch.requests:
        request.solo = True
        model.push(request)
    for user, rows in batch.users.items():
        user.rows += rows
    model.completed -= len(batch.requests)
    model.requeued += len(batch.requests)
    return list(batch.requests)


def refuse_queued(now: int, model: ModelQueue) -> list[tuple[Request, TensordError]]:
    """Empty the queue of a model that nobody serves. Who was too late anyway is told so."""
    refused: list[tuple[Request, TensordError]] = []
    for request in model.take_all(RequestState.REFUSED):
        late = request.deadline_ns <= now
        error = deadline_exceeded(now, request, "queue") if late else unserved(model)
        refused.append((request, model.refuse_accepted(request, error)))
    return refused
