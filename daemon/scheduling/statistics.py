"""What the scheduler counts, as values: admin pages, metrics and tests read only these."""

from dataclasses import dataclass

from .model import ModelQueue
from .request import ReleaseReason
from .users import User
from .workers import Worker


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """One model. Every accepted request is in exactly one place:

    submitted = queued + running + completed + expired + cancelled + refused_accepted
    """

    key: int
    name: str
    replicas: int
    """Workers that have it loaded."""
    queued_requests: int
    """Requests that wait now."""
    queued_rows: int
    """Rows that wait now."""
    queued_bytes: int
    """Bytes of tensors of the requests that wait now."""
    running_requests: int
    """Requests in flight on workers now."""
    concurrency_limit: int
    """Requests that may be inside, waiting or running, as the gradient allows; 0 where that is off or unused yet."""
    margin_ns: int
    """What a deadline must leave beyond the predicted finish, in nanoseconds."""
    submitted: int
    """Requests accepted since the model was added."""
    completed: int
    """Requests whose batch came back, with results or an error, and that did not run again."""
    expired: int
    """Accepted requests whose deadline passed while they waited, or would have before the answer."""
    cancelled: int
    """Accepted requests removed by cancel() while they waited."""
    requeued: int
    """Times that a request was queued again, because its worker died or the model failed on its batch."""
    refused: dict[int, int]
    """Requests that got an error from the scheduler, by error code: at submit() or after they were accepted."""
    refused_accepted: int
    """Of those, the ones that had been accepted."""
    released: dict[ReleaseReason, int]
    """Batches, by the reason of their release."""
    released_rows: int
    """Rows of all of those: divided by their number, the mean batch."""
    batch_rows_max: int
    """Rows of one batch at most, now: max_batch, or what the batching `aimd` has found."""
    window_ns: int
    """How long a request waits for others at most, now, in nanoseconds; deadlines apart."""
    device_ns: int
    """Device time of its completed batches, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """One worker."""

    worker_id: int
    device: str
    models: int
    """Models that have a replica here."""
    in_flight_batches: int
    """Batches released to it and not completed."""
    outstanding_ns: int
    """Predicted device time of those, in nanoseconds."""
    reserved: bool
    """It empties its pipeline for a suspect request, or runs one."""
    weight: float
    """The device's share of batches by weighted round robin."""
    health: float
    """Of the device, above 0 to 1: it errs, or is slower than it was, where this is less (health.py)."""
    failed_batches: int
    """Batches that failed through the fault of the device or of the daemon."""


@dataclass(frozen=True, slots=True)
class UserStatistics:
    """One user, over all models and all names that its clients give. Idle ones may have been forgotten."""

    user: str
    tenant_class: str
    """Name of the policy that it is under."""
    queued_rows: int
    """Rows that wait now."""
    running_rows: int
    """Rows in flight on workers now."""
    device_ns: int
    """Its part, by rows, of the device time of completed batches, in nanoseconds."""
    refused: int
    """Requests that got an error from the scheduler, accepted before or not; those that expired apart."""


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """The whole scheduler."""

    queued_requests: int
    """Requests that wait now, all models."""
    queued_rows: int
    """Rows that wait now."""
    running_requests: int
    """Requests in flight on workers now, those of removed models apart."""
    running_batches: int
    """Batches in flight on workers now."""
    draining: bool
    """drain() was called."""
    models: tuple[ModelStatistics, ...]
    workers: tuple[WorkerStatistics, ...]
    users: tuple[UserStatistics, ...]


def model_statistics(model: ModelQueue) -> ModelStatistics:
    """A model's counters now."""
    return ModelStatistics(
        key=model.key,
        name=model.name,
        replicas=len(model.replicas),
        queued_requests=model.queued,
        queued_rows=sum(model.class_rows),
        queued_bytes=model.nbytes,
        running_requests=model.running,
        concurrency_limit=model.concurrency.limit if model.concurrency else 0,
        margin_ns=model.forecast.margin_ns,
        submitted=model.submitted,
        completed=model.completed,
        expired=model.expired,
        cancelled=model.cancelled,
        requeued=model.requeued,
        refused=dict(model.refused),
        refused_accepted=model.refused_accepted,
        released=dict(model.released),
        released_rows=model.released_rows,
        batch_rows_max=model.batching.rows_max,
        window_ns=model.batching.hold_ns(model.costs.latest, model.batching.rows_max),
        device_ns=model.device_ns,
    )


def worker_statistics(worker: Worker) -> WorkerStatistics:
    """A worker's counters now."""
    return WorkerStatistics(
        worker_id=worker.id,
        device=worker.device,
        models=len(worker.models),
        in_flight_batches=len(worker.in_flight),
        outstanding_ns=worker.outstanding_ns,
        reserved=worker.reserved_for is not None,
        weight=worker.weight,
        health=worker.health.factor,
        failed_batches=worker.failed,
    )


def user_statistics(user: User) -> UserStatistics:
    """A user's counters now."""
    return UserStatistics(
        user=user.name,
        tenant_class=user.policy.name,
        queued_rows=user.rows - user.running_rows,
        running_rows=user.running_rows,
        device_ns=user.device_ns,
        refused=user.refused,
    )
