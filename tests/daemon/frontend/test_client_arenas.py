"""The arenas of one connection: attached, in use, given back, over a real socket."""

import os

import pytest

from tensord.daemon.frontend.forms import FORMS_MAX
from tensord.daemon.frontend.ingest import Ingest
from tensord.daemon.frontend.models import Model
from tensord.ipc.errors import (
    ArenaQuotaExceeded,
    BadFrame,
    BadRequest,
    IngestFull,
    NoMemory,
    ShuttingDown,
    SlotInUse,
    TensordError,
    TooManyArenas,
    UnknownArena,
)
from tensord.ipc.limits import ARENAS_PER_CONNECTION_MAX
from tensord.ipc.wire import HEADER, FrameType, encode_arena

from .fake_host import ARENA_BYTES, LONG_BYTES, Client, FakeHost, Meeting, request_frame

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def client(meeting: Meeting) -> Client:
    """Welcomed, with handle 1 for `pair`."""
    client = meeting.client()
    assert client.open("pair") == 1
    return client


@pytest.fixture
def model(host: FakeHost) -> Model:
    return host.models.find("pair")


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# ── attaching ───────────────────────────────────────────────────────────────────────────────────


def test_an_arena_is_passed_on_with_its_descriptor_and_none_is_kept(
    meeting: Meeting, host: FakeHost, client: Client
) -> None:
    wanted = client.want_arena()
    assert host.wanted == [(50, ARENA_BYTES)]
    before = len(os.listdir("/proc/self/fd"))
    wanted.made(7)
    answer = client.receive()
    assert (answer.frame_type, answer.request_id) == (FrameType.ATTACHED, 50)
    assert len(client.fds) == 1
    assert len(os.listdir("/proc/self/fd")) == before + 1


@pytest.mark.parametrize(("nbytes", "error"), [(0, BadRequest), (ARENA_BYTES + 1, ArenaQuotaExceeded)])
def test_an_arena_of_no_or_too_many_bytes_is_not_asked_for(
    host: FakeHost, client: Client, nbytes: int, error: type[TensordError]
) -> None:
    host.limits.arena_bytes_max = ARENA_BYTES
    assert client.ask(encode_arena(FrameType.ATTACH, 5, 0, nbytes)).told == (5, error)
    assert host.wanted == []


def test_arenas_that_are_still_to_come_count(client: Client) -> None:
    client.attach()
    for _ in range(ARENAS_PER_CONNECTION_MAX - 1):
        last = client.want_arena()
    assert client.ask(encode_arena(FrameType.ATTACH, 5, 0, ARENA_BYTES)).told == (5, TooManyArenas)
    last.refused(NoMemory("for this one"))
    assert client.receive().told == (50, NoMemory)
    client.want_arena()


def test_a_daemon_that_drains_makes_no_arena(host: FakeHost, client: Client) -> None:
    host.draining = True
    assert client.ask(encode_arena(FrameType.ATTACH, 5, 0, ARENA_BYTES)).told == (5, ShuttingDown)
    assert host.wanted == []


def test_a_descriptor_waits_behind_answers_that_wait(client: Client) -> None:
    wanted = client.want_arena()
    client.long_answer(LONG_BYTES)
    wanted.made()
    assert [answer.frame_type for answer in client.receive_all(2)] == [FrameType.RESULT, FrameType.ATTACHED]
    assert len(client.fds) == 1


def test_a_descriptor_waits_for_a_full_socket(client: Client) -> None:
    wanted = client.want_arena()
    filled = client.fill()
    assert is_open(wanted.made())
    client.take(filled)
    assert client.receive().frame_type == FrameType.ATTACHED
    assert len(client.fds) == 1


@pytest.mark.parametrize("seen", [True, False], ids=["after the end was seen", "before"])
def test_a_descriptor_for_a_client_that_is_gone_is_closed_and_its_arena_goes_back(
    meeting: Meeting, host: FakeHost, client: Client, seen: bool
) -> None:
    wanted = client.want_arena()
    client.close()
    if seen:
        meeting.until(lambda: bool(host.closed))
    assert not is_open(wanted.made(7))
    meeting.until(lambda: bool(host.closed))
    assert host.returned == [7]


def test_a_descriptor_for_a_client_that_is_being_left_is_closed(
    meeting: Meeting, host: FakeHost, client: Client
) -> None:
    wanted = client.want_arena()
    filled = client.fill()
    client.send(bytes(HEADER.size))  # no frame begins so
    meeting.until(lambda: client.connection.stream.closing)
    assert not is_open(wanted.made(7))
    assert host.returned == []
    client.take(filled)
    assert [answer.told for answer in client.expect_end()] == [(0, BadFrame)]
    assert host.returned == [7]


# ── ranges in flight ────────────────────────────────────────────────────────────────────────────


def test_ranges_in_flight_are_nobody_elses(meeting: Meeting, client: Client, model: Model) -> None:
    arena = client.attach()
    client.send(request_frame(model, outputs_in={0: (arena, 64)}))
    (request,) = meeting.submitted()
    for taken in ({0: (arena, 64)}, {0: (arena, 0), 1: (arena, 64)}):
        assert client.ask(request_frame(model, request_id=5, outputs_in=taken)).told == (5, SlotInUse)
    client.send(request_frame(model, request_id=6, outputs_in={0: (arena, 0)}))
    meeting.submitted()  # what was refused holds nothing
    meeting.answer(request)
    client.receive()
    client.send(request_frame(model, request_id=7, outputs_in={0: (arena, 64)}))
    meeting.submitted()


def test_inputs_of_two_requests_may_not_lie_in_the_same_range_either(
    meeting: Meeting, client: Client, model: Model
) -> None:
    arena = client.attach()
    client.send(request_frame(model, inputs_in={0: (arena, 0)}))
    meeting.submitted()
    assert client.ask(request_frame(model, request_id=5, inputs_in={0: (arena, 0)})).told == (5, SlotInUse)
    assert client.ask(request_frame(model, request_id=6, inputs_in={0: (9, 0)})).told == (6, UnknownArena)


def test_what_finds_no_room_inline_holds_no_range(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    arena, roomy = client.attach(), host.ingest
    host.ingest = Ingest(64)
    sent = request_frame(model, inputs_in={0: (arena, 0)})
    assert client.ask(sent).told == (1, IngestFull)
    host.ingest = roomy
    client.send(sent)
    meeting.submitted()


# ── detaching ───────────────────────────────────────────────────────────────────────────────────


def test_a_detached_arena_goes_back_at_once_and_is_unknown(host: FakeHost, client: Client, model: Model) -> None:
    arena = client.attach()
    client.send(encode_arena(FrameType.DETACH, 5, arena, 0))
    client.assert_in_step()
    assert host.returned == [arena]
    assert client.ask(encode_arena(FrameType.DETACH, 6, arena, 0)).told == (6, UnknownArena)
    assert client.ask(request_frame(model, request_id=7, inputs_in={0: (arena, 0)})).told == (7, UnknownArena)


def test_or_when_nothing_in_it_is_in_flight_any_more(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    arena = client.attach()
    client.send(*(request_frame(model, request_id=each, outputs_in={0: (arena, 64 * each)}) for each in (1, 2)))
    requests = meeting.submitted(2)
    client.send(encode_arena(FrameType.DETACH, 5, arena, 0))
    client.assert_in_step()
    for request, returned in zip(requests, ([], [arena]), strict=True):
        meeting.answer(request)
        assert client.receive().frame_type == FrameType.RESULT
        assert host.returned == returned


def test_all_go_back_with_their_client_but_those_in_which_something_runs(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    for number in (7, 8, 9):
        client.attach(number)
    client.send(request_frame(model, outputs_in={0: (8, 0)}))
    (request,) = meeting.submitted()
    client.close()
    meeting.until(lambda: bool(host.closed))
    assert host.returned == [7, 9]
    meeting.answer(request)
    assert host.returned == [7, 9, 8]


# ── forms ───────────────────────────────────────────────────────────────────────────────────────


def test_the_same_headers_are_checked_once_and_anew_when_an_arena_is_gone(
    meeting: Meeting, host: FakeHost, client: Client, model: Model
) -> None:
    first, second = client.attach(7), client.attach(8)
    sent = request_frame(model, inputs_in={0: (first, 0)}, outputs_in={0: (first, 64)})
    forms = []
    for _ in range(2):
        client.send(sent)
        (request,) = meeting.submitted()
        forms.append(request.form)
        meeting.answer(request)
        assert client.receive().frame_type == FrameType.RESULT
        host.submitted.clear()
    assert forms[0] is forms[1]
    client.send(encode_arena(FrameType.DETACH, 5, first, 0))
    assert client.ask(sent).told == (1, UnknownArena)
    client.send(request_frame(model, inputs_in={0: (second, 0)}))
    meeting.submitted()


def test_remembered_forms_are_bounded(meeting: Meeting, client: Client, model: Model) -> None:
    arena = client.attach()
    arenas = client.connection.arenas
    for number in range(FORMS_MAX + 1):
        client.send(request_frame(model, request_id=number + 1, inputs_in={0: (arena, 64 * number)}, outputs_in={}))
    meeting.settle()
    assert 0 < len(arenas._forms) <= FORMS_MAX
