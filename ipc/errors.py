"""Every error of tensord: a closed table, split by who is at fault.

TensordError
├── ClientFault               the request or the stream is wrong; sending it again changes nothing
│   ├── BadFrame              the stream cannot be followed any more; the connection closes
│   ├── UnsupportedVersion    no common protocol version; the connection closes
│   ├── UnknownFrame          a frame type that this protocol version does not have
│   ├── BadRequest            a field of a well-formed frame has a value that makes no sense
│   ├── UnknownModel          no such model, version or label
│   ├── UnknownHandle         a handle that this connection did not open
│   ├── WrongTensors          number or names of the inputs
│   ├── WrongDType            an input's data type
│   ├── WrongShape            an input's shape
│   ├── TooManyRows           more rows than the model takes in one request
│   ├── PayloadTooLarge       more inline bytes than the daemon takes
│   ├── UnknownArena          an arena that this connection did not attach
│   ├── OutsideArena          a tensor that does not lie inside its arena
│   ├── SlotInUse             a range that a request in flight already uses
│   ├── OutputTooSmall        the output range is smaller than the output
│   ├── DuplicateRequestId    a request id that is still in flight on this connection
│   ├── DeadlineExceeded      the deadline passed before the answer
│   ├── Cancelled             the client cancelled the request
│   ├── NotPermitted          this user may not use the model
│   └── Superseded            a newer request of the same session took its place
├── CapacityFault             a limit of this instance was reached; a later retry can help
│   ├── QueueFull             requests in the model's queue
│   ├── QueueRowsFull         rows in it
│   ├── QueueBytesFull        bytes of tensors in it
│   ├── TenantQueueFull       what one tenant may use of it
│   ├── DeadlineInfeasible    the deadline cannot be met, as predicted
│   ├── ConcurrencyLimit      requests inside, as the gradient of their latency allows
│   ├── QueueDelay            the queue has stood for too long
│   ├── TooManyTenantConnections  connections of one user; the connection closes
│   ├── TooManyTenantRows     rows of one user's unanswered requests
│   ├── TenantArenaQuotaExceeded  bytes of one user's arenas
│   ├── TooManyInFlight       requests in flight on one connection
│   ├── TooManyConnections    connections of this instance; the connection closes
│   ├── IngestFull            the shared memory for inline tensors
│   ├── ArenaQuotaExceeded    bytes of client arenas
│   ├── TooManyArenas         arenas of one connection
│   └── NoMemory              the kernel refused memory or file descriptors
├── ModelFault                the model could not answer
│   ├── ModelFailed           its code raised
│   ├── BadModelOutput        its outputs are not what its manifest promises
│   ├── ModelUnavailable      no replica of it is ready
│   └── PoisonousRequest      the request was in every batch that killed a worker
├── DaemonFault               our fault, or the host's
│   ├── WorkerLost            the worker died and the request may not run again
│   ├── ShuttingDown          the daemon is draining
│   └── InternalError         a bug: please report it
└── ConnectionFault           raised by the client library, never sent
    ├── DaemonNotFound        nobody listens on the socket
    ├── ConnectionLost        the connection ended before the answer, and it may not be resent
    └── ClientClosed          close() was called

An error is a dataclass: it carries its data in typed fields and builds its sentence from them. On the
wire it travels as code, sentence and the fields as JSON, so a client in another language needs only the
code and the sentence, and ours rebuilds the same class.
"""

from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Any, ClassVar

import msgspec


class Fault(StrEnum):
    """Who is at fault, and so who can mend it."""

    CLIENT = "client"
    OPERATOR = "operator"
    MODEL = "model"
    DAEMON = "daemon"


class Retry(IntEnum):
    """Whether sending the same request again can help. The values are those on the wire."""

    NEVER = 0
    LATER = 1  # after `retry_after_ms`, or when the caller likes
    REOPEN = 2  # after opening the model again


class TensordError(Exception):
    """Root of all errors. `str(error)` is one sentence that says what, which value, and what to do."""

    code: ClassVar[int] = 0
    fault: ClassVar[Fault] = Fault.DAEMON
    retry: ClassVar[Retry] = Retry.NEVER
    sentence: ClassVar[str] = ""

    retry_after_ms: int | None = None
    """When a retry may help, in milliseconds from now; None where nothing is known."""

    def data(self) -> dict[str, Any]:
        """The fields of this error, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.sentence.format(**self.data())

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), tuple(self.data().values()), {"retry_after_ms": self.retry_after_ms})


_error = dataclass(eq=False, repr=False)


class ClientFault(TensordError):
    fault = Fault.CLIENT


class CapacityFault(TensordError):
    fault = Fault.OPERATOR
    retry = Retry.LATER


class ModelFault(TensordError):
    fault = Fault.MODEL


class DaemonFault(TensordError):
    fault = Fault.DAEMON


class ConnectionFault(TensordError):
    fault = Fault.DAEMON


# ── client ──────────────────────────────────────────────────────────────────────────────────────


@_error
class BadFrame(ClientFault):
    reason: str
    code = 100
    sentence = "malformed frame: {reason}; the stream is out of step, so the connection closes"


@_error
class UnsupportedVersion(ClientFault):
    offered_min: int
    offered_max: int
    supported: int
    code = 101
    sentence = "protocol versions {offered_min} to {offered_max} were offered; this daemon speaks {supported}"


@_error
class UnknownFrame(ClientFault):
    frame_type: int
    code = 102
    sentence = "unknown frame type {frame_type}; the frame was skipped"


@_error
class BadRequest(ClientFault):
    field: str
    value: str
    remedy: str
    code = 103
    sentence = "{field} is {value}: {remedy}"


@_error
class UnknownModel(ClientFault):
    model: str
    known: list[str]
    code = 104

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"no model {self.model!r} is served; served models: {known}"


@_error
class UnknownHandle(ClientFault):
    handle: int
    code = 105
    retry = Retry.REOPEN
    sentence = "handle {handle} is not open on this connection; open the model (again)"


@_error
class WrongTensors(ClientFault):
    model: str
    expected: list[str]
    got: list[str]
    code = 106

    def __str__(self) -> str:
        return f"model {self.model!r} takes the inputs {', '.join(self.expected)}; got {', '.join(self.got) or 'none'}"


@_error
class WrongDType(ClientFault):
    model: str
    tensor: str
    expected: str
    got: str
    code = 107
    sentence = "input {tensor!r} of model {model!r} must be {expected}, not {got}: convert it first"


@_error
class WrongShape(ClientFault):
    model: str
    tensor: str
    expected: str
    got: str
    code = 108
    sentence = "input {tensor!r} of model {model!r} must have shape {expected}, not {got}"


@_error
class TooManyRows(ClientFault):
    model: str
    rows: int
    rows_max: int
    code = 109
    sentence = "{rows} rows for model {model!r}, which takes 1 to {rows_max} in one request: split the request"


@_error
class PayloadTooLarge(ClientFault):
    payload_bytes: int
    payload_bytes_max: int
    code = 110
    sentence = (
        "{payload_bytes} inline bytes, and {payload_bytes_max} are allowed: "
        "use an arena, or raise the knob inline_bytes_max"
    )


@_error
class UnknownArena(ClientFault):
    arena: int
    code = 111
    sentence = "arena {arena} is not attached on this connection"


@_error
class OutsideArena(ClientFault):
    tensor: str
    offset: int
    nbytes: int
    arena_bytes: int
    code = 112
    sentence = (
        "tensor {tensor!r} at offset {offset} with {nbytes} bytes does not lie, aligned to 64 bytes, "
        "inside its arena of {arena_bytes} bytes"
    )


@_error
class SlotInUse(ClientFault):
    offset: int
    nbytes: int
    code = 113
    sentence = "the {nbytes} bytes at offset {offset} overlap with a range in flight: wait for its answer"


@_error
class OutputTooSmall(ClientFault):
    tensor: str
    needed_bytes: int
    given_bytes: int
    code = 114
    sentence = "output {tensor!r} needs {needed_bytes} bytes; the range given has {given_bytes}"


@_error
class DuplicateRequestId(ClientFault):
    request_id: int
    code = 115
    sentence = "request id {request_id} is still in flight on this connection"


@_error
class DeadlineExceeded(ClientFault):
    stage: str
    """`arrival`, `queue`, `worker` or `client`: where the request was when its time was over."""
    late_ms: float
    code = 116
    sentence = (
        "the deadline passed, or would before the answer, by {late_ms} ms (stage: {stage}): allow more time, or "
        "send less"
    )


@_error
class Cancelled(ClientFault):
    code = 117
    sentence = "cancelled by the client"


@_error
class NotPermitted(ClientFault):
    model: str
    uid: int
    code = 118
    sentence = "user {uid} may not use model {model!r}: ask the operator, who decides it in the configuration"


@_error
class Superseded(ClientFault):
    code = 119
    sentence = "a newer request of the same session took its place, as both ask for the latest only"


# ── capacity ────────────────────────────────────────────────────────────────────────────────────


@_error
class QueueFull(CapacityFault):
    model: str
    limit: int
    code = 200
    sentence = "the queue of model {model!r} holds {limit} requests, its knob queue_max: retry later, or raise it"


@_error
class QueueRowsFull(CapacityFault):
    model: str
    rows: int
    limit: int
    code = 207
    sentence = (
        "{rows} more rows would be beyond the {limit} that may wait for model {model!r}, its knob "
        "queue_rows_max: retry later, or raise it"
    )


@_error
class QueueBytesFull(CapacityFault):
    model: str
    nbytes: int
    limit: int
    code = 208
    sentence = (
        "{nbytes} more bytes would be beyond the {limit} that may wait for model {model!r}, its knob "
        "queue_bytes_max: retry later, or raise it"
    )


@_error
class TenantQueueFull(CapacityFault):
    model: str
    percent: int
    code = 209
    sentence = (
        "this tenant uses its {percent} % of the queue of model {model!r}, the knob tenant_queue_percent: retry "
        "later, or raise it"
    )


@_error
class DeadlineInfeasible(CapacityFault):
    model: str
    predicted_ms: float
    allowed_ms: float
    code = 210
    sentence = (
        "model {model!r} would answer in {predicted_ms} ms, as predicted, and the deadline is in {allowed_ms} "
        "ms: allow more time, or retry later"
    )


@_error
class ConcurrencyLimit(CapacityFault):
    model: str
    limit: int
    code = 211
    sentence = (
        "{limit} requests are inside of model {model!r}, and more would only wait: retry later, or turn its knob "
        "adaptive_concurrency off"
    )


@_error
class QueueDelay(CapacityFault):
    model: str
    waited_ms: float
    target_ms: float
    code = 212
    sentence = (
        "the queue of model {model!r} stands: this request has waited for {waited_ms} ms, and its knob "
        "codel_target_ms allows {target_ms} ms: retry later, or raise it"
    )


@_error
class TooManyTenantConnections(CapacityFault):
    limit: int
    code = 213
    sentence = "{limit} connections of this user are open, the knob tenant_connections_max: close some, or raise it"


@_error
class TooManyTenantRows(CapacityFault):
    rows: int
    limit: int
    code = 214
    sentence = (
        "{rows} more rows would be beyond the {limit} that this user may have unanswered, the knob "
        "tenant_rows_max: wait for answers, or raise it"
    )


@_error
class TenantArenaQuotaExceeded(CapacityFault):
    asked_bytes: int
    limit_bytes: int
    code = 215
    sentence = (
        "{asked_bytes} bytes of client arenas asked for; the knob tenant_arena_bytes_max allows this user {limit_bytes}"
    )


@_error
class TooManyInFlight(CapacityFault):
    limit: int
    code = 201
    sentence = "{limit} requests are in flight on this connection, the knob in_flight_max: wait for answers"


@_error
class TooManyConnections(CapacityFault):
    limit: int
    code = 202
    sentence = "{limit} connections are open, the knob connections_max: close some, or raise it"


@_error
class IngestFull(CapacityFault):
    needed_bytes: int
    code = 203
    sentence = (
        "no room for {needed_bytes} bytes of inline tensors: retry later, use an arena, or raise the knob ingest_bytes"
    )


@_error
class ArenaQuotaExceeded(CapacityFault):
    asked_bytes: int
    limit_bytes: int
    knob: str
    code = 204
    sentence = "{asked_bytes} bytes of client arenas asked for; the knob {knob} allows {limit_bytes}"


@_error
class TooManyArenas(CapacityFault):
    limit: int
    code = 206
    sentence = "{limit} arenas are attached on this connection, the most there may be: use them, or detach one"


@_error
class NoMemory(CapacityFault):
    what: str
    code = 205
    sentence = "the kernel refused {what}: free some, or raise the service's limit"


# ── model ───────────────────────────────────────────────────────────────────────────────────────


@_error
class ModelFailed(ModelFault):
    model: str
    reason: str
    code = 300
    sentence = "model {model!r} failed: {reason}"


@_error
class BadModelOutput(ModelFault):
    model: str
    tensor: str
    expected: str
    got: str
    code = 301
    sentence = "output {tensor!r} of model {model!r} is {got}, and its manifest promises {expected}"


@_error
class ModelUnavailable(ModelFault):
    model: str
    reason: str
    code = 302
    retry = Retry.LATER
    sentence = "no replica of model {model!r} is ready: {reason}"


@_error
class PoisonousRequest(ModelFault):
    model: str
    attempts: int
    code = 303
    sentence = "the worker of model {model!r} died {attempts} times on this request; it is not run again"


# ── daemon ──────────────────────────────────────────────────────────────────────────────────────


@_error
class WorkerLost(DaemonFault):
    model: str
    code = 400
    retry = Retry.LATER
    sentence = "the worker died while it ran this request, and model {model!r} is not idempotent or has no retry left"


@_error
class ShuttingDown(DaemonFault):
    code = 401
    retry = Retry.LATER
    sentence = "the daemon is shutting down and takes no new requests"


@_error
class InternalError(DaemonFault):
    reason: str
    code = 402
    sentence = "internal error: {reason}; please report it"


# ── the client library's own ────────────────────────────────────────────────────────────────────


@_error
class DaemonNotFound(ConnectionFault):
    tried: list[str]
    reason: str
    code = 500
    retry = Retry.LATER

    def __str__(self) -> str:
        return f"no daemon answers at {' or '.join(self.tried)} ({self.reason}): is `tensord serve` running?"


@_error
class ConnectionLost(ConnectionFault):
    reason: str
    code = 501
    sentence = "the connection ended before the answer ({reason}); the request may or may not have run"


@_error
class ClientClosed(ConnectionFault):
    code = 502
    sentence = "this client is closed"


def _leaves(root: type[TensordError]) -> list[type[TensordError]]:
    return [leaf for child in root.__subclasses__() for leaf in (_leaves(child) or [child])]


ERRORS: dict[int, type[TensordError]] = {leaf.code: leaf for leaf in _leaves(TensordError)}
"""The closed table: code to class."""


@_error
class UnknownError(TensordError):
    """An error code that this version of the library does not know: its number and sentence."""

    number: int
    text: str
    sentence = "{text}"


def rebuild(code: int, text: str, data: bytes, retry_after_ms: int | None) -> TensordError:
    """The error that a daemon sent, as its class again; an UnknownError where code or data are foreign."""
    error: TensordError
    try:
        checked = msgspec.convert(msgspec.json.decode(data or b"{}"), ERRORS[code])
        error = ERRORS[code](*checked.data().values())  # msgspec's own has no `args`: its repr() would crash Python
    except (KeyError, ValueError, RecursionError):  # not JSON, not UTF-8, not these fields, nested without end
        error = UnknownError(code, text)
    error.retry_after_ms = retry_after_ms
    return error
