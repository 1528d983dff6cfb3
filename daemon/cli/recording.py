"""`tensord record`: the load of a running daemon as a file, for `tensord simulate --trace`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .. import control
from ..exits import Exit
from ..knob import Kind, Knob, KnobError, Scope
from .output import Failure, Refusal, console, errors, examples
from .places import Socket, control_socket

EXAMPLES = examples(
    "tensord record monday.trace --seconds 60",
    "tensord record busy.trace --seconds 10 --bytes-max 16MiB && tensord simulate --trace busy.trace",
)
_SIZE = Knob(
    name="--bytes-max",
    kind=Kind.BYTES,
    default=0,
    minimum=2**20,
    maximum=256 * 2**20,
    scope=Scope.GLOBAL,
    help="The file's bound.",
    trades="Higher: longer recordings.",
)


def record(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, which the daemon's user can make.")],
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="For how long.")] = 10.0,
    bytes_max: Annotated[str, typer.Option(metavar="BYTES", help="It ends when the file would be larger.")] = "64MiB",
    socket: Socket = None,
) -> int:
    """Record the load: arrivals, sizes, waits and times of every request; no tensors, no names of clients.

    `tensord simulate --trace FILE` replays it, under the same settings or others.
    """
    try:
        size = int(_SIZE.parse(bytes_max))
    except KnobError as error:
        raise Refusal(str(error), Exit.USAGE) from error
    if errors.is_terminal:
        errors.print(f"[dim]recording for {seconds:g} s …[/]")
    request = control.Record(str(file.absolute()), seconds, size)
    answer = control.ask(control_socket(socket), request, seconds + control.TIMEOUT_S)
    if isinstance(answer, control.Refused):
        raise Refusal(answer.sentence, Exit(answer.exit))
    assert isinstance(answer, control.Recorded)
    if answer.complaint:
        raise Failure(f"{file}: {answer.records} requests, then it ended early: {answer.complaint}")
    console.print(f"[green]{answer.records:,}[/] requests in {escape(str(file))}", soft_wrap=True)
    return Exit.OK
