"""`tensord serve`, `demo` and `check-config`: running an instance."""

import os
import tempfile
import threading
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import Config, load_config
from ..exits import Exit
from ..log import configure
from ..supervisor.start import prepare
from ..supervisor.supervisor import Supervisor
from .demonstration import demonstrate
from .output import console, errors

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A TOML file; see configs/production.toml.", show_default=False),
]


def serve(
    config: ConfigFile = None,
    runtime_dir: Annotated[
        Path | None, typer.Option(help="Where the sockets are. Overrides the file.", show_default=False)
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="The model repository. Overrides the file.", show_default=False)
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="A device, such as cpu:0 or cuda:0; may be repeated. Overrides the file.", show_default=False
        ),
    ] = None,
) -> int:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C, which drain it; a second one stops at once."""
    return _supervisor(_load(config, runtime_dir, models, device)).run()


def _load(config: Path | None, runtime_dir: Path | None, models: Path | None, devices: list[str] | None) -> Config:
    overrides: dict[str, Any] = {"runtime_dir": runtime_dir, "models": models, "devices": devices or None}
    return load_config(config, overrides)


def _supervisor(config: Config) -> Supervisor:
    configure("supervisor", str(config.configured.get("log_level", "info")))
    return prepare(config)


def check_config(config: Annotated[Path, typer.Argument(help="The TOML file.")]) -> None:
    """Check a configuration and the models that it names, starting nothing."""
    supervisor = _supervisor(load_config(config, {}))
    names = ", ".join(supervisor.catalog.names)
    devices = ", ".join(supervisor.device_names)
    console.print(f"[green]{config} is good[/]: models {names} on {devices}", soft_wrap=True)


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the demonstration.")] = False,
) -> int:
    """Start a daemon, have it read a dozen handwritten digits, and serve until Ctrl-C."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    with (
        as_file(files("tensord.configs")) as configs,
        tempfile.TemporaryDirectory(prefix="tensord-demo-", dir=base) as runtime_dir,
    ):
        supervisor = _supervisor(load_config(configs / "demo.toml", {"runtime_dir": runtime_dir}))
        guide = Guide(supervisor, configs / "images" / "digits", once=once)
        guide.start()
        code = supervisor.run()
        guide.finished.set()
        guide.join()
        return guide.code or code


class Guide(threading.Thread):
    """Shows the demonstration beside the supervisor, which has the main thread."""

    def __init__(self, supervisor: Supervisor, images: Path, *, once: bool) -> None:
        super().__init__(name="demonstration", daemon=True)
        self.finished = threading.Event()
        self.code = Exit.OK
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
            wrong = demonstrate(self._supervisor.config.socket, self._images)
        except Exception:
            self.code = Exit.FAILED
            self._supervisor.stop_soon()
            raise
        if self._once:
            self.code = Exit.FAILED if wrong else Exit.OK
            self._supervisor.stop_soon()
        else:
            console.print("[dim]Ctrl-C ends it. From another terminal: TENSORD_SOCKET=… tensord status[/]")
