"""Flows, step by step: each is played by hand against a session that is fed with bytes."""

import mmap
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest

from tensord.ipc.arena import create_arena
from tensord.ipc.client.arena import ArenaSlot
from tensord.ipc.client.call import Call, RoomTicket, Ticket
from tensord.ipc.client.flow import REFUSALS, Flow, Send, ask, handshake, lease, open_model, start
from tensord.ipc.client.request import InferRequest
from tensord.ipc.client.session import ClientSession
from tensord.ipc.errors import (
    ArenaQuotaExceeded,
    ConnectionLost,
    NoMemory,
    TensordError,
    TooManyArenas,
    TooManyConnections,
    TooManyRows,
    UnknownHandle,
    UnknownModel,
    UnsupportedVersion,
)
from tensord.ipc.limits import ARENAS_PER_CONNECTION_MAX
from tensord.ipc.tensors import NO_SIZES, DType, ModelSpec, TensorSpec
from tensord.ipc.wire import (
    HEADER,
    FrameType,
    Welcome,
    decode_arena,
    decode_open,
    encode_arena,
    encode_error,
    encode_opened,
    frame,
)

T = TypeVar("T")

ROW_BYTES = 64 * 1024
SPEC = ModelSpec(
    "m",
    1,
    (TensorSpec("x", DType.UINT8, (ROW_BYTES,)),),
    (TensorSpec("y", DType.UINT8, (ROW_BYTES,)),),
    64,
    idempotent=True,
)
SMALL = np.ones((1, ROW_BYTES), np.uint8)
LARGE = np.ones((8, ROW_BYTES), np.uint8)
"""Goes through an arena."""
SLOT_BYTES = 16 * ROW_BYTES
"""Of LARGE, with its outputs."""


def spec_of(version: int = 1, x: TensorSpec = SPEC.inputs[0]) -> ModelSpec:
    return ModelSpec("m", version, (x,), SPEC.outputs, 64, idempotent=True)


def request_of(inputs: Any = SMALL, *, user_slot: ArenaSlot | None = None) -> InferRequest:
    return InferRequest("m", inputs, 30.0, "normal", None, False, user_slot)


def feed(session: ClientSession, data: bytes) -> None:
    """Receive from the daemon."""
    while data:
        buffer = session.reader.get_buffer()
        part, data = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(part)] = part
        session.reader.buffer_updated(len(part))


class Play:
    """A flow under way, and who runs it: `step` is what it asked for last, until it has returned `result`."""

    def __init__(self, session: ClientSession, flow: Flow[Any]) -> None:
        self.session = session
        self.step: Send | Ticket | None = None
        self.result: Any = None
        self.returned = False
        self._flow = flow
        self._go(lambda: next(flow))

    def _go(self, advance: Callable[[], Send | Ticket]) -> None:
        try:
            self.step = advance()
        except StopIteration as stop:
            self.step, self.result, self.returned = None, stop.value, True

    def on(self) -> None:
        """The step was taken."""
        self._go(lambda: next(self._flow))

    def throw(self, error: BaseException) -> None:
        """The step failed."""
        self._go(lambda: self._flow.throw(error))

    def sent(self, kind: FrameType) -> memoryview:
        """Send the frame that it has to send: of this kind; its meta."""
        assert isinstance(self.step, Send)
        data = b"".join(self.step.buffers)
        assert len(data) == self.step.nbytes
        _, frame_type, _, meta_bytes, request_id, payload_bytes = HEADER.unpack_from(data)
        assert (frame_type, request_id) == (kind, self.step.call.request_id)
        assert len(data) == HEADER.size + meta_bytes + payload_bytes
        self.on()
        return memoryview(data)[HEADER.size : HEADER.size + meta_bytes]

    def answered(self, answer: Callable[[int], bytes]) -> None:
        """Wait for the call that it waits for, which gets this answer."""
        assert isinstance(self.step, Call)
        feed(self.session, answer(self.step.request_id))
        assert self.step.done
        self.on()

    def refused(self, error: TensordError) -> None:
        """Wait for the call that it waits for, which gets this error."""
        self.answered(lambda request_id: encode_error(request_id, error))

    def opened(self, spec: ModelSpec = SPEC, handle: int = 5) -> None:
        """It opens the model."""
        assert decode_open(self.sent(FrameType.OPEN)) == "m"
        self.answered(lambda request_id: encode_opened(request_id, handle, spec))

    def attached(self, number: int = 1) -> int:
        """It attaches an arena, and gets one; the bytes that it asked for."""
        _, nbytes = decode_arena(self.sent(FrameType.ATTACH))
        self.session.descriptors_received([create_arena(nbytes)])
        self.answered(lambda request_id: encode_arena(FrameType.ATTACHED, request_id, number, nbytes))
        return nbytes

    def not_attached(self, error: TensordError) -> int:
        """It attaches an arena, and is refused; the bytes that it asked for."""
        _, nbytes = decode_arena(self.sent(FrameType.ATTACH))
        self.refused(error)
        return nbytes

    def waits_for_room(self) -> RoomTicket:
        """It waits until something comes back."""
        assert isinstance(self.step, RoomTicket)
        return self.step

    def room_came(self) -> None:
        """Something came back."""
        assert self.waits_for_room().done
        self.on()

    def infer_sent(self) -> Call:
        """It sends the request and returns its call."""
        assert isinstance(self.step, Send)
        call = self.step.call
        self.sent(FrameType.INFER)
        assert (self.returned, self.result) == (True, call)
        return call


@pytest.fixture
def session() -> Iterator[ClientSession]:
    """A session that was welcomed: arenas of four mebibytes, a mebibyte inline."""
    made = ClientSession(4 * 2**20)
    made.welcome = Welcome(1, 42, 8, 2**20, 2**26)
    yield made
    made.end(ConnectionLost("the test is over"))


class Racing(ClientSession):
    """A session in which another thread does something between a look and the ticket that is waited for."""

    meanwhile: Callable[[], object] | None = None

    def room_ticket(self) -> RoomTicket:
        ticket = super().room_ticket()
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return ticket


@pytest.fixture
def racing() -> Iterator[Racing]:
    made = Racing(SLOT_BYTES)
    made.welcome = Welcome(1, 42, 8, 2**20, 2**26)
    yield made
    made.end(ConnectionLost("the test is over"))


def open_now(session: ClientSession) -> None:
    Play(session, open_model(session, "m")).opened()


def attach_now(session: ClientSession, nbytes: int, number: int = 1) -> None:
    session.pool.add(number, nbytes, create_arena(nbytes))


def lease_now(session: ClientSession, rows: int = 8) -> ArenaSlot:
    """A slot for LARGE, which the model and an arena are there for."""
    play = Play(session, lease(session, "m", rows, NO_SIZES, ()))
    assert play.returned
    slot: ArenaSlot = play.result
    return slot


# ── frames without payload ──────────────────────────────────────────────────────────────────────


def test_asking_is_a_frame_and_its_answer(session: ClientSession) -> None:
    play = Play(session, ask(*session.ping()))
    play.sent(FrameType.PING)
    play.answered(lambda request_id: frame(FrameType.PONG, request_id))
    assert (play.returned, play.result) == (True, None)


def test_an_error_that_is_the_answer_is_raised(session: ClientSession) -> None:
    play = Play(session, ask(*session.open("n")))
    play.sent(FrameType.OPEN)
    with pytest.raises(UnknownModel):
        play.refused(UnknownModel("n", ["m"]))


def test_an_error_on_the_way_is_raised(session: ClientSession) -> None:
    play = Play(session, ask(*session.ping()))
    with pytest.raises(TimeoutError):
        play.throw(TimeoutError())


def test_a_model_that_was_opened_is_the_sessions(session: ClientSession) -> None:
    play = Play(session, open_model(session, "m"))
    play.opened(handle=9)
    assert (play.result.handle, play.result.spec) == (9, SPEC)
    assert session.models["m"] is play.result


def test_opening_again_replaces_it(session: ClientSession) -> None:
    open_now(session)
    Play(session, open_model(session, "m")).opened(spec_of(version=2), handle=6)
    assert (session.models["m"].handle, session.models["m"].spec.version) == (6, 2)


# ── handshake ───────────────────────────────────────────────────────────────────────────────────


def test_a_handshake_ends_with_the_welcome() -> None:
    session = ClientSession()
    play = Play(session, handshake(session, "tenant"))
    assert bytes(play.sent(FrameType.HELLO)[-6:]) == b"tenant"
    welcome = Welcome(1, 42, 8, 2**20, 2**26)
    play.answered(welcome.encode)
    assert (play.returned, session.welcome) == (True, welcome)


def test_a_handshake_may_be_refused() -> None:
    session = ClientSession()
    play = Play(session, handshake(session, ""))
    play.sent(FrameType.HELLO)
    with pytest.raises(UnsupportedVersion):
        play.refused(UnsupportedVersion(1, 1, 2))


def test_who_is_refused_before_it_spoke_hears_the_daemons_last_word() -> None:
    session = ClientSession()
    play = Play(session, handshake(session, ""))
    play.throw(ConnectionLost("it cannot be written to: Broken pipe"))
    play.waits_for_room()
    feed(session, encode_error(0, TooManyConnections(3)))
    session.end(ConnectionLost("the daemon closed it"))
    with pytest.raises(TooManyConnections, match="3"):
        play.room_came()


# ── inline ──────────────────────────────────────────────────────────────────────────────────────


def test_the_first_request_opens_its_model_and_the_next_does_not(session: ClientSession) -> None:
    first = Play(session, start(session, request_of()))
    first.opened()
    assert first.infer_sent().expects is FrameType.RESULT
    Play(session, start(session, request_of())).infer_sent()
    assert session.in_flight == 2


def test_a_request_for_an_unknown_handle_opens_its_model_again(session: ClientSession) -> None:
    open_now(session)
    request = request_of()
    request.reopen = True
    play = Play(session, start(session, request))
    play.opened(handle=6)
    assert session.models["m"].handle == 6
    play.infer_sent()


def test_a_request_was_sent_when_its_frame_was(session: ClientSession) -> None:
    open_now(session)
    request = request_of()
    play = Play(session, start(session, request))
    assert not request.sent
    play.infer_sent()
    assert request.sent


def test_a_request_whose_frame_failed_was_not_sent(session: ClientSession) -> None:
    open_now(session)
    request = request_of()
    play = Play(session, start(session, request))
    with pytest.raises(ConnectionLost):
        play.throw(ConnectionLost("it cannot be written to"))
    assert not request.sent


def in_flight(session: ClientSession, count: int) -> list[Call]:
    open_now(session)
    return [Play(session, start(session, request_of())).infer_sent() for _ in range(count)]


def test_a_request_waits_until_the_daemon_takes_another(session: ClientSession) -> None:
    calls = in_flight(session, 8)
    request = request_of()
    play = Play(session, start(session, request))
    play.waits_for_room()
    session.tell_room()  # it was a slot that came back
    play.room_came()
    assert not play.waits_for_room().done
    feed(session, encode_error(calls[3].request_id, NoMemory("x")))
    play.room_came()
    play.infer_sent()
    assert session.in_flight == 8


def test_room_that_comes_before_the_ticket_is_not_overlooked(racing: Racing) -> None:
    calls = in_flight(racing, 8)
    racing.meanwhile = lambda: feed(racing, encode_error(calls[0].request_id, NoMemory("x")))
    Play(racing, start(racing, request_of())).infer_sent()


# ── arenas ──────────────────────────────────────────────────────────────────────────────────────


def test_a_large_request_is_copied_into_a_slot_and_only_its_head_is_sent(session: ClientSession) -> None:
    open_now(session)
    request = request_of(LARGE)
    play = Play(session, start(session, request))
    assert play.attached() == 4 * 2**20
    assert isinstance(play.step, Send)
    assert play.step.nbytes < 200
    play.infer_sent()
    assert request.slot is not None
    assert np.array_equal(request.slot.inputs["x"], LARGE)
    assert request.slot.in_flight


def test_an_arena_with_room_serves_the_next_request_too(session: ClientSession) -> None:
    open_now(session)
    attach_now(session, 2 * SLOT_BYTES)
    requests = [request_of(LARGE) for _ in range(2)]
    for request in requests:
        Play(session, start(session, request)).infer_sent()
    assert session.pool.leased == 2
    Play(session, start(session, request_of(LARGE))).attached(number=2)


@pytest.mark.parametrize("error", [ArenaQuotaExceeded(1, 1, "arenas_bytes_max"), NoMemory("x"), TooManyArenas(8)])
def test_who_is_refused_an_arena_asks_for_the_least_and_then_goes_inline(
    session: ClientSession, error: TensordError
) -> None:
    assert isinstance(error, REFUSALS)
    open_now(session)
    play = Play(session, start(session, request_of(LARGE)))
    assert [play.not_attached(error), play.not_attached(error)] == [4 * 2**20, SLOT_BYTES]
    assert isinstance(play.step, Send)
    assert play.step.nbytes > LARGE.nbytes
    play.infer_sent()


def test_a_smaller_arena_is_as_good(session: ClientSession) -> None:
    open_now(session)
    play = Play(session, start(session, request_of(LARGE)))
    play.not_attached(NoMemory("x"))
    assert play.attached() == SLOT_BYTES
    play.infer_sent()


def test_another_error_of_attach_is_raised_and_others_may_attach(session: ClientSession) -> None:
    open_now(session)
    play = Play(session, start(session, request_of(LARGE)))
    play.sent(FrameType.ATTACH)
    with pytest.raises(ConnectionLost):
        play.throw(ConnectionLost("gone"))
    assert session.pool.begin_attach()


def test_one_attaches_and_the_others_wait(session: ClientSession) -> None:
    open_now(session)
    first, second = (Play(session, start(session, request_of(LARGE))) for _ in range(2))
    second.waits_for_room()
    first.attached()
    second.room_came()
    first.infer_sent()
    second.infer_sent()


def test_who_waited_for_one_that_was_refused_asks_itself(session: ClientSession) -> None:
    open_now(session)
    first, second = (Play(session, start(session, request_of(LARGE))) for _ in range(2))
    first.not_attached(NoMemory("x"))
    first.not_attached(NoMemory("x"))
    second.room_came()
    second.attached()
    second.infer_sent()


def test_a_slot_that_comes_back_before_the_ticket_is_not_overlooked(racing: Racing) -> None:
    open_now(racing)
    attach_now(racing, SLOT_BYTES)
    racing.meanwhile = lease_now(racing).release
    Play(racing, start(racing, request_of(LARGE))).infer_sent()


def test_a_connection_that_ends_before_a_slot_is_found_is_lost(racing: Racing) -> None:
    open_now(racing)
    racing.meanwhile = lambda: racing.end(ConnectionLost("gone"))
    with pytest.raises(ConnectionLost, match="waited for an arena"):
        Play(racing, start(racing, request_of(LARGE)))


def too_large_inline(session: ClientSession) -> Play:
    """A request that only an arena can take, while the one arena is full and another is refused."""
    session.welcome = Welcome(1, 42, 8, SMALL.nbytes, 2**26)
    play = Play(session, start(session, request_of(LARGE)))
    for _ in range(2):
        play.not_attached(TooManyArenas(1))
    return play


def test_what_does_not_fit_inline_waits_for_others_slots(session: ClientSession) -> None:
    open_now(session)
    attach_now(session, SLOT_BYTES)
    held = lease_now(session)
    play = too_large_inline(session)
    session.tell_room()
    play.room_came()
    assert not play.waits_for_room().done
    held.release()
    play.room_came()
    play.infer_sent()


def test_what_no_arena_could_hold_is_refused(session: ClientSession) -> None:
    open_now(session)
    attach_now(session, SLOT_BYTES - mmap.PAGESIZE)
    with pytest.raises(TooManyArenas):
        too_large_inline(session)


def test_the_end_of_the_connection_ends_the_wait_for_others_slots(session: ClientSession) -> None:
    open_now(session)
    attach_now(session, SLOT_BYTES)
    lease_now(session)
    play = too_large_inline(session)
    session.end(ConnectionLost("gone"))
    with pytest.raises(ConnectionLost, match="waited for an arena") as caught:
        play.room_came()
    assert isinstance(caught.value.__cause__, TooManyArenas)


# ── slots of the user ───────────────────────────────────────────────────────────────────────────


def test_a_lease_opens_the_model_and_attaches(session: ClientSession) -> None:
    play = Play(session, lease(session, "m", 8, NO_SIZES, ()))
    play.opened()
    play.attached()
    assert play.result.plan.rows == 8
    assert play.result.inputs["x"].shape == (8, ROW_BYTES)


def test_a_lease_of_too_many_rows_asks_for_no_arena(session: ClientSession) -> None:
    open_now(session)
    with pytest.raises(TooManyRows):
        Play(session, lease(session, "m", 65, NO_SIZES, ()))


def test_a_lease_does_not_wait_for_others_slots(session: ClientSession) -> None:
    open_now(session)
    for number in range(1, ARENAS_PER_CONNECTION_MAX + 1):
        attach_now(session, SLOT_BYTES, number)
        lease_now(session)
    with pytest.raises(TooManyArenas):
        Play(session, lease(session, "m", 8, NO_SIZES, ()))


def test_what_lies_in_the_users_slot_is_sent_as_it_is(session: ClientSession) -> None:
    open_now(session)
    attach_now(session, SLOT_BYTES)
    slot = lease_now(session)
    slot.inputs["x"][:] = 7
    request = request_of(None, user_slot=slot)
    Play(session, start(session, request)).infer_sent()
    assert (request.slot, request.opened) == (slot, session.models["m"])
    assert (slot.inputs["x"] == 7).all()


def test_a_slot_does_not_outlive_its_connection(session: ClientSession) -> None:
    earlier = ClientSession()
    open_now(earlier)
    attach_now(earlier, SLOT_BYTES)
    slot = lease_now(earlier)
    open_now(session)
    with pytest.raises(ConnectionLost, match="earlier connection"):
        Play(session, start(session, request_of(None, user_slot=slot)))
    assert not slot.in_flight


def test_a_slot_serves_a_newer_version_whose_tensors_are_the_same_and_no_other(session: ClientSession) -> None:
    open_now(session)
    attach_now(session, SLOT_BYTES)
    slot = lease_now(session)
    Play(session, open_model(session, "m")).opened(spec_of(version=2), handle=6)
    Play(session, start(session, request_of(None, user_slot=slot))).infer_sent()
    slot.answered()
    Play(session, open_model(session, "m")).opened(spec_of(3, TensorSpec("x", DType.INT8, (ROW_BYTES,))), handle=7)
    with pytest.raises(UnknownHandle):
        Play(session, start(session, request_of(None, user_slot=slot)))
    assert not slot.in_flight


def test_a_slot_whose_request_gave_up_before_it_was_sent_is_not_in_flight(session: ClientSession) -> None:
    in_flight(session, 8)
    attach_now(session, SLOT_BYTES)
    slot = lease_now(session)
    play = Play(session, start(session, request_of(None, user_slot=slot)))
    play.waits_for_room()
    assert slot.in_flight
    with pytest.raises(TimeoutError):
        play.throw(TimeoutError())
    assert not slot.in_flight


def test_an_inline_request_may_give_up_before_it_was_sent_too(session: ClientSession) -> None:
    in_flight(session, 8)
    play = Play(session, start(session, request_of()))
    with pytest.raises(TimeoutError):
        play.throw(TimeoutError())
    assert session.in_flight == 8
