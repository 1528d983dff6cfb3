import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc.tensors import (
    DTYPES_BY_LABEL,
    NO_SIZES,
    Dimension,
    DType,
    TensorSpec,
    align,
    dtype_of,
    free_dimensions,
    shape_text,
)


def test_the_numbers_on_the_wire_never_change() -> None:
    assert {dtype.label: int(dtype) for dtype in DType} == {
        "bool": 1,
        "int8": 2,
        "int16": 3,
        "int32": 4,
        "int64": 5,
        "uint8": 6,
        "float16": 7,
        "bfloat16": 8,
        "float32": 9,
        "float64": 10,
    }


@pytest.mark.parametrize("dtype", DType)
def test_numpy_agrees_on_name_and_size(dtype: DType) -> None:
    assert dtype.numpy.name == dtype.label
    assert dtype.numpy.itemsize == dtype.itemsize
    assert DTYPES_BY_LABEL[dtype.label] is dtype
    assert dtype_of(np.zeros(1, dtype.numpy)) is dtype


@pytest.mark.parametrize("dtype", [">f4", "complex64", "U3", "O", "uint16", ml_dtypes.float8_e4m3fn, "M8[s]"])
def test_other_arrays_have_no_type_on_the_wire(dtype: object) -> None:
    assert dtype_of(np.zeros(1, np.dtype(dtype))) is None  # type: ignore[call-overload]


def test_a_spec_describes_one_row() -> None:
    spec = TensorSpec("x", DType.FLOAT16, (3, 4))
    assert spec.row_bytes == 24
    assert spec.batch_shape(5) == (5, 3, 4)
    assert str(spec) == "x: float16 (rows, 3, 4)"


def test_a_row_may_be_a_single_number() -> None:
    spec = TensorSpec("x", DType.INT64, ())
    assert spec.row_bytes == 8
    assert spec.batch_shape(2) == (2,)
    assert shape_text(spec.batch_shape(2)) == "(2)"


# ── free dimensions ─────────────────────────────────────────────────────────────────────────────

TOKENS, FOUND = Dimension("tokens", 256), Dimension("found", 10, from_data=True)


def test_a_spec_knows_its_free_dimensions_and_shows_them_by_name() -> None:
    spec = TensorSpec("x", DType.INT64, (TOKENS, 3, FOUND))
    assert spec.dimensions == (TOKENS, FOUND)
    assert str(spec) == "x: int64 (rows, tokens, 3, found)"
    assert TensorSpec("x", DType.INT64, (3,)).dimensions == ()


def test_sizes_take_the_place_of_free_dimensions() -> None:
    spec = TensorSpec("x", DType.INT16, (TOKENS, 3, FOUND))
    sizes = {"tokens": 7, "found": 0, "another": 99}
    assert spec.row_shape(sizes) == (7, 3, 0)
    assert spec.batch_shape(2, {"tokens": 7, "found": 4}) == (2, 7, 3, 4)
    assert spec.nbytes(2, {"tokens": 7, "found": 4}) == 2 * 7 * 3 * 4 * 2


def test_a_size_that_is_not_known_counts_as_the_largest() -> None:
    spec = TensorSpec("x", DType.INT16, (TOKENS, FOUND))
    assert (spec.row_shape(), spec.row_bytes) == ((256, 10), 256 * 10 * 2)
    assert spec.batch_shape(3, {"tokens": 5}) == (3, 5, 10)
    assert spec.nbytes(3) == 3 * spec.row_bytes


def test_a_dimension_that_appears_twice_has_one_size() -> None:
    spec = TensorSpec("attention", DType.BOOL, (TOKENS, TOKENS))
    assert spec.row_shape({"tokens": 5}) == (5, 5)
    assert free_dimensions([spec]) == (TOKENS,)


def test_free_dimensions_come_once_in_the_order_of_their_first_appearance() -> None:
    width = Dimension("width", 9)
    inputs = [TensorSpec("a", DType.INT8, (3,)), TensorSpec("b", DType.INT8, (width, TOKENS))]
    outputs = [TensorSpec("y", DType.INT8, (FOUND, TOKENS)), TensorSpec("z", DType.INT8, (width, 2))]
    assert free_dimensions(inputs) == (width, TOKENS)
    assert free_dimensions(inputs, outputs) == (width, TOKENS, FOUND)
    assert free_dimensions([]) == ()


def test_specs_are_equal_by_what_clients_are_told() -> None:
    assert TensorSpec("x", DType.INT8, (TOKENS,)) == TensorSpec("x", DType.INT8, (Dimension("tokens", 256),))
    for other in (Dimension("tokens", 255), Dimension("words", 256), Dimension("tokens", 256, from_data=True), 256):
        assert TensorSpec("x", DType.INT8, (TOKENS,)) != TensorSpec("x", DType.INT8, (other,))
    assert TensorSpec("x", DType.INT8, (), optional=True) != TensorSpec("x", DType.INT8, ())


@given(st.integers(1, 9), st.lists(st.integers(1, 9) | st.sampled_from([TOKENS, FOUND])), st.sampled_from(DType))
def test_bytes_are_those_of_the_shape(rows: int, shape: list[int | Dimension], dtype: DType) -> None:
    spec = TensorSpec("x", dtype, tuple(shape))
    for sizes in ({"tokens": 11, "found": 2}, {"tokens": 1, "found": 0}, NO_SIZES):
        assert spec.nbytes(rows, sizes) == math.prod(spec.batch_shape(rows, sizes)) * dtype.itemsize


# ── alignment ───────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 2**60), st.sampled_from([1, 2, 64, 4096]))
def test_align_gives_the_next_multiple(nbytes: int, alignment: int) -> None:
    aligned = align(nbytes, alignment)
    assert aligned % alignment == 0
    assert nbytes <= aligned < nbytes + alignment
