"""The form of a request: everything that can be checked from its tensor headers and the model's specification.

Clients send the same headers again and again, so for requests without arenas the result is remembered by the
headers' bytes: the check of the thousandth request is one dictionary look-up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from tensord.ipc.tensors import TensorSpec, shape_text
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
    payload_bytes: int
    """Inline input bytes."""
    reply_bytes: int
    """Inline output bytes."""
    inline_inputs: tuple[int, ...]
    """Indices of the inputs in the payload, in its order."""
    inline_outputs: tuple[int, ...]
    """Indices of the outputs that come back inline."""
    inline_row_bytes: tuple[int, ...]
    """Bytes of one row of each inline tensor, inputs first."""
    input_places: tuple[Place, ...]
    output_places: tuple[Place, ...]
    places: tuple[Place, ...]
    """All ranges of arenas that the request uses: inputs first."""


class FormCache:
    """Forms by the bytes of their tensor headers."""

    __slots__ = ("_forms",)

    def __init__(self) -> None:
        self._forms: dict[tuple[int, int, bytes], Form] = {}

    def form(
        self,
        model: Specified,
        input_count: int,
        output_count: int,
        headers: memoryview,
        arenas: Mapping[int, ArenaSize],
    ) -> Form:
        """The request's form. Raises ClientFault."""
        key = (input_count, output_count, bytes(headers))
        form = self._forms.get(key)
        if form is None:
            tensors = decode_tensors(headers, input_count + output_count)
            form = check(model, tensors[:input_count], tensors[input_count:], arenas)
            if not form.places:
                if len(self._forms) >= FORMS_MAX:
                    self._forms.clear()
                self._forms[key] = form
        return form


def check(
    model: Specified,
    inputs: Sequence[TensorHeader],
    outputs: Sequence[TensorHeader],
    arenas: Mapping[int, ArenaSize],
) -> Form:
    """Check a request's tensors against the model and the connection's arenas. Raises ClientFault."""
    rows = _check_inputs(model, inputs)
    _check_outputs(model, outputs, rows)
    input_places = tuple(_place(model.inputs, tensor, arenas) for tensor in inputs if tensor.lane is Lane.ARENA)
    output_places = tuple(_place(model.outputs, tensor, arenas) for tensor in outputs)
    in_arena = {place.tensor for place in output_places}
    inline_outputs = tuple(index for index in range(len(model.outputs)) if index not in in_arena)
    inline = [tensor for tensor in inputs if tensor.lane is Lane.INLINE]
    return Form(
        rows,
        sum(tensor.nbytes for tensor in inline),
        sum(rows * model.outputs[index].row_bytes for index in inline_outputs),
        tuple(tensor.index for tensor in inline),
        inline_outputs,
        (
            *(model.inputs[tensor.index].row_bytes for tensor in inline),
            *(model.outputs[index].row_bytes for index in inline_outputs),
        ),
        input_places,
        output_places,
        input_places + output_places,
    )


def _check_inputs(model: Specified, inputs: Sequence[TensorHeader]) -> int:
    """The number of rows. Inputs come in the model's order, so that a payload has one form and not n!."""
    if [tensor.index for tensor in inputs] != list(range(len(model.inputs))):
        names = dict(enumerate(spec.name for spec in model.inputs))
        got = [names.get(tensor.index, f"number {tensor.index}") for tensor in inputs]
        raise WrongTensors(model.name, list(names.values()), got)
    rows = inputs[0].shape[0] if inputs[0].shape else 0
    for tensor in inputs:
        spec = model.inputs[tensor.index]
        if tensor.dtype is not spec.dtype:
            raise WrongDType(model.name, spec.name, spec.dtype.label, tensor.dtype.label)
        if tensor.shape != spec.batch_shape(rows) or rows < 1:
            expected = shape_text(("rows" if tensor is inputs[0] or rows < 1 else rows, *spec.shape))
            raise WrongShape(model.name, spec.name, expected, shape_text(tensor.shape))
        nbytes = math.prod(tensor.shape) * tensor.dtype.itemsize
        if tensor.nbytes != nbytes:
            raise BadRequest("nbytes", str(tensor.nbytes), f"input {spec.name!r} of this shape has {nbytes}")
    return rows


def _check_outputs(model: Specified, outputs: Sequence[TensorHeader], rows: int) -> None:
    seen: set[int] = set()
    for tensor in outputs:
        if tensor.index >= len(model.outputs) or tensor.index in seen:
            raise BadRequest("output index", str(tensor.index), f"name each of 0 to {len(model.outputs) - 1} once")
        if tensor.lane is not Lane.ARENA:
            raise BadRequest("output lane", "inline", "leave the output out to have it inline")
        seen.add(tensor.index)
        spec = model.outputs[tensor.index]
        if tensor.nbytes < rows * spec.row_bytes:
            raise OutputTooSmall(spec.name, rows * spec.row_bytes, tensor.nbytes)


def _place(specs: Sequence[TensorSpec], tensor: TensorHeader, arenas: Mapping[int, ArenaSize]) -> Place:
    """Python's integers have no overflow: offset + nbytes is what it says."""
    arena = arenas.get(tensor.arena)
    if arena is None:
        raise UnknownArena(tensor.arena)
    if tensor.offset % TENSOR_ALIGNMENT_BYTES or tensor.offset + tensor.nbytes > arena.nbytes:
        raise OutsideArena(specs[tensor.index].name, tensor.offset, tensor.nbytes, arena.nbytes)
    return Place(tensor.index, tensor.arena, tensor.offset, tensor.nbytes)
