"""A request over all of its attempts: what it may ask for, which lane it takes, which errors it gets over."""

import math
import mmap
import time
from typing import Any

import numpy as np
import pytest

from tensord.ipc.arena import create_arena
from tensord.ipc.client.arena import ArenaSlot
from tensord.ipc.client.arrays import Inputs
from tensord.ipc.client.call import Call
from tensord.ipc.client.model import OpenedModel
from tensord.ipc.client.request import (
    ATTEMPTS_MAX,
    INLINE_BYTES_MAX,
    PRIORITIES,
    TIMEOUT_S_MAX,
    InferRequest,
    deadline_after,
    deadline_exceeded,
    fits_inline,
    hello_deadline,
    takes_arena,
)
from tensord.ipc.client.session import ClientSession
from tensord.ipc.errors import (
    BadRequest,
    ConnectionLost,
    DeadlineExceeded,
    ModelFailed,
    QueueFull,
    SlotInUse,
    TensordError,
    UnknownHandle,
    WrongShape,
)
from tensord.ipc.limits import HELLO_TIMEOUT_S
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec
from tensord.ipc.wire import HEADER, FrameType, InferHead

LONG_NS = 10**12
X = np.arange(6, dtype=np.float32).reshape(3, 2)


def spec_of(input_bytes: int = 8, output_bytes: int = 8, *, idempotent: bool = True) -> ModelSpec:
    """One input and one output of so many bytes per row."""
    x = TensorSpec("x", DType.FLOAT32, (input_bytes // 4,))
    y = TensorSpec("y", DType.FLOAT32, (output_bytes // 4,))
    return ModelSpec("m", 1, (x,), (y,), 64, idempotent)


def request_of(inputs: Inputs = X, *, user_slot: ArenaSlot | None = None, **changes: Any) -> InferRequest:
    arguments = {"timeout": 30.0, "priority": "normal", "session": None, "latest": False, **changes}
    return InferRequest("m", inputs, **arguments, user_slot=user_slot)


def opened_for(request: InferRequest, spec: ModelSpec | None = None) -> OpenedModel:
    opened = OpenedModel(5, spec or spec_of())
    request.prepare(opened)
    return opened


def slot_of(session: ClientSession, request: InferRequest) -> ArenaSlot:
    """A slot for the request's plan in a new arena, its inputs written."""
    plan, arrays = request.prepare(OpenedModel(5, spec_of()))
    session.pool.add(1, mmap.PAGESIZE, create_arena(mmap.PAGESIZE))
    slot = session.pool.lease(plan)
    assert slot is not None
    slot.inputs["x"][:] = arrays[0]
    return slot


def head_of(frame: Any) -> InferHead:
    meta = memoryview(frame)[HEADER.size :]
    return InferHead.decode(meta, flags=HEADER.unpack_from(frame)[2])[0]


# ── what is asked for ───────────────────────────────────────────────────────────────────────────


def test_the_deadline_is_the_timeout_from_now() -> None:
    before = time.monotonic_ns()
    deadline = deadline_after(2.5)
    assert before <= deadline - 2_500_000_000 <= time.monotonic_ns()


@pytest.mark.parametrize("timeout", [0, -1, 0.0, math.nan, math.inf, TIMEOUT_S_MAX * 1.001, "1", None])
def test_a_timeout_that_makes_no_sense_is_refused(timeout: Any) -> None:
    with pytest.raises(BadRequest, match="timeout") as caught:
        request_of(timeout=timeout)
    assert repr(timeout) in str(caught.value)


@pytest.mark.parametrize("timeout", [1e-9, 1, TIMEOUT_S_MAX])
def test_shortest_and_longest_timeouts_are_taken(timeout: float) -> None:
    assert request_of(timeout=timeout).deadline_ns > 0


@pytest.mark.parametrize(("priority", "expected"), [*PRIORITIES.items(), (0, 0), (1, 1), (2, 2)])
def test_a_priority_is_a_name_or_its_number(priority: str | int, expected: int) -> None:
    assert request_of(priority=priority).priority == expected


@pytest.mark.parametrize("priority", ["urgent", "", -1, 3])
def test_another_priority_is_refused(priority: str | int) -> None:
    with pytest.raises(BadRequest, match="priority"):
        request_of(priority=priority)


def test_a_session_key_is_a_number_as_it_is() -> None:
    assert request_of().session == 0
    assert request_of(session=1).session == 1
    assert request_of(session=2**64 - 1).session == 2**64 - 1


@pytest.mark.parametrize("session", [0, -1, 2**64])
def test_a_session_key_that_would_not_fit_or_mean_none_is_refused(session: int) -> None:
    with pytest.raises(BadRequest, match="session"):
        request_of(session=session)


def test_a_session_key_of_a_text_is_the_same_in_every_process() -> None:
    assert request_of(session="a user").session == 0x3820DACF516E9713
    assert request_of(session=b"a user").session == request_of(session="a user").session
    assert request_of(session="another").session != request_of(session="a user").session


# ── lanes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("input_bytes", "output_bytes", "inline_bytes_max", "arena", "inline"),
    [
        pytest.param(8, 8, 2**20, False, True, id="small"),
        pytest.param(INLINE_BYTES_MAX, 8, 2**20, False, True, id="inputs at our bound"),
        pytest.param(INLINE_BYTES_MAX + 4, 8, 2**20, True, True, id="larger inputs are better in an arena"),
        pytest.param(1004, 8, 1000, True, False, id="inputs beyond the daemon's bound"),
        pytest.param(8, 2**20, 2**20, False, True, id="outputs at the daemon's bound"),
        pytest.param(8, 2**20 + 4, 2**20, True, False, id="outputs beyond it"),
    ],
)
def test_sizes_choose_the_lane(
    input_bytes: int, output_bytes: int, inline_bytes_max: int, arena: bool, inline: bool
) -> None:
    request = request_of(np.zeros((1, input_bytes // 4), np.float32))
    plan, _ = request.prepare(OpenedModel(5, spec_of(input_bytes, output_bytes)))
    assert (takes_arena(plan, inline_bytes_max), fits_inline(plan, inline_bytes_max)) == (arena, inline)


# ── one attempt ─────────────────────────────────────────────────────────────────────────────────


def test_inputs_are_checked_against_the_model_of_each_attempt() -> None:
    request = request_of()
    plan, arrays = request.prepare(OpenedModel(5, spec_of()))
    assert (plan.handle, plan.rows, arrays[0] is X) == (5, 3, True)
    with pytest.raises(WrongShape):
        request.prepare(OpenedModel(6, spec_of(input_bytes=12)))


def test_an_inline_attempt_sends_the_users_memory_behind_its_head() -> None:
    request, session = request_of(priority="high", session=9), ClientSession()
    call, (head, payload) = request.start_inline(session, *request.prepare(OpenedModel(5, spec_of())))
    assert call.expects is FrameType.RESULT
    assert head_of(head) == InferHead(5, 0, 1, 0, request.deadline_ns, 9)
    assert np.shares_memory(np.frombuffer(payload, np.uint8), X)
    assert bytes(payload) == X.tobytes()


def test_the_latest_of_a_session_says_so_and_needs_one() -> None:
    request, session = request_of(session=9, latest=True), ClientSession()
    _, (head, _) = request.start_inline(session, *request.prepare(OpenedModel(5, spec_of())))
    assert head_of(head) == InferHead(5, 1, 1, 0, request.deadline_ns, 9, b"", latest=True)
    slot = slot_of(session, request)
    _, (head,) = request.start_arena(session, slot)
    assert head_of(head).latest
    with pytest.raises(BadRequest, match="session"):
        request_of(latest=True)


def test_an_attempt_in_an_arena_sends_only_a_head_and_holds_the_slot() -> None:
    request, session = request_of(priority=2), ClientSession()
    slot = slot_of(session, request)
    _, (head,) = request.start_arena(session, slot)
    assert head_of(head) == InferHead(5, 2, 1, 1, request.deadline_ns, 0)
    assert (request.slot is slot, slot.in_flight) == (True, True)
    with pytest.raises(SlotInUse):
        request.start_arena(session, slot)


# ── its end ─────────────────────────────────────────────────────────────────────────────────────


def test_the_result_of_an_inline_call_is_what_was_received() -> None:
    request, call = request_of(), Call(1, FrameType.RESULT)
    opened_for(request)
    call.arrays = [X]
    assert request.result(call) is X


def test_a_result_in_an_arena_is_copied_before_the_slot_goes_back() -> None:
    request, session = request_of(), ClientSession()
    slot = slot_of(session, request)
    call, _ = request.start_arena(session, slot)
    slot.outputs["y"][:] = 7
    result = request.result(call)
    slot.outputs["y"][:] = 8
    assert result.tolist() == [[7, 7]] * 3


def test_a_result_in_the_users_slot_is_a_view_of_it() -> None:
    first, session = request_of(), ClientSession()
    slot = slot_of(session, first)
    request = request_of(None, user_slot=slot)
    request.opened = first.opened
    call, _ = request.start_arena(session, slot)
    assert np.shares_memory(request.result(call), slot.outputs["y"])


def test_the_error_of_a_call_is_its_result() -> None:
    request, call = request_of(), Call(1, FrameType.RESULT)
    call.error = ModelFailed("m", "boom")
    with pytest.raises(ModelFailed) as caught:
        request.result(call)
    assert caught.value is call.error


def test_the_end_of_an_attempt_gives_its_own_slot_back() -> None:
    request, session = request_of(), ClientSession()
    request.slot = slot_of(session, request)
    request.end_attempt()
    assert session.pool.leased == 0
    request.end_attempt()  # an inline attempt has none


def test_and_leaves_the_users_slot_to_the_user() -> None:
    session = ClientSession()
    slot = slot_of(session, request_of())
    request = request_of(None, user_slot=slot)
    request.slot = slot
    request.end_attempt()
    assert (slot.released, session.pool.leased) == (False, 1)


# ── another attempt ─────────────────────────────────────────────────────────────────────────────

LOST = ConnectionLost("gone")


def attempts(request: InferRequest, error: TensordError, *, sent: bool) -> int:
    """How often a request is tried when every attempt ends so."""
    for attempt in range(1, 2 * ATTEMPTS_MAX):
        request.sent = sent
        if not request.may_retry(error, time.monotonic_ns()):
            return attempt
    pytest.fail("it never ends")


@pytest.mark.parametrize("error", [QueueFull("m", 1), ModelFailed("m", "boom"), DeadlineExceeded("queue", 1.0)])
def test_other_errors_than_a_lost_connection_are_final(error: TensordError) -> None:
    request = request_of()
    opened_for(request)
    assert attempts(request, error, sent=True) == 1


@pytest.mark.parametrize(("idempotent", "sent"), [(True, True), (True, False), (False, False)])
def test_what_may_run_again_or_has_not_run_is_tried_so_often(idempotent: bool, sent: bool) -> None:
    request = request_of()
    opened_for(request, spec_of(idempotent=idempotent))
    assert attempts(request, LOST, sent=sent) == ATTEMPTS_MAX


def test_what_may_have_run_and_is_not_idempotent_is_lost() -> None:
    request = request_of()
    opened_for(request, spec_of(idempotent=False))
    assert attempts(request, LOST, sent=True) == 1


def test_what_was_sent_is_told_anew_for_each_attempt() -> None:
    request = request_of()
    opened_for(request, spec_of(idempotent=False))
    assert request.may_retry(LOST, 0)
    request.sent = True
    assert not request.may_retry(LOST, 0)
    assert not request.sent


def test_a_connection_lost_before_the_model_was_opened_is_tried_again() -> None:
    assert attempts(request_of(), LOST, sent=False) == ATTEMPTS_MAX


def test_no_attempt_begins_after_the_deadline() -> None:
    request = request_of()
    opened_for(request)
    assert not request.may_retry(LOST, request.deadline_ns)
    assert request.may_retry(LOST, request.deadline_ns - 1)


def test_an_unknown_handle_opens_the_model_again_once() -> None:
    request = request_of()
    opened_for(request, spec_of(idempotent=False))
    request.sent = True  # with that answer it has not run
    assert request.may_retry(UnknownHandle(5), 0)
    assert request.reopen
    assert not request.may_retry(UnknownHandle(6), 0)


def test_a_slot_that_ended_with_its_connection_is_said_to_its_user() -> None:
    slot = slot_of(ClientSession(), request_of())
    request = request_of(None, user_slot=slot)
    with pytest.raises(ConnectionLost, match="gone; the slot ended with it: lease again"):
        request.may_retry(LOST, 0)


# ── deadlines ───────────────────────────────────────────────────────────────────────────────────


def test_a_new_connection_is_waited_for_as_long_as_the_daemon_waits_for_hello() -> None:
    soon = time.monotonic_ns() + 10**6
    assert hello_deadline(soon) == soon
    left_ns = hello_deadline(time.monotonic_ns() + LONG_NS) - time.monotonic_ns()
    assert 0 < left_ns <= HELLO_TIMEOUT_S * 1e9


def test_a_deadline_that_passed_here_says_by_how_much() -> None:
    error = deadline_exceeded(time.monotonic_ns() - 5_000_000)
    assert error.stage == "client"
    assert error.late_ms >= 5.0
