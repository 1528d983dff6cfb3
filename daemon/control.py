"""What the control socket speaks: one JSON message per line, a request and its answer.

The command line, the dashboard and scripts are clients of it. It belongs to the supervisor, which is always there.
"""

import socket
from pathlib import Path
from typing import Final

import msgspec

from .exits import Exit

LINE_BYTES_MAX: Final = 16 * 1024 * 1024
TIMEOUT_S: Final = 10.0

Setting = int | float | str | bool


class Status(msgspec.Struct, frozen=True, tag=True):
    """What does the instance do?"""


class Get(msgspec.Struct, frozen=True, tag=True):
    """Values of these knobs (`digits.max_batch`, `max_batch`); of all for an empty list."""

    addresses: list[str] = []


class Set(msgspec.Struct, frozen=True, tag=True):
    """Change knobs, all or none. A value of None takes a setting made earlier away again."""

    settings: dict[str, Setting | None]
    why: str = ""
    expected_epoch: int | None = None


class Record(msgspec.Struct, frozen=True, tag=True):
    """Record the load into a new file, for so long or until so many bytes are full; answered at its end."""

    path: str
    """Absolute; the daemon's user makes it."""
    seconds: float
    bytes_max: int


Request = Status | Get | Set | Record


class KnobState(msgspec.Struct, frozen=True):
    """One knob's value and where it comes from."""

    address: str
    value: Setting
    text: str
    """The value with its unit."""
    source: str
    context: str
    help: str


class Values(msgspec.Struct, frozen=True, tag=True):
    """Answer to Get."""

    epoch: int
    knobs: list[KnobState]


class Changed(msgspec.Struct, frozen=True):
    """One change of a transaction."""

    address: str
    old: Setting
    new: Setting
    pending_restart: bool
    keeps_own: list[str]
    """Models or devices that have a value of their own, and so do not follow."""


class Applied(msgspec.Struct, frozen=True, tag=True):
    """Answer to Set."""

    epoch: int
    changes: list[Changed]
    converging: list[str]
    """Processes that have not yet said that they work with it."""


class Recorded(msgspec.Struct, frozen=True, tag=True):
    """Answer to Record."""

    records: int
    complaint: str
    """Why it ended before its time; empty: it did not."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Nothing was done: one sentence, and the exit code for it."""

    sentence: str
    exit: int = Exit.FAILED


class PhaseTimes(msgspec.Struct, frozen=True):
    """Percentiles of one phase, in microseconds, since the instance started."""

    count: int
    p50_us: float | None
    p95_us: float | None
    p99_us: float | None


class ModelStatus(msgspec.Struct, frozen=True):
    """One served model version."""

    name: str
    version: int
    labels: list[str]
    ready_on: list[str]
    """Devices."""
    broken_on: dict[str, str]
    """Device to reason."""
    required: bool
    counters: dict[str, int]
    phases: dict[str, PhaseTimes]
    memory_bytes: dict[str, int] = {}
    """Device to what its worker held more when it had loaded and warmed this model: device memory, or resident."""


class DeviceMemory(msgspec.Struct, frozen=True):
    """Memory of a GPU."""

    allocated_bytes: int
    """What tensors of this worker hold."""
    free_bytes: int
    """Of the whole GPU, whoever uses the rest."""
    total_bytes: int
    pinned_bytes: int
    """Shared memory that the GPU copies from and to by itself."""
    unpinned_bytes: int
    """Shared memory that could not be registered: the worker waits for each copy."""


class WorkerStatus(msgspec.Struct, frozen=True):
    """One worker's place."""

    device: str
    cores: list[int]
    state: str
    activity: str
    pid: int | None
    uptime_s: float
    restarts: int
    memory_bytes: int
    models_loaded: int
    device_memory: DeviceMemory | None = None
    """None where the device has no memory of its own."""
    notes: list[str] = []
    """What the operator should know of it."""


class FrontendStatus(msgspec.Struct, frozen=True):
    """The front end."""

    pid: int | None
    generation: int
    restarts: int
    connections: int
    connections_total: int
    queued: int
    """Requests that wait."""
    running: int
    """Requests with workers."""
    ingest_bytes: int
    ingest_used_bytes: int
    notes: list[str] = []
    """What the operator should know of it."""


class InstanceStatus(msgspec.Struct, frozen=True, tag=True):
    """Answer to Status."""

    version: str
    pid: int
    uptime_s: float
    state: str
    """`starting`, `ready`, `degraded`, or `draining`."""
    reasons: list[str]
    """Why it is not ready; empty if it is."""
    epoch: int
    converging: list[str]
    """Processes that have not yet said that they work with the last change of a knob."""
    pending_restart: list[str]
    """Knobs whose new value waits until the process that uses it starts next."""
    socket: str
    arenas: int
    arena_bytes: int
    frontend: FrontendStatus
    workers: list[WorkerStatus]
    models: list[ModelStatus]


Answer = InstanceStatus | Values | Applied | Recorded | Refused

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
decode_answer = msgspec.json.Decoder(Answer).decode


class Unreachable(Exception):
    """No daemon answers on the control socket; the sentence says where it was looked for."""


def ask(path: Path, request: Request, timeout_s: float = TIMEOUT_S) -> Answer:
    """Send one request and wait for its answer. Raises Unreachable."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            sock.sendall(encode(request) + b"\n")
            with sock.makefile("rb") as lines:
                line = lines.readline(LINE_BYTES_MAX)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unreachable(f"no daemon answers at {path} ({reason}): is `tensord serve` running?") from error
    if not line.endswith(b"\n"):
        raise Unreachable(f"the daemon at {path} closed the connection: it is stopping, or refuses your user")
    answer: Answer = decode_answer(line)
    return answer
