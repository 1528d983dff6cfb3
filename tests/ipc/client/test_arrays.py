"""What users hand in as tensors, and what they get back."""

import collections
import contextlib
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc.client.arrays import Extent, arrange_outputs, as_bytes, is_torch_tensor, prepare_inputs
from tensord.ipc.errors import BadRequest, TensordError, TooManyRows, WrongDType, WrongShape, WrongTensors
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec


def one(dtype: DType = DType.FLOAT32, shape: tuple[int, ...] = (2, 3), rows_max: int = 8) -> ModelSpec:
    return ModelSpec("m", 1, (TensorSpec("x", dtype, shape),), (TensorSpec("y", dtype, shape),), rows_max, True)


TWO = ModelSpec(
    "two",
    1,
    (TensorSpec("a", DType.INT8, (2,)), TensorSpec("b", DType.INT64, ())),
    (TensorSpec("c", DType.INT8, ()), TensorSpec("d", DType.INT8, ())),
    8,
    True,
)


def test_an_array_that_fits_is_not_copied() -> None:
    x = np.zeros((4, 2, 3), np.float32)
    prepared = prepare_inputs(one(), x)
    assert prepared.arrays[0] is x
    assert (prepared.extent, prepared.is_torch) == (Extent(4), False)


def test_inputs_by_name_come_into_the_models_order() -> None:
    a = np.zeros((3, 2), np.int8)
    b = np.arange(3)
    for inputs in ({"b": b, "a": a}, MappingProxyType({"a": a, "b": b}), collections.OrderedDict(b=b, a=a)):
        assert [array.dtype for array in prepare_inputs(TWO, inputs).arrays] == [np.int8, np.int64]


@pytest.mark.parametrize(
    "x",
    [
        np.asfortranarray(np.arange(24, dtype=np.float32).reshape(4, 2, 3)),
        np.arange(24, dtype=">f4").reshape(4, 2, 3),
        np.arange(48, dtype=np.float32).reshape(4, 2, 6)[:, :, ::2],
        np.arange(24, dtype=np.float32).reshape(4, 2, 3)[::-1],
        np.broadcast_to(np.arange(3, dtype=np.float32), (4, 2, 3)),
    ],
    ids=["fortran", "big endian", "strided", "backwards", "broadcast"],
)
def test_layout_and_byte_order_are_mended(x: "np.ndarray[Any, Any]") -> None:
    array = prepare_inputs(one(), x).arrays[0]
    assert array.flags.c_contiguous
    assert array.dtype == np.dtype("float32")
    assert array.dtype.isnative
    assert array.tolist() == x.tolist()


def test_read_only_arrays_and_subclasses_are_taken() -> None:
    x = np.zeros((1, 2, 3), np.float32)
    x.flags.writeable = False
    assert prepare_inputs(one(), x).arrays[0] is x
    record = x.view(np.recarray)
    assert type(prepare_inputs(one(), record).arrays[0]) is np.ndarray


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint32, np.complex64, np.str_, np.object_])
def test_another_type_is_refused_and_never_converted(dtype: type) -> None:
    with pytest.raises(WrongDType, match="must be float32"):
        prepare_inputs(one(), np.zeros((1, 2, 3), dtype))


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3, 1), (1, 3, 2), (1, 6), (), (3,)])
def test_another_shape_is_refused_and_says_what_is_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(WrongShape, match=r"must have shape \(rows, 2, 3\)"):
        prepare_inputs(one(), np.zeros(shape, np.float32))


def test_inputs_of_different_rows_are_refused() -> None:
    with pytest.raises(WrongShape, match=r"must have shape \(3\), not \(2\)"):
        prepare_inputs(TWO, {"a": np.zeros((3, 2), np.int8), "b": np.zeros(2, np.int64)})


@pytest.mark.parametrize(("rows", "error"), [(0, WrongShape), (9, TooManyRows)])
def test_rows_are_one_to_the_models_maximum(rows: int, error: type[TensordError]) -> None:
    with pytest.raises(error):
        prepare_inputs(one(), np.zeros((rows, 2, 3), np.float32))


@pytest.mark.parametrize(
    "inputs", [{}, {"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "x": 2}, np.zeros((1, 2), np.int8), [[1, 2]]]
)
def test_names_must_be_the_models(inputs: Any) -> None:
    with pytest.raises(WrongTensors, match="takes the inputs a, b"):
        prepare_inputs(TWO, inputs)


def test_lists_take_the_inputs_type() -> None:
    array = prepare_inputs(one(), [[[1, 2, 3], [4, 5, 6]]]).arrays[0]
    assert array.dtype == np.float32
    assert array.tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize("tensor", [[[[1, 2, 3], [4, 5]]], [["a"]], [[None, {}]]])
def test_lists_that_make_no_array_are_refused(tensor: list[Any]) -> None:
    with pytest.raises(BadRequest, match="every element must be a float32"):
        prepare_inputs(one(), tensor)


@pytest.mark.parametrize("tensor", [1.0, "text", None, object(), (1, 2), np.float32(1), b"bytes"])
def test_other_things_are_refused(tensor: object) -> None:
    with pytest.raises(BadRequest, match="pass a numpy array, a torch tensor or a list"):
        prepare_inputs(one(), tensor)


@given(st.recursive(st.none() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=12))
def test_whatever_comes_is_taken_or_refused_by_one_of_our_errors(tensor: object) -> None:
    with contextlib.suppress(TensordError):
        assert prepare_inputs(one(), tensor).arrays[0].shape[1:] == (2, 3)


# ── free dimensions ─────────────────────────────────────────────────────────────────────────────

TOKENS, WIDTH = Dimension("tokens", 100), Dimension("width", 5)
TEXT = ModelSpec(
    "text",
    1,
    (
        TensorSpec("ids", DType.INT64, (TOKENS,)),
        TensorSpec("mask", DType.UINT8, (TOKENS,), optional=True),
        TensorSpec("image", DType.FLOAT32, (WIDTH, 2, TOKENS)),
    ),
    (TensorSpec("y", DType.INT8, (TOKENS,)),),
    8,
    True,
)
IDS = ModelSpec("ids", 1, (TEXT.inputs[0], TEXT.inputs[1]), TEXT.outputs, 8, True)
"""One input is needed, the other is optional."""


def text(rows: int = 2, tokens: int = 7, width: int = 3, **more: "np.ndarray[Any, Any]") -> dict[str, Any]:
    image = np.zeros((rows, width, 2, tokens), np.float32)
    return {"ids": np.zeros((rows, tokens), np.int64), "image": image, **more}


@given(st.integers(1, 8), st.integers(1, 100), st.integers(1, 5), st.booleans())
def test_sizes_come_with_the_inputs(rows: int, tokens: int, width: int, has_mask: bool) -> None:
    mask = {"mask": np.ones((rows, tokens), np.uint8)} if has_mask else {}
    prepared = prepare_inputs(TEXT, text(rows, tokens, width, **mask))
    assert prepared.extent == Extent(rows, (tokens, width), () if has_mask else (1,))
    assert [array.dtype for array in prepared.arrays] == [np.int64, *([np.uint8] if has_mask else []), np.float32]


def test_an_input_of_a_free_size_is_not_copied_either() -> None:
    ids = np.zeros((3, 9), np.int64)
    prepared = prepare_inputs(IDS, ids)
    assert prepared.arrays[0] is ids
    assert prepared.extent == Extent(3, (9,), (1,))


def test_the_one_input_that_is_needed_needs_no_name() -> None:
    assert prepare_inputs(IDS, [[1, 2, 3]]).extent == Extent(1, (3,), (1,))
    assert prepare_inputs(IDS, {"ids": [[1, 2]], "mask": [[1, 0]]}).extent == Extent(1, (2,), ())
    with pytest.raises(WrongTensors, match="one tensor without a name"):
        prepare_inputs(TEXT, np.zeros((1, 2), np.int64))


@pytest.mark.parametrize("names", [["ids"], ["ids", "mask"], ["mask", "image"], ["ids", "image", "more"], []])
def test_only_optional_inputs_may_be_left_out(names: list[str]) -> None:
    given = text(mask=np.ones((2, 7), np.uint8), more=np.zeros(1))
    with pytest.raises(WrongTensors) as caught:
        prepare_inputs(TEXT, {name: given[name] for name in names})
    assert caught.value.data() == {"model": "text", "expected": ["ids", "mask", "image"], "got": names}


@pytest.mark.parametrize(
    ("inputs", "tensor", "expected", "got"),
    [
        (text(tokens=101), "ids", "(2, tokens ≤ 100)", "(2, 101)"),
        (text(tokens=0), "ids", "(2, tokens ≤ 100)", "(2, 0)"),
        (text(width=6), "image", "(2, width ≤ 5, 2, 7)", "(2, 6, 2, 7)"),
        (text(width=0), "image", "(2, width ≤ 5, 2, 7)", "(2, 0, 2, 7)"),
        (text(mask=np.ones((2, 8), np.uint8)), "mask", "(2, 7)", "(2, 8)"),
        (text(mask=np.ones((3, 7), np.uint8)), "mask", "(2, 7)", "(3, 7)"),
        (text(mask=np.ones((2,), np.uint8)), "mask", "(2, 7)", "(2)"),
        ({**text(), "image": np.zeros((2, 3, 2, 9), np.float32)}, "image", "(2, 3, 2, 7)", "(2, 3, 2, 9)"),
        ({**text(), "image": np.zeros((2, 3, 3, 7), np.float32)}, "image", "(2, 3, 2, 7)", "(2, 3, 3, 7)"),
        ({**text(), "ids": np.zeros((2, 7, 1), np.int64)}, "ids", "(2, tokens ≤ 100)", "(2, 7, 1)"),
    ],
)
def test_sizes_are_one_to_the_maximum_and_the_same_in_all_inputs(
    inputs: dict[str, Any], tensor: str, expected: str, got: str
) -> None:
    with pytest.raises(WrongShape) as caught:
        prepare_inputs(TEXT, inputs)
    assert caught.value.data() == {"model": "text", "tensor": tensor, "expected": expected, "got": got}


def test_the_only_input_is_asked_for_in_rows() -> None:
    with pytest.raises(WrongShape, match=r"must have shape \(rows, tokens ≤ 100\), not \(1, 101\)"):
        prepare_inputs(IDS, np.zeros((1, 101), np.int64))


# ── torch ───────────────────────────────────────────────────────────────────────────────────────


def test_torch_tensors_share_their_memory() -> None:
    tensor = torch.zeros((4, 2, 3))
    prepared = prepare_inputs(one(), tensor)
    tensor[0, 0, 0] = 7
    assert prepared.arrays[0][0, 0, 0] == 7
    assert prepared.is_torch


def test_torch_bfloat16_keeps_its_bits() -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(1, 2, 3)
    array = prepare_inputs(one(DType.BFLOAT16), tensor).arrays[0]
    assert array.dtype == ml_dtypes.bfloat16
    assert array.astype(np.float32).reshape(-1).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones((3, 2, 1)).permute(2, 1, 0),
        torch.ones((1, 2, 3), requires_grad=True),
        torch.nn.Parameter(torch.ones((1, 2, 3))),
        torch.ones((1, 2, 6))[:, :, ::2],
    ],
    ids=["permuted", "with gradient", "parameter", "strided"],
)
def test_torch_layouts_are_mended(tensor: torch.Tensor) -> None:
    array = prepare_inputs(one(), tensor).arrays[0]
    assert array.flags.c_contiguous
    assert (array == 1).all()


def test_torch_tensors_that_make_no_array_are_refused() -> None:
    with pytest.raises(BadRequest, match="make it dense"):
        prepare_inputs(one(), torch.ones((2, 3)).to_sparse())
    with pytest.raises(WrongDType, match="must be float32, not float64"):
        prepare_inputs(one(), torch.zeros((1, 2, 3), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_outputs_are_torch_tensors_where_an_input_was(dtype: torch.dtype) -> None:
    label = str(dtype).removeprefix("torch.")
    spec = one(DType[label.upper()], (3,))
    array = np.ones((2, 3), spec.outputs[0].dtype.numpy)
    output = arrange_outputs(spec, [array], as_torch=True)
    assert output.dtype is dtype
    output[0, 0] = 0
    assert not array[0, 0]
    assert is_torch_tensor(output)
    assert not is_torch_tensor(array)


def test_several_outputs_are_a_dict_in_the_models_order() -> None:
    arrays = [np.zeros(1, np.int8), np.ones(1, np.int8)]
    outputs = arrange_outputs(TWO, arrays, as_torch=False)
    assert list(outputs) == ["c", "d"]
    assert outputs["d"] is arrays[1]


@pytest.mark.parametrize("dtype", list(DType))
def test_bytes_are_shared_whatever_the_type(dtype: DType) -> None:
    array = np.ones((2, 3), dtype.numpy)
    view = as_bytes(array)
    assert view.shape == (6 * dtype.itemsize,)
    view[:] = 0
    assert not array.any()
