"""The arenas of one connection: attached on the client's wish, marked where requests are in flight, given back."""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from tensord.ipc.allocator import RangeSet
from tensord.ipc.errors import (
    ArenaQuotaExceeded,
    BadRequest,
    ShuttingDown,
    SlotInUse,
    TensordError,
    TooManyArenas,
    UnknownArena,
)
from tensord.ipc.limits import ARENAS_PER_CONNECTION_MAX
from tensord.ipc.wire import FrameType, decode_arena, encode_arena

from .forms import FORMS_MAX, Form
from .models import Model
from .requests import InferRequest
from .streams import Stream
from .users import User

SEND_AGAIN_S: Final = 0.002
"""Between two looks whether the socket has room for a frame with a descriptor."""


@dataclass(eq=False, slots=True)
class ClientArena:
    """An arena of one connection. It goes back when the client is through with it and no lease is left."""

    arena: int
    nbytes: int
    user: User
    """Whose quota it counts for."""
    ranges: RangeSet = field(default_factory=RangeSet)
    """Ranges of requests in flight."""
    uses: int = 0
    """Tensors of requests in flight that lie here; also those without bytes, for which a worker needs the arena."""
    detached: bool = False


class Owner(Protocol):
    """What this module needs of a connection."""

    closed: bool
    stream: Stream
    user: User

    def send(self, data: bytes) -> None: ...
    def send_error(self, request_id: int, error: TensordError) -> None: ...
    def arena_answered(self) -> None: ...


class ClientArenas:
    """The arenas that one connection has, by number, and those that it has asked for."""

    __slots__ = ("_forms", "_give_back", "_owner", "by_number", "wanted")

    def __init__(self, owner: Owner, give_back: Callable[[ClientArena], None]) -> None:
        """`give_back` takes an arena that the client is through with and that no request uses."""
        self.by_number: dict[int, ClientArena] = {}
        self.wanted = 0
        self._forms: dict[tuple[int, int, int, bytes], tuple[Form, bytes]] = {}
        """By model, counts and tensor headers; a client's requests keep coming from the same slots."""
        self._owner = owner
        self._give_back = give_back

    # ── attaching ───────────────────────────────────────────────────────────────────────────────

    def want(self, meta: memoryview, nbytes_max: int, *, draining: bool) -> int:
        """Check an ATTACH and count it as wanted; its bytes. Raises ClientFault, OperatorFault, ShuttingDown."""
        _, nbytes = decode_arena(meta)
        if nbytes < 1:
            raise BadRequest("nbytes", str(nbytes), "ask for an arena of at least one byte")
        if nbytes > nbytes_max:
            raise ArenaQuotaExceeded(nbytes, nbytes_max, "arena_bytes_max")
        if len(self.by_number) + self.wanted >= ARENAS_PER_CONNECTION_MAX:
            raise TooManyArenas(ARENAS_PER_CONNECTION_MAX)
        if draining:
            raise ShuttingDown()
        self.wanted += 1
        return nbytes

    def refused(self, request_id: int, error: TensordError) -> None:
        """The supervisor has no arena for this client."""
        self._owner.send_error(request_id, error)
        self._answered()

    def made(self, request_id: int, number: int, nbytes: int, fd: int) -> None:
        """Pass an arena on to the client. Takes `fd` over."""
        arena = ClientArena(number, nbytes, self._owner.user)
        if self._owner.closed:
            self._let_go(arena)
            os.close(fd)
            return
        self.by_number[number] = arena
        self._send_with_fd(encode_arena(FrameType.ATTACHED, request_id, number, nbytes), fd)

    def _answered(self) -> None:
        self.wanted -= 1
        self._owner.arena_answered()

    def _send_with_fd(self, data: bytes, fd: int) -> None:
        """A descriptor goes with the first byte: write to the socket itself while nothing else waits there."""
        owner = self._owner
        if owner.closed or owner.stream.closing:
            os.close(fd)
            return
        if not owner.stream.unsent_bytes:
            try:
                sent = socket.send_fds(owner.stream.sock, [data], [fd])
            except BlockingIOError:
                pass
            except OSError:
                os.close(fd)
                owner.stream.abort()
                return
            else:
                os.close(fd)
                owner.send(data[sent:])
                self._answered()
                return
        asyncio.get_running_loop().call_later(SEND_AGAIN_S, self._send_with_fd, data, fd)

    # ── forms ───────────────────────────────────────────────────────────────────────────────────

    def form(self, model: Model, inputs: int, outputs: int, headers: bytes) -> tuple[Form, bytes]:
        """The request's form, and the tensor headers of its result where these are known already. Raises ClientFault.

        Other than those of inline requests, forms that name an arena are this connection's own, and are
        forgotten when an arena goes.
        """
        if not self.by_number:
            return model.forms.form(model, inputs, outputs, headers, self.by_number), b""
        key = (model.index, inputs, outputs, headers)
        known = self._forms.get(key)
        if known is None:
            form = model.forms.form(model, inputs, outputs, headers, self.by_number)
            if not form.places:
                return form, b""
            known = (form, b"" if model.data_dimensions else model.result_headers(form))
            if len(self._forms) >= FORMS_MAX:
                self._forms.clear()
            self._forms[key] = known
        return known

    # ── detaching ───────────────────────────────────────────────────────────────────────────────

    def detach(self, meta: memoryview) -> None:
        """A DETACH. Raises UnknownArena."""
        number, _ = decode_arena(meta)
        arena = self.by_number.pop(number, None)
        if arena is None:
            raise UnknownArena(number)
        self._forms.clear()
        self._let_go(arena)

    def detach_all(self) -> None:
        """The connection is over."""
        for arena in self.by_number.values():
            self._let_go(arena)
        self.by_number.clear()

    def _let_go(self, arena: ClientArena) -> None:
        arena.detached = True
        if not arena.uses:
            self._give_back(arena)

    # ── ranges ──────────────────────────────────────────────────────────────────────────────────

    def reserve(self, request: InferRequest) -> None:
        """Mark the request's ranges as in flight, or none of them. Raises SlotInUse."""
        for place in request.form.places:
            arena = self.by_number[place.arena]
            if place.nbytes and not arena.ranges.add(place.offset, place.offset + place.nbytes):
                self.release(request)
                raise SlotInUse(place.offset, place.nbytes)
            arena.uses += 1
            request.ranges.append((arena, place))

    def release(self, request: InferRequest) -> None:
        """Nobody reads or writes the request's ranges any more."""
        for arena, place in request.ranges:
            if place.nbytes:
                arena.ranges.remove(place.offset)
            arena.uses -= 1
            if arena.detached and not arena.uses:
                self._give_back(arena)
        request.ranges.clear()
