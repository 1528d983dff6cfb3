"""Shedding at dispatch, and what the guards against overload learn from each batch."""

from collections.abc import Hashable
from typing import Any, Final

from tensord.ipc.errors import QueueDelay, TensordError

from .admission import concurrency_limit, deadline_exceeded, pipeline_rows
from .feasibility import drain_ns
from .model import ModelQueue
from .queues import BucketQueue
from .request import Batch, Request, RequestState
from .tenants import Account
from .workers import Worker

Evicted = list[tuple[Request, TensordError]]

EASE_BATCHES: Final = 16
"""Batches after which the region of admission without full checks is drawn again."""


def shed(now: int, worker: Worker, leader: Request) -> Evicted:
    """Take what is not worth starting out of the bucket that `leader` is about to leave for `worker`."""
    assert leader.home is not None
    bucket = leader.home.level.bucket
    evicted: Evicted = []
    if bucket.model.policy.deadline_check:
        evicted += _hopeless(now, bucket, worker)
    if bucket.model.standing and bucket.count:
        evicted += _delayed(now, bucket, worker)
    return evicted


def _hopeless(now: int, bucket: BucketQueue, worker: Worker) -> Evicted:
    """Those that the next batch would answer too late: started, they would only make others late as well.

    Not by an estimate that nothing has confirmed for a while, as it would never be corrected again.
    """
    model = bucket.model
    evicted: Evicted = []
    if model.ease_rows and bucket.earliest_deadline_ns > now + model.ease_ns:
        return evicted  # twice what the pipelines and a batch take at their worst
    if model.forecast.is_stale(now) or not model.costs.knows(bucket.key, worker.device):
        return evicted
    cost, wait_ns = model.costs.of(bucket.key, worker.device), worker.remaining_ns(now)
    while bucket.count:
        finish_ns = now + wait_ns + cost.predicted_ns(min(bucket.rows, model.batching.rows_max))
        late = model.take_late(bucket, finish_ns - 1)
        if not late:
            break
        evicted += [(request, deadline_exceeded(finish_ns, request, "queue")) for request in late]
        learn_late(model, late, finish_ns)
    return evicted


def codel_target_ns(model: ModelQueue, bucket: Hashable, device: str) -> int:
    """What CoDel allows requests to wait: never less than batching itself makes them."""
    policy = model.policy
    batch_ns = model.costs.of(bucket, device).predicted_ns(policy.max_batch)
    return max(policy.codel_target_ns, policy.window_ns + batch_ns)


def _delayed(now: int, bucket: BucketQueue, worker: Worker) -> Evicted:
    """Those in front of standing queues that have waited for more than twice the target."""
    model = bucket.model
    evicted: Evicted = []
    target_ns = codel_target_ns(model, bucket.key, worker.device)
    for account in list(model.standing):
        for level in bucket.levels:
            tenant = level.tenants.get(account.name)
            while tenant is not None and tenant.count:
                request = tenant.order.peek(now)
                assert request is not None
                waited_ns = now - request.arrival_ns
                if waited_ns <= 2 * target_ns:
                    break
                model.remove(request, RequestState.REFUSED)
                error = QueueDelay(model.name, round(waited_ns / 1e6, 3), round(target_ns / 1e6, 3))
                evicted.append((request, model.refuse_accepted(request, error)))
    if evicted:
        retry_ms = max(1, int(drain_ns(now, model, sum(model.class_rows))) // 1_000_000)
        for _, refused in evicted:  # those behind it are gone, too: none of them waits for the others
            refused.retry_after_ms = retry_ms
    return evicted


def learn_late(model: ModelQueue, requests: list[Any], end_ns: int) -> None:
    """These requests ended together, or would have: compare with what was predicted as they came."""
    predicted = [request.finish_ns for request in requests if request.finish_ns]
    if predicted:
        model.forecast.learn(end_ns - min(predicted))


def observe_waits(now: int, batch: Batch[Any]) -> None:
    """Tell CoDel how long the requests of a batch that is released now have waited, tenant by tenant."""
    model = batch.queue
    least: dict[Account, int] = {}
    for request in batch.requests:
        account = model.accounts.get(request.tenant)
        if account is not None:  # else nothing waits any more, and CoDel begins anew
            waited_ns = now - request.arrival_ns
            least[account] = min(least.get(account, waited_ns), waited_ns)
    for account, waited_ns in least.items():
        target_ns = codel_target_ns(model, batch.bucket, model.replicas[batch.worker].device)
        account.codel.served(now, waited_ns, target_ns, model.policy.codel_interval_ns)
        if account.codel.standing:
            model.standing[account] = None
        else:
            model.standing.pop(account, None)


def learn_from(now: int, batch: Batch[Any]) -> None:
    """A batch came back: what it tells of predictions and of latency."""
    model = batch.queue
    forecast = model.forecast
    forecast.proven_ns = now
    forecast.batches += 1
    if not forecast.batches % EASE_BATCHES:
        model.ease_rows = 0
    # All of a batch end together; in nearly all orders the one predicted for first is at one of its ends.
    first, last = batch.requests[0], batch.requests[-1]
    if first.finish_ns or last.finish_ns:
        learn_late(model, [first, last], now)
    if model.policy.adaptive_concurrency and model.replicas:
        requests = len(batch.requests)
        latency_ns = now - sum([request.arrival_ns for request in batch.requests]) / requests
        depth = max([worker.pipeline_depth for worker in model.replicas.values()])
        concurrency_limit(model).learn(
            latency_ns=max(1.0, latency_ns),
            inside=model.queued + model.running,
            least=pipeline_rows(model),
            most=model.policy.queue_max + pipeline_rows(model),
            pipeline_ns=model.policy.window_ns + (depth + 1) * batch.predicted_ns,
        )
