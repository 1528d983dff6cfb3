"""The peer: mosec, in an environment of its own, with the settings that are best for it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import processes
from .generator import Failed, Sample, prepare, run
from .request import Request
from .served import device_cores

HERE: Final = Path(__file__).parent
VERSION: Final = "0.9.8"
"""The newest on PyPI when this was written; it works with Python 3.11."""

ENVIRONMENT: Final = HERE / ".mosec-venv"
START_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 20.0
FOREVER_MS: Final = 60_000
"""Its time-out: nothing is given up, as nothing of ours is."""

CAPACITY: Final = 4096
BODY_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Setting:
    """How mosec batches."""

    batch: int
    wait_ms: int

    def __str__(self) -> str:
        return f"batch {self.batch}, wait {self.wait_ms} ms" if self.batch > 1 else "no batching"


CANDIDATES: Final = (Setting(1, 1), Setting(64, 0), Setting(64, 2), Setting(64, 10))
"""Its best is taken of these, for each payload and load by itself. (It rounds a wait of 0 up to its timer's tick.)"""


class Mosec:
    """A running mosec with one worker process."""

    def __init__(self, port: int, pid: int, setting: Setting) -> None:
        self.setting = setting
        self.pid = pid
        self._address = f"127.0.0.1:{port}"

    @property
    def pids(self) -> list[int]:
        """All its processes."""
        return processes.tree(self.pid)

    def load(
        self,
        request: Request,
        connections: int,
        seconds: float,
        warmup_s: float,
        look: Callable[[], None] = lambda: None,
    ) -> Sample:
        """Requests over HTTP, each the raw bytes of its tensors. HTTP has one in flight per connection."""
        return run("http", self._address, request, "inline", connections, 1, seconds, warmup_s, look=look)


def install() -> None:
    """Make the environment if there is none. It sees this one's packages (torch) behind its own. Raises Failed."""
    marker = ENVIRONMENT / f"mosec-{VERSION}"
    if marker.exists():
        return
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    command = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", f"mosec=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"mosec cannot be installed: {done.stderr.strip()[-500:]}")
    (site,) = (ENVIRONMENT / "lib").glob("python*/site-packages")
    paths = [sysconfig.get_path("purelib"), str(HERE.parent / "src")]
    (site / "benchmarks.pth").write_text("\n".join(paths) + "\n")
    marker.touch()


@contextlib.contextmanager
def serve(
    directory: Path, setting: Setting, model: Path | None = None, request: Request | None = None
) -> Iterator[Mosec]:
    """Mosec while the context lasts: identity, or `model` for rows such as those of `request`. Raises Failed."""
    port = _free_port()
    environment = {**os.environ, "BENCHMARK_BATCH": str(setting.batch), "PYTHONWARNINGS": "ignore"}
    if model is not None and request is not None:
        inputs = [[each.dtype.label, list(each.shape[1:])] for each in request.inputs]
        environment |= {"BENCHMARK_MODEL": str(model), "BENCHMARK_INPUTS": json.dumps(inputs)}
        environment |= dict.fromkeys(("BENCHMARK_THREADS", "OMP_NUM_THREADS"), str(len(device_cores())))
    command = [str(ENVIRONMENT / "bin" / "python"), str(HERE / "mosec_server.py")]
    command += ["--address", "127.0.0.1", "--port", str(port), "--path", str(directory / f"mosec{port}")]
    command += ["--wait", str(setting.wait_ms), "--capacity", str(CAPACITY), "--timeout", str(FOREVER_MS)]
    command += ["--max-request-size", str(BODY_BYTES_MAX), "--log-level", "error"]
    log = directory / f"mosec{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: prepare((), signal.SIGTERM),
        )
    try:
        _wait_ready(process, port, log)
        yield Mosec(port, process.pid, setting)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children are in the group that we gave it, and may linger
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < limit:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise Failed(f"mosec did not start: {log.read_text()[-2000:]}")
