"""The release rule: when does a batch stop waiting for more rows?"""

from tensord.ipc.limits import BATCH_REQUESTS_MAX

from .cost import LinearCost
from .policy import ModelPolicy
from .queues import BucketQueue
from .request import ReleaseReason


def release_reason(
    now: int, bucket: BucketQueue, cost: LinearCost, policy: ModelPolicy, *, idle: bool, draining: bool
) -> ReleaseReason | None:
    """Why what waits in `bucket` should go now to a worker that has a free place; None: wait for more.

    `idle` says that this worker has nothing in flight. At least one request is waiting.
    """
    if _fills_a_batch(bucket, policy):
        return ReleaseReason.FULL
    if idle:
        return ReleaseReason.IDLE
    if now >= bucket.oldest_arrival_ns + policy.window_ns:
        return ReleaseReason.WINDOW
    if now >= latest_start_ns(bucket, cost):
        return ReleaseReason.DEADLINE
    return ReleaseReason.DRAIN if draining else None


def release_at_ns(bucket: BucketQueue, cost: LinearCost, policy: ModelPolicy, *, idle: bool, draining: bool) -> int:
    """The first time at which release_reason() gives one, if nothing else happens; maybe in the past."""
    oldest_ns = bucket.oldest_arrival_ns
    if idle or draining or _fills_a_batch(bucket, policy):
        return oldest_ns
    return min(oldest_ns + policy.window_ns, latest_start_ns(bucket, cost))


def _fills_a_batch(bucket: BucketQueue, policy: ModelPolicy) -> bool:
    return bucket.rows >= policy.max_batch or bucket.count >= BATCH_REQUESTS_MAX


def latest_start_ns(bucket: BucketQueue, cost: LinearCost) -> int:
    """When a batch of all that waits must start so that the earliest deadline is met, as predicted."""
    return bucket.earliest_deadline_ns - cost.predicted_ns(bucket.rows)
