"""Results as bytes for the socket."""

from collections.abc import Sequence
from typing import Final

from tensord.ipc.errors import OutputTooSmall
from tensord.ipc.wire import MAGIC, RESULT_BYTES, RESULT_FRAME, FrameType

from .requests import InferRequest

_US_MAX: Final = 0xFFFFFFFF
_RESULT: Final = int(FrameType.RESULT)
_pack: Final = RESULT_FRAME.pack


def result_frame(
    request: InferRequest, ingest: memoryview, batch_rows: int, queue_ns: int, compute_ns: int
) -> list[bytes | memoryview]:
    """RESULT in parts: the head, and the inline outputs as views of the ingest arena.

    The caller joins them before the lease is released: the bytes that go to the socket are a copy, so a client
    that does not read holds nothing that others need.
    """
    model, form, data_sizes = request.model_served, request.form, request.data_sizes
    if data_sizes:
        spans = _data_spans(request)
        reply_bytes = sum(nbytes for _, nbytes in spans)
    else:
        spans, reply_bytes = form.output_spans, form.reply_bytes
    headers = request.result_headers or model.result_headers(form, data_sizes)
    head = _pack(
        MAGIC,
        _RESULT,
        0,
        RESULT_BYTES + len(headers),
        request.request_id,
        reply_bytes,
        model.version,
        batch_rows,
        microseconds(queue_ns),
        microseconds(compute_ns),
        len(model.outputs),
        0,
        0,
    )
    parts: list[bytes | memoryview] = [head, headers]
    for position, nbytes in spans:
        offset = request.inline_offset(position)
        parts.append(ingest[offset : offset + nbytes])
    return parts


def microseconds(duration_ns: int) -> int:
    """As RESULT carries it."""
    return min(duration_ns // 1000, _US_MAX)


def _data_spans(request: InferRequest) -> Sequence[tuple[int, int]]:
    """As `Form.output_spans`, now that all sizes are known."""
    model, form = request.model_served, request.form
    sizes = model.sizes(form, request.data_sizes)
    first = len(form.inline_inputs)
    return [
        (position, model.outputs[index].nbytes(form.rows, sizes))
        for position, index in enumerate(form.inline_outputs, first)
    ]


def too_small(request: InferRequest) -> OutputTooSmall | None:
    """The error of a request whose outputs, now that their sizes are known, do not fit where they should go."""
    model, form = request.model_served, request.form
    sizes = model.sizes(form, request.data_sizes)
    for place in form.output_places:
        spec = model.outputs[place.tensor]
        nbytes = spec.nbytes(form.rows, sizes)
        if nbytes > place.nbytes:
            return OutputTooSmall(spec.name, nbytes, place.nbytes)
    return None
