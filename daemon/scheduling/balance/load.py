"""Policies that send a batch to the least loaded replica, each with its own idea of load.

The lowest score gets the batch. Scores that differ by less than a tenth count as equal, and then the least recently
used goes first: predictions and averages are not more exact than that, and equal replicas take turns.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from ..queues import BucketQueue
from ..request import Batch
from ..workers import Worker
from .mixing import mixed
from .policy import BalancePolicy

ALIKE: Final = 1.1
"""Scores up to so many times the lowest are as good."""


class _LowestScore(BalancePolicy):
    def choose(self, replicas: Sequence[Worker], bucket: BucketQueue) -> Worker | None:
        free = [worker for worker in replicas if worker.has_place()]
        return self.best(free, bucket) if free else None

    def best(self, free: Sequence[Worker], bucket: BucketQueue) -> Worker:
        """The one of `free`, which is not empty, with the lowest score, or the least recently used of about equals."""
        scores = self.scores(free, bucket)
        limit = ALIKE * min(scores)
        best: Worker | None = None
        for worker, score in zip(free, scores, strict=True):
            if score <= limit and (best is None or worker.used_at < best.used_at):
                best = worker
        assert best is not None
        return best

    @abstractmethod
    def scores(self, free: Sequence[Worker], bucket: BucketQueue) -> list[float]:
        """How bad it would be to give the next batch of `bucket` to each of `free`; at least 0."""


class LeastConnections(_LowestScore):
    """The fewest batches in flight, this one included, by health: (batches + 1) / health."""

    def scores(self, free: Sequence[Worker], bucket: BucketQueue) -> list[float]:  # noqa: ARG002
        return [(len(worker.in_flight) + 1) / worker.health.factor for worker in free]


class LeastWork(_LowestScore):
    """The earliest end of the batch, as predicted: (device time in flight + device time of this batch) / health.

    The time of the batch itself counts, so that a slow device gets one when the fast ones have enough to do: then
    it is used, and a prediction that was too high is corrected.
    """

    def scores(self, free: Sequence[Worker], bucket: BucketQueue) -> list[float]:
        rows = min(bucket.rows, bucket.model.policy.max_batch)
        key, cost_of = bucket.key, bucket.model.costs.of
        return [
            (worker.outstanding_ns + cost_of(key, worker.device).predicted_ns(rows)) / worker.health.factor
            for worker in free
        ]


class PowerOfTwo(LeastWork):
    """The better of two free workers drawn at random, by least work.

    Drawing two instead of one lowers the highest of n loads from about ln n / ln ln n to ln ln n / ln 2, and without
    the herd that follows the one best when what is known of the load is old. The draw is a hash of the number of
    batches released before, so it holds until the batch has gone, and a replay of events gives the same.

    Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE Transactions on Parallel
    and Distributed Systems 12 (10), 2001.
    """

    def __init__(self) -> None:
        self._batches = 0

    def choose(self, replicas: Sequence[Worker], bucket: BucketQueue) -> Worker | None:
        free = [worker for worker in replicas if worker.has_place()]
        if len(free) > 2:
            draw = mixed(self._batches)
            first = draw % len(free)
            second = (first + 1 + (draw >> 32) % (len(free) - 1)) % len(free)
            free = [free[first], free[second]]
        return self.best(free, bucket) if free else None

    def released(self, worker: Worker, batch: Batch[Any]) -> None:  # noqa: ARG002
        self._batches += 1


class FastestResponse(_LowestScore):
    """The shortest expected response: average time from release to answer × (batches in flight + 1) / health.

    The average is one with exponential forgetting in time: after a pause of dt a new response t counts

        average = w · average + (1 - w) · t        w = 2^(-dt / half-life)

    An average that hears nothing fades with the same half-life, so a replica that was slow is tried again; that
    time stands still while no replica answers. A replica never heard of is tried first.
    """

    def __init__(self) -> None:
        self._averages: dict[int, tuple[float, int]] = {}
        """By worker id: the average in nanoseconds, and the time of the last answer."""
        self._now = 0
        """The time of the last answer of any."""

    def scores(self, free: Sequence[Worker], bucket: BucketQueue) -> list[float]:
        half_life_ns = bucket.model.policy.response_half_life_ns
        return [self.expected_ns(worker, half_life_ns) / worker.health.factor for worker in free]

    def expected_ns(self, worker: Worker, half_life_ns: int) -> float:
        """How long a batch would take from release to answer, as far as is known."""
        average_ns, at_ns = self._averages.get(worker.id, (0.0, 0))
        fading: float = 2.0 ** ((at_ns - self._now) / half_life_ns)
        return average_ns * fading * (len(worker.in_flight) + 1)

    def completed(self, now: int, worker: Worker, batch: Batch[Any]) -> None:
        response_ns = now - batch.released_ns
        average_ns, at_ns = self._averages.get(worker.id, (float(response_ns), now))
        kept = 2.0 ** ((at_ns - now) / batch.queue.policy.response_half_life_ns)
        self._averages[worker.id] = kept * average_ns + (1.0 - kept) * response_ns, now
        self._now = now

    def set_replicas(self, replicas: Sequence[Worker]) -> None:
        self._averages = {worker.id: self._averages[worker.id] for worker in replicas if worker.id in self._averages}
