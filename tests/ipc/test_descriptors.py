import struct
from dataclasses import fields
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc.descriptors import (
    DONE,
    BatchDescriptor,
    RaggedDescriptor,
    RaggedRequest,
    Run,
    decode_batch,
    decode_done,
    decode_failed,
    decode_ragged,
    encode_batch,
    encode_done,
    encode_failed,
    encode_ragged,
)
from tensord.ipc.errors import BadModelOutput, InternalError, ModelFailed, TensordError, UnknownError
from tensord.ipc.limits import ERROR_BYTES_MAX
from tensord.ipc.wire import HEADER, decode_error, encode_error

T = TypeVar("T")

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
runs: st.SearchStrategy[list[list[Run]]] = st.lists(st.lists(st.tuples(u32, u32, u64), max_size=5), max_size=4)


@given(u64, u32, u32, runs, runs)
def test_a_batch_comes_through_as_it_was(
    batch_id: int, model: int, rows: int, inputs: list[list[Run]], outputs: list[list[Run]]
) -> None:
    body = encode_batch(batch_id, model, rows, inputs, outputs)
    assert decode_batch(body) == BatchDescriptor(batch_id, model, rows, inputs, outputs)


def test_a_batch_of_one_run_per_tensor_takes_two_cells() -> None:
    assert len(encode_batch(1, 0, 32, [[(0, 32, 0)]], [[(0, 32, 4096)]])) == 20 + 2 * (4 + 16)


@given(runs, runs, st.data())
def test_a_batch_that_is_cut_off_is_a_struct_error(
    inputs: list[list[Run]], outputs: list[list[Run]], data: st.DataObject
) -> None:
    body = encode_batch(1, 2, 3, inputs, outputs)
    with pytest.raises(struct.error):
        decode_batch(body[: data.draw(st.integers(0, len(body) - 1))])


# ── ragged batches ──────────────────────────────────────────────────────────────────────────────


@st.composite
def ragged_batches(draw: st.DrawFn) -> RaggedDescriptor:
    """Requests of one model: as many sizes, inputs and outputs each."""
    dimensions, inputs, outputs = (draw(st.integers(0, 4)) for _ in range(3))

    def several(each: st.SearchStrategy[T], count: int) -> st.SearchStrategy[tuple[T, ...]]:
        return st.lists(each, min_size=count, max_size=count).map(tuple)

    sizes = several(u32, dimensions)
    places, ranges = several(st.tuples(u32, u64), inputs), several(st.tuples(u32, u64, u64), outputs)
    requests = st.lists(st.builds(RaggedRequest, u32, sizes, places, ranges), min_size=1, max_size=5)
    return draw(st.builds(RaggedDescriptor, u64, u32, u32, sizes, requests))


def encoded(batch: RaggedDescriptor) -> bytes:
    return encode_ragged(batch.batch_id, batch.model, batch.rows, batch.sizes, batch.requests)


@given(ragged_batches())
def test_a_ragged_batch_comes_through_as_it_was(batch: RaggedDescriptor) -> None:
    assert decode_ragged(encoded(batch)) == batch


@given(ragged_batches(), st.data())
def test_a_ragged_batch_that_is_cut_off_is_a_struct_error(batch: RaggedDescriptor, data: st.DataObject) -> None:
    body = encoded(batch)
    with pytest.raises(struct.error):
        decode_ragged(body[: data.draw(st.integers(0, len(body) - 1))])


@given(ragged_batches(), st.binary(min_size=1, max_size=100))
def test_a_ragged_batch_that_goes_on_is_a_struct_error(batch: RaggedDescriptor, more: bytes) -> None:
    with pytest.raises(struct.error):
        decode_ragged(encoded(batch) + more)


def test_a_request_that_is_not_counted_is_a_struct_error() -> None:
    one, two = (encode_ragged(1, 0, 1, [8], [RaggedRequest(1, (7,), ((0, 64),), ())] * count) for count in (1, 2))
    with pytest.raises(struct.error):
        decode_ragged(one + two[-20:])


def test_a_ragged_request_of_one_tensor_each_way_takes_40_bytes() -> None:
    request = RaggedRequest(1, (7,), ((0, 64),), ((0, 128, 28),))
    assert len(encode_ragged(1, 0, 2, [8], [request, request])) == 24 + 4 + 2 * 40


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


@given(u64, u64, st.lists(u32, max_size=20))
def test_an_answer_comes_through_with_the_sizes_of_its_outputs(
    batch_id: int, compute_ns: int, sizes: list[int]
) -> None:
    assert decode_done(encode_done(batch_id, compute_ns, sizes)) == (batch_id, compute_ns, tuple(sizes))


def test_an_answer_without_sizes_takes_16_bytes() -> None:
    assert len(encode_done(1, 2)) == DONE.size == 16


@given(st.lists(u32, max_size=5), st.data())
def test_an_answer_that_is_cut_off_is_a_struct_error_or_has_fewer_sizes(sizes: list[int], data: st.DataObject) -> None:
    """Whether they are as many as there should be, only the front end knows."""
    body = encode_done(1, 2, sizes)
    nbytes = data.draw(st.integers(0, len(body) - 1))
    if nbytes >= DONE.size and (nbytes - DONE.size) % 4 == 0:
        assert decode_done(body[:nbytes]) == (1, 2, tuple(sizes[: (nbytes - DONE.size) // 4]))
    else:
        with pytest.raises(struct.error):
            decode_done(body[:nbytes])


@given(u64, u64, st.text(max_size=60), st.text(max_size=100))
def test_a_failure_comes_through_as_its_class(batch_id: int, compute_ns: int, model: str, reason: str) -> None:
    answer = decode_failed(encode_failed(batch_id, compute_ns, ModelFailed(model, reason)))
    assert answer[:2] == (batch_id, compute_ns)
    assert isinstance(answer[2], ModelFailed)
    assert answer[2].data() == {"model": model, "reason": reason}


@pytest.mark.parametrize("character", ["x", "é", "\x00", "\U0001f600", '"', "\\"])
@pytest.mark.parametrize("error", [ModelFailed, InternalError, BadModelOutput])
def test_a_long_failure_keeps_its_class_and_the_beginnings_of_its_fields(
    error: type[TensordError], character: str
) -> None:
    long = character * ERROR_BYTES_MAX
    body = encode_failed(1, 2, error(*[long] * len(fields(error))))  # type: ignore[arg-type]
    assert len(body) <= DONE.size + 2 + ERROR_BYTES_MAX
    _, _, received = decode_failed(body)
    assert type(received) is error
    assert all(value and long.startswith(value) for value in received.data().values())


def test_what_a_worker_of_another_version_says_is_no_crash() -> None:
    _, _, received = decode_failed(DONE.pack(1, 2) + struct.pack("<H", 999) + b"\xff{")
    assert isinstance(received, UnknownError)
    assert isinstance(decode_error(memoryview(encode_error(5, received))[HEADER.size :]), UnknownError)


def test_a_text_that_utf8_cannot_hold_still_arrives() -> None:
    _, _, error = decode_failed(encode_failed(1, 2, BadModelOutput("m", "y\ud800", "float32", "int8")))
    assert error.data() == {"model": "m", "tensor": "y\\ud800", "expected": "float32", "got": "int8"}
