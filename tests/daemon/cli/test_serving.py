import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tensord.daemon.cli import serving
from tensord.daemon.cli.output import Failure
from tensord.daemon.cli.serving import DEMO_PREFIX, Guide
from tensord.daemon.config import Config, load_config
from tensord.daemon.exits import Exit
from tensord.daemon.supervisor.failures import InstanceFailure
from tensord.daemon.supervisor.instance import RuntimeDirectory
from tensord.ipc.errors import ConnectionLost

from .conftest import Command, Ended

WATCHDOG_S = 20.0
CONFIGS = Path(__file__).parents[3] / "configs"


class StandIn:
    """A supervisor that starts nothing: ready as soon as it runs, and running until it is stopped."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ready = threading.Event()
        self.draining = False
        self.outcome: Exit | InstanceFailure = Exit.OK
        self._stopped = threading.Event()

    def run(self) -> Exit:
        if isinstance(self.outcome, InstanceFailure):
            raise self.outcome
        self.config.runtime_dir.mkdir(exist_ok=True)
        self.ready.set()
        assert self._stopped.wait(WATCHDOG_S)
        return self.outcome

    def stop_soon(self) -> None:
        self.draining = True
        self._stopped.set()


@pytest.fixture
def log_levels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What commands tell the log of this process, which keeps its own."""
    told: list[str] = []

    def configure(process: str, level: str) -> None:
        assert process == "supervisor"
        told.append(level)

    monkeypatch.setattr(serving, "configure", configure)
    return told


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, log_levels: list[str]) -> list[StandIn]:
    """The supervisors that commands prepare: none of them runs anything."""
    made: list[StandIn] = []

    def prepare(config: Config) -> StandIn:
        made.append(StandIn(config))
        return made[-1]

    monkeypatch.setattr(serving, "prepare", prepare)
    return made


# ── serve ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.toml"
    path.write_text(
        f'[daemon]\nmodels = "{CONFIGS / "models"}"\nruntime_dir = "run"\ndevices = ["cpu:0"]\n'
        '[knobs]\nlog_level = "error"\n'
    )
    return path


def test_serve_runs_the_supervisor_and_ends_with_its_code(
    tensord: Command, monkeypatch: pytest.MonkeyPatch, log_levels: list[str], config_file: Path
) -> None:
    def prepare(config: Config) -> StandIn:
        supervisor = StandIn(config)
        supervisor.outcome = Exit.RESOURCES
        supervisor.stop_soon()
        return supervisor

    monkeypatch.setattr(serving, "prepare", prepare)
    assert tensord("serve", "--config", config_file) == Ended(Exit.RESOURCES, "", "")
    assert log_levels == ["error"]


def test_the_command_line_beats_the_file(
    tensord: Command, monkeypatch: pytest.MonkeyPatch, log_levels: list[str], config_file: Path, tmp_path: Path
) -> None:
    seen: list[Config] = []

    def prepare(config: Config) -> None:
        seen.append(config)
        raise InstanceFailure(Exit.RUNNING, "another one runs")

    monkeypatch.setattr(serving, "prepare", prepare)
    tensord("serve", "-c", config_file)
    tensord("serve", "-c", config_file, "--runtime-dir", tmp_path, "--device", "cpu:1", "--device", "cpu:2")
    tensord("serve", "--models", tmp_path, "--runtime-dir", tmp_path)
    assert [(each.models, each.runtime_dir, each.devices) for each in seen] == [
        (CONFIGS / "models", tmp_path / "run", ("cpu:0",)),
        (CONFIGS / "models", tmp_path, ("cpu:1", "cpu:2")),
        (tmp_path, tmp_path, "auto"),
    ]
    assert log_levels == ["error", "error", "info"]


# ── check-config ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("log_levels")
def test_a_good_configuration_is_called_so_and_nothing_is_started(tensord: Command, config_file: Path) -> None:
    told = f"{config_file} is good: models digits, identity on cpu:0\n"
    assert tensord("check-config", config_file) == Ended(Exit.OK, told, "")
    assert not (config_file.parent / "run").exists()


@pytest.mark.usefixtures("log_levels")
@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("log_level", "log_lvl", Exit.CONFIG),
        ("cpu:0", "cpu:9999", Exit.DEVICE),
        (str(CONFIGS / "models"), "/nowhere", Exit.MODELS),
    ],
)
def test_a_bad_configuration_says_whose_fault_it_is(
    tensord: Command, config_file: Path, old: str, new: str, code: Exit
) -> None:
    config_file.write_text(config_file.read_text().replace(old, new))
    ended = tensord("check-config", config_file)
    assert ended.code == code
    assert new in ended.complaint


# ── the guide ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def supervisor(tmp_path: Path) -> StandIn:
    """A supervisor whose instance is ready."""
    made = StandIn(load_config(None, {"runtime_dir": tmp_path}))
    made.ready.set()
    return made


def guided(supervisor: StandIn, monkeypatch: pytest.MonkeyPatch, show: Callable[[], int], *, once: bool) -> Guide:
    """A guide that has shown what there is."""

    def demonstrate(socket: Path, images: Path) -> int:
        assert (socket, images) == (supervisor.config.socket, Path("images"))
        return show()

    monkeypatch.setattr(serving, "demonstrate", demonstrate)
    guide = Guide(supervisor, Path("images"), once=once)  # type: ignore[arg-type]
    guide.run()
    return guide


def raising(error: BaseException) -> Callable[[], int]:
    def show() -> int:
        raise error

    return show


def test_the_guide_leaves_the_instance_running(
    supervisor: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = guided(supervisor, monkeypatch, lambda: 3, once=False)
    assert (guide.failure, supervisor.draining) == (None, False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Ctrl-C ends it.")
    assert second.strip() == f"TENSORD_SOCKET={supervisor.config.socket} tensord status"


def test_a_guide_for_once_stops_the_instance(
    supervisor: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = guided(supervisor, monkeypatch, lambda: 0, once=True)
    assert (guide.failure, supervisor.draining, capsys.readouterr().out) == (None, True, "")


def test_a_digit_read_wrongly_fails_a_demonstration_that_ends_by_itself(
    supervisor: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = guided(supervisor, monkeypatch, lambda: 2, once=True)
    assert (str(guide.failure), supervisor.draining) == ("2 digits were read wrongly", True)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (Failure("no images"), "no images"),
        (ConnectionLost("it ended"), str(ConnectionLost("it ended"))),
        (BrokenPipeError(32, "Broken pipe"), "the demonstration cannot be shown: Broken pipe"),
        (OSError(28, "No space left on device"), "the demonstration cannot be shown: No space left on device"),
        (SystemExit(1), "the demonstration cannot be shown: Broken pipe"),
    ],
)
def test_a_demonstration_that_fails_stops_the_instance(
    supervisor: StandIn, monkeypatch: pytest.MonkeyPatch, error: BaseException, failure: str
) -> None:
    guide = guided(supervisor, monkeypatch, raising(error), once=False)
    assert (str(guide.failure), supervisor.draining) == (failure, True)


def test_what_fails_because_the_instance_ends_is_no_failure(
    supervisor: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.draining = True
    assert guided(supervisor, monkeypatch, raising(ConnectionLost("it ended")), once=False).failure is None


def test_a_guide_gives_up_when_the_instance_ends_before_it_is_ready(
    supervisor: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.ready.clear()
    guide = Guide(supervisor, Path("images"), once=True)  # type: ignore[arg-type]
    guide.finished.set()
    monkeypatch.setattr(serving, "demonstrate", raising(AssertionError("nothing is there to be shown")))
    guide.run()
    assert (guide.failure, supervisor.draining) == (None, False)


# ── demo ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demonstration's sockets lie; short, for the path of a socket is."""
    path = tmp_path_factory.mktemp("d")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


def test_demo_shows_the_shipped_images_and_leaves_nothing(
    tensord: Command, prepared: list[StandIn], log_levels: list[str], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[Path, int]] = []

    def demonstrate(socket: Path, images: Path) -> int:
        shown.append((socket.parent.parent, len(list(images.glob("*.png")))))
        return 0

    monkeypatch.setattr(serving, "demonstrate", demonstrate)
    assert tensord("demo", "--once") == Ended(Exit.OK, "", "")
    (supervisor,) = prepared
    assert supervisor.config.runtime_dir.name.startswith(DEMO_PREFIX)
    assert supervisor.config.models.samefile(CONFIGS / "models")
    assert shown == [(base, len(list((CONFIGS / "images" / "digits").glob("*.png"))))]
    assert log_levels == ["warning"]
    assert list(base.iterdir()) == []


@pytest.mark.usefixtures("prepared", "base")
def test_demo_ends_with_why_it_could_not_show(tensord: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "demonstrate", lambda *_: raising(Failure("no images"))())
    ended = tensord("demo")
    assert (ended.code, ended.complaint) == (Exit.FAILED, "no images")


def test_demo_ends_with_why_the_instance_could_not_start(
    tensord: Command, monkeypatch: pytest.MonkeyPatch, log_levels: list[str], base: Path
) -> None:
    def prepare(config: Config) -> StandIn:
        supervisor = StandIn(config)
        supervisor.outcome = InstanceFailure(Exit.RESOURCES, "no process is left")
        return supervisor

    monkeypatch.setattr(serving, "prepare", prepare)
    ended = tensord("demo")
    assert (ended.code, ended.complaint) == (Exit.RESOURCES, "no process is left")
    assert list(base.iterdir()) == []
    assert [thread.name for thread in threading.enumerate() if thread.name == "demonstration"] == []


@pytest.mark.usefixtures("prepared")
def test_demo_clears_away_what_killed_ones_left_and_nothing_else(
    tensord: Command, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("killed", "running"):
        (base / f"{DEMO_PREFIX}{name}").mkdir()
    (base / f"{DEMO_PREFIX}killed" / "lock").touch()
    (base / f"{DEMO_PREFIX}starting").mkdir()
    (base / "other").mkdir()
    (base / "other" / "lock").touch()
    running = RuntimeDirectory(base / f"{DEMO_PREFIX}running")
    running.take()
    monkeypatch.setattr(serving, "demonstrate", lambda *_: 0)
    try:
        tensord("demo", "--once")
        assert sorted(path.name for path in base.iterdir()) == [
            "other",
            f"{DEMO_PREFIX}running",
            f"{DEMO_PREFIX}starting",
        ]
    finally:
        running.leave()


@pytest.mark.usefixtures("prepared")
def test_demo_without_a_runtime_directory_uses_the_temporary_one(
    tensord: Command, prepared: list[StandIn], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    monkeypatch.setattr(serving, "demonstrate", lambda *_: 0)
    assert tensord("demo", "--once").code == Exit.OK
    assert prepared[0].config.runtime_dir.parent == base
