"""What travels in the rings: a batch on its way to a worker, and its answer. A codec, no I/O.

    BATCH   batch_id u64 │ model u32 │ rows u32 │ inputs u16 │ outputs u16 │ then per tensor, inputs first:
            runs u32 │ runs × (arena u32 │ rows u32 │ offset u64)
    RAGGED  batch_id u64 │ model u32 │ rows u32 │ inputs u16 │ outputs u16 │ requests u16 │ dimensions u16
            dimensions × u32, the sizes that the batch is padded to │ then per request:
            rows u32 │ dimensions × u32, its own sizes │ inputs × (arena u32 │ offset u64)
            outputs × (arena u32 │ offset u64 │ nbytes u64, the room there)
    DONE    batch_id u64 │ compute_ns u64 │ of RAGGED: per request, per dimension that comes from the data: u32
    FAILED  batch_id u64 │ compute_ns u64 │ code u16 │ the error's fields as JSON

A *run* is a stretch of rows that lie one behind the other in an arena. A batch whose rows were leased
one behind the other has one run per tensor, and the worker computes on a view of them. A model with free
dimensions gets RAGGED: each request's tensors lie by themselves, since they differ in size, and the worker
pads them into one batch.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

import msgspec

from .errors import TensordError, rebuild
from .limits import ERROR_BYTES_MAX

INGEST_ARENA: Final = 0
"""Number of the ingest arena; client arenas count from 1."""


class Kind(IntEnum):
    """Kinds of messages in a ring."""

    BATCH = 1
    DONE = 2
    FAILED = 3
    RAGGED = 4


Run = tuple[int, int, int]
"""(arena, rows, offset in bytes)"""

BATCH: Final = struct.Struct("<QIIHH")
RUNS: Final = struct.Struct("<I")
RUN: Final = struct.Struct("<IIQ")
DONE: Final = struct.Struct("<QQ")
CODE: Final = struct.Struct("<H")
RAGGED: Final = struct.Struct("<QIIHHHH")
assert (BATCH.size, RUNS.size, RUN.size, DONE.size, RAGGED.size) == (20, 4, 16, 16, 24)

NO_ARENA: Final = 0xFFFFFFFF
"""Arena of an input that the request left out."""


TEXT_MAX: Final = 64
"""Characters that are left of each text of an error that is too long: four of them fit, six bytes a character."""


@lru_cache(maxsize=1024)
def _batch_form(run_counts: tuple[int, ...]) -> struct.Struct:
    return struct.Struct("<QIIHH" + "".join("I" + "IIQ" * count for count in run_counts))


def encode_batch(
    batch_id: int, model: int, rows: int, inputs: Sequence[Sequence[Run]], outputs: Sequence[Sequence[Run]]
) -> bytes:
    """BATCH, with the runs of each input and of each output."""
    fields: list[int] = []
    counts = []
    for runs in (*inputs, *outputs):
        counts.append(len(runs))
        fields.append(len(runs))
        for run in runs:
            fields += run
    return _batch_form(tuple(counts)).pack(batch_id, model, rows, len(inputs), len(outputs), *fields)


@dataclass(frozen=True, slots=True)
class BatchDescriptor:
    """A decoded BATCH."""

    batch_id: int
    model: int
    rows: int
    inputs: list[list[Run]]
    outputs: list[list[Run]]


def decode_batch(body: bytes) -> BatchDescriptor:
    """Raises struct.error for a body that is cut off: the ring is broken."""
    batch_id, model, rows, input_count, output_count = BATCH.unpack_from(body)
    position = BATCH.size
    tensors: list[list[Run]] = []
    for _ in range(input_count + output_count):
        (runs,) = RUNS.unpack_from(body, position)
        position += RUNS.size
        stop = position + runs * RUN.size
        if stop > len(body):
            raise struct.error(f"{runs} runs in {len(body) - position} bytes")
        tensors.append(list(RUN.iter_unpack(body[position:stop])))
        position = stop
    return BatchDescriptor(batch_id, model, rows, tensors[:input_count], tensors[input_count:])


@lru_cache(maxsize=1024)
def _ragged_form(dimensions: int, inputs: int, outputs: int) -> struct.Struct:
    return struct.Struct(f"<I{dimensions}I" + "IQ" * inputs + "IQQ" * outputs)


class RaggedRequest(NamedTuple):
    """One request of a RAGGED batch."""

    rows: int
    sizes: tuple[int, ...]
    """Of the free dimensions that its inputs have, in the model's order."""
    inputs: tuple[tuple[int, int], ...]
    """(arena, offset) per input; NO_ARENA for one that was left out."""
    outputs: tuple[tuple[int, int, int], ...]
    """(arena, offset, bytes of room) per output."""


def encode_ragged(
    batch_id: int, model: int, rows: int, sizes: Sequence[int], requests: Sequence[RaggedRequest]
) -> bytes:
    """RAGGED: a batch of at least one request that is padded to `sizes`."""
    first = requests[0]
    inputs, outputs = len(first.inputs), len(first.outputs)
    form = _ragged_form(len(sizes), inputs, outputs)
    parts = [
        RAGGED.pack(batch_id, model, rows, inputs, outputs, len(requests), len(sizes)),
        struct.pack(f"<{len(sizes)}I", *sizes),
    ]
    for request in requests:
        places = chain.from_iterable((*request.inputs, *request.outputs))
        parts.append(form.pack(request.rows, *request.sizes, *places))
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class RaggedDescriptor:
    """A decoded RAGGED."""

    batch_id: int
    model: int
    rows: int
    sizes: tuple[int, ...]
    requests: list[RaggedRequest]


def decode_ragged(body: bytes) -> RaggedDescriptor:
    """Raises struct.error for a body of another length than it says: the ring is broken."""
    batch_id, model, rows, inputs, outputs, count, dimensions = RAGGED.unpack_from(body)
    start = RAGGED.size + 4 * dimensions
    sizes = struct.unpack_from(f"<{dimensions}I", body, RAGGED.size)
    form = _ragged_form(dimensions, inputs, outputs)
    if len(body) != start + count * form.size:
        raise struct.error(f"{count} requests of {form.size} bytes in {len(body) - start} bytes")
    first_output = 1 + dimensions + 2 * inputs
    requests = []
    for fields in form.iter_unpack(body[start:]):
        places = iter(fields[1 + dimensions : first_output])
        ranges = iter(fields[first_output:])
        requests.append(
            RaggedRequest(
                fields[0],
                fields[1 : 1 + dimensions],
                tuple(zip(places, places, strict=True)),
                tuple(zip(ranges, ranges, ranges, strict=True)),
            )
        )
    return RaggedDescriptor(batch_id, model, rows, sizes, requests)


def encode_done(batch_id: int, compute_ns: int, data_sizes: Sequence[int] = ()) -> bytes:
    """DONE, with the sizes that came from the data, request by request."""
    return DONE.pack(batch_id, compute_ns) + struct.pack(f"<{len(data_sizes)}I", *data_sizes)


def decode_done(body: bytes) -> tuple[int, int, tuple[int, ...]]:
    """Batch id, compute time and sizes that came from the data. Raises struct.error."""
    if len(body) == DONE.size:
        return (*DONE.unpack(body), ())
    count, rest = divmod(len(body) - DONE.size, 4)
    if rest:
        raise struct.error(f"DONE has {len(body)} bytes")
    batch_id, compute_ns = DONE.unpack_from(body)
    return batch_id, compute_ns, struct.unpack_from(f"<{count}I", body, DONE.size)


def encode_failed(batch_id: int, compute_ns: int, error: TensordError) -> bytes:
    """FAILED; texts are made valid UTF-8, and cut where the fields would go beyond the limit."""
    fields = {name: _encodable(value) if isinstance(value, str) else value for name, value in error.data().items()}
    data = msgspec.json.encode(fields)
    if len(data) > ERROR_BYTES_MAX:
        cut = {name: value[:TEXT_MAX] if isinstance(value, str) else value for name, value in fields.items()}
        data = msgspec.json.encode(cut)
    return DONE.pack(batch_id, compute_ns) + CODE.pack(error.code) + data


def _encodable(text: str) -> str:
    """A model may name its outputs by any Python string, also by one that UTF-8 has no bytes for."""
    return text.encode(errors="backslashreplace").decode()


def decode_failed(body: bytes) -> tuple[int, int, TensordError]:
    """Batch id, compute time and error."""
    batch_id, compute_ns = DONE.unpack_from(body)
    (code,) = CODE.unpack_from(body, DONE.size)
    error = rebuild(code, "the model failed", body[DONE.size + CODE.size :], None)
    return batch_id, compute_ns, error
