"""Admission: which requests may queue, and what the others are told.

The checks stand in the order of their precedence: quota of the user, deadline feasible as predicted (feasibility.py),
concurrency limit (concurrency.py), bounds of the queue. Each refusal has its own error, and its retry-after is the time
after which the same request would be accepted if nobody else came, as predicted.

Most requests come to a queue that is short, and give it time enough. These are not looked at closer (Scheduler.submit):
while no more rows and bytes wait than one tenant may have, every bound holds, and a deadline beyond twice what such a
queue would take is met. The first full check after this region was given up draws it anew.
"""

from typing import Final

from tensord.ipc.errors import (
    ConcurrencyLimit,
    DeadlineExceeded,
    DeadlineInfeasible,
    ModelUnavailable,
    QueueBytesFull,
    QueueFull,
    QueueRowsFull,
    TenantQueueFull,
    TensordError,
    TooManyTenantRows,
)

from .concurrency import GradientLimit
from .feasibility import drain_ns, level_ns, own_batch_ns, rows_before
from .model import ModelQueue
from .request import Request
from .users import User

_NS_PER_MS: Final = 1_000_000


def admit(
    now: int, request: Request, model: ModelQueue, user: User, replaced: Request | None = None
) -> TensordError | None:
    """None where the request may queue; it takes the place of `replaced`."""
    if request.deadline_ns <= now:
        return deadline_exceeded(now, request, "arrival")
    if not model.replicas and not model.expected:
        return unserved(model)
    rows = request.rows - (replaced.rows if replaced else 0)
    if user.rows + rows > user.policy.rows_max:
        hint_ns = drain_ns(now, model, model.load(user)[1])
        return _later(TooManyTenantRows(request.rows, user.policy.rows_max), hint_ns)
    error = infeasible(now, request, model, replaced)
    if error is None and replaced is None:
        error = _too_many_inside(now, model)
    if error is None:
        error = _queue_full(now, request, model, user, replaced)
    if error is None:
        _draw_ease(request, model)
    return error


def infeasible(now: int, request: Request, model: ModelQueue, replaced: Request | None) -> TensordError | None:
    """Predict when the request will be answered, and refuse it where that is beyond its deadline."""
    request.finish_ns = 0
    if not model.policy.deadline_check or not model.replicas:
        return None
    forecast = model.forecast
    device = next(iter(model.replicas.values())).device
    before = rows_before(request, model)
    before_ns = before * forecast.row_ns(model, model.buckets.get(request.bucket), device) if before else 0.0
    wait_ns = level_ns(now, model, before_ns)
    own_ns = own_batch_ns(request, model, waits=wait_ns > 0)
    if own_ns is None:
        return None
    request.finish_ns = now + int(wait_ns + own_ns)
    if replaced is not None and replaced.finish_ns > now:
        request.finish_ns = min(request.finish_ns, replaced.finish_ns)
    needed_ns = request.finish_ns - now
    allowed_ns = request.deadline_ns - now
    if before < model.batching.rows_max and model.batching.defers(model.costs.of(request.bucket, device)):
        request.finish_ns = 0  # it is late on purpose, not by an error: none to be learned, and none to be feared
    elif wait_ns:
        needed_ns += forecast.margin_ns
    if needed_ns <= allowed_ns:
        return None
    if forecast.probe(now):
        return None
    error = DeadlineInfeasible(model.name, round(needed_ns / _NS_PER_MS, 3), round(allowed_ns / _NS_PER_MS, 3))
    return _later(error, needed_ns - allowed_ns) if own_ns <= allowed_ns else error


def _too_many_inside(now: int, model: ModelQueue) -> TensordError | None:
    if not model.policy.adaptive_concurrency:
        return None
    limit = concurrency_limit(model).limit
    inside = model.queued + model.running
    if inside < limit:
        return None
    rows = sum(model.class_rows) * (inside - limit + 1) / model.queued if model.queued else 0
    return _later(ConcurrencyLimit(model.name, limit), drain_ns(now, model, rows))


def concurrency_limit(model: ModelQueue) -> GradientLimit:
    """The model's limit, from its first use on."""
    if model.concurrency is None:
        model.concurrency = GradientLimit(pipeline_rows(model))
    return model.concurrency


def pipeline_rows(model: ModelQueue) -> int:
    """What the model's workers can hold: so many requests of one row must be let in, or batches would not fill."""
    depths = sum([worker.pipeline_depth for worker in model.replicas.values()])
    return model.policy.max_batch * max(1, depths)


def spare_rows(model: ModelQueue) -> int:
    """Rows that may wait without a look at the concurrency limit: no request has less than one, in workers or here."""
    return max(0, concurrency_limit(model).limit - pipeline_rows(model))


def _queue_full(
    now: int, request: Request, model: ModelQueue, user: User, replaced: Request | None
) -> TensordError | None:
    """The bounds of the model's queue, and of each what one user may have of it: at least one request."""
    policy = model.policy
    requests, rows, nbytes = 1, request.rows, request.nbytes
    if replaced is not None:
        requests, rows, nbytes = 0, rows - replaced.rows, nbytes - replaced.nbytes
    waiting_rows = sum(model.class_rows)
    error: TensordError | None = None
    if model.queued + requests > policy.queue_max:
        error = QueueFull(model.name, policy.queue_max)
    elif waiting_rows + rows > policy.queue_rows_max:
        error = QueueRowsFull(model.name, request.rows, policy.queue_rows_max)
    elif model.nbytes + nbytes > policy.queue_bytes_max:
        error = QueueBytesFull(model.name, request.nbytes, policy.queue_bytes_max)
    if error is not None:
        return _later(error, drain_ns(now, model, waiting_rows))
    own_requests, own_rows, own_bytes = model.load(user)
    percent = policy.tenant_queue_percent
    if own_requests + requests > 1 and (
        (own_requests + requests) * 100 > policy.queue_max * percent
        or (own_rows + rows) * 100 > policy.queue_rows_max * percent
        or (own_bytes + nbytes) * 100 > policy.queue_bytes_max * percent
    ):
        return _later(TenantQueueFull(model.name, percent), drain_ns(now, model, min(waiting_rows, _fair(model, user))))
    return None


def _fair(model: ModelQueue, user: User) -> float:
    """Rows that will have run when the last of a user's have, if all others keep sending."""
    rows = model.load(user)[1]
    return rows * model.weights / model.shares[user.name].weight if model.crowded else rows


def _draw_ease(request: Request, model: ModelQueue) -> None:
    """Say within which bounds the next requests need no full check.

    For its time everything is taken at its worst, twice: full pipelines, all models of the workers waiting.
    """
    policy, replicas = model.policy, model.replicas
    model.ease_rows = 0
    if not replicas:
        return
    rows = min(
        min(policy.queue_max, policy.queue_rows_max) * policy.tenant_queue_percent // 100,
        2 * sum(model.class_rows) + 4 * policy.max_batch,
    )
    if policy.adaptive_concurrency:
        rows = min(rows, spare_rows(model))
    if policy.deadline_check:
        worker = next(iter(replicas.values()))
        if not model.costs.knows(request.bucket, worker.device):
            return
        batch_ns = model.costs.of(request.bucket, worker.device).predicted_ns(policy.max_batch)
        row_ns = model.forecast.row_ns(model, model.buckets.get(request.bucket), worker.device)
        weights = sum([other.policy.weight for other in worker.models.values()])
        flight_ns = max([worker.outstanding_ns for worker in replicas.values()])
        flight_ns = max(flight_ns, worker.pipeline_depth * batch_ns)
        work_ns = rows * row_ns * weights / policy.weight / len(replicas)
        model.ease_ns = 2 * int(flight_ns + work_ns + batch_ns + model.forecast.margin_ns)
    else:
        model.ease_ns = 0
    model.ease_rows = rows
    model.ease_bytes = policy.queue_bytes_max * policy.tenant_queue_percent // 100


def _later(error: TensordError, wait_ns: float) -> TensordError:
    error.retry_after_ms = max(1, int(wait_ns) // _NS_PER_MS)
    return error


def deadline_exceeded(at_ns: int, request: Request, stage: str) -> DeadlineExceeded:
    """The error of a request that came, still waits, or would be answered at `at_ns`, after its deadline."""
    return DeadlineExceeded(stage, round((at_ns - request.deadline_ns) / _NS_PER_MS, 3))


def unserved(model: ModelQueue) -> ModelUnavailable:
    """The error of a request that nobody will ever take."""
    return ModelUnavailable(model.name, model.reason)
