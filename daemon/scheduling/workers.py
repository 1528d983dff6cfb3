"""What the scheduler knows of one worker: its replicas and what it has in flight."""

from typing import TYPE_CHECKING, Any

from tensord.ipc.limits import PRIORITY_CLASSES

from .fairness import ShareClock
from .health import Health
from .request import Batch, Request

if TYPE_CHECKING:
    from .model import ModelQueue


class Worker:
    """One worker process, that is one device."""

    __slots__ = (
        "busy_since_ns",
        "clocks",
        "device",
        "failed",
        "health",
        "id",
        "in_flight",
        "models",
        "outstanding_ns",
        "pipeline_depth",
        "reserved_for",
        "used_at",
        "weight",
    )

    def __init__(self, worker_id: int, device: str, pipeline_depth: int, health: Health | None = None) -> None:
        self.id = worker_id
        self.device = device
        self.pipeline_depth = pipeline_depth
        """Batches that may be in flight at once."""
        self.weight = 1.0
        """The device's share of batches by weighted round robin; above 0."""
        self.health = health or Health()
        """The device's, over all its workers."""
        self.failed = 0
        """Batches that failed through the fault of the device or of the daemon."""
        self.models: dict[int, ModelQueue] = {}
        """The models that have a replica here, by key."""
        self.in_flight: dict[int, Batch[Any]] = {}
        """Batches released to it and not completed, by id, oldest first."""
        self.outstanding_ns = 0
        """Predicted device time of all that is in flight, in nanoseconds."""
        self.busy_since_ns = 0
        """When the oldest batch in flight came to the front: it computes since then."""
        self.used_at = 0
        """Id of the last batch released to it; 0 for none."""
        self.reserved_for: Request | None = None
        """The suspect that it empties its pipeline for, or runs: it takes nothing else. Over when it is empty."""
        self.clocks = tuple(ShareClock() for _ in range(PRIORITY_CLASSES))
        """The models' shares of this device, one clock per priority class (the classes do not share, they rank)."""

    def has_place(self) -> bool:
        """Whether a batch may be released to it now."""
        return len(self.in_flight) < self.pipeline_depth and self.reserved_for is None

    def remaining_ns(self, now: int) -> int:
        """Predicted time until all that is in flight is through."""
        for head in self.in_flight.values():
            return self.outstanding_ns - min(now - self.busy_since_ns, head.predicted_ns)
        return 0

    def start(self, batch: Batch[Any], weight: float) -> None:
        """`batch` was released to this worker; its model weighs `weight`."""
        self.in_flight[batch.id] = batch
        self.outstanding_ns += batch.predicted_ns
        self.used_at = batch.id
        self.clocks[batch.priority].charge(batch.model, batch.predicted_ns, weight)

    def finish(self, batch: Batch[Any]) -> bool:
        """`batch` is through; False where it was not in flight here."""
        if self.in_flight.pop(batch.id, None) is None:
            return False
        self.outstanding_ns -= batch.predicted_ns
        if not self.in_flight:
            self.reserved_for = None
        return True

    def remove_model(self, key: int) -> None:
        """The model's replica here is gone. What is in flight of it still runs to its end."""
        del self.models[key]
        for clock in self.clocks:
            clock.forget(key)
