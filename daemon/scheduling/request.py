"""Requests and batches: what goes into the scheduler and what comes out of it."""

from collections.abc import Hashable
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from .model import ModelQueue
    from .queues import TenantQueue
    from .users import User


class RequestState(IntEnum):
    """Where a request is. It moves NEW → QUEUED → RUNNING → DONE; a lost worker moves it back to QUEUED."""

    NEW = 0  # the caller's: not submitted yet
    QUEUED = 1  # the scheduler's: `home` is the queue that holds it
    RUNNING = 2  # in exactly one batch, which a worker holds
    DONE = 3  # its batch was completed
    EXPIRED = (
        4  # too late while it waited: its deadline passed, or would before the answer; expire() returns it, or has
    )
    CANCELLED = 5  # cancel() removed it from the queue
    REFUSED = 6  # an error was returned for it: by submit(), or after it had been accepted


_NEW: Final = RequestState.NEW


class ReleaseReason(StrEnum):
    """Why a batch did not wait for more rows. Where several hold, the first of this list is recorded."""

    FULL = "full"  # the rows that wait are enough for a whole batch
    IDLE = "idle"  # the worker had nothing in flight: waiting would waste it
    WINDOW = "window"  # the oldest request has waited for the batching window
    DEADLINE = "deadline"  # waiting longer would miss a deadline, as predicted
    DRAIN = "drain"  # the daemon drains: nothing more is to come


class Request:
    """One request as the scheduler sees it. The front end subclasses it and adds slots of its own.

    The arguments are the caller's and never change after submit(). The other fields are the scheduler's: callers may
    read them.
    """

    __slots__ = (
        "arrival_ns",
        "attempts",
        "bucket",
        "deadline_ns",
        "finish_ns",
        "flow",
        "home",
        "inherited_ns",
        "latest",
        "model",
        "nbytes",
        "predicted_ns",
        "priority",
        "rows",
        "seq",
        "session",
        "solo",
        "state",
        "tenant",
    )

    def __init__(
        self,
        model: int,
        bucket: Hashable,
        tenant: str,
        priority: int,
        rows: int,
        arrival_ns: int,
        deadline_ns: int,
        session: int = 0,
        *,
        flow: int = 0,
        nbytes: int = 0,
        latest: bool = False,
    ) -> None:
        self.model = model
        """Key of the model version, as given to add_model()."""
        self.bucket = bucket
        """Only requests with equal buckets share a batch: data type and trailing shape, or a padded size."""
        self.tenant = tenant
        self.priority = priority
        """0 high, 1 normal, 2 low."""
        self.rows = rows
        self.arrival_ns = arrival_ns
        self.deadline_ns = deadline_ns
        """The request never starts at or after this time, in the nanoseconds of `arrival_ns`."""
        self.session = session
        """For balance policies that keep a session on one replica; 0 for none."""
        self.flow = flow
        """Requests with the same number are one flow to the order policy MLFQ: a connection, or a tenant's session."""
        self.nbytes = nbytes
        """Bytes of its tensors, inputs and outputs."""
        self.latest = latest
        """It takes the place of a waiting one of the same tenant and session."""

        self.predicted_ns = 0
        """Device time that it would take alone, as predicted when it was submitted, in nanoseconds."""
        self.finish_ns = 0
        """When its answer was predicted for as it came, without any margin; 0 where nobody had to know."""
        self.inherited_ns = 0
        """By how much it counts as older than it is: what those waited that it took the place of."""
        self.state = _NEW
        self.seq = 0
        """Place in the order of submission over all models; kept when the request runs again."""
        self.attempts = 0
        """Workers that died while they held the request."""
        self.solo = False
        """A suspect: it was in flight when a worker died or its model failed, so it runs alone from now on."""
        self.home: TenantQueue | None = None
        """The queue that holds it; None while it is not queued. Lazy deletion is setting this to None."""

    @property
    def waits_since_ns(self) -> int:
        """Since when it, or what it took the place of, waits."""
        return self.arrival_ns - self.inherited_ns


R = TypeVar("R", bound=Request)


class Batch(Generic[R]):
    """Requests of one model and bucket that one worker runs together."""

    __slots__ = (
        "bucket",
        "id",
        "model",
        "predicted_ns",
        "priority",
        "queue",
        "reason",
        "released_ns",
        "requests",
        "rows",
        "users",
        "worker",
    )

    def __init__(
        self,
        id: int,  # noqa: A002 - the name of the field
        queue: "ModelQueue",
        bucket: Hashable,
        worker: int,
        requests: list[R],
        rows: int,
        reason: ReleaseReason,
        released_ns: int,
        predicted_ns: int,
        priority: int,
        users: "dict[User, int] | None" = None,
    ) -> None:
        self.id = id
        """Unique over the scheduler's life, so what a dead worker left behind is never taken for new."""
        self.queue = queue
        """The scheduler's own: the model it came from, even if that was removed meanwhile."""
        self.model = queue.key
        self.bucket = bucket
        self.worker = worker
        self.requests = requests
        self.rows = rows
        self.reason = reason
        self.released_ns = released_ns
        self.predicted_ns = predicted_ns
        """Device time that the batch is expected to take, in nanoseconds."""
        self.priority = priority
        """Priority class (0 high to 2 low, ageing counted) that the batch was released for."""
        self.users = users or {}
        """The rows of each user in it."""
