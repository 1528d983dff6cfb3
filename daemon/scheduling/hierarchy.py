"""What runs next on a worker: priority class, then model, then tenant, then the order policy.

Each level is one field of an Offer, so the hierarchy is the comparison of tuples, left to right.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .batching import release_at_ns, release_reason
from .model import ModelQueue
from .queues import BucketQueue
from .request import ReleaseReason, Request
from .workers import Worker


class Offer(NamedTuple):
    """A batch that could be released to a worker now. The lowest goes first; no two have the same `seq`."""

    priority: int
    """Class of the leader, ageing counted."""
    start_tag: float
    """The model's place in the fair shares of this worker (fairness.py)."""
    round: int
    """With `turn`, the user's place in its model's deficit round robin (tenants.py)."""
    turn: int
    name_round: int
    """With `name_turn`, the tenant's place among the names of its user."""
    name_turn: int
    order_key: float
    """The leader's place in the order policy."""
    seq: int
    leader: Request
    reason: ReleaseReason


def best_offer(
    now: int, worker: Worker, waiting: Iterable[ModelQueue], ageing_ns: int, *, draining: bool
) -> Offer | None:
    """What of the models with requests should be released to `worker`, which has a free place; None: better wait."""
    best: Offer | None = None
    models = [model for model in waiting if worker.id in model.replicas]
    highest = min([model.highest_class for model in models], default=0)
    for model in models:
        several = len(model.replicas) > 1
        for bucket in model.waiting:
            if several and chosen_worker(bucket) is not worker:
                continue
            cost = model.costs.of(bucket.key, worker.device)
            reason = release_reason(now, bucket, cost, model.batching, idle=not worker.in_flight, draining=draining)
            if reason is None:
                continue
            place = bucket.first(now, ageing_ns, highest)
            tag = worker.clocks[place.priority].start_tag(model.key)
            offer = Offer(place.priority, tag, *place[1:], reason)
            if best is None or offer < best:
                best = offer
    return best


def chosen_worker(bucket: BucketQueue) -> Worker | None:
    """The worker for the next batch of `bucket`; None, or one without a free place: it has to wait.

    A bucket that is not bound to a worker waits as long as one empties its pipeline for one of its suspects, lest all
    workers did.
    """
    if bucket.worker is not None:
        return bucket.worker
    replicas = tuple(bucket.model.replicas.values())
    if len(replicas) == 1:
        return replicas[0]
    for worker in replicas:
        suspect = worker.reserved_for
        if suspect is not None and suspect.home is not None and suspect.home.level.bucket is bucket:
            return None
    return bucket.model.balance.choose(replicas, bucket)


def next_release_ns(model: ModelQueue, *, draining: bool) -> int | None:
    """When best_offer() could find something of `model` if nothing else happens; None: not before an event."""
    earliest_ns: int | None = None
    for bucket in model.waiting:
        worker = chosen_worker(bucket) if model.replicas else None
        if worker is None or not worker.has_place():
            continue
        cost = model.costs.of(bucket.key, worker.device)
        at_ns = release_at_ns(bucket, cost, model.batching, idle=not worker.in_flight, draining=draining)
        if earliest_ns is None or at_ns < earliest_ns:
            earliest_ns = at_ns
    return earliest_ns
