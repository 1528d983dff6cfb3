"""Results as bytes for the socket."""

from typing import Final

from tensord.ipc.wire import MAGIC, RESULT, RESULT_FRAME, FrameType

from .requests import InferRequest

_US_MAX: Final = 0xFFFFFFFF
_RESULT: Final = int(FrameType.RESULT)


def result_frame(
    request: InferRequest, ingest: memoryview, batch_rows: int, queue_ns: int, compute_ns: int
) -> list[bytes | memoryview]:
    """RESULT in parts: the head, and the inline outputs as views of the ingest arena.

    The caller joins them before the lease is released: the bytes that go to the socket are a copy, so a client
    that does not read holds nothing that others need.
    """
    model, form = request.model_served, request.form
    headers = model.result_headers(form)
    head = RESULT_FRAME.pack(
        MAGIC,
        _RESULT,
        0,
        RESULT.size + len(headers),
        request.request_id,
        form.reply_bytes,
        model.version,
        batch_rows,
        min(queue_ns // 1000, _US_MAX),
        min(compute_ns // 1000, _US_MAX),
        len(model.outputs),
        0,
        0,
    )
    parts: list[bytes | memoryview] = [head, headers]
    lease = request.lease
    if form.inline_outputs:
        assert lease is not None
        first = len(form.inline_inputs)
        for position in range(first, len(form.inline_row_bytes)):
            offset = lease.offset(position)
            parts.append(ingest[offset : offset + form.rows * form.inline_row_bytes[position]])
    return parts
