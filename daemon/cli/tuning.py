"""`tensord get` and `tensord set`: the live knobs."""

from typing import Annotated, TypeVar

import typer
from rich.table import Table

from .. import control
from ..exits import Exit
from .output import Refusal, console
from .places import Socket, control_socket

AnswerT = TypeVar("AnswerT", control.Values, control.Applied)


def get_knobs(
    addresses: Annotated[
        list[str] | None,
        typer.Argument(help="max_batch, digits.max_batch, cpu:0.spin_us, … All knobs if none is named."),
    ] = None,
    socket: Socket = None,
) -> None:
    """Show knobs: their value, and who set it.

    [dim]tensord get digits.max_batch[/]
    """
    answer = control.ask(control_socket(socket), control.Get(addresses or []))
    values = _expect(answer, control.Values)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("KNOB", "VALUE", "SET BY", "CHANGES", "WHAT IT IS"):
        table.add_column(heading, overflow="fold")
    for knob in values.knobs:
        table.add_row(f"[bold]{knob.address}[/]", knob.text, knob.source, knob.context, f"[dim]{knob.help}[/]")
    console.print(table)
    console.print(f"[dim]epoch {values.epoch}[/]")


def set_knobs(
    settings: Annotated[
        list[str], typer.Argument(help="KNOB=VALUE or TARGET.KNOB=VALUE; KNOB= takes an earlier setting back.")
    ],
    why: Annotated[str, typer.Option(help="A note for the history.")] = "",
    expected_epoch: Annotated[
        int | None, typer.Option(help="Refuse if anybody changed a knob after this epoch.", show_default=False)
    ] = None,
    socket: Socket = None,
) -> None:
    """Change knobs while the daemon runs: all of them, or, if one is wrong, none.

    [dim]tensord set digits.max_batch=32 digits.window_us=500 --why "fewer, larger batches"[/]
    """
    request = control.Set(dict(_parse(setting) for setting in settings), why, expected_epoch)
    applied = _expect(control.ask(control_socket(socket), request), control.Applied)
    for change in applied.changes:
        note = "  [yellow]takes effect at the next restart[/]" if change.pending_restart else ""
        if change.keeps_own:
            note += f"  [yellow]not for {', '.join(change.keeps_own)}, set on their own[/]"
        console.print(f"[bold]{change.address}[/]  {change.old} → [green]{change.new}[/]{note}", soft_wrap=True)
    state = f"converging: {', '.join(applied.converging)}" if applied.converging else "applied by every process"
    console.print(f"[dim]epoch {applied.epoch}, {state}[/]")


def _parse(setting: str) -> tuple[str, str | None]:
    address, equals, value = setting.partition("=")
    if not equals or not address:
        raise typer.BadParameter(f"{setting!r} is not KNOB=VALUE")
    return address, value or None


def _expect(answer: control.Answer, kind: type[AnswerT]) -> AnswerT:
    """The answer, if the daemon did what was asked. Raises Refusal."""
    if isinstance(answer, control.Refused):
        raise Refusal(answer.sentence, Exit(answer.exit))
    assert isinstance(answer, kind)
    return answer
