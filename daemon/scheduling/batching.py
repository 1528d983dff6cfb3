"""The release rule: when does a batch stop waiting for more rows, and how many does it take?

A batch goes to a worker that has a free place for the first of these reasons:

    full        the rows that wait reach the batching's rows_max, or the requests what a descriptor holds
    idle        the worker has nothing in flight: waiting would waste it (not with `deferred`)
    window      the oldest request has waited for hold_ns()
    deadline    a batch of all that waits must start now to meet the earliest deadline, as predicted
    drain       nothing more is to come

What differs between the batchings:

    fixed       rows_max = max_batch, hold = window.
    aimd        rows_max adapts to latency_target_ns (aimd.py), hold = min(window, target - predicted time): what a
                request has waited when its batch starts leaves time to compute. Source: Crankshaw et al., "Clipper",
                NSDI 2017.
    deferred    As late as the deadlines allow, so that batches become as full as they allow. Source: L. Chen et al.,
                "Symphony: Optimized DNN Model Serving using Deferred Batch Scheduling", arXiv 2308.07470. The
                prediction carries a margin for its usual error (LinearCost.upper_ns) and for the way to the worker
                and back (HopTime): whoever starts at the last moment has nothing else in hand. Symphony presumes
                that each request has a tight deadline; for those that have only the far default,
                hold = max(window, target).

*Preferred sizes* say where a batch ends that is released before it is full: the largest of them that the waiting rows
reach; below the smallest everything goes. What stays keeps its arrival times, so its own reasons come no later than
they would have. Requests are not cut: where the next one would go beyond the size, the batch ends below it. A batch
that is full has rows_max, preferred or not, since more than that waits. One that a deadline has released takes
everything: its start was the latest for all of that, and a second batch behind it would be late.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

from tensord.ipc.limits import BATCH_REQUESTS_MAX

from .aimd import AdaptiveRows
from .cost import CostTable, LinearCost
from .policy import ModelPolicy
from .queues import BucketQueue
from .request import Batch, ReleaseReason

HOP_SAMPLES: Final = 16
"""The time of a hop is an average of about so many."""

HOP_DEVIATIONS: Final = 3.0


class FixedBatching:
    """Batches of at most max_batch rows, which wait for the window. The base of the others."""

    __slots__ = ("policy", "rows_max")

    def __init__(self, policy: ModelPolicy, costs: CostTable) -> None:  # noqa: ARG002 - for those that predict
        self.policy = policy
        self.rows_max = policy.max_batch
        """Rows of one batch at most."""

    def obey(self, policy: ModelPolicy) -> None:
        """Follow another policy with the same batching."""
        self.policy = policy
        self.rows_max = policy.max_batch

    def defers(self, cost: LinearCost) -> bool:  # noqa: ARG002 - for those that predict
        """A batch waits although a worker is idle."""
        return False

    def hold_ns(self, cost: LinearCost, rows: int) -> int:  # noqa: ARG002 - for those that predict
        """How long the oldest request may wait for others where `rows` wait, in nanoseconds."""
        return self.policy.window_ns

    def compute_ns(self, cost: LinearCost, rows: int) -> int:
        """Device time to leave before a deadline for a batch of `rows`, in nanoseconds."""
        return cost.predicted_ns(rows)

    def learn(self, now: int, batch: Batch[Any], hop_ns: int | None) -> None:
        """A batch is through; it was on its way for `hop_ns` beside its device time, None: behind another batch."""


class AimdBatching(FixedBatching):
    """The largest batches that are answered within the latency target."""

    __slots__ = ("_size",)

    def __init__(self, policy: ModelPolicy, costs: CostTable) -> None:
        """It starts with what takes half the target, as predicted, since a batch may wait for one before it."""
        super().__init__(policy, costs)
        line = costs.latest
        half_ns = policy.latency_target_ns / 2
        rows = (half_ns - line.fixed_ns) / line.row_ns if line.row_ns else policy.max_batch
        self._size = AdaptiveRows(rows if line.samples else 1, policy.max_batch, policy.latency_target_ns)
        self.rows_max = self._size.rows

    def obey(self, policy: ModelPolicy) -> None:
        self.policy = policy
        self._size.rows_max, self._size.target_ns = policy.max_batch, policy.latency_target_ns
        self.rows_max = self._size.rows

    def hold_ns(self, cost: LinearCost, rows: int) -> int:
        spare_ns = self.policy.latency_target_ns - cost.predicted_ns(rows)
        return max(min(self.policy.window_ns, spare_ns), 0)

    def learn(self, now: int, batch: Batch[Any], hop_ns: int | None) -> None:  # noqa: ARG002 - for those that defer
        if batch.requests[0].solo:
            return  # It has waited for the death of a worker, not for a batch.
        arrival_ns = min([request.arrival_ns for request in batch.requests])
        self._size.learn(now, arrival_ns, batch.released_ns, full=batch.reason is ReleaseReason.FULL)
        self.rows_max = self._size.rows


class HopTime:
    """What a batch's way to an idle worker and back takes beside device time: mean and mean deviation, as for TCP."""

    __slots__ = ("_deviation_ns", "_mean_ns", "_samples")

    def __init__(self) -> None:
        self._mean_ns = self._deviation_ns = 0.0
        self._samples = 0

    @property
    def upper_ns(self) -> int:
        """Seldom exceeded."""
        return int(self._mean_ns + HOP_DEVIATIONS * self._deviation_ns)

    def learn(self, hop_ns: int) -> None:
        """A batch took so long."""
        self._samples += 1
        gain = 1 / min(self._samples, HOP_SAMPLES)
        error_ns = max(hop_ns, 0) - self._mean_ns
        self._mean_ns += gain * error_ns
        if self._samples > 1:
            self._deviation_ns += gain * (abs(error_ns) - self._deviation_ns)


class DeferredBatching(FixedBatching):
    """Batches as full as the deadlines allow; like fixed ones until the first has told how long they take."""

    __slots__ = ("_hop",)

    def __init__(self, policy: ModelPolicy, costs: CostTable) -> None:
        super().__init__(policy, costs)
        self._hop = HopTime()

    def defers(self, cost: LinearCost) -> bool:
        return cost.samples > 0

    def hold_ns(self, cost: LinearCost, rows: int) -> int:  # noqa: ARG002 - as in the base
        window_ns, target_ns = self.policy.window_ns, self.policy.latency_target_ns
        return max(window_ns, target_ns) if cost.samples else window_ns

    def compute_ns(self, cost: LinearCost, rows: int) -> int:
        return cost.upper_ns(rows) + self._hop.upper_ns

    def learn(self, now: int, batch: Batch[Any], hop_ns: int | None) -> None:  # noqa: ARG002 - for those that adapt
        if hop_ns is not None:
            self._hop.learn(hop_ns)


BATCHINGS: dict[str, Callable[[ModelPolicy, CostTable], FixedBatching]] = {
    "fixed": FixedBatching,
    "aimd": AimdBatching,
    "deferred": DeferredBatching,
}
"""Name, as the knob `batching` takes it, to a maker."""


def release_reason(
    now: int, bucket: BucketQueue, cost: LinearCost, batching: FixedBatching, *, idle: bool, draining: bool
) -> ReleaseReason | None:
    """Why what waits in `bucket` should go now to a worker that has a free place; None: wait for more.

    `idle` says that this worker has nothing in flight. At least one request is waiting.
    """
    if _fills_a_batch(bucket, batching):
        return ReleaseReason.FULL
    if idle and not batching.defers(cost):
        return ReleaseReason.IDLE
    if now >= bucket.oldest_arrival_ns + batching.hold_ns(cost, bucket.rows):
        return ReleaseReason.WINDOW
    if now >= latest_start_ns(bucket, cost, batching):
        return ReleaseReason.DEADLINE
    return ReleaseReason.DRAIN if draining else None


def release_at_ns(bucket: BucketQueue, cost: LinearCost, batching: FixedBatching, *, idle: bool, draining: bool) -> int:
    """The first time at which release_reason() gives one, if nothing else happens; maybe in the past."""
    oldest_ns = bucket.oldest_arrival_ns
    if draining or (idle and not batching.defers(cost)) or _fills_a_batch(bucket, batching):
        return oldest_ns
    return min(oldest_ns + batching.hold_ns(cost, bucket.rows), latest_start_ns(bucket, cost, batching))


def rows_released(bucket: BucketQueue, batching: FixedBatching, reason: ReleaseReason) -> int:
    """Rows at most of the batch that goes for this reason."""
    preferred = batching.policy.preferred_batches
    if not preferred or reason is ReleaseReason.FULL or reason is ReleaseReason.DEADLINE:
        return batching.rows_max
    reached = bisect_right(preferred, bucket.rows)
    return preferred[reached - 1] if reached else batching.rows_max


def _fills_a_batch(bucket: BucketQueue, batching: FixedBatching) -> bool:
    return bucket.rows >= batching.rows_max or bucket.count >= BATCH_REQUESTS_MAX


def latest_start_ns(bucket: BucketQueue, cost: LinearCost, batching: FixedBatching) -> int:
    """When a batch of all that waits must start so that the earliest deadline is met, as predicted."""
    return bucket.earliest_deadline_ns - batching.compute_ns(cost, bucket.rows)
