"""A request of the simulation. In a module of its own, as it is compiled where the scheduler's is."""

from ..scheduling.request import Request
from .workload import Draw


class SimulatedRequest(Request):
    """A request, and what the simulation must know of it."""

    __slots__ = ("factor", "sent_ns", "workload")

    def __init__(
        self, workload: int, model: int, draw: Draw, sent_ns: int, deadline_ns: int, *, flow: int, nbytes: int = 0
    ) -> None:
        rows, bucket, tenant, priority, session, self.factor = draw
        """Of its service time (see Service)."""
        super().__init__(
            model, bucket, tenant, priority, rows, sent_ns, deadline_ns, session, flow=session or flow, nbytes=nbytes
        )
        self.workload = workload
        """Its number: whose source it came from."""
        self.sent_ns = sent_ns
        """When the client sent it; `arrival_ns` is when the front end came to it."""
