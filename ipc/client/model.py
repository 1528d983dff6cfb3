"""Models as a client sees them, and the parts of a request that depend only on its extent, kept ready."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

from ..errors import BadRequest, TooManyRows
from ..limits import TENSOR_ALIGNMENT_BYTES
from ..tensors import ModelSpec, TensorSpec, align, free_dimensions
from ..wire import Lane, TensorHeader
from .arrays import Array, Extent

Form: TypeAlias = "tuple[tuple[int, ...], np.dtype[Any]]"
"""Shape and type of an array."""

PLANS_MAX: Final = 256
"""Extents of one model whose plans are kept; the next one starts over. A plan is about 1 KiB."""


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
        self._plans: dict[Extent, RequestPlan] = {}

    def check_rows(self, rows: int) -> int:
        """`rows`, if one request may carry as many. Raises BadRequest for none, TooManyRows."""
        if rows < 1:
            raise BadRequest("rows", str(rows), f"a request has 1 to {self.spec.rows_max}")
        if rows > self.spec.rows_max:
            raise TooManyRows(self.spec.name, rows, self.spec.rows_max)
        return rows

    def extent(self, rows: int, sizes: Mapping[str, int], optional: Collection[str]) -> Extent:
        """What a slot for `rows` rows holds. Raises TooManyRows, BadRequest."""
        inputs = self.spec.inputs
        dimensions = free_dimensions(inputs)
        names = {each.name for each in dimensions}
        if set(sizes) != names or not all(_is_size(sizes[each.name], each.max) for each in dimensions):
            wanted = ", ".join(f"{each}: 1 to {each.max}" for each in dimensions) or "this model has no free dimension"
            raise BadRequest("sizes", str(dict(sizes)), wanted)
        known = {spec.name for spec in inputs if spec.optional}
        if not known.issuperset(optional):
            raise BadRequest("optional", str(list(optional)), f"the optional inputs are {sorted(known)}")
        omitted = tuple(index for index, spec in enumerate(inputs) if spec.name in known.difference(optional))
        return Extent(self.check_rows(rows), tuple(sizes[each.name] for each in dimensions), omitted)

    def plan(self, extent: Extent) -> "RequestPlan":
        """What a request of this extent looks like."""
        plan = self._plans.get(extent)
        if plan is None:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            plan = self._plans[extent] = RequestPlan(self.handle, self.spec, extent)
        return plan


def _is_size(size: object, largest: int) -> bool:
    return isinstance(size, int | np.integer) and not isinstance(size, bool) and 1 <= int(size) <= largest


class RequestPlan:
    """Sizes, tensor headers and place in an arena of a request of some extent."""

    def __init__(self, handle: int, spec: ModelSpec, extent: Extent) -> None:
        self.handle = handle
        self.spec = spec
        self.rows = extent.rows
        self.inputs = [(index, each) for index, each in enumerate(spec.inputs) if index not in extent.omitted]
        """The inputs that it carries, with their index."""
        self.has_data_sizes = any(each.from_data for each in free_dimensions(spec.outputs))
        """Whether outputs may be smaller than planned: only the result says how large they are."""
        dimensions = free_dimensions(spec.inputs)
        self._sizes = {each.name: size for each, size in zip(dimensions, extent.sizes, strict=True)}
        self.input_bytes = sum(self._nbytes(tensor) for _, tensor in self.inputs)
        self.output_bytes = sum(map(self._nbytes, spec.outputs))
        self.input_headers = b"".join(self._inline_header(*indexed) for indexed in self.inputs)
        self.output_headers = b"".join(self._inline_header(*indexed) for indexed in enumerate(spec.outputs))
        self.output_forms: list[Form] = [(self._shape(tensor), tensor.dtype.numpy) for tensor in spec.outputs]

    def _shape(self, tensor: TensorSpec) -> tuple[int, ...]:
        return tensor.batch_shape(self.rows, self._sizes)

    def _nbytes(self, tensor: TensorSpec) -> int:
        return tensor.nbytes(self.rows, self._sizes)

    def _inline_header(self, index: int, tensor: TensorSpec) -> bytes:
        return TensorHeader(index, tensor.dtype, self._shape(tensor), self._nbytes(tensor)).encode()

    @cached_property
    def offsets(self) -> list[int]:
        """Where each input, then each output, starts in the slot of an arena; one more: where the slot ends."""
        tensors = [*(tensor for _, tensor in self.inputs), *self.spec.outputs]
        return list(accumulate((align(self._nbytes(tensor)) for tensor in tensors), initial=0))

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot for all tensors of this request."""
        return max(self.offsets[-1], TENSOR_ALIGNMENT_BYTES)

    def arena_headers(self, arena: int, base: int) -> bytes:
        """Tensor headers of INFER for a slot that starts at `base`: the inputs, then ranges for the outputs."""
        parts = []
        offsets = iter(self.offsets)
        for index, tensor in self.inputs:
            parts.append(self._arena_header(index, tensor, self._shape(tensor), arena, base + next(offsets)))
        for index, tensor in enumerate(self.spec.outputs):
            parts.append(self._arena_header(index, tensor, (), arena, base + next(offsets)))
        return b"".join(parts)

    def arena_result_headers(self, arena: int, base: int) -> bytes:
        """Tensor headers of the RESULT that answers such a request, if its outputs are as large as they may be."""
        return b"".join(
            self._arena_header(index, tensor, self._shape(tensor), arena, base + offset)
            for index, (tensor, offset) in enumerate(zip(self.spec.outputs, self._output_offsets, strict=True))
        )

    def _arena_header(self, index: int, tensor: TensorSpec, shape: tuple[int, ...], arena: int, offset: int) -> bytes:
        return TensorHeader(index, tensor.dtype, shape, self._nbytes(tensor), Lane.ARENA, arena, offset).encode()

    @property
    def _output_offsets(self) -> list[int]:
        return self.offsets[len(self.inputs) : -1]

    def input_views(self, memory: Array, base: int) -> dict[str, Array]:
        """Every input that it carries, by name, as an array in the slot that starts at `base` of an arena's bytes."""
        return {
            tensor.name: _view(memory, base + offset, tensor, self._shape(tensor))
            for (_, tensor), offset in zip(self.inputs, self.offsets, strict=False)
        }

    def output_views(
        self, memory: Array, base: int, shapes: Sequence[tuple[int, ...]] | None = None
    ) -> dict[str, Array]:
        """Every output by name, as large as planned or of the given shapes."""
        shapes = [self._shape(tensor) for tensor in self.spec.outputs] if shapes is None else shapes
        return {
            tensor.name: _view(memory, base + offset, tensor, shape)
            for tensor, offset, shape in zip(self.spec.outputs, self._output_offsets, shapes, strict=True)
        }


def _view(memory: Array, start: int, tensor: TensorSpec, shape: tuple[int, ...]) -> Array:
    nbytes = math.prod(shape) * tensor.dtype.itemsize
    return memory[start : start + nbytes].view(tensor.dtype.numpy).reshape(shape)
