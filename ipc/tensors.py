"""Data types and tensor specifications: what a model's inputs and outputs look like."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

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
class Dimension:
    """A free dimension: its size is another one in each request, 1 to `max`. One name means one size per request."""

    name: str
    max: int
    from_data: bool = False
    """The model decides from the data (detections found); only outputs have it, and it may be 0."""

    def __str__(self) -> str:
        return self.name


NO_SIZES: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output of a model.

    `shape` is the shape of *one row*: a request with r rows carries a tensor of shape `(r, *shape)`, with the
    request's sizes in place of free dimensions. `labels` name an output's classes: the elements of its last
    dimension, or, where it holds integers, its values. They are empty otherwise.
    """

    name: str
    dtype: DType
    shape: tuple[int | Dimension, ...]
    labels: tuple[str, ...] = ()
    optional: bool = False
    """An input that a request may leave out: the daemon then makes it (a mask of ones)."""
    row_bytes: int = field(init=False, compare=False)
    """Bytes of one row; of one at the largest sizes where dimensions are free."""
    dimensions: tuple[Dimension, ...] = field(init=False, compare=False)
    """The free ones of its dimensions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimensions", tuple(each for each in self.shape if isinstance(each, Dimension)))
        object.__setattr__(self, "row_bytes", math.prod(self.row_shape()) * self.dtype.itemsize)

    def row_shape(self, sizes: Mapping[str, int] = NO_SIZES) -> tuple[int, ...]:
        """Shape of one row; a free dimension that has no size here counts with its largest."""
        return tuple(sizes.get(each.name, each.max) if isinstance(each, Dimension) else each for each in self.shape)

    def batch_shape(self, rows: int, sizes: Mapping[str, int] = NO_SIZES) -> tuple[int, ...]:
        """Shape of a tensor of `rows` rows."""
        return (rows, *self.row_shape(sizes))

    def nbytes(self, rows: int, sizes: Mapping[str, int] = NO_SIZES) -> int:
        """Bytes of a tensor of `rows` rows."""
        return rows * (math.prod(self.row_shape(sizes)) * self.dtype.itemsize if self.dimensions else self.row_bytes)

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


def free_dimensions(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec] = ()) -> tuple[Dimension, ...]:
    """The free dimensions of some tensors, each once, in the order of their first appearance."""
    return tuple(dict.fromkeys(each for spec in (*inputs, *outputs) for each in spec.dimensions))


def shape_text(shape: Sequence[object]) -> str:
    """A shape as people write it: `(8, 1, 28)`, also for one dimension."""
    return "(" + ", ".join(map(str, shape)) + ")"


def align(nbytes: int, alignment: int = TENSOR_ALIGNMENT_BYTES) -> int:
    """The next multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment
