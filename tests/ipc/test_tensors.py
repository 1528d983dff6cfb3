import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc.tensors import DTYPES_BY_LABEL, DType, TensorSpec, align, dtype_of, shape_text


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


@given(st.integers(0, 2**60), st.sampled_from([1, 2, 64, 4096]))
def test_align_gives_the_next_multiple(nbytes: int, alignment: int) -> None:
    aligned = align(nbytes, alignment)
    assert aligned % alignment == 0
    assert nbytes <= aligned < nbytes + alignment
