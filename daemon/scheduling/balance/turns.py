"""Round robin, plain and weighted: smooth weighted round robin, as in nginx.

Each replica has a credit. For every batch the credit of each candidate grows by its weight; the highest takes the
batch and pays the sum of the weights. Of a:b:c = 5:1:1 that makes a a b a c a a, not a a a a a b c: turns are spread,
and after any number of batches each has had its share of them, give or take one.

Source: M. Dounin, "Upstream: smooth weighted round-robin balancing", nginx 1.3.1, 2012.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from ..queues import BucketQueue
from ..request import Batch
from ..workers import Worker
from .policy import BalancePolicy


class _Turns(BalancePolicy):
    """Smooth weighted round robin. Who is passed over neither gains credit nor loses it."""

    def __init__(self) -> None:
        self._credits: dict[int, float] = {}
        """By worker id; those of all replicas sum up to 0, until one of them goes."""

    def choose(self, replicas: Sequence[Worker], bucket: BucketQueue) -> Worker | None:  # noqa: ARG002
        candidates = self.candidates(replicas)
        if not candidates:
            return None
        return max(candidates, key=lambda worker: self._credits[worker.id] + self.weight(worker))

    def released(self, worker: Worker, batch: Batch[Any]) -> None:
        candidates = self.candidates(batch.queue.replicas.values())
        if worker in candidates:
            for candidate in candidates:
                self._credits[candidate.id] += self.weight(candidate)
                self._credits[worker.id] -= self.weight(candidate)

    def set_replicas(self, replicas: Sequence[Worker]) -> None:
        self._credits = {worker.id: self._credits.get(worker.id, 0.0) for worker in replicas}

    @abstractmethod
    def candidates(self, replicas: Iterable[Worker]) -> list[Worker]:
        """Those that are not passed over."""

    @abstractmethod
    def weight(self, worker: Worker) -> float:
        """Above 0: the share of the turns."""


class WeightedRoundRobin(_Turns):
    """Batches in proportion to device weight × health.

    The turn passes over a worker without a free place. It does not pass over one that computes while another is
    idle: the weights would mean nothing as soon as two batches run at once.
    """

    def candidates(self, replicas: Iterable[Worker]) -> list[Worker]:
        return [worker for worker in replicas if worker.has_place()]

    def weight(self, worker: Worker) -> float:
        return worker.weight * worker.health.factor


class RoundRobin(_Turns):
    """One after the other, a sick worker less often: the weight is its health.

    The turn passes over a worker without a free place, and over one that computes while another is idle: nobody waits
    behind a batch while a worker has nothing to do.
    """

    def candidates(self, replicas: Iterable[Worker]) -> list[Worker]:
        free = [worker for worker in replicas if worker.has_place()]
        return [worker for worker in free if not worker.in_flight] or free

    def weight(self, worker: Worker) -> float:
        return worker.health.factor
