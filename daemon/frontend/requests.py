"""A client's request on its way: the scheduler's Request with what the front end must give back at its end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensord.ipc.descriptors import INGEST_ARENA, NO_ARENA, Kind, RaggedRequest, Run, encode_batch, encode_ragged

from ..scheduling.request import Batch, Request
from .forms import Form, Place
from .ingest import Lease
from .models import Model

if TYPE_CHECKING:
    from .cache.flights import Flight
    from .client_arenas import ClientArena
    from .connection import Connection
    from .parts import Parts


class InferRequest(Request):
    """One request in flight. Its slots (lease and ranges) go back when `Connection.finished` is called."""

    __slots__ = (
        "cancelled",
        "connection",
        "data_sizes",
        "flight",
        "form",
        "lease",
        "model_served",
        "parts",
        "ranges",
        "received_ns",
        "request_id",
        "result_headers",
        "whole",
    )

    def __init__(
        self,
        connection: "Connection",
        request_id: int,
        model: Model,
        form: Form,
        priority: int,
        session: int,
        deadline_ns: int,
        now_ns: int,
        latest: bool = False,
    ) -> None:
        super().__init__(
            model.index,
            form.bucket,
            connection.tenant,
            priority,
            form.rows,
            now_ns,
            deadline_ns,
            session,
            flow=hash((connection.tenant, session)) if session else connection.flow,
            nbytes=form.nbytes,
            latest=latest,
        )
        self.connection = connection
        self.request_id = request_id
        self.model_served = model
        self.form = form
        self.received_ns = now_ns
        """When the header was read; `arrival_ns` becomes the time of the last payload byte."""
        self.lease: Lease | None = None
        """Rows in the ingest arena: inline inputs first, inline outputs behind them."""
        self.ranges: list[tuple[ClientArena, Place]] = []
        """Ranges of client arenas that are reserved for it."""
        self.parts: Parts | None = None
        """What the scheduler has instead of it, as it is larger than a batch."""
        self.whole: InferRequest | None = None
        """The request that this one is a part of."""
        self.cancelled = False
        """The client cancelled it while a worker ran it: its result is dropped."""
        self.result_headers = b""
        """Tensor headers of its result, where they are known already."""
        self.data_sizes: tuple[int, ...] = ()
        """Sizes of its outputs that came from the data, when it is through."""
        self.flight: Flight | None = None
        """Identical requests, of which this one is computed, or waits for the one that is."""

    def inline_offset(self, position: int) -> int:
        """Offset in the ingest arena of the form's inline tensor number `position`."""
        assert self.lease is not None
        offsets = self.form.inline_offsets
        return self.lease.offset(0) + offsets[position] if offsets else self.lease.offset(position)


def batch_message(batch: "Batch[InferRequest]", model: Model) -> tuple[Kind, bytes]:
    """The batch as a descriptor: the runs of each tensor, as long as the rows lie one behind the other."""
    requests = batch.requests
    form = requests[0].form
    if model.is_ragged:
        ragged = [_ragged(request, model) for request in requests]
        assert form.bucket is not None
        return Kind.RAGGED, encode_ragged(batch.id, model.index, batch.rows, form.bucket, ragged)
    if not form.places and all(request.form is form for request in requests):
        return Kind.BATCH, encode_batch(batch.id, model.index, batch.rows, *_inline_runs(requests, model))
    inputs: list[list[Run]] = []
    outputs: list[list[Run]] = []
    for index, spec in enumerate(model.inputs):
        inputs.append(_merge([_input_run(request, index) for request in requests], spec.row_bytes))
    for index, spec in enumerate(model.outputs):
        outputs.append(_merge([_output_run(request, index) for request in requests], spec.row_bytes))
    return Kind.BATCH, encode_batch(batch.id, model.index, batch.rows, inputs, outputs)


def _ragged(request: InferRequest, model: Model) -> RaggedRequest:
    form = request.form
    inputs = [(NO_ARENA, 0)] * len(model.inputs)
    outputs = [(0, 0, 0)] * len(model.outputs)
    for position, index in enumerate(form.inline_inputs):
        inputs[index] = (INGEST_ARENA, request.inline_offset(position))
    for position, index in enumerate(form.inline_outputs, len(form.inline_inputs)):
        outputs[index] = (INGEST_ARENA, request.inline_offset(position), form.inline_bytes[position])
    for place in form.input_places:
        inputs[place.tensor] = (place.arena, place.offset)
    for place in form.output_places:
        outputs[place.tensor] = (place.arena, place.offset, place.nbytes)
    return RaggedRequest(form.rows, form.sizes, tuple(inputs), tuple(outputs))


def _inline_runs(requests: Sequence[InferRequest], model: Model) -> tuple[list[list[Run]], list[list[Run]]]:
    """The usual case, all tensors of all requests inline in one slab: merge leases once for all tensors."""
    form = requests[0].form
    lease = requests[0].lease
    assert lease is not None
    chunk, first, end = lease.chunk, lease.first, lease.first
    found = []
    for request in requests:
        lease = request.lease
        assert lease is not None
        if lease.chunk is chunk and lease.first == end:
            end += lease.rows
        else:
            found.append((chunk, first, end - first))
            chunk, first, end = lease.chunk, lease.first, lease.first + lease.rows
    found.append((chunk, first, end - first))
    order = form.inline_inputs
    row_bytes = chunk.slab.row_bytes
    runs: list[list[Run]] = [
        [(INGEST_ARENA, rows, chunk.regions[position] + first * row_bytes[position]) for chunk, first, rows in found]
        for position in range(len(row_bytes))
    ]
    inputs = [runs[order.index(index)] for index in range(len(model.inputs))]
    return inputs, runs[len(order) :]


def _input_run(request: InferRequest, index: int) -> Run:
    form = request.form
    if index in form.inline_inputs:
        return (INGEST_ARENA, form.rows, request.inline_offset(form.inline_inputs.index(index)))
    place = next(place for place in form.input_places if place.tensor == index)
    return (place.arena, form.rows, place.offset)


def _output_run(request: InferRequest, index: int) -> Run:
    form = request.form
    if index in form.inline_outputs:
        position = len(form.inline_inputs) + form.inline_outputs.index(index)
        return (INGEST_ARENA, form.rows, request.inline_offset(position))
    place = next(place for place in form.output_places if place.tensor == index)
    return (place.arena, form.rows, place.offset)


def _merge(runs: Sequence[Run], row_bytes: int) -> list[Run]:
    """Join runs that lie one behind the other."""
    merged = [runs[0]]
    for run in runs[1:]:
        arena, rows, offset = merged[-1]
        if run[0] == arena and run[2] == offset + rows * row_bytes:
            merged[-1] = (arena, rows + run[1], offset)
        else:
            merged.append(run)
    return merged
