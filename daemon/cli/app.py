"""The commands and how they end: one line per error, exit codes by table."""

import sys
from typing import Annotated

import typer

from tensord.ipc.errors import ConnectionFault, TensordError

from ..config import ConfigError, NoSuchDevice
from ..control import Unreachable
from ..exits import Exit
from ..models.errors import ManifestError
from ..supervisor.failures import InstanceFailure
from .benching import EXAMPLES as BENCH_EXAMPLES
from .benching import bench
from .infer import EXAMPLES as INFER_EXAMPLES
from .infer import infer
from .inspecting import STATUS_EXAMPLES, models, status, version
from .output import Failure, Refusal, complain
from .recording import EXAMPLES as RECORD_EXAMPLES
from .recording import record
from .serving import DEMO_EXAMPLES, SERVE_EXAMPLES, check_config, demo, serve
from .simulating import EXAMPLES as SIMULATE_EXAMPLES
from .simulating import simulate
from .tuning import GET_EXAMPLES, SET_EXAMPLES, get_knobs, set_knobs

app = typer.Typer(
    name="tensord",
    help="One daemon owns this host's GPUs and models; every process infers through shared memory.\n\n"
    "[cyan]tensord demo[/] shows what it does; [cyan]tensord COMMAND --help[/] has examples.",
    epilog="Exit codes: 0 done · 1 a request or command failed · 2 usage · 3 configuration · 4 models · "
    "5 another instance runs · 6 device · 7 memory, descriptors or processes · 8 no daemon answers · 130 Ctrl-C",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog=SERVE_EXAMPLES)(serve)
app.command(epilog=DEMO_EXAMPLES)(demo)
app.command(epilog=INFER_EXAMPLES)(infer)
app.command(epilog=BENCH_EXAMPLES)(bench)
app.command(epilog=RECORD_EXAMPLES)(record)
app.command(epilog=SIMULATE_EXAMPLES)(simulate)
app.command()(models)
app.command(epilog=STATUS_EXAMPLES)(status)
app.command("get", epilog=GET_EXAMPLES)(get_knobs)
app.command("set", epilog=SET_EXAMPLES)(set_knobs)
app.command("check-config")(check_config)
app.command()(version)
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="As the command version.")] = False,
) -> None:
    if show_version:
        version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201 - it is formatted already
        raise Refusal("name a command (see tensord --help)", Exit.USAGE)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; every error that a person can cause or mend is one line on standard error."""
    try:
        code = app(arguments, prog_name="tensord", standalone_mode=False)
        return int(code or 0)
    except typer.TyperException as error:
        command = " ".join(["tensord", *arguments[:1]]) if arguments[:1] and arguments[0] in COMMANDS else "tensord"
        return complain(f"{error.format_message().rstrip('.')} (see {command} --help)", Exit.USAGE)
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
