"""A daemon of the benchmark's own, with a configuration of its own in a directory of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from examples.minilm.install import install

from tensord.daemon import control
from tensord.daemon.supervisor.start import worker_cores

from . import processes
from .generator import Failed, prepare

MODELS: Final = Path(__file__).parents[1] / "configs" / "models"
DEVICE: Final = "cpu:0"
START_LIMIT_S: Final = 120.0
STOP_LIMIT_S: Final = 40.0

IDENTITY: Final = """\
format = "factory"
factory = "model.py:build"
[[inputs]]
name = "x"
dtype = "float32"
shape = [{floats}]
[[outputs]]
name = "y"
dtype = "float32"
shape = [{floats}]
[knobs]
max_batch = {max_batch}
"""

CONFIG: Final = """\
[daemon]
runtime_dir = "{directory}"
models = "models"
devices = ["cpu:0"]
[knobs]
ingest_bytes = "1GiB"
connections_max = 20_000
log_level = "warning"
"""
"""Defaults, apart from the room for 256 inline requests of 588 KiB and their answers at once, and for connections."""


def device_cores() -> list[int]:
    """The cores that the worker of the one CPU device has; it computes with as many threads."""
    return worker_cores((DEVICE,), sorted(os.sched_getaffinity(0)))


def first_core() -> int:
    """The front end's, where there are more cores than devices."""
    return min(os.sched_getaffinity(0))


def write_identity(models: Path, name: str, floats: int, max_batch: int) -> None:
    """The model that returns its input, with rows of so many float32."""
    version = models / name / "1"
    version.mkdir(parents=True)
    shutil.copyfile(MODELS / "identity" / "1" / "identity.py", version / "model.py")
    (version / "model.toml").write_text(IDENTITY.format(floats=floats, max_batch=max_batch))


def copy_model(models: Path, name: str) -> None:
    """A model of the project, or the one of its example."""
    if name == "minilm":
        install(models)
    else:
        shutil.copytree(MODELS / name, models / name, ignore=shutil.ignore_patterns("__pycache__"))


class Daemon:
    """A running instance."""

    def __init__(self, directory: Path, process: "subprocess.Popen[bytes]") -> None:
        self.socket = directory / "tensord.sock"
        self._control = directory / "control.sock"
        self._process = process

    @property
    def pids(self) -> dict[str, list[int]]:
        """Its processes by their role; the supervisor's first."""
        roles: dict[str, list[int]] = {"supervisor": [self._process.pid]}
        for pid in processes.tree(self._process.pid)[1:]:
            with contextlib.suppress(OSError):  # it ended in between
                roles.setdefault(processes.role(pid), []).append(pid)
        return roles

    def status(self) -> control.InstanceStatus:
        """What the supervisor says. Raises control.Unreachable."""
        answer = control.ask(self._control, control.Status())
        assert isinstance(answer, control.InstanceStatus)
        return answer

    def set(self, settings: Mapping[str, control.Setting | None]) -> None:
        """Change knobs, and wait until all work with them. Raises Failed."""
        answer = control.ask(self._control, control.Set(dict(settings)))
        if not isinstance(answer, control.Applied):
            raise Failed(f"{settings} was refused: {answer}")
        limit = time.monotonic() + START_LIMIT_S
        while self.status().converging:
            if time.monotonic() > limit:
                raise Failed(f"{settings} has not come into force")
            time.sleep(0.01)


@contextlib.contextmanager
def serve(directory: Path, knobs: Mapping[str, Mapping[str, int]]) -> Iterator[Daemon]:
    """A daemon that serves the models in `directory/models`, with these knobs of models, while the context lasts.

    Raises Failed when it does not become ready.
    """
    lines = [CONFIG.format(directory=directory)]
    for model, values in knobs.items():
        lines += [f"[models.{model}]", *(f"{name} = {value}" for name, value in values.items())]
    config = directory / "tensord.toml"
    config.write_text("\n".join(lines) + "\n")
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tensord", "serve", "--config", str(config)],
            stdout=output,
            stderr=output,
            preexec_fn=lambda: prepare((), signal.SIGTERM),
        )
    daemon = Daemon(directory, process)
    try:
        _wait_ready(daemon, process, log)
        yield daemon
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        finally:
            process.kill()
            process.wait()


def _wait_ready(daemon: Daemon, process: "subprocess.Popen[bytes]", log: Path) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < limit:
        with contextlib.suppress(control.Unreachable):
            if daemon.status().state == "ready":
                return
        time.sleep(0.05)
    raise Failed(f"the daemon did not become ready: {log.read_text()[-2000:]}")
