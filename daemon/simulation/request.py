"""A request of the simulation; in a module of its own, as it is compiled where the scheduler's is."""

from typing import TYPE_CHECKING

from ..scheduling.request import Request
from .workload import Draw

if TYPE_CHECKING:
    from .parts import Parts


class SimulatedRequest(Request):
    """A request, and what the simulation must know of it."""

    __slots__ = ("factor", "parts", "sent_ns", "whole", "workload")

    def __init__(
        self,
        workload: int,
        model: int,
        draw: Draw,
        sent_ns: int,
        deadline_ns: int,
        *,
        flow: int,
        nbytes: int = 0,
        latest: bool = False,
    ) -> None:
        rows, bucket, tenant, priority, session, self.factor = draw
        """Of its service time (see Service)."""
        super().__init__(
            model, bucket, tenant, priority, rows, sent_ns, deadline_ns, session,
            flow=session or flow, nbytes=nbytes, latest=latest,
        )  # fmt: skip
        self.workload = workload
        """Its number: whose source it came from."""
        self.sent_ns = sent_ns
        """When the client sent it; `arrival_ns` is when the front end came to it."""
        self.parts: Parts | None = None
        """What it was cut into."""
        self.whole: SimulatedRequest | None = None
        """Of a part: the request that it is cut from."""
