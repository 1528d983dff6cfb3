"""`tensord serve`, `demo` and `check-config`: running an instance."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer

from tensord.ipc.errors import TensordError

from ..config import Config, load_config
from ..log import configure
from ..supervisor.start import prepare
from ..supervisor.supervisor import Supervisor
from .demonstration import demonstrate
from .output import Failure, console, errors, examples

SERVE_EXAMPLES = examples(
    "tensord serve --config configs/production.toml",
    "tensord serve --models /srv/models --device cpu:0 --device cpu:1 --runtime-dir /tmp/tensord",
)
DEMO_EXAMPLES = examples("tensord demo", "tensord demo --once")
DEMO_PREFIX = "tensord-demo-"

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="TOML; configs/production.toml explains every key. Without a file, defaults.",
        show_default=False,
    ),
]


def serve(
    config: ConfigFile = None,
    runtime_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the sockets are. Overrides the file.", show_default=False),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The model repository. Overrides the file.", show_default=False),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Such as cpu:0 or cuda:0; may be repeated. Overrides the file.", show_default=False
        ),
    ] = None,
) -> int:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C, which drain it; a second one stops at once.

    Exits with 0 when it was told to stop, and otherwise with one line that says why.
    """
    return _supervisor(_load(config, runtime_dir, models, device)).run()


def _load(config: Path | None, runtime_dir: Path | None, models: Path | None, devices: list[str] | None) -> Config:
    overrides: dict[str, Any] = {"runtime_dir": runtime_dir, "models": models, "devices": devices or None}
    return load_config(config, overrides)


def _supervisor(config: Config) -> Supervisor:
    configure("supervisor", str(config.configured.get("log_level", "info")))
    return prepare(config)


def check_config(config: Annotated[Path, typer.Argument(metavar="FILE", help="The TOML file.")]) -> None:
    """Check a configuration and the models that it names, starting nothing.

    Exits with 3 for the configuration, 4 for a model, 6 for a device. Weights and answers are checked at the start.
    """
    supervisor = _supervisor(load_config(config, {}))
    names = ", ".join(supervisor.catalog.names)
    devices = ", ".join(supervisor.device_names)
    console.print(f"[green]{config} is good[/]: models {names} on {devices}", soft_wrap=True)


# ── the demonstration ───────────────────────────────────────────────────────────────────────────


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the demonstration.")] = False,
) -> int:
    """Start a daemon, have it read a dozen handwritten digits, and serve until Ctrl-C.

    Exits with 0 after Ctrl-C, too, for that is how it is meant to end.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    _sweep(base)
    with (
        as_file(files("tensord.configs")) as configs,
        tempfile.TemporaryDirectory(prefix=DEMO_PREFIX, dir=base) as runtime_dir,
    ):
        supervisor = _supervisor(load_config(configs / "demo.toml", {"runtime_dir": runtime_dir}))
        guide = Guide(supervisor, configs / "images" / "digits", once=once)
        guide.start()
        try:
            code = supervisor.run()
        finally:
            guide.finished.set()
            guide.join()
        if guide.failure is not None:
            raise guide.failure
        return code


def _sweep(base: Path) -> None:
    """Remove the directories of demonstrations that were killed: a live one holds its lock."""
    for path in base.glob(f"{DEMO_PREFIX}*"):
        with contextlib.suppress(OSError), (path / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)


class Guide(threading.Thread):
    """Shows the demonstration beside the supervisor, which has the main thread."""

    def __init__(self, supervisor: Supervisor, images: Path, *, once: bool) -> None:
        super().__init__(name="demonstration", daemon=True)
        self.finished = threading.Event()
        self.failure: Exception | None = None
        """Why the demonstration failed; what fails because the instance ends does not count."""
        self._supervisor = supervisor
        self._images = images
        self._once = once

    def run(self) -> None:
        """Wait until the instance is ready, show the digits, and, with `once`, stop it."""
        with errors.status("starting the daemon: supervisor, front end, workers (torch takes a second or two) …"):
            while not self._supervisor.ready.wait(0.05):
                if self.finished.is_set():
                    return
        try:
            self._show()
        except (OSError, SystemExit) as error:  # rich makes an exit of a broken pipe
            reason = error.strerror if isinstance(error, OSError) else "Broken pipe"
            self.failure = Failure(f"the demonstration cannot be shown: {reason}")
            self._supervisor.stop_soon()
        except (TensordError, Failure) as error:
            if not self._supervisor.draining:
                self.failure = error
                self._supervisor.stop_soon()

    def _show(self) -> None:
        """Raises TensordError, Failure, or OSError where nobody reads what is shown."""
        socket = self._supervisor.config.socket
        wrong = demonstrate(socket, self._images)
        if self._once:
            if wrong:
                raise Failure(f"{wrong} digits were read wrongly")
            self._supervisor.stop_soon()
        else:
            console.print("[dim]Ctrl-C ends it. From another terminal:[/]")
            console.print(f"  [cyan]TENSORD_SOCKET={socket} tensord status[/]", soft_wrap=True)
