"""The client's end of a connection, fed with bytes."""

import mmap
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc.arena import create_arena
from tensord.ipc.client.arena import ArenaSlot
from tensord.ipc.client.arrays import Extent
from tensord.ipc.client.call import Call
from tensord.ipc.client.model import PLANS_MAX, OpenedModel
from tensord.ipc.client.session import ClientSession
from tensord.ipc.errors import BadFrame, BadRequest, ConnectionLost, QueueFull, ShuttingDown, TensordError
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec
from tensord.ipc.wire import (
    HEADER,
    FrameType,
    InferHead,
    Lane,
    ResultHead,
    TensorHeader,
    Welcome,
    decode_tensors,
    encode_arena,
    encode_error,
    encode_models,
    encode_opened,
    encode_result,
    frame,
)

SPEC = ModelSpec(
    "m",
    1,
    (TensorSpec("x", DType.FLOAT32, (2,)),),
    (TensorSpec("y", DType.FLOAT32, (2,)), TensorSpec("z", DType.INT8, ())),
    64,
    True,
)


def feed(session: ClientSession, data: bytes, step: int = 1 << 20) -> None:
    """Receive `data`, at most `step` bytes at a time."""
    position = 0
    while position < len(data):
        buffer = session.reader.get_buffer()
        part = data[position : position + min(step, len(buffer))]
        buffer[: len(part)] = part
        session.reader.buffer_updated(len(part))
        position += len(part)


def infer(session: ClientSession, rows: int = 3) -> Call:
    call, _ = session.infer_inline(OpenedModel(5, SPEC).plan(Extent(rows)), 1, 10**9, 0)
    assert session.admit(call)
    return call


def result(call: Call, rows: int = 3) -> bytes:
    y = TensorHeader(0, DType.FLOAT32, (rows, 2), 8 * rows).encode()
    z = TensorHeader(1, DType.INT8, (rows,), rows).encode()
    payload = np.arange(2 * rows, dtype=np.float32).tobytes() + bytes(range(rows))
    return encode_result(ResultHead(1, rows, 1, 2, 2), call.request_id, y + z, len(payload)) + payload


@given(st.integers(1, 200), st.integers(1, 20))
def test_results_are_the_same_however_the_stream_is_cut(step: int, rows: int) -> None:
    session = ClientSession()
    first, second = infer(session, rows), infer(session, rows)
    feed(session, result(second, rows) + result(first, rows), step)
    for call in (first, second):
        assert call.done
        assert call.arrays[0].tolist() == np.arange(2 * rows).reshape(rows, 2).tolist()
        assert call.arrays[1].tolist() == list(range(rows))
    assert session.in_flight == 0


@given(st.binary(max_size=300))
def test_whatever_comes_is_an_error_of_ours_or_harmless(data: bytes) -> None:
    session = ClientSession()
    call = infer(session)
    try:
        feed(session, data)
    except TensordError:
        session.end(ConnectionLost("nonsense"))
        assert call.done
    else:
        assert session.in_flight == 1


@given(st.data())
def test_a_changed_byte_is_an_error_of_ours_or_changes_a_value(data: st.DataObject) -> None:
    session = ClientSession()
    call = infer(session)
    answer = bytearray(result(call))
    answer[data.draw(st.integers(0, len(answer) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        feed(session, bytes(answer))
    except TensordError:
        return
    if call.done and call.error is None:
        assert [array.nbytes for array in call.arrays] == [24, 3]


def test_a_hook_is_called_once() -> None:
    session = ClientSession()
    call = infer(session)
    told: list[int] = []
    call.hook = lambda: told.append(1)
    feed(session, result(call))
    session.end(ConnectionLost("later"))
    assert told == [1]
    assert call.error is None


def test_every_call_ends_with_the_connection() -> None:
    session = ClientSession()
    calls = [infer(session) for _ in range(3)]
    session.end(ConnectionLost("gone"))
    errors = [call.error for call in calls]
    assert [str(error) for error in errors] == [str(ConnectionLost("gone"))] * 3
    assert len({id(error) for error in errors}) == 3


def test_a_call_after_the_end_ends_at_once() -> None:
    session = ClientSession()
    session.end(ConnectionLost("gone"))
    assert infer(session).done
    call, _ = session.ping()
    with pytest.raises(ConnectionLost, match="gone"):
        call.outcome()


def test_the_daemons_last_word_ends_calls_but_shutting_down_is_a_lost_connection() -> None:
    for error, expected in ((QueueFull("m", 3), QueueFull), (ShuttingDown(), ConnectionLost)):
        session = ClientSession()
        session.welcome = Welcome(1, 2, 3, 4, 5)
        call = infer(session)
        feed(session, encode_error(0, error))
        assert not call.done
        session.end(ConnectionLost("gone"))
        assert type(call.error) is expected


def test_who_is_not_even_welcomed_because_the_daemon_drains_knows_that_nothing_ran() -> None:
    session = ClientSession()
    call, _ = session.hello("")
    feed(session, encode_error(0, ShuttingDown()))
    session.end(ConnectionLost("gone"))
    assert type(call.error) is ShuttingDown


def test_abandoned_results_are_skipped() -> None:
    session = ClientSession()
    first, second = infer(session), infer(session)
    assert session.abandon(first) == frame(FrameType.CANCEL, first.request_id)
    feed(session, result(first) + result(second), 7)
    assert first.done
    assert first.arrays == []
    assert second.arrays[1].tolist() == [0, 1, 2]
    assert session.abandon(second) == b""


def test_unknown_ids_are_counted_and_skipped() -> None:
    session = ClientSession()
    call = infer(session)
    answer = result(call)
    feed(session, answer + answer + frame(FrameType.PONG, 999) + encode_error(998, QueueFull("m", 1)), 11)
    assert session.unknown_replies == 3


def test_close_makes_the_session_unusable_and_answers_still_come() -> None:
    session = ClientSession()
    call = infer(session)
    assert session.usable
    feed(session, frame(FrameType.CLOSE, 0))
    assert not session.usable
    feed(session, result(call))
    assert call.done


def test_control_calls_get_their_values() -> None:
    session = ClientSession()
    hello, _ = session.hello("t")
    opened, _ = session.open("m")
    listed, _ = session.list_models()
    welcome = Welcome(1, 2, 3, 4, 5)
    feed(
        session,
        welcome.encode(hello.request_id)
        + encode_opened(opened.request_id, 9, SPEC)
        + encode_models(listed.request_id, []),
        5,
    )
    assert hello.outcome() == welcome
    assert session.inline_bytes_max == 4
    assert opened.outcome() == (9, SPEC)
    assert listed.outcome() == []


def test_room_is_what_the_welcome_allows() -> None:
    session = ClientSession()
    session.welcome = Welcome(1, 2, 2, 4, 5)
    first = infer(session)
    infer(session)
    third, _ = session.infer_inline(OpenedModel(5, SPEC).plan(Extent(1)), 1, 10**9, 0)
    assert not session.admit(third)
    ticket = session.room_ticket()
    feed(session, result(first))
    assert ticket.done
    assert session.admit(third)


def attach(session: ClientSession, fds: list[int]) -> Call:
    call, _ = session.attach(mmap.PAGESIZE)
    session.descriptors_received(fds)
    feed(session, encode_arena(FrameType.ATTACHED, call.request_id, 4, mmap.PAGESIZE))
    session.close_stray_descriptors()
    return call


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_an_arena_comes_with_its_descriptor_and_others_are_closed() -> None:
    session = ClientSession()
    fds = [create_arena(mmap.PAGESIZE) for _ in range(2)]
    assert attach(session, fds).outcome() == (4, mmap.PAGESIZE, fds[0])
    assert [is_open(fd) for fd in fds] == [True, False]
    os.close(fds[0])


def test_a_descriptor_waits_for_the_rest_of_its_frame() -> None:
    session = ClientSession()
    call, _ = session.attach(mmap.PAGESIZE)
    fd = create_arena(mmap.PAGESIZE)
    answer = encode_arena(FrameType.ATTACHED, call.request_id, 4, mmap.PAGESIZE)
    session.descriptors_received([fd])
    feed(session, answer[:10])
    session.close_stray_descriptors()
    assert is_open(fd)
    session.end(ConnectionLost("gone"))
    assert not is_open(fd)


def test_attached_without_descriptor_is_a_bad_frame() -> None:
    with pytest.raises(BadFrame, match="without a file descriptor"):
        attach(ClientSession(), [])


def slot_of(session: ClientSession) -> ArenaSlot:
    session.pool.add(*attach(session, [create_arena(mmap.PAGESIZE)]).outcome())
    slot = session.pool.lease(OpenedModel(5, SPEC).plan(Extent(3)))
    assert slot is not None
    slot.begin()
    return slot


def arena_result(call: Call, slot: ArenaSlot, **changes: Any) -> bytes:
    offsets = slot.plan.offsets
    y = {"arena": 4, "offset": slot.base + offsets[1], "lane": Lane.ARENA, **changes}
    headers = TensorHeader(0, DType.FLOAT32, (3, 2), 24, **y).encode()
    headers += TensorHeader(1, DType.INT8, (3,), 3, Lane.ARENA, 4, slot.base + offsets[2]).encode()
    return encode_result(ResultHead(1, 3, 0, 0, 2), call.request_id, headers, 0)


def test_an_arena_result_gives_the_slot_back_when_it_was_released() -> None:
    session = ClientSession()
    slot = slot_of(session)
    call, _ = session.infer_arena(slot, 5, 1, 10**9, 0)
    assert session.admit(call)
    slot.release()
    assert session.pool.leased == 1
    feed(session, arena_result(call, slot))
    assert session.pool.leased == 0
    assert call.arrays == []


@pytest.mark.parametrize("changes", [{"arena": 5}, {"offset": 0}, {"lane": Lane.INLINE}])
def test_an_arena_result_elsewhere_than_asked_is_a_bad_frame(changes: dict[str, Any]) -> None:
    session = ClientSession()
    slot = slot_of(session)
    call, _ = session.infer_arena(slot, 5, 1, 10**9, 0)
    assert session.admit(call)
    with pytest.raises((BadFrame, BadRequest)):
        feed(session, arena_result(call, slot, **changes))


# ── sizes that come from the data ───────────────────────────────────────────────────────────────

N, FOUND = Dimension("n", 9), Dimension("found", 6, from_data=True)
DETECTOR = ModelSpec(
    "detector",
    1,
    (TensorSpec("x", DType.FLOAT32, (N,)), TensorSpec("mask", DType.UINT8, (N,), optional=True)),
    (TensorSpec("boxes", DType.FLOAT32, (FOUND, 4)), TensorSpec("count", DType.INT32, ())),
    64,
    True,
)
EXTENT = Extent(2, (5,), (1,))


def detect(session: ClientSession) -> Call:
    """An inline request of two rows, without the mask."""
    call, head = session.infer_inline(OpenedModel(5, DETECTOR).plan(EXTENT), 1, 10**9, 0)
    assert session.admit(call)
    infer, tensors = InferHead.decode(memoryview(head)[HEADER.size :], head[3])
    assert (infer.input_count, infer.output_count) == (1, 0)
    assert decode_tensors(tensors, 1) == [TensorHeader(0, DType.FLOAT32, (2, 5), 40)]
    return call


def detections(call: Call, found: int) -> bytes:
    """An inline answer with so many entries per row."""
    boxes = np.arange(2 * found * 4, dtype=np.float32)
    headers = TensorHeader(0, DType.FLOAT32, (2, found, 4), boxes.nbytes).encode()
    headers += TensorHeader(1, DType.INT32, (2,), 8).encode()
    payload = boxes.tobytes() + np.array([found, 0], np.int32).tobytes()
    return encode_result(ResultHead(1, 2, 0, 0, 2), call.request_id, headers, len(payload)) + payload


@given(st.integers(0, 6), st.integers(1, 200))
def test_inline_outputs_are_as_large_as_the_result_says(found: int, step: int) -> None:
    session = ClientSession()
    first, second = detect(session), detect(session)
    feed(session, detections(second, found) + detections(first, 6), step)
    for call, size in ((first, 6), (second, found)):
        boxes, counts = call.arrays
        assert (boxes.shape, boxes.reshape(-1).tolist()) == ((2, size, 4), list(range(8 * size)))
        assert counts.tolist() == [size, 0]
    assert session.in_flight == 0


def detect_in_slot(session: ClientSession) -> tuple[Call, ArenaSlot]:
    session.pool.add(*attach(session, [create_arena(mmap.PAGESIZE)]).outcome())
    slot = session.pool.lease(OpenedModel(5, DETECTOR).plan(EXTENT))
    assert slot is not None
    slot.begin()
    call, head = session.infer_arena(slot, 5, 1, 10**9, 0)
    assert session.admit(call)
    infer, tensors = InferHead.decode(memoryview(head)[HEADER.size :], head[3])
    assert (infer.input_count, infer.output_count) == (1, 2)
    assert [tensor.nbytes for tensor in decode_tensors(tensors, 3)] == [40, 192, 8]
    return call, slot


def detections_in_slot(call: Call, slot: ArenaSlot, shape: tuple[int, ...], nbytes: int, **changes: Any) -> bytes:
    offsets = slot.plan.offsets
    fields = {
        "index": 0,
        "dtype": DType.FLOAT32,
        "arena": 4,
        "offset": slot.base + offsets[1],
        "lane": Lane.ARENA,
        **changes,
    }
    headers = TensorHeader(shape=shape, nbytes=nbytes, **fields).encode()
    headers += TensorHeader(1, DType.INT32, (2,), 8, Lane.ARENA, 4, slot.base + offsets[2]).encode()
    return encode_result(ResultHead(1, 2, 0, 0, 2), call.request_id, headers, 0)


@pytest.mark.parametrize("found", range(7))
def test_outputs_in_a_slot_are_as_large_as_the_result_says(found: int) -> None:
    session = ClientSession()
    call, slot = detect_in_slot(session)
    slot.outputs["boxes"][:] = np.arange(48).reshape(2, 6, 4)
    feed(session, detections_in_slot(call, slot, (2, found, 4), 32 * found))
    assert call.done
    assert call.arrays == []
    boxes, counts = slot.results(call.shapes)
    assert (boxes.shape, boxes.reshape(-1).tolist()) == ((2, found, 4), list(range(8 * found)))
    assert np.shares_memory(counts, slot.outputs["count"])
    assert not slot.in_flight


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((2, 7, 4), {}),
        ((3, 6, 4), {}),
        ((1, 6, 4), {}),
        ((2, 6, 5), {}),
        ((2, 6), {}),
        ((2, 6, 4, 1), {}),
        ((2, 5, 4), {"arena": 5}),
        ((2, 5, 4), {"offset": 0}),
        ((2, 5, 4), {"lane": Lane.INLINE}),
        ((2, 5, 4), {"dtype": DType.INT32}),
        ((2, 5, 4), {"index": 1}),
    ],
)
def test_outputs_that_do_not_lie_in_the_slot_are_a_bad_frame(shape: tuple[int, ...], changes: dict[str, Any]) -> None:
    session = ClientSession()
    call, slot = detect_in_slot(session)
    with pytest.raises((BadFrame, BadRequest)):
        feed(session, detections_in_slot(call, slot, shape, 160, **changes))
    assert slot.in_flight


def test_outputs_in_a_slot_have_no_payload() -> None:
    session = ClientSession()
    call, _ = detect_in_slot(session)
    with pytest.raises(BadFrame):
        feed(session, detections(call, 3))


def test_plans_of_a_model_are_bounded() -> None:
    opened = OpenedModel(1, ModelSpec("m", 1, SPEC.inputs, SPEC.outputs, 10_000, True))
    plan = opened.plan(Extent(1))
    assert opened.plan(Extent(1)) is plan
    for rows in range(1, PLANS_MAX + 2):
        opened.plan(Extent(rows))
    assert opened.plan(Extent(1)) is not plan
