import sys
from pathlib import Path

import pytest
import typer

from tensord.daemon.cli import app, inspecting, main
from tensord.daemon.cli.output import Failure, Refusal
from tensord.daemon.config import ConfigError, NoSuchDevice
from tensord.daemon.control import Unreachable
from tensord.daemon.exits import Exit
from tensord.daemon.models.errors import ManifestError
from tensord.daemon.supervisor.failures import InstanceFailure
from tensord.ipc.errors import DaemonNotFound, QueueFull

from .conftest import Command


def let_models_raise(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """From now on `tensord models` ends so."""

    def fetch_status(_socket: Path | None) -> None:
        raise error

    monkeypatch.setattr(inspecting, "fetch_status", fetch_status)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a.toml", "knobs.max_batch", 0, "give more"), Exit.CONFIG),
        (NoSuchDevice("a.toml", "daemon.devices", "cuda:7", "name another"), Exit.DEVICE),
        (ManifestError(Path("m/1/model.toml"), "format", "'onnx'", "use another"), Exit.MODELS),
        (InstanceFailure(Exit.RUNNING, "another one runs"), Exit.RUNNING),
        (InstanceFailure(Exit.RESOURCES, "no descriptor is left"), Exit.RESOURCES),
        (Refusal("no such knob", Exit.CONFIG), Exit.CONFIG),
        (Failure("it is not to be had"), Exit.FAILED),
        (QueueFull("digits", 4), Exit.FAILED),
        (Unreachable("nobody answers"), Exit.UNREACHABLE),
        (DaemonNotFound(["a.sock"], "no such file"), Exit.UNREACHABLE),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else each.name,
)
def test_an_error_is_its_sentence_and_an_exit_code(
    tensord: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, code: Exit
) -> None:
    let_models_raise(monkeypatch, error)
    ended = tensord("models")
    assert (ended.code, ended.complaint) == (code, str(error))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EOFError(), typer.Abort()])
def test_an_interrupted_command_has_a_code_of_its_own(
    tensord: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    let_models_raise(monkeypatch, error)
    ended = tensord("models")
    assert (ended.code, ended.out) == (Exit.INTERRUPTED, "")


def test_a_command_may_end_with_a_code_and_no_word(tensord: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    let_models_raise(monkeypatch, typer.Exit(7))
    ended = tensord("models")
    assert (ended.code, ended.out, ended.err) == (7, "", "")


def test_a_bug_is_not_made_into_a_sentence(tensord: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    let_models_raise(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        tensord("models")


@pytest.mark.parametrize(
    ("arguments", "page"),
    [
        ([], "tensord --help"),
        (["--loud"], "tensord --help"),
        (["model"], "tensord --help"),
        (["models", "digits"], "tensord models --help"),
        (["check-config", "--loud"], "tensord check-config --help"),
    ],
)
def test_a_wrong_command_line_leads_to_the_help(tensord: Command, arguments: list[str], page: str) -> None:
    ended = tensord(*arguments)
    assert ended.code == Exit.USAGE
    assert ended.err.startswith("tensord: ")
    assert ended.err.endswith(f" (see {page})\n")
    assert ended.err.count("\n") == 1


def test_without_a_command_the_help_is_printed(tensord: Command) -> None:
    ended = tensord()
    assert ended.out.strip() == tensord("--help").out.strip()
    assert ended.err == "tensord: name a command (see tensord --help)\n"


def test_the_help_has_every_command_and_every_exit_code(tensord: Command) -> None:
    ended = tensord("--help")
    assert (ended.code, ended.err) == (Exit.OK, "")
    assert [name for name in app.COMMANDS if name not in ended.out] == []
    shown = " ".join(ended.out.split()).partition("Exit codes: ")[2]
    assert [int(part.split()[0]) for part in shown.split(" · ")] == sorted(Exit)


def test_the_commands_have_the_names_that_are_typed() -> None:
    assert {"serve", "demo", "infer", "models", "status", "get", "set", "check-config", "version"} <= app.COMMANDS


def test_the_version_is_an_option_too(tensord: Command) -> None:
    assert tensord("--version") == tensord("version")


@pytest.mark.parametrize(("command", "code"), [("--version", Exit.OK), ("nonsense", Exit.USAGE)])
def test_main_exits_with_the_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, code: Exit
) -> None:
    monkeypatch.setattr(sys, "argv", ["tensord", command])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
