"""Real daemons to be mistreated, and a client that sends exactly the bytes it is told to.

`daemon` is one instance for all tests that leave it unharmed; `own_daemon` starts one for a single test. Every
daemon is stopped by its fixture, which then looks for what must not remain: processes, sockets, shared memory,
tracebacks in the log.
"""

import array
import contextlib
import ctypes
import itertools
import mmap
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from tensord.daemon import control
from tensord.ipc.errors import TensordError
from tensord.ipc.limits import SOCKET_BUFFER_BYTES
from tensord.ipc.tensors import DType, ModelSpec, dtype_of
from tensord.ipc.wire import (
    HEADER,
    MAGIC,
    FrameType,
    Hello,
    InferHead,
    Lane,
    ResultHead,
    TensorHeader,
    Welcome,
    decode_arena,
    decode_error,
    decode_opened,
    encode_arena,
    encode_open,
    frame,
)

Array = npt.NDArray[Any]
Tensor = tuple[str, str, tuple[int, ...]]
"""Name, data type and row shape, as in a manifest."""

WATCHDOG_S: Final = 30.0
"""Longest wait for something that must happen; a limit against hanging, not a measurement."""

PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""

_libc = ctypes.CDLL(None)

CODE: Final = Path(__file__).parent / "models"
ROW_SHAPES: Final = (
    (),
    (5,),
    (3, 2),
    (2, 1, 3),
    (1, 2, 3, 2),
    (2, 1, 2, 1, 3),
    (1, 2, 1, 3, 1, 2),
    (2, 1, 2, 1, 2, 1, 2),
)
"""One for each number of dimensions that a row may have."""


# ── models ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ModelFiles:
    """A model to be written: a file of tests/process/models, its tensors and its knobs."""

    code: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    knobs: dict[str, int] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    """Of the last output."""

    def write(self, directory: Path) -> None:
        """As an operator would: a manifest and the code."""
        directory.mkdir(parents=True)
        shutil.copyfile(CODE / f"{self.code}.py", directory / "model.py")
        lines = ['format = "factory"', 'factory = "model.py:build"']
        for key, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            for name, dtype, shape in tensors:
                lines += [f"[[{key}]]", f'name = "{name}"', f'dtype = "{dtype}"', f"shape = {list(shape)}"]
        lines += [f"labels = {list(self.labels)}"] if self.labels else []
        lines += ["[knobs]", *(f"{name} = {value}" for name, value in self.knobs.items())]
        (directory / "model.toml").write_text("\n".join(lines) + "\n")


def _one_to_one(code: str, dtype: str, shape: tuple[int, ...], **knobs: int) -> ModelFiles:
    return ModelFiles(code, (("x", dtype, shape),), (("y", dtype, shape),), knobs)


PAIR: Final = ModelFiles(
    "swap",
    (("a", "float32", (3,)), ("b", "int64", (2, 2))),
    (("b_out", "int64", (2, 2)), ("a_out", "float32", (3,))),
)
MODELS: Final = {
    "echo": _one_to_one("echo", "float32", (4,)),
    "large": _one_to_one("echo", "uint8", (64 * 1024,), max_batch=64),
    "pair": PAIR,
    "gate": _one_to_one("gate", "int64", (), max_batch=1),
    "picky": _one_to_one("picky", "float32", (4,)),
    "deadly": _one_to_one("deadly", "float32", (4,)),
    "wrong": _one_to_one("wrong", "float32", (4,)),
    "inplace": _one_to_one("inplace", "float32", (4,)),
    "labels": ModelFiles(
        "echo",
        (("x", "float32", (2000,)),),
        (("y", "float32", (2000,)),),
        labels=tuple(f"a label of many bytes, {number}" for number in range(2000)),
    ),
    "counts": ModelFiles("counts", (("x", "bool", (8,)),), (("y", "int64", ()),)),
} | {
    f"same-{dtype.label}-{len(shape)}": _one_to_one("echo", dtype.label, shape)
    for index, dtype in enumerate(DType)
    for shape in (ROW_SHAPES[index % 8], ROW_SHAPES[(index + 3) % 8])
}


# ── daemons ─────────────────────────────────────────────────────────────────────────────────────


class Daemon:
    """A running instance."""

    def __init__(
        self,
        directory: Path,
        knobs: str = "",
        descriptors_max: int | None = None,
        state_dir: Path | None = None,
        models: Mapping[str, ModelFiles] = MODELS,
        devices: Sequence[str] = ("cpu:0",),
    ) -> None:
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="td", dir="/tmp"))
        self.socket = self.runtime_dir / "tensord.sock"
        self.log = directory / "log"
        self._control = self.runtime_dir / "control.sock"
        self._gates = directory / "gates"
        self._gates.mkdir(parents=True)
        for name, model in models.items():
            model.write(directory / "models" / name / "1")
        manifests = CODE.glob("*.toml") if models is MODELS else ()
        for manifest in manifests:  # what ModelFiles cannot say: free dimensions, masks, steps
            version = directory / "models" / manifest.stem / "1"
            version.mkdir(parents=True)
            shutil.copyfile(manifest, version / "model.toml")
            shutil.copyfile(manifest.with_suffix(".py"), version / "model.py")
        config = directory / "tensord.toml"
        kept = f'state_dir = "{state_dir}"\n' if state_dir else ""
        listed = ", ".join(f'"{device}"' for device in devices)
        config.write_text(
            f'[daemon]\nruntime_dir = "{self.runtime_dir}"\nmodels = "models"\ndevices = [{listed}]\n{kept}'
            f"[knobs]\ndrain_timeout_s = 5\n{knobs}\n"
        )
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tensord", "serve", "--config", str(config)],
                stdout=log,
                stderr=log,
                preexec_fn=partial(_prepare, descriptors_max),
            )

    # ── operating ───────────────────────────────────────────────────────────────────────────────

    def status(self) -> control.InstanceStatus:
        """What the supervisor says. The front end renews its numbers twice a second."""
        answer = control.ask(self._control, control.Status())
        assert isinstance(answer, control.InstanceStatus)
        return answer

    def wait_ready(self) -> "Daemon":
        """Until every model is served."""

        def ready() -> bool:
            assert self._process.poll() is None, f"the daemon ended:\n{self.log.read_text()}"
            try:
                return self.status().state == "ready"
            except control.Unreachable:
                return False

        wait_until(ready)
        return self

    def wait_status(self, condition: Callable[[control.InstanceStatus], bool]) -> None:
        """Until the status satisfies the condition."""
        try:
            wait_until(lambda: condition(self.status()))
        except AssertionError:
            pytest.fail(f"never so: {self.status().frontend}, {self.status().arenas} arenas")

    def wait_idle(self) -> None:
        """Until nobody is connected, and nothing is queued, running, or attached."""
        self.wait_status(
            lambda now: (
                (now.frontend.connections, now.frontend.queued, now.frontend.running, now.arenas, now.arena_bytes)
                == (0, 0, 0, 0, 0)
            )
        )

    @contextlib.contextmanager
    def knobs(self, **settings: control.Setting) -> Iterator[None]:
        """Other settings for a while."""
        self.set(**settings)
        try:
            yield
        finally:
            self.set(**dict.fromkeys(settings))

    def set(self, **settings: control.Setting | None) -> None:
        """Other settings from now on; None takes one away again."""
        applied = self.ask(control.Set({name.replace("__", "."): value for name, value in settings.items()}))
        assert isinstance(applied, control.Applied), applied
        wait_until(lambda: not self.status().converging)

    def ask(self, request: control.Request, timeout_s: float = control.TIMEOUT_S) -> control.Answer:
        """What the control socket answers."""
        return control.ask(self._control, request, timeout_s)

    def counter(self, model: str, name: str) -> int:
        """A counter of a model."""
        return next(each.counters[name] for each in self.status().models if each.name == model)

    @property
    def frontend_pid(self) -> int:
        """The front end's process."""
        pid = self.status().frontend.pid
        assert pid is not None
        return pid

    @property
    def pids(self) -> tuple[int | None, ...]:
        """Supervisor, front end, workers."""
        now = self.status()
        return (now.pid, now.frontend.pid, *(worker.pid for worker in now.workers))

    def frontend_bytes(self) -> int:
        """The front end's own memory; shared segments apart."""
        lines = Path(f"/proc/{self.frontend_pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    # ── the model `gate` ────────────────────────────────────────────────────────────────────────

    def wait_entered(self, gate: int) -> None:
        """Until the worker stands before the gate."""
        wait_until((self._gates / f"{gate}.entered").exists)

    def open_gate(self, gate: int) -> None:
        """Let the worker go on."""
        (self._gates / f"{gate}.open").touch()

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """End it, and find nothing left."""
        pid = self._process.pid
        try:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(WATCHDOG_S)
        finally:
            left = [child for child in _children_of(pid) if _alive(child)]
            for each in [*left, *([pid] if self._process.poll() is None else [])]:
                os.kill(each, signal.SIGKILL)
            returncode = self._process.wait(WATCHDOG_S)
            names = [path.name for path in self.runtime_dir.iterdir()]
            shutil.rmtree(self.runtime_dir)
        log = self.log.read_text()
        assert "Traceback" not in log, log[:4000]
        assert "Exception" not in log, log[:4000]
        assert (returncode, left, names) == (0, [], []), log[-4000:]
        assert not list(Path("/dev/shm").glob(f"tensord-{pid}-*"))


def _prepare(descriptors_max: int | None) -> None:
    """In the new process: even a test run that crashes leaves no daemon behind; few file descriptors, if told so."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if descriptors_max is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_max, descriptors_max))


def _children_of(pid: int) -> list[int]:
    """Processes that were started by this supervisor, even if it is gone: their command line names it."""
    children = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if any(word.startswith(b"tensord.daemon.") for word in words) and str(pid).encode() in words:
                children.append(int(path.parent.name))
    return children


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + WATCHDOG_S
    while not condition():
        assert time.monotonic() < deadline, "never so"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One instance for all tests that leave it unharmed."""
    with contextlib.ExitStack() as stack:
        running = Daemon(tmp_path_factory.mktemp("daemon"))
        stack.callback(running.stop)
        yield running.wait_ready()


StartDaemon = Callable[..., Daemon]


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Starts an instance for this test alone, with the given lines below `[knobs]`."""
    with contextlib.ExitStack() as stack:

        def start(knobs: str = "", descriptors_max: int | None = None) -> Daemon:
            running = Daemon(tmp_path / "daemon", knobs, descriptors_max)
            stack.callback(running.stop)
            return running.wait_ready()

        yield start


@pytest.fixture
def gates() -> "itertools.count[int]":
    """Numbers of gates that no other test uses."""
    return _gates


_gates = itertools.count(1)


# ── the client ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Received:
    """A frame from the daemon."""

    frame_type: int
    request_id: int
    meta: bytes
    payload: bytes

    def error(self) -> TensordError:
        """What an ERROR says."""
        assert self.frame_type == FrameType.ERROR, self
        return decode_error(memoryview(self.meta))

    def result(self) -> tuple[ResultHead, list[TensorHeader]]:
        """What a RESULT says."""
        assert self.frame_type == FrameType.RESULT, self.error() if self.frame_type == FrameType.ERROR else self
        return ResultHead.decode(memoryview(self.meta))


@dataclass(frozen=True)
class Opened:
    """An open model."""

    handle: int
    spec: ModelSpec


@dataclass(frozen=True)
class Arena:
    """An attached arena."""

    number: int
    nbytes: int
    memory: mmap.mmap

    def write(self, offset: int, tensor: Array) -> None:
        """Put a tensor there."""
        data = tensor.tobytes()
        self.memory[offset : offset + len(data)] = data

    def read(self, offset: int, like: Array) -> Array:
        """The tensor of this form there."""
        return np.frombuffer(self.memory[offset : offset + like.nbytes], like.dtype).reshape(like.shape)


class RawClient:
    """A blocking socket that sends what it is told to. Not safe in threads, unless one sends and one receives."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WATCHDOG_S)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self.socket.connect(str(path))
        self._request_ids = itertools.count(1_000_000)
        self._models: dict[str, Opened] = {}
        self._stream = b""
        self._fds: list[int] = []
        self._arenas: list[Arena] = []

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────

    def send(self, *parts: bytes) -> None:
        """Send these bytes."""
        self.socket.sendall(b"".join(parts))

    def receive(self) -> Received:
        """The next frame. Raises EOFError at the end of the stream."""
        magic, frame_type, _, meta_bytes, request_id, payload_bytes = HEADER.unpack(self._take(HEADER.size))
        assert magic == MAGIC
        return Received(frame_type, request_id, self._take(meta_bytes), self._take(payload_bytes))

    def _take(self, nbytes: int) -> bytes:
        parts = [self._stream]
        missing = nbytes - len(self._stream)
        while missing > 0:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, max(missing, 65536), 8)
            except ConnectionResetError:
                raise EOFError from None
            self._fds += fds
            if not data:
                raise EOFError
            parts.append(data)
            missing -= len(data)
        whole = b"".join(parts)
        self._stream = whole[nbytes:]
        return whole[:nbytes]

    def ready(self, timeout_s: float) -> bool:
        """Whether a frame, or the beginning of one, is there within this time."""
        return bool(self._stream) or bool(select.select([self.socket], [], [], max(timeout_s, 0.0))[0])

    def expect_end(self) -> list[Received]:
        """The frames that still come before the daemon closes the connection."""
        frames = []
        while True:
            try:
                frames.append(self.receive())
            except EOFError:
                return frames

    def close(self) -> None:
        """End it, and let go of the arenas."""
        self.socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for arena in self._arenas:
            arena.memory.close()

    # ── conversation ────────────────────────────────────────────────────────────────────────────

    def new_id(self) -> int:
        """A request id that was not used yet."""
        return next(self._request_ids)

    def hello(self, tenant: str = "") -> Welcome:
        """The handshake."""
        self.send(Hello(1, 1, tenant).encode(1))
        return Welcome.decode(memoryview(self.receive().meta))

    def open(self, name: str) -> Opened:
        """Open a model, once."""
        if name not in self._models:
            self.send(encode_open(1, name))
            answer = self.receive()
            assert answer.frame_type == FrameType.OPENED, answer.error()
            self._models[name] = Opened(*decode_opened(memoryview(answer.meta)))
        return self._models[name]

    def attach(self, nbytes: int) -> Arena:
        """An arena of this size."""
        self.send(encode_arena(FrameType.ATTACH, self.new_id(), 0, nbytes))
        answer = self.receive()
        assert answer.frame_type == FrameType.ATTACHED, answer.error()
        number, nbytes = decode_arena(memoryview(answer.meta))
        (fd,) = self._fds
        self._fds.clear()
        arena = Arena(number, nbytes, mmap.mmap(fd, nbytes))
        os.close(fd)
        self._arenas.append(arena)
        return arena

    def ask(self, *parts: bytes) -> Received:
        """Send a frame, and receive the next."""
        self.send(*parts)
        return self.receive()

    def ping(self) -> None:
        """The stream is in step, and nothing else is on its way."""
        request_id = self.new_id()
        answer = self.ask(frame(FrameType.PING, request_id))
        assert (answer.frame_type, answer.request_id) == (FrameType.PONG, request_id), answer

    def call(self, model: str, *inputs: Array) -> list[Array]:
        """An inline request and its outputs."""
        self.send(self.request(model, *inputs))
        return self.outputs()

    def outputs(self) -> list[Array]:
        """The inline outputs of the RESULT that comes next."""
        answer = self.receive()
        _, headers = answer.result()
        outputs, position = [], 0
        for header in headers:
            assert header.lane is Lane.INLINE
            data = answer.payload[position : position + header.nbytes]
            outputs.append(np.frombuffer(data, header.dtype.numpy).reshape(header.shape))
            position += header.nbytes
        assert position == len(answer.payload)
        return outputs

    # ── frames ──────────────────────────────────────────────────────────────────────────────────

    def request(self, model: str, *inputs: Array, request_id: int | None = None, **fields: Any) -> bytes:
        """A well-formed inline request, with these fields changed."""
        headers = [self.inline(index, tensor) for index, tensor in enumerate(inputs)]
        payload = b"".join(tensor.tobytes() for tensor in inputs)
        return self.infer(self.open(model).handle, headers, payload, request_id=request_id, **fields)

    def infer(
        self,
        handle: int,
        inputs: Sequence[TensorHeader],
        payload: bytes = b"",
        *,
        outputs: Sequence[TensorHeader] = (),
        request_id: int | None = None,
        payload_bytes: int | None = None,
        **fields: int,
    ) -> bytes:
        """Any INFER frame; `payload_bytes` and the counts may lie."""
        head = InferHead(
            handle,
            fields.get("priority", 1),
            fields.get("input_count", len(inputs)),
            fields.get("output_count", len(outputs)),
            fields.get("deadline_ns", 0),
            fields.get("session", 0),
            latest=bool(fields.get("latest", False)),
        )
        headers = b"".join(header.encode() for header in (*inputs, *outputs))
        claimed = len(payload) if payload_bytes is None else payload_bytes
        return head.encode(self.new_id() if request_id is None else request_id, headers, claimed) + payload

    @staticmethod
    def inline(index: int, tensor: Array) -> TensorHeader:
        """The header of a tensor in the payload."""
        dtype = dtype_of(tensor)
        assert dtype is not None
        return TensorHeader(index, dtype, tensor.shape, tensor.nbytes)

    @staticmethod
    def placed(index: int, tensor: Array, arena: int, offset: int) -> TensorHeader:
        """The header of an input in an arena."""
        dtype = dtype_of(tensor)
        assert dtype is not None
        return TensorHeader(index, dtype, tensor.shape, tensor.nbytes, Lane.ARENA, arena, offset)

    @staticmethod
    def place(index: int, nbytes: int, arena: int, offset: int) -> TensorHeader:
        """A range for an output."""
        return TensorHeader(index, DType.UINT8, (), nbytes, Lane.ARENA, arena, offset)

    def send_descriptors(self, data: bytes, fds: Sequence[int]) -> None:
        """Send file descriptors along, for which the protocol has no use."""
        self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


Connect = Callable[..., RawClient]


@pytest.fixture
def connect(daemon: Daemon) -> Iterator[Connect]:
    """Connects raw clients, to the shared daemon unless another is named; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(to: Daemon | None = None, *, hello: bool = True, tenant: str = "") -> RawClient:
            client = RawClient((to or daemon).socket)
            stack.callback(client.close)
            if hello:
                client.hello(tenant)
            return client

        yield make


# ── somebody else ───────────────────────────────────────────────────────────────────────────────


class Bystander(threading.Thread):
    """A well-behaved client on a connection of its own; whatever others do, its answers are right."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(name="bystander")
        self.answers = 0
        self.failure: BaseException | None = None
        self._client = RawClient(daemon.socket)
        self._over = threading.Event()

    def run(self) -> None:
        """Ask, compare, and pause a moment."""
        generator = np.random.default_rng(7)
        try:
            self._client.hello("bystander")
            while not self._over.is_set():
                x = generator.standard_normal((int(generator.integers(1, 5)), 4), np.float32)
                (y,) = self._client.call("echo", x)
                np.testing.assert_array_equal(y, x)
                self.answers += 1
                self._over.wait(0.002)
        except BaseException as failure:
            self.failure = failure
        finally:
            self._client.close()

    def finish(self) -> None:
        """It got answers from beginning to end, all of them right; one more comes after all that happened."""
        before = self.answers
        wait_until(lambda: self.answers > before or self.failure is not None)
        self._over.set()
        self.join(WATCHDOG_S)
        assert self.failure is None, repr(self.failure)
        assert not self.is_alive()


StartBystander = Callable[[Daemon], Bystander]


@pytest.fixture
def start_bystander() -> Iterator[StartBystander]:
    """Starts a client beside the test; at the end it must have been served all the time."""
    with contextlib.ExitStack() as stack:

        def start(daemon: Daemon) -> Bystander:
            bystander = Bystander(daemon)
            bystander.start()
            stack.callback(bystander.finish)
            return bystander

        yield start


@pytest.fixture
def unharmed(daemon: Daemon, start_bystander: StartBystander) -> Iterator[Daemon]:
    """The shared daemon; afterwards its processes are the same, and another client was served all the time."""
    pids = daemon.pids
    start_bystander(daemon)
    yield daemon
    assert daemon.pids == pids
