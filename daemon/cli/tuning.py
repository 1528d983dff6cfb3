"""`tensord get` and `tensord set`: the live knobs."""

from typing import Annotated, TypeVar

import typer
from rich.markup import escape
from rich.padding import Padding

from .. import control
from ..exits import Exit
from ..knob import Context, Knob, Setting
from ..knobs import KNOBS
from .output import Refusal, console, examples, table
from .places import Socket, control_socket

AnswerT = TypeVar("AnswerT", control.Values, control.Applied)
RANGE_CHARACTERS_MAX = 34
"""Of a range in the list of knobs; `tensord get KNOB` shows all of it."""

GET_EXAMPLES = examples("tensord get", "tensord get digits.max_batch hang_timeout_s", "tensord get cpu:0.spin_us")
SET_EXAMPLES = examples(
    "tensord set digits.max_batch=32 digits.window_us=2ms",
    "tensord set arenas_bytes_max=8GiB --why 'larger cameras'",
    "tensord set digits.max_batch=",
)


def get_knobs(
    addresses: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KNOB", help="Those to explain: max_batch, digits.max_batch. Without any, all are listed."
        ),
    ] = None,
    socket: Socket = None,
) -> None:
    """List all knobs, or explain some: what each is, what it trades, its value and who set it.

    A target is a model or a device; what is said of it beats what is said in general.
    """
    values = _expect(control.ask(control_socket(socket), control.Get(addresses or [])), control.Values)
    if addresses:
        for state in values.knobs:
            _explain(state)
        return
    rows = table("KNOB", "VALUE", "SET BY", "ALLOWED")
    for state in values.knobs:
        knob = _knob(state.address)
        restart = " [yellow](at a restart)[/]" if knob.context is Context.RESTART else ""
        rows.add_row(f"[bold]{state.address}[/]", state.text, state.source, f"[dim]{_allowed(knob)}[/]{restart}")
    console.print(rows)
    console.print(f"[dim]epoch {values.epoch} · tensord get KNOB explains one, tensord set KNOB=VALUE changes it[/]")


def _allowed(knob: Knob) -> str:
    """The range, as far as it fits into a line."""
    return knob.range if len(knob.range) <= RANGE_CHARACTERS_MAX else f"one of {len(knob.choices)} names"


def _explain(state: control.KnobState) -> None:
    knob = _knob(state.address)
    default = "" if state.source == "default" else f" [dim](default {knob.format(knob.default)})[/]"
    console.print(f"[bold]{state.address}[/] = [green]{escape(state.text)}[/]  set by {state.source}{default}")
    when = "takes effect when the process that uses it starts next" if knob.context is Context.RESTART else "live"
    for line in (knob.help, knob.trades, f"Allowed: {knob.range}; {when}."):
        console.print(Padding(escape(line), (0, 0, 0, 2)))


def set_knobs(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="KNOB=VALUE",
            help="A value may bring its unit: 500us, 2ms, 1m; 64KiB, 8GiB. No value takes an earlier setting back.",
        ),
    ],
    why: Annotated[str, typer.Option(help="A note for the history.")] = "",
    expected_epoch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Refuse if anybody changed a knob after epoch N.", show_default=False),
    ] = None,
    socket: Socket = None,
) -> None:
    """Change knobs while the daemon runs: all of them, or, if one is wrong, none.

    KNOB is a knob's name, for all models or devices, or TARGET.KNOB for one of them. The change lasts until the
    daemon stops; the configuration file keeps what shall hold for good.
    """
    request = control.Set(dict(_parse(setting) for setting in settings), why, expected_epoch)
    applied = _expect(control.ask(control_socket(socket), request), control.Applied)
    for change in applied.changes:
        knob = _knob(change.address)
        note = "  [yellow]waits until the process that uses it starts next[/]" if change.pending_restart else ""
        if change.keeps_own:
            note += f"  [yellow]not for {', '.join(change.keeps_own)}, set on their own[/]"
        old, new = _text(knob, change.old), _text(knob, change.new)
        console.print(f"[bold]{change.address}[/]  {old} → [green]{new}[/]{note}", soft_wrap=True)
    state = f"converging: {', '.join(applied.converging)}" if applied.converging else "applied by every process"
    console.print(f"[dim]epoch {applied.epoch}, {state}[/]")


def _parse(setting: str) -> tuple[str, str | None]:
    address, equals, value = setting.partition("=")
    if not equals or not address:
        raise typer.BadParameter(f"{setting!r} is not KNOB=VALUE")
    return address, value or None


def _knob(address: str) -> Knob:
    return KNOBS[address.rpartition(".")[2]]


def _text(knob: Knob, value: Setting) -> str:
    return escape(knob.format(value))


def _expect(answer: control.Answer, kind: type[AnswerT]) -> AnswerT:
    """The answer, if the daemon did what was asked. Raises Refusal."""
    if isinstance(answer, control.Refused):
        raise Refusal(answer.sentence, Exit(answer.exit))
    assert isinstance(answer, kind)
    return answer
