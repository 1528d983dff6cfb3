"""A request of more rows than a batch: cut as the front end cuts it (daemon/frontend/parts.py), answered as one."""

from collections.abc import Sequence

from ..scheduling.split import Assembly
from .request import SimulatedRequest


class Parts(Assembly[SimulatedRequest]):
    """The parts of one request. It waits until its last part is computed, and has the device time of all batches."""

    __slots__ = ("begun_ns", "service_ns", "waiting")

    def __init__(self, parts: Sequence[SimulatedRequest]) -> None:
        super().__init__(parts)
        self.waiting = len(self.parts)
        """Parts that no device has begun; 0 when the request waits no more, whatever the reason."""
        self.begun_ns = 0
        """When the last of those that were begun was."""
        self.service_ns = 0
        """Device time of the batches that are through."""

    def begin(self, begun_ns: int) -> None:
        """A part is in a batch that is computed from then on."""
        self.begun_ns = max(self.begun_ns, begun_ns)
        self.waiting -= 1


def cut_request(whole: SimulatedRequest, rows: Sequence[int]) -> Parts:
    """The parts of a request that has arrived, of so many rows each."""
    whole.parts = Parts([_part(whole, count) for count in rows])
    return whole.parts


def _part(whole: SimulatedRequest, rows: int) -> SimulatedRequest:
    draw = (rows, str(whole.bucket), whole.tenant, whole.priority, whole.session, whole.factor)
    nbytes = whole.nbytes * rows // whole.rows
    part = SimulatedRequest(
        whole.workload, whole.model, draw, whole.sent_ns, whole.deadline_ns, flow=whole.flow, nbytes=nbytes
    )
    part.arrival_ns, part.whole = whole.arrival_ns, whole
    return part
