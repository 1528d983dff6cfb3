"""What a client counts."""

import threading
from dataclasses import dataclass, fields, replace

from .call import Call
from .session import ClientSession


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """Counts since the client was made."""

    requests: int = 0
    """Inferences asked for."""
    answers: int = 0
    """Of these, answered by a result."""
    errors: int = 0
    """Of these, ended by an error."""
    resent: int = 0
    """Attempts after the first: after a lost connection, or because a model had to be opened again."""
    reconnects: int = 0
    """Connections made after the first."""
    unknown_replies: int = 0
    """Replies whose request id was not in flight; they are ignored."""
    inline_requests: int = 0
    """Answered through the socket."""
    arena_requests: int = 0
    """Answered through an arena."""
    inline_bytes: int = 0
    """Bytes of inputs and outputs of the inline requests."""
    arena_bytes: int = 0
    """Bytes of inputs and outputs of the arena requests."""
    in_flight: int = 0
    """Requests without an answer on the present connection, now."""
    slots_leased: int = 0
    """Slots of the present connection's arenas that have not come back, now."""
    attached_bytes: int = 0
    """Bytes of the present connection's arenas, now."""


class ClientCounters:
    """The counts, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys((field.name for field in fields(ClientStatistics)), 0)
        self._counts["reconnects"] = -1

    def add(self, name: str, count: int = 1) -> None:
        """Count something that is a field of ClientStatistics."""
        with self._lock:
            self._counts[name] += count

    def add_answer(self, call: Call) -> None:
        """Count an answered inference."""
        plan = call.plan
        assert plan is not None
        lane = "inline" if call.returned is None else "arena"
        counts = self._counts
        with self._lock:
            counts["answers"] += 1
            counts[f"{lane}_requests"] += 1
            counts[f"{lane}_bytes"] += plan.input_bytes + plan.output_bytes

    def statistics(self, session: ClientSession | None) -> ClientStatistics:
        """The counts, and the present of the connection that is used now."""
        with self._lock:
            counts = ClientStatistics(**self._counts)
        if session is None:
            return replace(counts, reconnects=max(0, counts.reconnects))
        return replace(
            counts,
            reconnects=max(0, counts.reconnects),
            unknown_replies=counts.unknown_replies + session.unknown_replies,
            in_flight=session.in_flight,
            slots_leased=session.pool.leased,
            attached_bytes=session.pool.attached_bytes,
        )
