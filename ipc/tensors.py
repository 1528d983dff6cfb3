"""Data types and tensor specifications: what a model's inputs and outputs look like."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import ml_dtypes
import numpy as np

from .limits import TENSOR_ALIGNMENT_BYTES


class DType(IntEnum):
    """A data type's number on the wire; its name is the one that numpy and torch use."""

    BOOL = 1
    INT8 = 2
    INT16 = 3
    INT32 = 4
    INT64 = 5
    UINT8 = 6
    FLOAT16 = 7
    BFLOAT16 = 8
    FLOAT32 = 9
    FLOAT64 = 10

    @property
    def label(self) -> str:
        """Lower-case name: `float32`."""
        return self.name.lower()

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self]

    @property
    def numpy(self) -> "np.dtype[Any]":
        """The numpy data type (bfloat16 comes from ml_dtypes)."""
        return NUMPY_DTYPES[self]


ITEM_BYTES = {
    DType.BOOL: 1,
    DType.INT8: 1,
    DType.INT16: 2,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.UINT8: 1,
    DType.FLOAT16: 2,
    DType.BFLOAT16: 2,
    DType.FLOAT32: 4,
    DType.FLOAT64: 8,
}

NUMPY_DTYPES: "dict[DType, np.dtype[Any]]" = {
    dtype: np.dtype(ml_dtypes.bfloat16 if dtype is DType.BFLOAT16 else dtype.name.lower()) for dtype in DType
}

DTYPES_BY_LABEL = {dtype.name.lower(): dtype for dtype in DType}
_DTYPES_BY_NUMPY = {numpy_dtype: dtype for dtype, numpy_dtype in NUMPY_DTYPES.items()}


def dtype_of(array: "np.ndarray[Any, Any]") -> DType | None:
    """The wire type of a numpy array in native byte order, or None where the wire has no such type."""
    return _DTYPES_BY_NUMPY.get(array.dtype)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output of a model.

    `shape` is the shape of *one row*: a request with r rows carries a tensor of shape `(r, *shape)`.
    `labels` name the elements of an output's last dimension (classes), and are empty otherwise.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    row_bytes: int = field(init=False, compare=False)
    """Bytes of one row."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_bytes", math.prod(self.shape) * self.dtype.itemsize)

    def batch_shape(self, rows: int) -> tuple[int, ...]:
        """Shape of a tensor of `rows` rows."""
        return (rows, *self.shape)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype.label} {shape_text(('rows', *self.shape))}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a client learns of a model when it opens it."""

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rows_max: int
    """Rows that one request may carry."""
    idempotent: bool
    """Whether a request may be run again, or resent by a client, when its answer was lost."""


def shape_text(shape: Sequence[object]) -> str:
    """A shape as people write it: `(8, 1, 28)`, also for one dimension."""
    return "(" + ", ".join(map(str, shape)) + ")"


def align(nbytes: int, alignment: int = TENSOR_ALIGNMENT_BYTES) -> int:
    """The next multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment
