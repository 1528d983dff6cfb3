"""A request of more rows than a batch: cut into parts that the scheduler sees, answered as one.

Parts are requests over the same memory: the rows of a part lie where those rows of the whole lie, so nothing is copied,
and the whole's leases and ranges cover them all. Only the whole is known to its connection. It is answered when
nobody works on any part any more: the first error decides, and then what still waits is taken back.
"""

from collections.abc import Sequence
from dataclasses import replace

from tensord.ipc.tensors import TensorSpec

from ..scheduling.split import Assembly
from .forms import Form, Place
from .ingest import Lease
from .models import Model
from .requests import InferRequest


class Parts(Assembly[InferRequest]):
    """The parts of one request, and what is said of them together in its RESULT."""

    __slots__ = ("batch_rows", "compute_ns", "queue_ns")

    def __init__(self, parts: Sequence[InferRequest]) -> None:
        super().__init__(parts)
        self.batch_rows = 0
        """Of the largest batch that a part ran in."""
        self.queue_ns = 0
        """Until the last part was released."""
        self.compute_ns = 0
        """Of all batches with a part of it."""

    def ran(self, batch_rows: int, queue_ns: int, compute_ns: int) -> None:
        """A part was computed in such a batch."""
        self.batch_rows = max(self.batch_rows, batch_rows)
        self.queue_ns = max(self.queue_ns, queue_ns)
        self.compute_ns += compute_ns


def can_be_cut(model: Model) -> bool:
    """Whether a request's rows may run apart: not where one size, which comes from the data, is that of all rows."""
    return not model.data_dimensions


def cut_request(whole: InferRequest, rows: Sequence[int]) -> Parts:
    """The parts of a request that has arrived, of so many rows each."""
    parts, first = [], 0
    for count in rows:
        parts.append(_part(whole, first, count))
        first += count
    whole.parts = Parts(parts)
    return whole.parts


def _part(whole: InferRequest, first: int, rows: int) -> InferRequest:
    model = whole.model_served
    part = InferRequest(
        whole.connection,
        whole.request_id,
        model,
        part_form(whole.form, model, first, rows),
        whole.priority,
        whole.session,
        whole.deadline_ns,
        whole.received_ns,
    )
    part.arrival_ns = whole.arrival_ns
    part.whole = whole
    if whole.lease is not None:
        lies_in_lines = bool(whole.form.inline_offsets)  # then the form's offsets say where the rows are
        part.lease = whole.lease if lies_in_lines else Lease(whole.lease.chunk, whole.lease.first + first, rows)
    return part


def part_form(form: Form, model: Model, first: int, rows: int) -> Form:
    """The form of `rows` of a request's rows, from row number `first` on."""
    sizes = model.sizes(form, ())
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
