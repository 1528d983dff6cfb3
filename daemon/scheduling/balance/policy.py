"""What a balance policy is asked and told."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from ..queues import BucketQueue
from ..request import Batch
from ..workers import Worker


class BalancePolicy(Protocol):
    """One object per model. It is neither asked nor told of batches while the model has only one replica."""

    binds: ClassVar[bool] = False
    """Whether it has sessions stick to a replica, and so queues of their own."""

    @abstractmethod
    def choose(self, replicas: Sequence[Worker], bucket: BucketQueue) -> Worker | None:
        """The worker for the next batch of `bucket`, which is not bound; None, or one without a free place: it waits.

        The question is asked again and again until the worker comes for the batch, so the answer changes nothing.
        It depends on what events change (what waits, what is in flight, health), neither on the time nor on
        who leads the batch, which ageing may change without an event: otherwise wake_at() would be wrong. What has
        to be remembered of the past is kept by released() and completed().
        """

    def released(self, worker: Worker, batch: Batch[Any]) -> None:
        """`batch` goes to `worker`, one of several replicas; it is not in flight yet."""

    def completed(self, now: int, worker: Worker, batch: Batch[Any]) -> None:
        """`batch` came back from `worker`, one of several replicas, and had not failed."""

    def set_replicas(self, replicas: Sequence[Worker]) -> None:
        """These workers have the model loaded from now on."""

    def bound(self, session: int) -> Worker | None:  # noqa: ARG002
        """The replica that alone may run the requests of a session (not 0); None: any may.

        The answer only changes with set_replicas(). It is only asked for where `binds` is true.
        """
        return None
