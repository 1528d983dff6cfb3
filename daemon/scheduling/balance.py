"""Balance policies: which of a model's replicas takes the next batch."""

from collections.abc import Callable, Sequence
from typing import Protocol

from .request import Request
from .workers import Worker


class BalancePolicy(Protocol):
    """One object per model. It is not asked for a model that has only one replica."""

    def choose(self, candidates: Sequence[Worker], request: Request) -> Worker | None:
        """The worker for the batch that `request` leads; None, or one without a free place: the batch waits.

        `candidates` are all the workers that have the model loaded, so that a session can be bound to one of
        them whether it is free or not. The answer depends on the arguments only and changes nothing: the
        question is asked again until the worker comes for the batch. What has to be remembered of the
        past stands in the workers.
        """


class LeastWork:
    """The free worker with the least predicted device time in flight; of equals the least recently used."""

    def choose(self, candidates: Sequence[Worker], request: Request) -> Worker | None:  # noqa: ARG002
        best: Worker | None = None
        for worker in candidates:
            if worker.has_place() and (
                best is None or (worker.outstanding_ns, worker.used_at) < (best.outstanding_ns, best.used_at)
            ):
                best = worker
        return best


BALANCE_POLICIES: dict[str, Callable[[], BalancePolicy]] = {"least_work": LeastWork}
"""Name, as the knob `balance` takes it, to a maker of policies."""
