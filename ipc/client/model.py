"""Models as a client sees them, and the parts of a request that depend only on model and rows, kept ready."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

from ..errors import TooManyRows
from ..limits import TENSOR_ALIGNMENT_BYTES
from ..tensors import ModelSpec, TensorSpec, align
from ..wire import Lane, TensorHeader
from .arrays import Array

Form: TypeAlias = "tuple[tuple[int, ...], np.dtype[Any]]"
"""Shape and type of an array."""

PLANS_MAX: Final = 256
"""Row counts of one model whose plans are kept; the next one starts over. A plan is about 1 KiB."""


@dataclass(frozen=True)
class Model:
    """What a model takes and gives. Shapes are those of one row: a request has one dimension before them."""

    name: str
    version: int
    inputs: Mapping[str, TensorSpec]
    """By name, in the model's order."""
    outputs: Mapping[str, TensorSpec]
    rows_max: int
    """Rows that one request may carry."""
    idempotent: bool
    """Whether a request is sent again on its own when a connection ended before the answer."""

    @classmethod
    def of(cls, spec: ModelSpec) -> "Model":
        """The same model, its tensors by name."""
        inputs = MappingProxyType({tensor.name: tensor for tensor in spec.inputs})
        outputs = MappingProxyType({tensor.name: tensor for tensor in spec.outputs})
        return cls(spec.name, spec.version, inputs, outputs, spec.rows_max, spec.idempotent)

    def __str__(self) -> str:
        inputs = ", ".join(map(str, self.inputs.values()))
        outputs = ", ".join(map(str, self.outputs.values()))
        return f"{self.name}:{self.version}({inputs}) -> ({outputs}), at most {self.rows_max} rows"


class OpenedModel:
    """A model with its handle on one connection."""

    def __init__(self, handle: int, spec: ModelSpec) -> None:
        self.handle = handle
        self.spec = spec
        self._plans: dict[int, RowPlan] = {}

    def check_rows(self, rows: int) -> int:
        """`rows`, if one request may carry as many. Raises TooManyRows."""
        if not 1 <= rows <= self.spec.rows_max:
            raise TooManyRows(self.spec.name, rows, self.spec.rows_max)
        return rows

    def plan(self, rows: int) -> "RowPlan":
        """What a request of `rows` rows looks like."""
        plan = self._plans.get(rows)
        if plan is None:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            plan = self._plans[rows] = RowPlan(self.handle, self.spec, rows)
        return plan


class RowPlan:
    """Sizes, tensor headers and place in an arena of a request of some number of rows."""

    def __init__(self, handle: int, spec: ModelSpec, rows: int) -> None:
        self.handle = handle
        self.spec = spec
        self.rows = rows
        self.input_bytes = sum(tensor.row_bytes for tensor in spec.inputs) * rows
        self.output_bytes = sum(tensor.row_bytes for tensor in spec.outputs) * rows
        self.input_headers = b"".join(self._inline_header(*indexed) for indexed in enumerate(spec.inputs))
        self.output_headers = b"".join(self._inline_header(*indexed) for indexed in enumerate(spec.outputs))

        self.output_forms: list[Form] = [(tensor.batch_shape(rows), tensor.dtype.numpy) for tensor in spec.outputs]

    def _inline_header(self, index: int, tensor: TensorSpec) -> bytes:
        shape = tensor.batch_shape(self.rows)
        return TensorHeader(index, tensor.dtype, shape, tensor.row_bytes * self.rows).encode()

    @cached_property
    def offsets(self) -> list[int]:
        """Where each input, then each output, starts in the slot of an arena; one more: where the slot ends."""
        offsets = [0]
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            offsets.append(offsets[-1] + align(tensor.row_bytes * self.rows))
        return offsets

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot for all tensors of this request."""
        return max(self.offsets[-1], TENSOR_ALIGNMENT_BYTES)

    def arena_headers(self, arena: int, base: int) -> bytes:
        """Tensor headers of INFER for a slot that starts at `base`: the inputs, then ranges for the outputs."""
        parts = []
        offsets = self.offsets
        inputs = len(self.spec.inputs)
        for position, tensor in enumerate((*self.spec.inputs, *self.spec.outputs)):
            is_output = position >= inputs
            index = position - inputs if is_output else position
            shape = () if is_output else tensor.batch_shape(self.rows)
            nbytes = tensor.row_bytes * self.rows
            header = TensorHeader(index, tensor.dtype, shape, nbytes, Lane.ARENA, arena, base + offsets[position])
            parts.append(header.encode())
        return b"".join(parts)

    def arena_result_headers(self, arena: int, base: int) -> bytes:
        """Tensor headers of the RESULT that answers such a request."""
        parts = []
        first = len(self.spec.inputs)
        for index, tensor in enumerate(self.spec.outputs):
            shape = tensor.batch_shape(self.rows)
            offset = base + self.offsets[first + index]
            nbytes = tensor.row_bytes * self.rows
            parts.append(TensorHeader(index, tensor.dtype, shape, nbytes, Lane.ARENA, arena, offset).encode())
        return b"".join(parts)

    def views(self, memory: Array, base: int) -> list[Array]:
        """Every input, then every output, as an array inside the slot that starts at `base` of an arena's bytes."""
        views = []
        for tensor, offset in zip((*self.spec.inputs, *self.spec.outputs), self.offsets, strict=False):
            nbytes = tensor.row_bytes * self.rows
            flat = memory[base + offset : base + offset + nbytes]
            views.append(flat.view(tensor.dtype.numpy).reshape(tensor.batch_shape(self.rows)))
        return views
