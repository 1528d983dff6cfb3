"""Admission: which requests may queue, and what the others are told."""

from typing import Final

from tensord.ipc.errors import DeadlineExceeded, ModelUnavailable, QueueFull, TensordError

from .model import ModelQueue
from .request import Request

_NS_PER_MS: Final = 1_000_000


def admit(now: int, request: Request, model: ModelQueue) -> TensordError | None:
    """None where the request may queue. The checks stand in the order of their precedence."""
    if request.deadline_ns <= now:
        return deadline_exceeded(now, request, "arrival")
    if model.queued >= model.policy.queue_max:
        error = QueueFull(model.name, model.policy.queue_max)
        error.retry_after_ms = max(1, drain_ns(model) // _NS_PER_MS)
        return error
    if not model.replicas and not model.expected:
        return unserved(model)
    return None


def deadline_exceeded(now: int, request: Request, stage: str) -> DeadlineExceeded:
    """The error of a request that came, or still waits, after its deadline."""
    return DeadlineExceeded(stage, round((now - request.deadline_ns) / _NS_PER_MS, 3))


def unserved(model: ModelQueue) -> ModelUnavailable:
    """The error of a request that nobody will ever take."""
    return ModelUnavailable(model.name, model.reason)


def drain_ns(model: ModelQueue) -> int:
    """Predicted time until all that waits for the model has run in full batches on its replicas, in nanoseconds.

    Other models on the same workers are left out: this is a hint for a retry, not a promise.
    """
    rows_max = model.policy.max_batch
    devices = [worker.device for worker in model.replicas.values()] or [""]
    total_ns = 0
    for bucket in model.waiting:
        cost = model.costs.of(bucket.key, devices[0])
        batches, rest = divmod(bucket.rows, rows_max)
        total_ns += batches * cost.predicted_ns(rows_max) + (cost.predicted_ns(rest) if rest else 0)
    return total_ns // len(devices)
