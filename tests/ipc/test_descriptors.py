import struct
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc.descriptors import (
    DONE,
    BatchDescriptor,
    Run,
    decode_batch,
    decode_failed,
    encode_batch,
    encode_failed,
)
from tensord.ipc.errors import BadModelOutput, InternalError, ModelFailed, TensordError, UnknownError
from tensord.ipc.limits import ERROR_BYTES_MAX
from tensord.ipc.wire import HEADER, decode_error, encode_error

u16 = st.integers(0, 2**16 - 1)
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
