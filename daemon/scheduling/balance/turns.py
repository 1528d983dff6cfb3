"""Round robin, plain and weighted: smooth weighted round robin, as in nginx.

Each replica has a credit. For every batch all credits grow by the weights; the highest takes the batch and pays the
sum of the weights. Of a:b:c = 5:1:1 that makes a a b a c a a, not a a a a a b c: turns are spread. After any number of
batches each of two or three replicas has had its share, give or take one; of up to eight, give or take 1.25.

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
    """Smooth weighted round robin among those whose turn it can be.

    Who is passed over keeps its claim, but to one turn at most, and who steps in for it owes at most one: nobody gets
    a burst for having been busy long.
    """

    def __init__(self) -> None:
        self._credits: dict[int, float] = {}
        """By worker id, each between minus and plus the sum of the weights, which is one turn."""

    def choose(self, replicas: Sequence[Worker], bucket: BucketQueue) -> Worker | None:  # noqa: ARG002
        candidates = self.candidates(replicas)
        if not candidates:
            return None
        return max(candidates, key=lambda worker: self._credits[worker.id] + self.weight(worker))

    def released(self, worker: Worker, batch: Batch[Any]) -> None:
        weights = {replica.id: self.weight(replica) for replica in batch.queue.replicas.values()}
        turn = sum(weights.values())
        for replica, weight in weights.items():
            credit = self._credits[replica] + weight - (turn if replica == worker.id else 0.0)
            self._credits[replica] = max(-turn, min(credit, turn))

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
