"""What a client does over one connection, step by step, without I/O: written once, run by threads and by asyncio.

A flow is a generator. It yields what it needs done: a `Send`, or a `Ticket` to wait for; whoever runs it
does so, or throws the error that came in the way into it. It returns its result.
"""

from collections.abc import Collection, Generator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np

from ..errors import (
    ArenaQuotaExceeded,
    ConnectionLost,
    NoMemory,
    TensordError,
    TooManyArenas,
    UnknownHandle,
)
from .arena import ArenaSlot
from .call import Call, Ticket
from .model import OpenedModel, RequestPlan
from .request import Buffer, InferRequest, fits_inline, takes_arena
from .session import ClientSession

REFUSALS: Final = (ArenaQuotaExceeded, NoMemory, TooManyArenas)
"""Answers to ATTACH that mean: not another arena."""


class Send(NamedTuple):
    """A frame to be sent for a call."""

    call: Call
    buffers: list[Buffer]
    nbytes: int


T = TypeVar("T")
Flow: TypeAlias = Generator[Send | Ticket, None, T]


def ask(call: Call, head: bytes) -> Flow[Any]:
    """A frame without payload and its answer. Raises the answer's error."""
    yield Send(call, [head], len(head))
    yield call
    return call.outcome()


def handshake(session: ClientSession, tenant: str) -> Flow[None]:
    """The first frames of a connection. Raises UnsupportedVersion, TooManyConnections and others."""
    call, head = session.hello(tenant)
    try:
        yield Send(call, [head], len(head))
    except ConnectionLost:  # refused before we spoke: the daemon's last word, at the end of the stream, says why
        while session.end_error is None:
            yield session.room_ticket()
        raise session.error_of_end() from None
    yield call
    call.outcome()


def open_model(session: ClientSession, name: str) -> Flow[OpenedModel]:
    """Open a model (again). Raises UnknownModel and others."""
    handle, spec = yield from ask(*session.open(name))
    opened = session.models[name] = OpenedModel(handle, spec)
    return opened


def start(session: ClientSession, request: InferRequest) -> Flow[Call]:
    """Send one attempt of a request; its call is what to wait for."""
    opened = None if request.reopen else session.models.get(request.model)
    if opened is None:
        opened = yield from open_model(session, request.model)
    if request.user_slot is not None:
        return (yield from _start_user_slot(session, request, opened, request.user_slot))
    plan, arrays = request.prepare(opened)
    slot = None
    if takes_arena(plan, session.inline_bytes_max):
        slot = yield from _lease_or_inline(session, plan)
    if slot is None:
        return (yield from _send(session, request, *request.start_inline(session, plan, arrays)))
    request.slot = slot
    for view, array in zip(slot.inputs.values(), arrays, strict=True):
        np.copyto(view, array)
    return (yield from _send(session, request, *request.start_arena(session, slot)))


def _start_user_slot(session: ClientSession, request: InferRequest, opened: OpenedModel, slot: ArenaSlot) -> Flow[Call]:
    """The same for a slot that the user has leased and filled."""
    if slot.pool is not session.pool:
        raise ConnectionLost("the slot belongs to an earlier connection")
    spec = slot.plan.spec
    if (opened.spec.inputs, opened.spec.outputs) != (spec.inputs, spec.outputs):
        raise UnknownHandle(slot.plan.handle)
    request.opened = opened
    return (yield from _send(session, request, *request.start_arena(session, slot)))


def _send(session: ClientSession, request: InferRequest, call: Call, buffers: list[Buffer]) -> Flow[Call]:
    """Send a request as soon as the daemon takes another one on this connection."""
    try:
        while not session.admit(call):
            ticket = session.room_ticket()
            if session.admit(call):
                break
            yield ticket
    except BaseException:
        if call.returned is not None:
            call.returned()
        raise
    yield Send(call, buffers, sum(map(len, buffers)))
    request.sent = True
    return call


# ── arenas ──────────────────────────────────────────────────────────────────────────────────────


def lease(
    session: ClientSession, model: str, rows: int, sizes: Mapping[str, int], optional: Collection[str]
) -> Flow[ArenaSlot]:
    """A slot for the user.

    Raises BadRequest, TooManyRows, and ArenaQuotaExceeded when there is no room and may be no further arena.
    """
    opened = session.models.get(model)
    if opened is None:
        opened = yield from open_model(session, model)
    plan = opened.plan(opened.extent(rows, sizes, optional))
    return (yield from _lease_or_attach(session, plan))


def _lease_or_inline(session: ClientSession, plan: RequestPlan) -> Flow[ArenaSlot | None]:
    """A slot for a copy. Without one: None if the request can go inline, otherwise wait for others' slots."""
    try:
        return (yield from _lease_or_attach(session, plan))
    except REFUSALS as refusal:
        if fits_inline(plan, session.inline_bytes_max):
            return None
        if not session.pool.could_hold(plan.slot_bytes):
            raise
        error: TensordError = refusal
    while session.end_error is None:
        ticket = session.room_ticket()
        slot = session.pool.lease(plan)
        if slot is not None:
            return slot
        yield ticket
    raise ConnectionLost("it ended while the request waited for an arena") from error


def _lease_or_attach(session: ClientSession, plan: RequestPlan) -> Flow[ArenaSlot]:
    """A slot, in a further arena if need be. Raises one of REFUSALS."""
    pool = session.pool
    slot = pool.lease(plan)
    while slot is None:
        ticket = session.room_ticket()
        slot = pool.lease(plan)
        if slot is not None:
            break
        if session.end_error is not None:
            raise ConnectionLost("it ended while the request waited for an arena")
        if not pool.begin_attach():
            yield ticket
            continue
        try:
            yield from _attach(session, plan.slot_bytes)
        finally:
            pool.end_attach()
        slot = pool.lease(plan)
    return slot


def _attach(session: ClientSession, slot_bytes: int) -> Flow[None]:
    """One further arena that holds a slot of this size. Raises one of REFUSALS."""
    assert session.welcome is not None
    sizes = session.pool.sizes_to_attach(slot_bytes, session.welcome.arena_bytes_max)
    for attempt, nbytes in enumerate(sizes, start=1):
        try:
            arena = yield from ask(*session.attach(nbytes))
        except REFUSALS:
            if attempt == len(sizes):
                raise
        else:
            session.pool.add(*arena)
            return
