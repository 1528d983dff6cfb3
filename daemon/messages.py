"""What the supervisor and its children say to each other, and the socket pair on which they say it.

One SOCK_SEQPACKET pair per child: a message is one packet, so there is no framing and a file descriptor
cannot part from the message that explains it. A star: children never talk to each other here.
"""

import array
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tensord.ipc.tensors import Dimension, DType, TensorSpec

from .users import Access, TenantClass

FDS_MAX: Final = 8
PACKET_BYTES_MAX: Final = 320 * 1024
"""A model whose specification fills a client's frame (META_BYTES_MAX) fits. The default socket buffer of 208 KiB is
too small for it; what any process may ask for is twice that."""


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages; the class name is the tag."""


# ── models and knobs, to front end and workers ──────────────────────────────────────────────────


class TensorInfo(msgspec.Struct, frozen=True, array_like=True):
    """A TensorSpec as message. A free dimension is (name, max, from_data)."""

    name: str
    dtype: int
    shape: tuple[int | tuple[str, int, bool], ...]
    labels: tuple[str, ...] = ()
    optional: bool = False

    @classmethod
    def of(cls, spec: TensorSpec) -> "TensorInfo":
        """The message of a specification."""
        shape = tuple((d.name, d.max, d.from_data) if isinstance(d, Dimension) else d for d in spec.shape)
        return cls(spec.name, spec.dtype, shape, spec.labels, spec.optional)

    @property
    def spec(self) -> TensorSpec:
        """The specification again."""
        shape = tuple(Dimension(*each) if isinstance(each, tuple) else each for each in self.shape)
        return TensorSpec(self.name, DType(self.dtype), shape, self.labels, self.optional)


class ModelServed(Message, frozen=True, tag=True, array_like=True):
    """A model version is served under `index` from now on; its replicas are announced one by one."""

    index: int
    name: str
    version: int
    labels: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    idempotent: bool
    buckets: dict[str, tuple[int, ...]] = {}
    """Free dimensions of the inputs whose size is padded to the next of these; the others are not padded."""
    counts: dict[str, int] = {}
    """Dimensions that come from the data: index of the output that counts the real entries of each row."""
    access: Access = Access()


class KnobValues(Message, frozen=True, tag=True, array_like=True):
    """All values in force at this epoch. Answered with KnobsApplied.

    `general` has every knob; `models`, `devices` and `tenants` have, per name, those that differ from it."""

    epoch: int
    general: dict[str, int | float | str | bool]
    models: dict[str, dict[str, int | float | str | bool]]
    devices: dict[str, dict[str, int | float | str | bool]]
    tenants: dict[str, dict[str, int | float | str | bool]]


class KnobsApplied(Message, frozen=True, tag=True, array_like=True):
    """The sender works with the values of this epoch."""

    epoch: int


# ── supervisor → front end ──────────────────────────────────────────────────────────────────────


class FrontendSetup(Message, frozen=True, tag=True, array_like=True):
    """First message. fds: listening socket, ingest arena, statistics block."""

    generation: int
    instance: int
    ingest_bytes: int
    statistics_bytes: int
    tenant_classes: tuple[TenantClass, ...] = ()
    redis: str = ""
    """Socket of the response cache's second tier; empty: there is none."""
    secret: bytes = b""
    """Keys the answers in it."""


class Listen(Message, frozen=True, tag=True, array_like=True):
    """Accept connections from now on. Answered with FrontendReady."""


class CostsKnown(Message, frozen=True, tag=True, array_like=True):
    """What an earlier front end has learned of a model's execution times."""

    index: int
    lines: list[dict[str, Any]]


class StartRecording(Message, frozen=True, tag=True, array_like=True):
    """Record the load. fds: the file. Answered with RecordingEnded, in its time."""

    seconds: float
    bytes_max: int


class WorkerJoined(Message, frozen=True, tag=True, array_like=True):
    """A worker with new rings. fds: work ring, done ring, work doorbell, done doorbell."""

    worker: int
    device: str
    generation: int


class WorkerGone(Message, frozen=True, tag=True, array_like=True):
    """The worker's process has ended: nobody reads or writes its slots any more."""

    worker: int


class ReplicaReady(Message, frozen=True, tag=True, array_like=True):
    """The worker has loaded and warmed the model."""

    worker: int
    model: int


class ReplicaExpected(Message, frozen=True, tag=True, array_like=True):
    """Whether a replica of the model is being loaded somewhere, so that requests may wait for it."""

    model: int
    expected: bool
    reason: str


class ArenaMade(Message, frozen=True, tag=True, array_like=True):
    """Answer to ArenaWanted. fds: the arena."""

    ticket: int
    arena: int
    nbytes: int


class ArenaRefused(Message, frozen=True, tag=True, array_like=True):
    """Answer to ArenaWanted: the error's code and fields."""

    ticket: int
    code: int
    data: dict[str, Any]


class Drain(Message, frozen=True, tag=True, array_like=True):
    """Accept nothing new, answer what is in flight, say Drained."""


# ── front end → supervisor ──────────────────────────────────────────────────────────────────────


class FrontendReady(Message, frozen=True, tag=True, array_like=True):
    """The front end accepts connections."""


class ArenaWanted(Message, frozen=True, tag=True, array_like=True):
    """A client asks for an arena."""

    ticket: int
    nbytes: int


class ArenaReturned(Message, frozen=True, tag=True, array_like=True):
    """The client is gone, or gave it back, and every lease in it is back."""

    arena: int


class WorkerAccused(Message, frozen=True, tag=True, array_like=True):
    """The worker's ring holds what no correct worker writes: end it."""

    worker: int
    generation: int
    reason: str


class CostsLearned(Message, frozen=True, tag=True, array_like=True):
    """What the front end has learned of a model's execution times so far."""

    index: int
    lines: list[dict[str, Any]]


class RecordingEnded(Message, frozen=True, tag=True, array_like=True):
    """So many requests were recorded, and what was wrong, or nothing."""

    records: int
    complaint: str


class Drained(Message, frozen=True, tag=True, array_like=True):
    """Nothing is in flight any more."""


# ── supervisor → worker ─────────────────────────────────────────────────────────────────────────


class WorkerSetup(Message, frozen=True, tag=True, array_like=True):
    """First message. fds: statistics block."""

    worker: int
    device: str
    threads: int
    spin: bool
    """Whether there is a core on which this worker may spin while it waits."""
    statistics_bytes: int


class LoadModel(Message, frozen=True, tag=True, array_like=True):
    """Load and warm the model. Answered with ModelLoaded or ModelBroken."""

    index: int
    root: str
    name: str
    version: int


class OpenChannel(Message, frozen=True, tag=True, array_like=True):
    """A new generation of rings, and its ingest arena; the old one is over.

    fds: work ring, done ring, work doorbell, done doorbell, ingest arena."""

    generation: int
    ingest_bytes: int


class MapArena(Message, frozen=True, tag=True, array_like=True):
    """A client arena. fds: the arena."""

    arena: int
    nbytes: int


class UnmapArena(Message, frozen=True, tag=True, array_like=True):
    """Nothing in flight uses the arena any more."""

    arena: int


class Stop(Message, frozen=True, tag=True, array_like=True):
    """Finish the batch and end."""


# ── worker → supervisor ─────────────────────────────────────────────────────────────────────────


class WorkerStarted(Message, frozen=True, tag=True, array_like=True):
    """torch is imported and the device answers."""

    memory_bytes: int


class ModelLoaded(Message, frozen=True, tag=True, array_like=True):
    """The model gave its expected answer."""

    index: int
    load_ms: float
    memory_bytes: int = 0
    """What the worker holds more than before."""


class ModelBroken(Message, frozen=True, tag=True, array_like=True):
    """The model cannot be served on this worker: one sentence for the operator."""

    index: int
    reason: str


class WorkerNoted(Message, frozen=True, tag=True, array_like=True):
    """What an operator should know of this worker; instead of what it said of the subject before. Empty: it is over."""

    subject: str
    sentence: str


class ChannelOpened(Message, frozen=True, tag=True, array_like=True):
    """The worker listens on this generation's rings, and has let go of the older ones."""

    generation: int


class DeviceBroken(Message, frozen=True, tag=True, array_like=True):
    """The device cannot be used: one sentence for the operator. The worker ends."""

    reason: str


AnyMessage = (
    ModelServed
    | KnobValues
    | KnobsApplied
    | FrontendSetup
    | Listen
    | CostsKnown
    | StartRecording
    | WorkerJoined
    | WorkerGone
    | ReplicaReady
    | ReplicaExpected
    | ArenaMade
    | ArenaRefused
    | Drain
    | FrontendReady
    | ArenaWanted
    | ArenaReturned
    | WorkerAccused
    | CostsLearned
    | RecordingEnded
    | Drained
    | WorkerSetup
    | LoadModel
    | OpenChannel
    | MapArena
    | UnmapArena
    | Stop
    | WorkerStarted
    | ModelLoaded
    | ModelBroken
    | WorkerNoted
    | ChannelOpened
    | DeviceBroken
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


class LinkClosed(Exception):
    """The other end is gone."""


class Link:
    """One end of a socket pair between the supervisor and a child. Never waits.

    What the socket does not take now is kept in order and sent by `flush`, which the owner calls when the
    socket is writable (`backlog` says whether there is anything).
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self._backlog: deque[tuple[bytes, list[int]]] = deque()

    @classmethod
    def pair(cls) -> tuple["Link", "Link"]:
        """Two connected ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PACKET_BYTES_MAX)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        """For poll and add_reader."""
        return self.sock.fileno()

    @property
    def backlog(self) -> int:
        """Messages that wait for the socket."""
        return len(self._backlog)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, or keep for `flush` with duplicates of the descriptors. Raises LinkClosed."""
        packet = _encoder.encode(message)
        assert len(packet) <= PACKET_BYTES_MAX, f"a message of {len(packet)} bytes"
        if self._backlog or not self._try_send(packet, fds):
            self._backlog.append((packet, [os.dup(fd) for fd in fds]))

    def flush(self) -> None:
        """Send what waits. Raises LinkClosed."""
        while self._backlog:
            packet, fds = self._backlog[0]
            if not self._try_send(packet, fds):
                return
            self._backlog.popleft()
            for fd in fds:
                os.close(fd)

    def _try_send(self, packet: bytes, fds: Sequence[int]) -> bool:
        """False when the socket is full."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([packet], rights)
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkClosed(str(error)) from error
        return True

    def receive(self) -> tuple[AnyMessage, list[int]] | None:
        """The next message and its descriptors (close-on-exec, owned by the caller); None if there is none.

        Raises LinkClosed at the end.
        """
        try:
            packet, ancillary, _, _ = self.sock.recvmsg(
                PACKET_BYTES_MAX, socket.CMSG_SPACE(4 * FDS_MAX), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise LinkClosed(str(error)) from error
        if not packet:
            raise LinkClosed("end of stream")
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return _decoder.decode(packet), list(fds)

    def close(self) -> None:
        """Close this end and what waited to be sent."""
        for _, fds in self._backlog:
            for fd in fds:
                os.close(fd)
        self._backlog.clear()
        self.sock.close()
