"""The form of a request: everything that can be checked from its tensor headers and the model's specification.

Clients send the same headers again and again, so for requests without arenas the result is remembered by the
headers' bytes: the check of the thousandth request is one dictionary look-up.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, Protocol

from tensord.ipc.errors import (
    BadRequest,
    OutputTooSmall,
    OutsideArena,
    UnknownArena,
    WrongDType,
    WrongShape,
    WrongTensors,
)
from tensord.ipc.limits import TENSOR_ALIGNMENT_BYTES
from tensord.ipc.tensors import Dimension, TensorSpec, align, shape_text
from tensord.ipc.wire import Lane, TensorHeader, decode_tensors

FORMS_MAX: Final = 256
"""Forms remembered per model; then the memory starts anew. One client that varies its shapes can cost others
the microseconds of a check, nothing else."""


class ArenaSize(Protocol):
    """What this module needs of an arena."""

    nbytes: int


class Specified(Protocol):
    """What this module needs of a model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dimensions: tuple[Dimension, ...]
    """Free dimensions of the inputs."""
    buckets: Mapping[str, tuple[int, ...]]
    """Sizes that some of them are padded to."""
    is_ragged: bool
    """Whether any tensor has a free dimension."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of a request lies in a client's arena."""

    tensor: int
    """Its index among the inputs, or outputs."""
    arena: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Form:
    """A request's form, checked against the model."""

    rows: int
    sizes: tuple[int, ...]
    """Of the model's free dimensions."""
    bucket: tuple[int, ...] | None
    """The sizes that its batch is padded to; None for a model without free dimensions."""
    payload_bytes: int
    """Inline input bytes."""
    reply_bytes: int
    """Inline output bytes; the most that it may be, where sizes come from the data."""
    inline_inputs: tuple[int, ...]
    """Indices of the inputs in the payload, in its order."""
    inline_outputs: tuple[int, ...]
    """Indices of the outputs that come back inline."""
    inline_bytes: tuple[int, ...]
    """Bytes of each inline tensor, inputs first."""
    output_spans: tuple[tuple[int, int], ...]
    """Position among the inline tensors, and bytes, of each inline output."""
    slab_row_bytes: tuple[int, ...]
    """Of the slab that the inline tensors lie in: bytes of one row of each region."""
    slab_rows: int
    """Rows of the slab that they take."""
    inline_offsets: tuple[int, ...]
    """Where each inline tensor starts in the one region of a ragged lease; empty where each has a region of its own."""
    input_places: tuple[Place, ...]
    output_places: tuple[Place, ...]
    places: tuple[Place, ...]
    """All ranges of arenas that the request uses: inputs first."""
    nbytes: int
    """Of all its tensors, inline and in arenas."""


class FormCache:
    """Forms by the bytes of their tensor headers."""

    __slots__ = ("_forms",)

    def __init__(self) -> None:
        self._forms: dict[bytes, Form] = {}
        """Without arenas, so without headers of outputs: the bytes say how many inputs there are."""

    def form(
        self,
        model: Specified,
        input_count: int,
        output_count: int,
        headers: bytes,
        arenas: Mapping[int, ArenaSize],
    ) -> Form:
        """The request's form. Raises ClientFault."""
        known = self._forms.get(headers)
        if known is not None and input_count == len(known.inline_inputs) and not output_count:
            return known
        tensors = decode_tensors(memoryview(headers), input_count + output_count)
        form = check(model, tensors[:input_count], tensors[input_count:], arenas)
        if not form.places:
            if len(self._forms) >= FORMS_MAX:
                self._forms.clear()
            self._forms[headers] = form
        return form


def check(
    model: Specified,
    inputs: Sequence[TensorHeader],
    outputs: Sequence[TensorHeader],
    arenas: Mapping[int, ArenaSize],
) -> Form:
    """Check a request's tensors against the model and the connection's arenas. Raises ClientFault."""
    rows, sizes = _check_inputs(model, inputs)
    _check_outputs(model, outputs, rows, sizes)
    input_places = tuple(_place(model.inputs, tensor, arenas) for tensor in inputs if tensor.lane is Lane.ARENA)
    output_places = tuple(_place(model.outputs, tensor, arenas) for tensor in outputs)
    in_arena = {place.tensor for place in output_places}
    inline_inputs = tuple(tensor.index for tensor in inputs if tensor.lane is Lane.INLINE)
    inline_outputs = tuple(index for index in range(len(model.outputs)) if index not in in_arena)
    specs = [*(model.inputs[index] for index in inline_inputs), *(model.outputs[index] for index in inline_outputs)]
    inline_bytes = tuple(spec.nbytes(rows, sizes) for spec in specs)
    offsets: tuple[int, ...] = ()
    slab_row_bytes, slab_rows = tuple(spec.row_bytes for spec in specs), rows
    if model.is_ragged:
        *starts, end = accumulate(map(align, inline_bytes), initial=0)
        offsets, slab_row_bytes, slab_rows = tuple(starts), (TENSOR_ALIGNMENT_BYTES,), end // TENSOR_ALIGNMENT_BYTES
    return Form(
        rows,
        tuple(sizes[each.name] for each in model.dimensions),
        tuple(_bucket(model, each.name, sizes) for each in model.dimensions) if model.is_ragged else None,
        sum(inline_bytes[: len(inline_inputs)]),
        sum(inline_bytes[len(inline_inputs) :]),
        inline_inputs,
        inline_outputs,
        inline_bytes,
        tuple(enumerate(inline_bytes))[len(inline_inputs) :],
        slab_row_bytes,
        slab_rows,
        offsets,
        input_places,
        output_places,
        input_places + output_places,
        sum(inline_bytes) + sum(place.nbytes for place in input_places + output_places),
    )


def part_of(form: Form, model: Specified, first: int, rows: int) -> Form:
    """The form of `rows` of a request's rows, from row number `first` on."""
    sizes = {each.name: size for each, size in zip(model.dimensions, form.sizes, strict=True)}
    specs = [model.inputs[index] for index in form.inline_inputs] + [model.outputs[i] for i in form.inline_outputs]
    inline_bytes = tuple(spec.nbytes(rows, sizes) for spec in specs)
    offsets = tuple(
        offset + spec.nbytes(first, sizes) for offset, spec in zip(form.inline_offsets, specs, strict=False)
    )

    def placed(specs: Sequence[TensorSpec], place: Place) -> Place:
        spec = specs[place.tensor]
        return replace(place, offset=place.offset + spec.nbytes(first, sizes), nbytes=spec.nbytes(rows, sizes))

    inputs = tuple(placed(model.inputs, place) for place in form.input_places)
    outputs = tuple(placed(model.outputs, place) for place in form.output_places)
    return replace(
        form,
        rows=rows,
        payload_bytes=sum(inline_bytes[: len(form.inline_inputs)]),
        reply_bytes=sum(inline_bytes[len(form.inline_inputs) :]),
        inline_bytes=inline_bytes,
        output_spans=tuple(enumerate(inline_bytes))[len(form.inline_inputs) :],
        slab_rows=rows,
        inline_offsets=offsets,
        input_places=inputs,
        output_places=outputs,
        places=inputs + outputs,
        nbytes=sum(inline_bytes) + sum(place.nbytes for place in inputs + outputs),
    )


def _bucket(model: Specified, dimension: str, sizes: Mapping[str, int]) -> int:
    """The size that this one is padded to."""
    buckets = model.buckets.get(dimension)
    size = sizes[dimension]
    return size if buckets is None else buckets[bisect_left(buckets, size)]


def _check_inputs(model: Specified, inputs: Sequence[TensorHeader]) -> tuple[int, dict[str, int]]:
    """The number of rows, and the sizes of free dimensions.

    Inputs come in the model's order, so that a payload has one form and not n!.
    """
    present = [tensor.index for tensor in inputs]
    wanted = [index for index, spec in enumerate(model.inputs) if not spec.optional or index in present]
    if present != wanted:
        names = dict(enumerate(spec.name for spec in model.inputs))
        got = [names.get(index, f"number {index}") for index in present]
        raise WrongTensors(model.name, list(names.values()), got)
    rows = inputs[0].shape[0] if inputs[0].shape else 0
    sizes: dict[str, int] = {}
    for tensor in inputs:
        spec = model.inputs[tensor.index]
        if tensor.dtype is not spec.dtype:
            raise WrongDType(model.name, spec.name, spec.dtype.label, tensor.dtype.label)
        if spec.dimensions:
            _learn_sizes(spec, tensor.shape[1:], sizes)
        if 0 in tensor.shape or tensor.shape != spec.batch_shape(rows, sizes):
            first = "rows" if tensor is inputs[0] or rows < 1 else rows
            raise WrongShape(model.name, spec.name, shape_text((first, *_asked(spec, sizes))), shape_text(tensor.shape))
        nbytes = math.prod(tensor.shape) * tensor.dtype.itemsize
        if tensor.nbytes != nbytes:
            raise BadRequest("nbytes", str(tensor.nbytes), f"input {spec.name!r} of this shape has {nbytes}")
    return rows, sizes


def _learn_sizes(spec: TensorSpec, row_shape: Sequence[int], sizes: dict[str, int]) -> None:
    """The first tensor that has a free dimension says its size. One beyond its bounds is never right: 0."""
    for size, each in zip(row_shape, spec.shape, strict=False):
        if isinstance(each, Dimension):
            sizes.setdefault(each.name, size if size <= each.max else 0)


def _asked(spec: TensorSpec, sizes: Mapping[str, int]) -> list[object]:
    """The shape of one row to ask for: a size that other inputs have said, or the bound."""
    return [each if isinstance(each, int) else sizes.get(each.name) or f"{each} ≤ {each.max}" for each in spec.shape]


def _check_outputs(model: Specified, outputs: Sequence[TensorHeader], rows: int, sizes: Mapping[str, int]) -> None:
    """Ranges whose output's size comes from the data are measured when it is known."""
    seen: set[int] = set()
    for tensor in outputs:
        if tensor.index >= len(model.outputs) or tensor.index in seen:
            raise BadRequest("output index", str(tensor.index), f"name each of 0 to {len(model.outputs) - 1} once")
        if tensor.lane is not Lane.ARENA:
            raise BadRequest("output lane", "inline", "leave the output out to have it inline")
        seen.add(tensor.index)
        spec = model.outputs[tensor.index]
        nbytes = spec.nbytes(rows, sizes)
        if tensor.nbytes < nbytes and not any(each.from_data for each in spec.dimensions):
            raise OutputTooSmall(spec.name, nbytes, tensor.nbytes)


def _place(specs: Sequence[TensorSpec], tensor: TensorHeader, arenas: Mapping[int, ArenaSize]) -> Place:
    """Python's integers have no overflow: offset + nbytes is what it says."""
    arena = arenas.get(tensor.arena)
    if arena is None:
        raise UnknownArena(tensor.arena)
    if tensor.offset % TENSOR_ALIGNMENT_BYTES or tensor.offset + tensor.nbytes > arena.nbytes:
        raise OutsideArena(specs[tensor.index].name, tensor.offset, tensor.nbytes, arena.nbytes)
    return Place(tensor.index, tensor.arena, tensor.offset, tensor.nbytes)
