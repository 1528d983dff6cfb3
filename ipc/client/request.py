"""One inference as its caller asked for it, over all attempts to get it answered; without I/O.

Which lane it takes, which errors another attempt can mend, and what its result looks like are decided
here, once for the blocking and for the asyncio client.
"""

import hashlib
import time
from typing import Final, TypeAlias

from ..errors import BadRequest, ConnectionLost, DeadlineExceeded, TensordError, UnknownHandle
from ..limits import HELLO_TIMEOUT_S, PRIORITY_CLASSES
from ..wire import LATEST_NEEDS_SESSION
from .arena import ArenaSlot
from .arrays import Array, Inputs, Outputs, arrange_outputs, as_bytes, prepare_inputs
from .call import Call
from .model import OpenedModel, RequestPlan
from .session import ClientSession

INLINE_BYTES_MAX: Final = 256 * 1024
"""Input bytes up to which a tensor goes through the socket; above, two copies in an arena are cheaper."""

GRACE_NS: Final = 250_000_000
"""How long after its deadline a request still waits for the daemon's own answer, which knows the stage."""

ATTEMPTS_MAX: Final = 4
"""Connections on which one request is tried: one that ends them all is perhaps the reason."""

Buffer: TypeAlias = bytes | memoryview
"""What can be sent as it lies in memory; a memoryview's items are bytes."""

TIMEOUT_S_MAX: Final = 1e6
"""Eleven days: poll(2) counts milliseconds in 31 bits, which hold twice as much."""

PRIORITIES: Final = {"high": 0, "normal": 1, "low": 2}


class InferRequest:
    """An inference, from the call of the user to its outcome."""

    __slots__ = (
        "_attempts",
        "deadline_ns",
        "inputs",
        "is_torch",
        "latest",
        "model",
        "opened",
        "priority",
        "reopen",
        "sent",
        "session",
        "slot",
        "user_slot",
    )

    def __init__(
        self,
        model: str,
        inputs: Inputs,
        timeout: float,
        priority: str | int,
        session: int | str | bytes | None,
        latest: bool,
        user_slot: ArenaSlot | None = None,
    ) -> None:
        """Raises BadRequest for a timeout, priority or session that makes no sense, or `latest` without a session."""
        self.model = model
        self.inputs = inputs
        self.deadline_ns = deadline_after(timeout)
        self.priority = PRIORITIES["normal"] if priority == "normal" else _priority_class(priority)
        self.session = 0 if session is None else _session_key(session)
        self.latest = latest
        if latest and not self.session:
            raise BadRequest("session", "None", LATEST_NEEDS_SESSION)
        self.opened: OpenedModel | None = None
        self.slot: ArenaSlot | None = None
        """The slot of the present attempt; None in the inline lane."""
        self.user_slot = user_slot
        """The slot that the user has leased and filled, whose arena no other connection has; None for `inputs`."""
        self.sent = False
        """Whether the present attempt's frame may have reached the daemon."""
        self.is_torch = False
        self.reopen = False
        """Whether the daemon did not know the handle, so that this attempt opens the model again."""
        self._attempts = 1

    # ── one attempt ─────────────────────────────────────────────────────────────────────────────

    def prepare(self, opened: OpenedModel) -> tuple[RequestPlan, list[Array]]:
        """Check the inputs against the model as it is now. Raises what `prepare_inputs` does."""
        self.opened = opened
        prepared = prepare_inputs(opened.spec, self.inputs)
        self.is_torch = prepared.is_torch
        return opened.plan(prepared.extent), prepared.arrays

    def start_inline(self, session: ClientSession, plan: RequestPlan, arrays: list[Array]) -> tuple[Call, list[Buffer]]:
        """A call and what to send for it: head and payload."""
        call, head = session.infer_inline(plan, self.priority, self.deadline_ns, self.session, latest=self.latest)
        return call, [head, *(as_bytes(array).data for array in arrays)]

    def start_arena(self, session: ClientSession, slot: ArenaSlot) -> tuple[Call, list[Buffer]]:
        """A call on the slot, whose inputs are written. Raises SlotInUse."""
        assert self.opened is not None
        slot.begin()
        self.slot = slot
        call, head = session.infer_arena(
            slot, self.opened.handle, self.priority, self.deadline_ns, self.session, latest=self.latest
        )
        return call, [head]

    # ── its end ─────────────────────────────────────────────────────────────────────────────────

    def result(self, call: Call) -> Outputs:
        """The outputs of a call that is done. Raises its error."""
        if call.error is not None:
            raise call.error
        assert self.opened is not None
        slot = self.slot
        arrays = call.arrays
        if slot is not None:
            views = slot.results(call.shapes)
            arrays = views if self.user_slot is not None else [view.copy() for view in views]
        return arrange_outputs(self.opened.spec, arrays, as_torch=self.is_torch)

    def end_attempt(self) -> None:
        """Give the attempt's own slot back; one that the user leased stays the user's."""
        slot = self.slot
        if slot is not None and self.user_slot is None:
            self.slot = None
            slot.release()

    def may_retry(self, error: TensordError, now_ns: int) -> bool:
        """Whether another attempt can mend this error, and may: nothing that is not idempotent runs twice."""
        if isinstance(error, UnknownHandle) and not self.reopen:
            self.reopen = True
            return True
        if not isinstance(error, ConnectionLost):
            return False
        if self.user_slot is not None:
            raise ConnectionLost(f"{error.reason}; the slot ended with it: lease again") from error
        was_sent, self.sent = self.sent, False
        if was_sent and not (self.opened is not None and self.opened.spec.idempotent):
            return False
        self._attempts += 1
        return self._attempts <= ATTEMPTS_MAX and now_ns < self.deadline_ns


def takes_arena(plan: RequestPlan, inline_bytes_max: int) -> bool:
    """Whether a request is better, or only possible, in the arena lane."""
    return plan.input_bytes > min(INLINE_BYTES_MAX, inline_bytes_max) or plan.output_bytes > inline_bytes_max


def fits_inline(plan: RequestPlan, inline_bytes_max: int) -> bool:
    """Whether a request is possible without an arena."""
    return max(plan.input_bytes, plan.output_bytes) <= inline_bytes_max


def deadline_after(timeout: float) -> int:
    """CLOCK_MONOTONIC in nanoseconds, `timeout` seconds from now. Raises BadRequest."""
    if not isinstance(timeout, int | float) or not 0 < timeout <= TIMEOUT_S_MAX:
        raise BadRequest("timeout", repr(timeout), f"use seconds, more than 0 and at most {TIMEOUT_S_MAX:.0f}")
    return time.monotonic_ns() + int(timeout * 1e9)


def hello_deadline(deadline_ns: int) -> int:
    """When a new connection is given up on behalf of a request with this deadline."""
    return min(deadline_ns, time.monotonic_ns() + int(HELLO_TIMEOUT_S * 1e9))


def deadline_exceeded(deadline_ns: int) -> DeadlineExceeded:
    """The error of a request whose deadline passed while this process waited."""
    return DeadlineExceeded("client", round((time.monotonic_ns() - deadline_ns) / 1e6, 1))


def _priority_class(priority: str | int) -> int:
    number = PRIORITIES.get(priority) if isinstance(priority, str) else priority
    if number is None or not 0 <= number < PRIORITY_CLASSES:
        raise BadRequest("priority", repr(priority), "use 'high' (0), 'normal' (1) or 'low' (2)")
    return number


def _session_key(session: int | str | bytes) -> int:
    """The key on the wire, never 0, which means none: the same text gives the same key in every process."""
    if isinstance(session, int):
        if not 0 < session < 2**64:
            raise BadRequest("session", repr(session), "use a number from 1 to 2**64 - 1, a text or bytes")
        return session
    text = session.encode() if isinstance(session, str) else session
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") or 1
