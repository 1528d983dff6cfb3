"""A recorded load: who asked when for what, and how long it took; no tensor contents and no names of clients.

The file is text, a JSON value per line: easy to look at, to cut and to make by hand.

    {"tensord_trace": 1, "knobs": {…}, "models": {…}, "workers": {…}}      Header
    [arrival_ns, model, bucket, rows, …, worker]                           Record, in the order in which they ended
    {"records": 1234, "complete": true}                                    Trailer; missing where the recorder died

Times count from the start of the recording. Tenants, sessions and flows are numbered as they come; what they were
called is not in the file. Both ends are bounded: the writer stops before `bytes_max`, and the reader refuses what no
writer would write.
"""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, NoReturn, TypeAlias, TypeVar

import msgspec

from tensord.ipc.limits import NAME_BYTES_MAX, PRIORITY_CLASSES

from ..knob import Setting
from ..scheduling.request import Batch, Request

VERSION: Final = 1
ANSWERED: Final = 0
"""The outcome of a request that got its result; others are codes of errors."""

LINE_BYTES_MAX: Final = 1_024
"""Of a record. A name takes 128 bytes, a bucket as much, the numbers less than 300."""

HEADER_BYTES_MAX: Final = 1_048_576
"""Of the header: the knobs of a thousand models."""

TRACE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of a file that is read: about two million requests."""

BUCKET_CHARACTERS_MAX: Final = 128
TRAILER_BYTES: Final = 64
BUFFER_BYTES: Final = 65_536

Whole: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was in force, so that a trace alone can be replayed."""

    tensord_trace: int
    """The version of the format."""
    knobs: dict[str, Setting]
    """General values of all knobs, in the knobs' units."""
    models: dict[Name, dict[str, Setting]]
    """Each model that was served, and the knobs that had values of its own."""
    workers: dict[Whole, Name]
    """Device of each worker, by id."""


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One request and what became of it."""

    arrival_ns: Whole
    model: Name
    bucket: Annotated[str, msgspec.Meta(max_length=BUCKET_CHARACTERS_MAX)]
    rows: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    nbytes: Whole
    tenant: Whole
    priority: Annotated[int, msgspec.Meta(ge=0, lt=PRIORITY_CLASSES)]
    session: Whole
    """0 for none."""
    flow: Whole
    deadline_ns: Whole
    """From arrival."""
    outcome: Annotated[int, msgspec.Meta(ge=0, le=65_535)]
    response_ns: Whole
    """From arrival to answer or error."""
    queue_ns: Whole = 0
    """From arrival to the release of its batch; from here on 0 for a request that no worker got."""
    compute_ns: Whole = 0
    """Device time of its batch."""
    batch: Whole = 0
    batch_rows: Whole = 0
    worker: Whole = 0


class Trailer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the recording ended."""

    records: Whole
    complete: bool
    """False where it stopped because the file had reached its bound."""


class BadTrace(Exception):
    """A file that is no trace; `str()` is one line."""


class Trace(msgspec.Struct, frozen=True):
    """A whole recording."""

    header: Header
    records: list[Record]
    """In order of arrival."""
    complete: bool
    """All that was to be recorded is there."""


class Recorder:
    """Writes a trace. `record` is cheap: it encodes some numbers, and writes to the file every few hundred requests."""

    def __init__(
        self,
        file: BinaryIO,
        start_ns: int,
        bytes_max: int,
        knobs: dict[str, Setting],
        models: dict[str, dict[str, Setting]],
        workers: dict[int, str],
    ) -> None:
        """Requests that arrived before `start_ns` are left out. Raises OSError, as `record` and `close` do."""
        self.records = 0
        self.full = False
        """The bound was reached: nothing is recorded any more."""
        self._file = file
        self._start_ns = start_ns
        self._left = bytes_max - TRAILER_BYTES
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()
        self._tenants: dict[Hashable, int] = {}
        self._sessions: dict[Hashable, int] = {0: 0}
        self._flows: dict[Hashable, int] = {}
        self._write(self._encoder.encode(Header(VERSION, knobs, models, workers)))

    def record(
        self,
        request: Request,
        model: str,
        now: int,
        outcome: int = ANSWERED,
        batch: "Batch[Any] | None" = None,
        compute_ns: int = 0,
    ) -> None:
        """`request` got its answer, or the error with the code `outcome`, now; `batch` is the one it ran in."""
        arrival_ns = request.arrival_ns - self._start_ns
        if self.full or arrival_ns < 0:
            return
        record = Record(
            arrival_ns,
            model,
            str(request.bucket)[:BUCKET_CHARACTERS_MAX],
            request.rows,
            request.nbytes,
            _number(self._tenants, request.tenant),
            request.priority,
            _number(self._sessions, request.session),
            _number(self._flows, request.flow),
            max(0, request.deadline_ns - request.arrival_ns),
            outcome,
            now - request.arrival_ns,
            *((0, 0, 0, 0, 0) if batch is None else _run(request, batch, compute_ns)),
        )
        if self._write(self._encoder.encode(record)):
            self.records += 1

    def close(self) -> None:
        """Write what is left, and how it ended. The file stays open: it is the caller's."""
        self._buffer += self._encoder.encode(Trailer(self.records, not self.full)) + b"\n"
        self._flush()

    def _write(self, line: bytes) -> bool:
        """False: there is no room for it, nor for anything behind it."""
        self._left -= len(line) + 1
        if self._left < 0:
            self.full = True
            return False
        self._buffer += line
        self._buffer += b"\n"
        if len(self._buffer) >= BUFFER_BYTES:
            self._flush()
        return True

    def _flush(self) -> None:
        self._file.write(self._buffer)
        self._file.flush()
        self._buffer.clear()


def _run(request: Request, batch: "Batch[Any]", compute_ns: int) -> tuple[int, int, int, int, int]:
    return batch.released_ns - request.arrival_ns, compute_ns, batch.id, batch.rows, batch.worker


def _number(numbers: dict[Hashable, int], key: Hashable) -> int:
    """The number of a tenant, session or flow: as many as records at most, which are bounded."""
    return numbers.setdefault(key, len(numbers))


def read_trace(path: Path) -> Trace:
    """Raises BadTrace, with the line that is wrong, and OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > TRACE_BYTES_MAX:
            raise BadTrace(f"{path}: {size:,} bytes; a trace has {TRACE_BYTES_MAX:,} at most")
        return _Reader(path, file).trace()


T = TypeVar("T")


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._line = 0

    def trace(self) -> Trace:
        header = self._decoded(self._next(HEADER_BYTES_MAX), Header)
        if header.tensord_trace != VERSION:
            self._refuse(f"version {header.tensord_trace} of the format; this tensord reads {VERSION}")
        records: list[Record] = []
        trailer: Trailer | None = None
        for line in iter(lambda: self._next(LINE_BYTES_MAX), b""):
            if trailer is not None:
                self._refuse("there is more behind the end of the trace")
            if line.startswith(b"{"):
                trailer = self._decoded(line, Trailer)
                if trailer.records != len(records):
                    self._refuse(f"{trailer.records:,} records are announced, {len(records):,} are there")
            else:
                records.append(self._checked(header, self._decoded(line, Record)))
        if not records:
            raise BadTrace(f"{self._path}: no request was recorded")
        records.sort(key=lambda record: record.arrival_ns)
        return Trace(header, records, trailer is not None and trailer.complete)

    def _next(self, bytes_max: int) -> bytes:
        """A line; empty at the end. What a recorder that died has left of its last record is the end, too."""
        line = self._file.readline(bytes_max + 1)
        self._line += 1
        if len(line) > bytes_max:
            self._refuse(f"longer than {bytes_max:,} bytes")
        if not line.endswith(b"\n"):
            if self._line == 1:
                self._refuse("no header: is this a trace?")
            return b""
        return line

    def _decoded(self, line: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(line, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            what = {Header: "header", Record: "record", Trailer: "end"}[kind]  # type: ignore[index]
            self._refuse(f"no {what}: {error}")

    def _checked(self, header: Header, record: Record) -> Record:
        if record.model not in header.models:
            self._refuse(f"model {record.model!r}, which the header does not have")
        if record.batch and (record.worker not in header.workers or not record.batch_rows):
            self._refuse(f"worker {record.worker}, which the header does not have")
        return record

    def _refuse(self, reason: str) -> NoReturn:
        raise BadTrace(f"{self._path}: line {self._line}: {reason}")
