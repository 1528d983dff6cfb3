"""Daemons as their operator has them: started from a file, looked at from outside, killed, and never missed.

`launch` starts instances for one test, `sturdy` is one that crash tests share: two devices, every child of it is
killed many times, and each test leaves it ready. Whatever is started is ended by its fixture, which then looks for
what must not remain: processes, sockets, shared memory, tracebacks in the log.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import pytest

from tensord.daemon import control
from tensord.ipc.errors import TensordError
from tensord.ipc.limits import SOCKET_BUFFER_BYTES
from tensord.ipc.tensors import dtype_of
from tensord.ipc.wire import (
    HEADER,
    FrameType,
    Hello,
    InferHead,
    ResultHead,
    TensorHeader,
    decode_error,
    decode_opened,
    encode_open,
)

Array = npt.NDArray[Any]

PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)

WATCHDOG_S: Final = 30.0
"""Longest wait for something that must happen; a limit against hanging, not a measurement."""

CODE: Final = Path(__file__).parents[1] / "models"
SHIPPED: Final = Path(__file__).parents[3] / "configs" / "models"
Tensor = tuple[str, tuple[int, ...]]
"""Data type and row shape of the one input `x` and the one output `y`."""
FLOATS: Final = ("float32", (4,))
NUMBER: Final = ("int64", ())


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + WATCHDOG_S
    while not condition():
        assert time.monotonic() < deadline, "never so"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ── model repositories ──────────────────────────────────────────────────────────────────────────


class Models:
    """A repository that a test fills."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "models"
        self.gates = directory / "gates"
        for path in (self.root, self.gates):
            path.mkdir(parents=True)
        self._runs = self.gates / "runs"

    def add(self, name: str, code: str = "echo", tensor: Tensor = FLOATS, top: str = "", knobs: str = "") -> Path:
        """A model of tests/process/models; `top` and `knobs` are further lines of its manifest."""
        directory = self.root / name / "1"
        directory.mkdir(parents=True)
        shutil.copyfile(CODE / f"{code}.py", directory / "model.py")
        dtype, shape = tensor
        form = f'dtype = "{dtype}"\nshape = {list(shape)}'
        (directory / "model.toml").write_text(
            f'format = "factory"\nfactory = "model.py:build"\n{top}\n'
            f'[[inputs]]\nname = "x"\n{form}\n[[outputs]]\nname = "y"\n{form}\n[knobs]\n{knobs}\n'
        )
        return directory

    def add_shipped(self, name: str) -> Path:
        """One of the models that come with tensord."""
        return Path(shutil.copytree(SHIPPED / name, self.root / name)) / "1"

    # ── the models `gate` and `once` ────────────────────────────────────────────────────────────

    def wait_entered(self, gate: int) -> None:
        """Until a worker stands before this gate of the model `gate`."""
        wait_until((self.gates / f"{gate}.entered").exists)

    def open_gate(self, gate: int) -> None:
        """Let the worker go on, now and whenever it comes again."""
        (self.gates / f"{gate}.open").touch()

    def runs(self, number: int) -> list[int]:
        """The processes in which the model `once` ran this number, one for each time."""
        lines = self._runs.read_text().splitlines() if self._runs.exists() else []
        return [int(pid) for each, pid in map(str.split, lines) if int(each) == number]


# ── instances ───────────────────────────────────────────────────────────────────────────────────


def _end_with_the_test_run() -> None:
    """In the new process: a test run that is killed leaves no daemon behind."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Instance:
    """One run of `tensord`, from its start to what is left behind it."""

    def __init__(self, directory: Path, command: Sequence[str], runtime_dir: Path, environment: dict[str, str]) -> None:
        self.runtime_dir = runtime_dir
        self.socket = runtime_dir / "tensord.sock"
        self.control_socket = runtime_dir / "control.sock"
        self.log = directory / f"log-{next(_numbers)}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env={**os.environ, "COLUMNS": "80"} | environment,
                start_new_session=True,
                preexec_fn=_end_with_the_test_run,
            )

    # ── looking ─────────────────────────────────────────────────────────────────────────────────

    @property
    def pid(self) -> int:
        """The supervisor."""
        return self.process.pid

    def status(self) -> control.InstanceStatus:
        """What the supervisor says."""
        answer = control.ask(self.control_socket, control.Status())
        assert isinstance(answer, control.InstanceStatus)
        return answer

    def wait_status(self, condition: Callable[[control.InstanceStatus], bool]) -> control.InstanceStatus:
        """Until the status satisfies the condition; returns that status."""
        found: list[control.InstanceStatus] = []

        def holds() -> bool:
            assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
            with contextlib.suppress(control.Unreachable):
                found[:] = [self.status()]
                return condition(found[0])
            return False

        try:
            wait_until(holds)
        except AssertionError as error:
            pytest.fail(f"{error}: {found}\n{self.log.read_text()}")
        return found[0]

    def wait_ready(self) -> "Instance":
        """Until every model is served and every worker is ready."""
        self.wait_status(lambda now: now.state == "ready" and all(each.state == "ready" for each in now.workers))
        return self

    def wait_idle(self) -> None:
        """Until it is ready, nobody is connected, and nothing is queued, running or attached."""
        self.wait_ready()
        accounts = (0, 0, 0, 0, 0)
        self.wait_status(
            lambda now: (
                accounts
                == (
                    now.frontend.connections,
                    now.frontend.queued,
                    now.frontend.running,
                    now.arenas,
                    now.arena_bytes,
                )
            )
        )

    def frontend_pid(self) -> int:
        """The front end, as soon as there is one that listens."""
        pid = self.wait_status(lambda now: "the front end is starting" not in now.reasons).frontend.pid
        assert pid is not None
        return pid

    def worker_pid(self, *devices: str) -> int:
        """The first worker that is ready, of these devices if any are named."""

        def ready(now: control.InstanceStatus) -> list[int]:
            wanted = [each for each in now.workers if each.state == "ready" and each.device in (devices or each.device)]
            return [each.pid for each in wanted if each.pid is not None]

        return ready(self.wait_status(lambda now: bool(ready(now))))[0]

    def children(self) -> list[int]:
        """Processes that this supervisor has started, even if it is gone: their command line names it."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if any(word.startswith(b"tensord.daemon.") for word in words) and str(self.pid).encode() in words:
                    found.append(int(path.parent.name))
        return [pid for pid in found if alive(pid)]

    @staticmethod
    def wait_until(condition: Callable[[], bool]) -> None:
        """Poll until the condition holds."""
        wait_until(condition)

    # ── operating ───────────────────────────────────────────────────────────────────────────────

    def set(self, **settings: Any) -> control.Applied:
        """Turn knobs (`digits__max_batch=8`), and wait until the front end and all idle workers work with them."""
        named = {name.replace("__", "."): value for name, value in settings.items()}
        applied = control.ask(self.control_socket, control.Set(named))
        assert isinstance(applied, control.Applied), applied

        def settled(now: control.InstanceStatus) -> bool:
            idle = {f"worker {worker.device}" for worker in now.workers if worker.activity == "idle"}
            return not {"frontend", *idle} & set(now.converging)

        self.wait_status(settled)
        return applied

    def signal(self, number: signal.Signals) -> None:
        """To the supervisor."""
        self.process.send_signal(number)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def wait_end(self) -> int:
        """The exit code; nothing of it is left."""
        returncode = self.process.wait(WATCHDOG_S)
        self.assert_nothing_left()
        return returncode

    def assert_nothing_left(self) -> None:
        """No process, no shared memory; the children of a killed supervisor get a moment."""
        wait_until(lambda: not self.children())
        assert not list(Path("/dev/shm").glob(f"tensord-{self.pid}-*"))

    def sockets(self) -> list[str]:
        """What lies in the runtime directory."""
        return sorted(path.name for path in self.runtime_dir.iterdir()) if self.runtime_dir.exists() else []

    def last_line(self) -> str:
        """How it explained its end: exactly one line of it begins with `tensord: `, the last one."""
        lines = self.log.read_text().splitlines()
        assert [line for line in lines if line.startswith("tensord: ")] == lines[-1:], self.log.read_text()
        return lines[-1]

    def close(self) -> None:
        """Stop it if it runs, and look that it went well."""
        try:
            if self.process.poll() is None:
                self.signal(signal.SIGTERM)
                assert self.process.wait(WATCHDOG_S) == 0, self.log.read_text()
                assert self.sockets() == []
            self.assert_nothing_left()
        finally:
            for pid in [*self.children(), *([self.pid] if self.process.poll() is None else [])]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(WATCHDOG_S)
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert "Exception" not in log, log


_numbers = itertools.count(1)


class Site:
    """A place for instances, one after the other or beside each other: a directory, models, a runtime directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.models = Models(directory)
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="to", dir="/tmp"))
        self.config = directory / "tensord.toml"
        self._instances: list[Instance] = []

    def write_config(self, knobs: str = "", devices: Sequence[str] = ("cpu:0",), daemon: str = "") -> Path:
        """A configuration; `knobs` stands below [knobs], `daemon` below [daemon]."""
        names = ", ".join(f'"{device}"' for device in devices)
        self.config.write_text(
            f'[daemon]\nruntime_dir = "{self.runtime_dir}"\nmodels = "models"\ndevices = [{names}]\n{daemon}\n'
            f"[knobs]\ningest_bytes = '32MiB'\n{knobs}\n"
        )
        return self.config

    def serve(self, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> Instance:
        """`tensord serve` with what `write_config` wrote; `prefix` is a command that runs it."""
        return self.tensord("serve", "--config", str(self.config), *arguments, prefix=prefix, **environment)

    def tensord(self, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> Instance:
        """Any command that runs until it is told to end."""
        command = [*prefix, sys.executable, "-m", "tensord", *arguments]
        instance = Instance(self.directory, command, self.runtime_dir, environment)
        self._instances.append(instance)
        return instance

    def close(self) -> None:
        """End everything that was started here."""
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.runtime_dir, ignore_errors=True)
            for instance in self._instances:
                stack.callback(instance.close)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """For the instances of one test."""
    with contextlib.closing(Site(tmp_path / "site")) as place:
        yield place


@pytest.fixture(scope="session")
def sturdy_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Where the shared instance lives."""
    with contextlib.closing(Site(tmp_path_factory.mktemp("sturdy"))) as place:
        for name in ("identity", "digits"):
            place.models.add_shipped(name)
        place.models.add("gate", "gate", NUMBER, knobs="max_batch = 1")
        place.models.add("once", "once", NUMBER, top="idempotent = false", knobs="max_batch = 1")
        place.models.add("deadly", "deadly", knobs="max_batch = 8")
        yield place


@pytest.fixture(scope="session")
def sturdy_instance(sturdy_site: Site) -> Instance:
    """Starts when it is asked for first."""
    sturdy_site.write_config("backoff_max_s = 1\ndrain_timeout_s = 5", ("cpu:0", "cpu:1"))
    return sturdy_site.serve().wait_ready()


@pytest.fixture
def sturdy(sturdy_instance: Instance) -> Iterator[Instance]:
    """The shared instance: ready before, and ready, idle and the same supervisor after."""
    sturdy_instance.wait_ready()
    yield sturdy_instance
    sturdy_instance.wait_idle()


# ── a client by hand ────────────────────────────────────────────────────────────────────────────


class RawClient:
    """A socket that pipelines requests by hand, and counts the final frames of each."""

    def __init__(self, instance: Instance, model: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(WATCHDOG_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._socket.connect(str(instance.socket))
        self._socket.sendall(Hello(1, 1, "raw").encode(1) + encode_open(2, model))
        self.finals: Counter[int] = Counter()
        """Request id to final frames."""
        self.batch_rows: dict[int, int] = {}
        """Request id to the rows of the batch that it ran in."""
        self._receive()
        _, _, meta, _ = self._receive()
        self._handle, _ = decode_opened(memoryview(meta))

    def send(self, requests: dict[int, Array]) -> None:
        """All these requests, by their ids, in one write."""
        frames = []
        for request_id, x in requests.items():
            dtype = dtype_of(x)
            assert dtype is not None
            header = TensorHeader(0, dtype, x.shape, x.nbytes)
            frames += [
                InferHead(self._handle, 1, 1, 0, 0, 0).encode(request_id, header.encode(), x.nbytes),
                x.tobytes(),
            ]
        self._socket.sendall(b"".join(frames))

    def receive(self) -> tuple[int, bytes | TensordError]:
        """The next final frame: of which request, and its payload or error."""
        frame_type, request_id, meta, payload = self._receive()
        if frame_type != FrameType.CLOSE:
            self.finals[request_id] += 1
        if frame_type == FrameType.RESULT:
            self.batch_rows[request_id] = ResultHead.decode(memoryview(meta))[0].batch_rows
            return request_id, payload
        if frame_type == FrameType.CLOSE:
            return self.receive()
        assert frame_type == FrameType.ERROR, frame_type
        return request_id, decode_error(memoryview(meta))

    def _receive(self) -> tuple[int, int, bytes, bytes]:
        _, frame_type, _, meta_bytes, request_id, payload_bytes = HEADER.unpack(self._take(HEADER.size))
        return frame_type, request_id, self._take(meta_bytes), self._take(payload_bytes)

    def _take(self, nbytes: int) -> bytes:
        parts = bytearray()
        while len(parts) < nbytes:
            data = self._socket.recv(nbytes - len(parts))
            if not data:
                raise ConnectionResetError("the connection ended")
            parts += data
        return bytes(parts)

    def expect_end(self) -> list[tuple[int, bytes | TensordError]]:
        """The final frames that still come before the connection ends."""
        frames = []
        while True:
            try:
                frames.append(self.receive())
            except ConnectionError:
                return frames

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


Connect = Callable[[Instance, str], RawClient]


@pytest.fixture
def connect_raw() -> Iterator[Connect]:
    """Connects raw clients that have a model open; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(instance: Instance, model: str) -> RawClient:
            client = RawClient(instance, model)
            stack.callback(client.close)
            return client

        yield connect


@pytest.fixture
def gates() -> "itertools.count[int]":
    """Numbers of gates that no other test uses."""
    return _gates


_gates = itertools.count(1)
