"""One client connection: what it answers itself, what it hands on, and what it gives back, over real sockets."""

import os
import socket
from collections.abc import Callable
from typing import Any, Final

import pytest

from tensord.daemon.frontend.connection import FRAMES_PER_TURN, INGEST_RETRY_MS
from tensord.daemon.frontend.ingest import Ingest
from tensord.daemon.frontend.models import Model
from tensord.daemon.frontend.requests import InferRequest
from tensord.daemon.frontend.users import Credentials
from tensord.daemon.messages import ModelServed, TensorInfo
from tensord.daemon.users import Access, Users
from tensord.ipc.errors import (
    BadFrame,
    BadRequest,
    DeadlineExceeded,
    DuplicateRequestId,
    IngestFull,
    InternalError,
    NoMemory,
    NotPermitted,
    PayloadTooLarge,
    ShuttingDown,
    TenantArenaQuotaExceeded,
    TensordError,
    TooManyConnections,
    TooManyInFlight,
    TooManyRows,
    UnknownArena,
    UnknownFrame,
    UnknownHandle,
    UnknownModel,
    UnsupportedVersion,
    WrongShape,
)
from tensord.ipc.limits import REQUEST_META_BYTES_MAX
from tensord.ipc.tensors import DType
from tensord.ipc.wire import (
    HEADER,
    MAGIC,
    FrameType,
    Hello,
    Welcome,
    decode_models,
    decode_opened,
    encode_arena,
    encode_open,
    frame,
)

from .fake_host import DEFAULTS, LONG_BYTES, TIMEOUT_MS, Client, FakeHost, Meeting, request_frame

pytestmark = pytest.mark.timeout(30)

WIDE_BYTES = 64 * 1024
GARBAGE = bytes(HEADER.size)
"""A header with the wrong magic."""


@pytest.fixture
def host(ingest: Ingest, served: ModelServed) -> FakeHost:
    """Serves `pair`, and `wide`, whose rows are large."""
    x, y = (TensorInfo(name, DType.UINT8, (WIDE_BYTES,), ()) for name in "xy")
    wide = ModelServed(4, "wide", 1, ("stable",), (x,), (y,), idempotent=True)
    return FakeHost(ingest, [served, wide])


@pytest.fixture
def client(meeting: Meeting, host: FakeHost) -> Client:
    """Welcomed, with handle 1 for `pair` and 2 for `wide`; the front end has looked, and need not look again."""
    client = meeting.client()
    assert [client.open("pair"), client.open("wide")] == [1, 2]
    meeting.check_stalls(0)
    assert host.watched == set()
    return client


@pytest.fixture
def model(host: FakeHost) -> Model:
    return host.models.find("pair")


@pytest.fixture
def wide(host: FakeHost) -> Model:
    return host.models.find("wide")


def wide_frame(wide: Model, request_id: int = 1, rows: int = 1, **changes: Any) -> bytes:
    return request_frame(wide, rows, handle=2, request_id=request_id, **changes)


def inputs_of(host: FakeHost, request: InferRequest) -> bytes:
    """What lies in the rows that were leased for the inputs."""
    assert request.lease is not None
    parts = []
    for position, index in enumerate(request.form.inline_inputs):
        offset = request.lease.offset(position)
        parts.append(host.ingest_view[offset : offset + request.rows * request.model_served.inputs[index].row_bytes])
    return b"".join(parts)


# ── the handshake ───────────────────────────────────────────────────────────────────────────────


def test_a_client_is_welcomed_with_the_limits_that_hold_for_it(meeting: Meeting, host: FakeHost) -> None:
    host.limits.in_flight_max, host.limits.inline_bytes_max, host.limits.arena_bytes_max = 5, 6, 7
    client = meeting.connect()
    answer = client.ask(Hello(0, 3, "").encode(9))
    assert (answer.frame_type, answer.request_id) == (FrameType.WELCOME, 9)
    assert Welcome.decode(memoryview(answer.meta)) == Welcome(1, 42, 5, 6, 7)
    assert host.opened == [client.connection]


@pytest.mark.parametrize(("named", "suffix"), [("", ""), ("video", "/video")])
def test_a_tenant_is_a_uid_and_the_name_that_it_gives(meeting: Meeting, named: str, suffix: str) -> None:
    client = meeting.connect()
    client.hello(named)
    assert client.connection.tenant == f"{os.getuid()}{suffix}"


@pytest.mark.parametrize(("low", "high"), [(2, 9), (0, 0)])
def test_a_client_of_other_versions_is_told_and_left(meeting: Meeting, low: int, high: int) -> None:
    client = meeting.connect()
    client.send(Hello(low, high, "").encode(9))
    (answer,) = client.expect_end()
    assert answer.told == (9, UnsupportedVersion)


def test_the_first_frame_must_be_hello(meeting: Meeting) -> None:
    client = meeting.connect()
    client.send(frame(FrameType.PING, 9))
    (answer,) = client.expect_end()
    assert answer.told == (0, BadFrame)


def test_hello_is_said_once(client: Client) -> None:
    assert client.hello().told == (1, BadRequest)
    client.assert_in_step()


def test_a_connection_too_many_hears_why_and_ends(meeting: Meeting, host: FakeHost) -> None:
    host.refusal = TooManyConnections(0)
    client = meeting.connect()
    (answer,) = client.expect_end()
    assert answer.told == (0, TooManyConnections)
    assert host.closed == [client.connection]


# ── who it is ───────────────────────────────────────────────────────────────────────────────────


def test_a_connection_is_of_the_user_that_the_kernel_says(meeting: Meeting) -> None:
    first, second = meeting.connect(), meeting.connect()
    assert first.connection.user is second.connection.user
    assert first.connection.credentials == Credentials(os.getuid(), frozenset({os.getgid(), *os.getgroups()}))
    assert first.connection.tenant == str(os.getuid())
    assert first.connection.flow != second.connection.flow


def test_a_model_that_is_not_for_the_user_is_not_opened(client: Client, host: FakeHost) -> None:
    host.models.find("wide").access = Access(deny=Users((os.getuid(),)))
    assert client.ask(encode_open(8, "wide")).told == (8, NotPermitted)
    assert host.not_permitted == ["wide"]
    client.assert_in_step()


def test_an_arena_that_the_host_refuses_is_not_waited_for(
    client: Client, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "want_arena", refuse_arena)
    assert client.ask(encode_arena(FrameType.ATTACH, 9, 0, 4096)).told == (9, TenantArenaQuotaExceeded)
    assert client.connection.arenas.wanted == 0


def refuse_arena(*_: object) -> None:
    raise TenantArenaQuotaExceeded(2, 1)


def test_a_users_requests_stay_below_the_class_that_it_may_use(client: Client, host: FakeHost, model: Model) -> None:
    host.users.set_knobs({**DEFAULTS, "tenant_priority": 1}, {})
    for request_id, priority in enumerate((0, 1, 2), 5):
        client.send(request_frame(model, request_id=request_id, priority=priority))
    client.meeting.until(lambda: len(host.submitted) == 3)
    assert [request.priority for request in host.submitted] == [1, 1, 2]
    for request in host.submitted:
        host.answer(request)
    client.receive_all(3)


# ── what it answers itself ──────────────────────────────────────────────────────────────────────


def test_a_handle_belongs_to_a_name(client: Client) -> None:
    assert client.open("pair:2") == 3
    assert client.open("pair") == 1
    answer = client.ask(encode_open(8, "wide"))
    handle, spec = decode_opened(memoryview(answer.meta))
    assert (answer.request_id, handle, spec.name, spec.rows_max) == (8, 2, "wide", 32)


def test_a_name_that_is_not_served_has_no_handle(client: Client) -> None:
    assert client.ask(encode_open(8, "pears")).told == (8, UnknownModel)
    assert client.open("pair:stable") == 3


def test_all_models_are_listed(client: Client, wide: Model) -> None:
    wide.replicas.add(0)
    answer = client.ask(frame(FrameType.LIST, 8))
    entries = decode_models(memoryview(answer.meta))
    assert [(entry.name, entry.version, entry.ready) for entry in entries] == [("pair", 2, False), ("wide", 1, True)]


@pytest.mark.parametrize("frame_type", [0, FrameType.PONG, FrameType.RESULT, 200])
def test_a_frame_that_no_client_sends_is_skipped_with_its_payload(client: Client, frame_type: int) -> None:
    answer = client.ask(HEADER.pack(MAGIC, frame_type, 0, 3, 8, 5), b"abc", b"defgh")
    assert answer.told == (8, UnknownFrame)
    client.assert_in_step()


# ── requests ────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_handed_on_whole_with_its_inputs_in_leased_rows(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    sent = request_frame(model, 3, request_id=5, priority=0, session=77, deadline_ns=2**62)
    client.send(sent)
    (request,) = meeting.submitted()
    assert (request.connection, request.request_id, request.model_served) == (client.connection, 5, model)
    assert (request.rows, request.priority, request.session, request.deadline_ns) == (3, 0, 77, 2**62)
    assert inputs_of(host, request) == sent[-60:]
    assert client.connection.in_flight == {5: request}


def test_without_a_deadline_the_models_timeout_counts(meeting: Meeting, client: Client, model: Model) -> None:
    client.send(request_frame(model))
    (request,) = meeting.submitted()
    assert request.deadline_ns == request.received_ns + TIMEOUT_MS * 10**6


def test_a_trace_context_is_carried_and_not_looked_at(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    sent = request_frame(model, trace=b"t" * 24)
    client.send(sent)
    (request,) = meeting.submitted()
    assert inputs_of(host, request) == sent[-20:]


@pytest.mark.parametrize("step", [1, 7, 50])
def test_a_payload_may_come_in_pieces(
    meeting: Meeting, host: FakeHost, client: Client, model: Model, step: int
) -> None:
    sent = request_frame(model, 2)
    arriving = set()
    for start in range(0, len(sent), step):
        client.send(sent[start : start + step])
        meeting.settle()
        arriving.add(host.arriving_bytes)
    (request,) = meeting.submitted()
    assert inputs_of(host, request) == sent[-40:]
    assert (arriving, host.arriving_bytes) == ({0, 40}, 0)


def test_answers_go_back_in_any_order(meeting: Meeting, host: FakeHost, client: Client, model: Model) -> None:
    client.send(request_frame(model, 1, request_id=1), request_frame(model, 2, request_id=2))
    first, second = meeting.submitted(2)
    meeting.answer(second)
    assert (client.receive().request_id, list(client.connection.in_flight)) == (2, [1])
    meeting.answer(first)
    answer = client.receive()
    assert (answer.frame_type, answer.request_id, len(answer.payload)) == (FrameType.RESULT, 1, 13)
    assert (client.connection.in_flight_bytes, host.ingest.statistics().leases) == (0, 0)


def test_a_request_is_finished_once(meeting: Meeting, client: Client, model: Model) -> None:
    client.send(request_frame(model))
    (request,) = meeting.submitted()
    meeting.answer(request)
    with pytest.raises(InternalError):
        client.connection.finished(request)


def test_what_is_in_flight_can_be_cancelled_and_nothing_else(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    client.send(request_frame(model, request_id=5), frame(FrameType.CANCEL, 5), frame(FrameType.CANCEL, 6))
    client.assert_in_step()
    assert host.cancelled == meeting.submitted()


# ── requests that are refused ───────────────────────────────────────────────────────────────────


WRONG: Final[dict[str, tuple[Callable[[Model], bytes], type[TensordError]]]] = {
    "short meta": (lambda _: frame(FrameType.INFER, 5, bytes(23)), BadRequest),
    "unknown handle": (lambda model: request_frame(model, request_id=5, handle=9), UnknownHandle),
    "priority": (lambda model: request_frame(model, request_id=5, priority=3), BadRequest),
    "deadline": (lambda model: request_frame(model, request_id=5, deadline_ns=-1), BadRequest),
    "latest of no session": (lambda model: request_frame(model, request_id=5, latest=True), BadRequest),
    "form": (lambda model: request_frame(model, 0, request_id=5), WrongShape),
    "rows": (lambda model: request_frame(model, 33, request_id=5), TooManyRows),
    "payload": (lambda model: request_frame(model, request_id=5, payload=bytes(19)), BadRequest),
    "no payload": (lambda model: request_frame(model, request_id=5, payload=b""), BadRequest),
    "payload beyond the limit": (lambda model: request_frame(model, 6, request_id=5), PayloadTooLarge),
    "arena": (lambda model: request_frame(model, request_id=5, inputs_in={0: (3, 0)}), UnknownArena),
}
"""Frames with request id 5, and the error that each gets."""


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_is_skipped_and_answered(
    meeting: Meeting, host: FakeHost, client: Client, model: Model, wrong: str
) -> None:
    host.limits.inline_bytes_max = 100
    make, error = WRONG[wrong]
    assert client.ask(make(model)).told == (5, error)
    client.assert_in_step()
    assert (host.submitted, client.connection.in_flight, host.arriving_bytes) == ([], {}, 0)
    assert host.ingest.statistics().leases == 0


def test_an_output_larger_than_what_may_go_inline_is_refused(host: FakeHost, client: Client, model: Model) -> None:
    host.limits.inline_bytes_max = 12
    everywhere = {0: (client.attach(), 0), 1: (7, 64)}
    assert client.ask(request_frame(model, inputs_in=everywhere)).told == (1, PayloadTooLarge)


@pytest.mark.parametrize("request_id", [0, 5])
def test_an_id_that_cannot_be_answered_is_a_word_about_the_connection(
    meeting: Meeting, client: Client, model: Model, request_id: int
) -> None:
    client.send(request_frame(model, request_id=5))
    meeting.submitted()
    error = DuplicateRequestId if request_id else BadRequest
    assert client.ask(request_frame(model, request_id=request_id)).told == (0, error)
    client.assert_in_step()


def test_no_more_requests_than_allowed_are_in_flight(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    host.limits.in_flight_max = 2
    client.send(*(request_frame(model, request_id=request_id) for request_id in (1, 2, 3)))
    first, _ = meeting.submitted(2)
    assert client.receive().told == (3, TooManyInFlight)
    meeting.answer(first)
    client.receive()
    client.send(request_frame(model, request_id=3))
    meeting.submitted()


def test_a_daemon_that_drains_takes_no_request(host: FakeHost, client: Client, model: Model) -> None:
    host.draining = True
    assert client.ask(request_frame(model, request_id=5)).told == (5, ShuttingDown)
    assert host.submitted == []


def test_a_full_ingest_arena_is_worth_another_try(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    host.ingest = Ingest(64 * 4)  # a line for each tensor
    client.send(request_frame(model))
    (request,) = meeting.submitted()
    error = client.ask(request_frame(model, request_id=5)).error
    assert isinstance(error, IngestFull)
    assert error.retry_after_ms == INGEST_RETRY_MS
    meeting.answer(request)
    client.receive()
    client.send(request_frame(model, request_id=5))
    meeting.submitted()


def test_promises_take_half_of_the_ingest_arena_and_whole_requests_find_room(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    host.ingest = Ingest(2048)
    slow = meeting.client()
    slow.open("pair")
    slow.send(request_frame(model, 32)[:-1])
    meeting.until(lambda: host.arriving_bytes == 640)
    promise = request_frame(model, 32, request_id=5)
    assert client.ask(promise[:-1]).told == (5, IngestFull)
    client.send(promise[-1:], request_frame(model, 20, request_id=6))
    assert [request.request_id for request in meeting.submitted()] == [6]


def test_tensors_in_an_arena_need_no_lease_and_no_payload(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    arena = client.attach()
    inputs, outputs = {0: (arena, 0), 1: (arena, 64)}, {0: (arena, 128), 1: (arena, 192)}
    client.send(request_frame(model, inputs_in=inputs, outputs_in=outputs))
    (request,) = meeting.submitted()
    assert (request.lease, host.ingest.statistics().leases) == (None, 0)
    meeting.answer(request)
    assert client.receive().payload == b""


# ── turns ───────────────────────────────────────────────────────────────────────────────────────


def test_a_client_that_floods_has_its_turn_and_not_more(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    other = meeting.client()
    other.open("pair")
    for each in (client, other):
        each.send(request_frame(model))
    meeting.submitted(2)
    client.send(frame(FrameType.CANCEL, 1) * 3 * FRAMES_PER_TURN)
    other.send(frame(FrameType.CANCEL, 1))
    meeting.until(lambda: len(host.cancelled) == 3 * FRAMES_PER_TURN + 1)
    order = [request.connection for request in host.cancelled]
    assert order.index(other.connection) <= FRAMES_PER_TURN


@pytest.mark.parametrize("long", [encode_open(5, "pair"), frame(FrameType.LIST, 5)], ids=["OPEN", "LIST"])
def test_a_frame_with_a_long_answer_is_a_turn(
    meeting: Meeting, host: FakeHost, client: Client, model: Model, long: bytes
) -> None:
    other = meeting.client()
    other.open("pair")
    for each in (client, other):
        each.send(request_frame(model))
    meeting.submitted(2)
    client.send(long, frame(FrameType.CANCEL, 1))
    other.send(frame(FrameType.CANCEL, 1))
    meeting.until(lambda: len(host.cancelled) == 2)
    assert [request.connection for request in host.cancelled] == [other.connection, client.connection]


def test_bytes_count_as_well_as_frames(
    meeting: Meeting, host: FakeHost, client: Client, model: Model, wide: Model
) -> None:
    host.limits.read_budget_bytes = WIDE_BYTES
    other = meeting.client()
    other.open("pair")
    client.send(*(wide_frame(wide, request_id) for request_id in (1, 2, 3)))
    other.send(request_frame(model))
    order = [request.connection for request in meeting.submitted(4)]
    assert order.index(other.connection) < 3


def test_a_client_with_too_many_bytes_in_flight_is_not_read(
    meeting: Meeting, host: FakeHost, client: Client, wide: Model
) -> None:
    host.limits.in_flight_bytes_max = 3 * WIDE_BYTES  # inputs and outputs
    client.send(*(wide_frame(wide, request_id) for request_id in (1, 2, 3)), frame(FrameType.PING, 9))
    first, second = meeting.submitted(2)
    client.expect_silence()
    meeting.answer(first)
    assert client.receive().frame_type == FrameType.RESULT
    (third,) = meeting.submitted()
    client.expect_silence()
    meeting.answer(second)
    meeting.answer(third)
    assert {answer.request_id for answer in client.receive_all(3)} == {2, 3, 9}


def test_a_single_request_may_be_larger_than_what_may_be_in_flight(
    meeting: Meeting, host: FakeHost, client: Client, wide: Model
) -> None:
    host.limits.in_flight_bytes_max = 1
    for request_id in (1, 2):
        client.send(wide_frame(wide, request_id)[:100])
        meeting.settle()
        client.send(wide_frame(wide, request_id)[100:])
        (request,) = meeting.submitted()
        meeting.answer(request)
        assert client.receive().request_id == request_id


def test_a_client_that_does_not_take_its_answers_is_not_read(meeting: Meeting, client: Client) -> None:
    client.long_answer(LONG_BYTES)
    client.send(frame(FrameType.PING, 9))
    meeting.settle()
    assert not client.connection.stream.is_reading
    assert [answer.request_id for answer in client.receive_all(2)] == [77, 9]


def test_two_reasons_not_to_read_must_both_be_gone(
    meeting: Meeting, host: FakeHost, client: Client, wide: Model
) -> None:
    host.limits.in_flight_bytes_max = 1
    client.send(wide_frame(wide), frame(FrameType.PING, 9))
    (request,) = meeting.submitted()
    client.long_answer(LONG_BYTES)
    meeting.answer(request)
    meeting.settle()
    assert not client.connection.stream.is_reading
    assert [answer.request_id for answer in client.receive_all(3)] == [77, 1, 9]


# ── standing still ──────────────────────────────────────────────────────────────────────────────

STALL_S: Final = 30
"""What `Limits` has by default."""


def test_silence_between_frames_is_no_stall(meeting: Meeting, client: Client) -> None:
    meeting.check_stalls(10**6)
    client.assert_in_step()


@pytest.mark.parametrize("sent_bytes", [1, HEADER.size, 60, -1])
def test_half_a_frame_and_then_silence_is_one(
    meeting: Meeting, host: FakeHost, client: Client, model: Model, sent_bytes: int
) -> None:
    client.send(request_frame(model)[:sent_bytes])
    meeting.settle()
    meeting.check_stalls(STALL_S - 1)
    client.expect_silence()
    meeting.check_stalls(STALL_S + 1)
    (answer,) = client.expect_end()
    assert answer.told == (0, BadFrame)
    assert (client.connection.in_flight, host.arriving_bytes, host.ingest.statistics().leases) == ({}, 0, 0)


def test_a_frame_is_one_wait_however_steadily_it_comes(meeting: Meeting, client: Client, model: Model) -> None:
    sent = request_frame(model, 3)
    client.send(sent[:-50])
    meeting.settle()
    began_ns = client.connection.progress_ns
    client.send(sent[-50:-20])
    meeting.settle()
    assert client.connection.progress_ns == began_ns


def test_each_frame_has_a_wait_of_its_own(meeting: Meeting, client: Client, model: Model) -> None:
    client.send(request_frame(model, request_id=1)[:-1])
    meeting.settle()
    began_ns = client.connection.progress_ns
    client.send(request_frame(model, request_id=1)[-1:], request_frame(model, request_id=2)[:-1])
    meeting.submitted()
    assert client.connection.progress_ns > began_ns


def test_a_client_that_is_not_read_cannot_finish_its_frame(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    host.limits.in_flight_bytes_max = 1
    client.send(request_frame(model), frame(FrameType.PING, 9)[:7])
    (request,) = meeting.submitted()
    meeting.check_stalls(10**6)
    client.expect_silence()
    meeting.answer(request)
    client.receive()
    client.send(frame(FrameType.PING, 9)[7:])
    assert client.receive().frame_type == FrameType.PONG


def test_hello_is_not_waited_for_for_ever(meeting: Meeting) -> None:
    client = meeting.connect()
    meeting.check_stalls(9)
    client.expect_silence()
    meeting.check_stalls(11)
    (answer,) = client.expect_end()
    assert answer.told == (0, BadFrame)


def leave_answers_unread(client: Client) -> None:
    client.long_answer(2 * LONG_BYTES)


def leave_error_unread(client: Client) -> None:
    client.fill()
    client.send(GARBAGE)
    client.meeting.until(lambda: client.connection.stream.closing)


def leave_end_unread(client: Client) -> None:
    client.fill()
    client.long_answer(1000)
    client.send(frame(FrameType.CLOSE, 0))
    client.meeting.settle()


@pytest.mark.parametrize("leave", [leave_answers_unread, leave_error_unread, leave_end_unread])
def test_a_client_that_reads_nothing_more_is_cut_off_without_a_word(
    meeting: Meeting, host: FakeHost, client: Client, leave: Callable[[Client], None]
) -> None:
    leave(client)
    meeting.check_stalls(0)
    meeting.check_stalls(STALL_S - 1)
    meeting.settle()
    assert host.closed == []
    meeting.check_stalls(STALL_S + 1)
    meeting.until(lambda: host.closed == [client.connection])


@pytest.mark.parametrize("leave", [leave_answers_unread, leave_end_unread])
def test_one_that_reads_slowly_is_not(
    meeting: Meeting, host: FakeHost, client: Client, leave: Callable[[Client], None]
) -> None:
    leave(client)
    stream = client.connection.stream
    meeting.check_stalls(0)
    before = stream.unsent_bytes
    while stream.unsent_bytes == before:
        client.socket.recv(1 << 20)
        meeting.settle()
    meeting.check_stalls(STALL_S + 1)
    meeting.settle()
    assert host.closed == []


def test_a_client_that_keeps_its_end_open_after_its_last_answer_is_cut_off(
    meeting: Meeting, host: FakeHost, client: Client
) -> None:
    client.send(frame(FrameType.CLOSE, 0))
    client.expect_end()
    meeting.check_stalls(STALL_S - 1)
    assert host.closed == []
    meeting.check_stalls(STALL_S + 1)
    meeting.until(lambda: host.closed == [client.connection])


def test_a_deadline_does_not_wait_for_the_rest_of_a_payload(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    sent = request_frame(model, request_id=5)
    client.send(sent[:-9])
    meeting.until(lambda: host.arriving_bytes > 0)
    host.limits.stall_timeout_ns = 10**18
    meeting.check_stalls(TIMEOUT_MS / 1000 - 1)
    client.expect_silence()
    meeting.check_stalls(TIMEOUT_MS / 1000 + 1)
    error = client.receive().error
    assert isinstance(error, DeadlineExceeded)
    assert error.stage == "arrival"
    assert (client.connection.in_flight, host.arriving_bytes, host.ingest.statistics().leases) == ({}, 0, 0)
    other = meeting.client()
    other.open("pair")
    other.send(request_frame(model, payload=b"x" * 20))
    (request,) = meeting.submitted()
    client.send(sent[-9:])
    client.assert_in_step()
    assert host.submitted == []
    assert inputs_of(host, request) == b"x" * 20, "what comes late is not written where others' rows are now"


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "garbage",
    [
        GARBAGE,
        HEADER.pack(MAGIC, FrameType.PING, 0, REQUEST_META_BYTES_MAX + 1, 5, 0),
        frame(FrameType.PING, 5) * 2 * FRAMES_PER_TURN + GARBAGE,
    ],
    ids=["wrong magic", "a meta too long", "in a later turn"],
)
def test_a_stream_out_of_step_is_ended_with_a_word(meeting: Meeting, client: Client, garbage: bytes) -> None:
    client.send(garbage, frame(FrameType.PING, 6))
    *pongs, last = client.expect_end()
    assert {answer.frame_type for answer in pongs} <= {FrameType.PONG}
    assert last.told == (0, BadFrame)


@pytest.mark.parametrize("arrives", ["nothing", "half a payload"])
def test_a_client_that_is_gone_leaves_nothing_but_what_runs(
    meeting: Meeting, host: FakeHost, client: Client, model: Model, arrives: str
) -> None:
    client.attach(number=7)
    client.attach(number=8)
    client.send(request_frame(model, outputs_in={0: (7, 0)}))
    (request,) = meeting.submitted()
    client.send(request_frame(model, request_id=2)[: 0 if arrives == "nothing" else -1])
    meeting.settle()
    client.close()
    meeting.until(lambda: host.closed == [client.connection])
    assert (list(client.connection.in_flight), host.arriving_bytes, host.returned) == ([1], 0, [8])
    meeting.answer(request)
    assert (client.connection.in_flight, host.ingest.statistics().leases, host.returned) == ({}, 0, [8, 7])


def test_the_end_of_the_stream_without_close_means_gone(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    client.send(request_frame(model))
    (request,) = meeting.submitted()
    client.socket.shutdown(socket.SHUT_WR)
    meeting.until(lambda: host.closed == [client.connection])
    meeting.answer(request)
    assert client.expect_end() == []


def test_after_close_the_daemon_ends_its_half_and_arenas_stay_until_the_client_ends(
    meeting: Meeting, host: FakeHost, client: Client
) -> None:
    client.attach()
    client.send(frame(FrameType.CLOSE, 0))
    assert client.expect_end() == []
    meeting.settle()
    assert (host.closed, host.returned) == ([], [])
    client.close()
    meeting.until(lambda: host.closed == [client.connection])
    assert host.returned == [7]


def test_after_close_what_is_in_flight_is_answered_and_nothing_else(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    client.send(*(request_frame(model, request_id=request_id) for request_id in (1, 2)))
    requests = meeting.submitted(2)
    client.send(frame(FrameType.CLOSE, 0), frame(FrameType.PING, 8), request_frame(model, request_id=9))
    meeting.answer(requests[0])
    assert client.receive().request_id == 1
    client.expect_silence()
    meeting.answer(requests[1])
    assert [answer.request_id for answer in client.expect_end()] == [2]
    assert host.submitted == []


@pytest.mark.parametrize("made", [True, False])
def test_after_close_an_arena_that_is_to_come_still_comes(meeting: Meeting, client: Client, made: bool) -> None:
    wanted = client.want_arena()
    client.send(frame(FrameType.CLOSE, 0))
    client.expect_silence()
    if made:
        wanted.made()
    else:
        wanted.refused(NoMemory("x"))
    expected = FrameType.ATTACHED if made else FrameType.ERROR
    assert [answer.frame_type for answer in client.expect_end()] == [expected]


def test_who_said_close_may_end_its_half_at_once(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    client.send(request_frame(model), frame(FrameType.CLOSE, 0))
    client.socket.shutdown(socket.SHUT_WR)
    (request,) = meeting.submitted()
    assert host.closed == []
    meeting.answer(request)
    assert [answer.request_id for answer in client.expect_end()] == [1]
    meeting.until(lambda: host.closed == [client.connection])


def test_after_the_end_of_its_half_the_daemon_says_nothing_more(meeting: Meeting, client: Client) -> None:
    client.send(frame(FrameType.CLOSE, 0))
    assert client.expect_end() == []
    meeting.within(lambda: client.connection.send_error(0, ShuttingDown()))  # as to all when it drains
    assert client.expect_end() == []


def test_who_said_close_and_ended_its_half_still_gets_its_arena(
    meeting: Meeting, host: FakeHost, client: Client
) -> None:
    wanted = client.want_arena()
    client.send(frame(FrameType.CLOSE, 0))
    client.socket.shutdown(socket.SHUT_WR)
    meeting.settle()
    assert host.closed == []
    wanted.made()
    assert [answer.frame_type for answer in client.expect_end()] == [FrameType.ATTACHED]


def test_half_a_header_is_a_wait_of_its_own_after_a_payload_in_parts(
    meeting: Meeting, host: FakeHost, client: Client
) -> None:
    sent = request_frame(host.models.find("wide"), 1, handle=client.open("wide"))
    client.send(sent[:30_000])
    meeting.settle()
    client.send(sent[30_000:])
    meeting.submitted()
    meeting.check_stalls(0)
    began_ns = client.connection.progress_ns
    client.send(frame(FrameType.PING, 9)[:5])
    meeting.settle()
    assert client.connection.progress_ns > began_ns
    meeting.check_stalls(10**6)
    assert client.expect_end()[-1].told == (0, BadFrame)


@pytest.mark.parametrize("ends", [True, False])
def test_answers_that_nobody_reads_are_found_however_few_they_are(
    meeting: Meeting, host: FakeHost, client: Client, ends: bool
) -> None:
    client.fill()
    client.long_answer(1000)
    if ends:
        client.socket.shutdown(socket.SHUT_WR)
    meeting.settle()
    meeting.check_stalls(0)
    assert host.closed == []
    meeting.check_stalls(10**6)
    meeting.until(lambda: host.closed == [client.connection])


def test_who_is_answered_and_idle_is_not_watched(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    client.send(request_frame(model, 1))
    meeting.answer(*meeting.submitted())
    meeting.until(lambda: len(client.frames()) == 1)
    meeting.check_stalls(0)
    assert host.watched == set()
