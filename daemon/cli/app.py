"""The commands and how they end: one line per error, exit codes by table."""

import sys

import typer

from tensord.ipc.errors import ConnectionFault, TensordError

from ..config import ConfigError, NoSuchDevice
from ..control import Unreachable
from ..exits import Exit
from ..models.errors import ManifestError
from ..supervisor.failures import InstanceFailure
from .infer import infer
from .inspecting import models, status, version
from .output import Failure, Refusal, complain
from .serving import check_config, demo, serve
from .tuning import get_knobs, set_knobs

app = typer.Typer(
    name="tensord",
    help="One daemon owns this host's GPUs and models; every process infers through shared memory.",
    epilog="Exit codes: 0 done · 1 a request or command failed · 2 usage · 3 configuration · 4 models · "
    "5 another instance runs · 6 device · 7 shared memory or descriptors · 8 no daemon answers · 130 Ctrl-C",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(demo)
app.command()(infer)
app.command()(models)
app.command()(status)
app.command("get")(get_knobs)
app.command("set")(set_knobs)
app.command("check-config")(check_config)
app.command()(version)
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; every error that a person can cause or mend is one line on standard error."""
    try:
        code = app(arguments, standalone_mode=False)
        return int(code or 0)
    except typer.TyperException as error:
        command = " ".join(["tensord", *arguments[:1]]) if arguments[:1] and arguments[0] in COMMANDS else "tensord"
        return complain(f"{error.format_message()} (see {command} --help)", Exit.USAGE)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return complain("interrupted", Exit.INTERRUPTED)
    except NoSuchDevice as error:
        return complain(str(error), Exit.DEVICE)
    except ConfigError as error:
        return complain(str(error), Exit.CONFIG)
    except ManifestError as error:
        return complain(str(error), Exit.MODELS)
    except (InstanceFailure, Refusal) as error:
        return complain(str(error), error.exit)
    except (Unreachable, ConnectionFault) as error:
        return complain(str(error), Exit.UNREACHABLE)
    except (TensordError, Failure) as error:
        return complain(str(error), Exit.FAILED)
