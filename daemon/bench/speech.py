"""What the command and the processes of its load say to each other: a JSON object a line, over pipes."""

import msgspec

from ..exits import Exit
from .plan import Form, Plan
from .tally import Tally


class Job(msgspec.Struct, frozen=True, tag=True):
    """To a process, first: what it is to do."""

    socket: str
    plan: Plan
    form: Form
    first: int
    """Its clients: from this one on,"""
    stop: int
    """and before this one."""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """To a process that is ready. Whatever else it is told afterwards means that it shall end early."""

    start_ns: int
    """CLOCK_MONOTONIC, the same for all of them."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End early."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From a process: its connections are open."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What it has so far."""

    answered: int
    failed: int


class Finished(msgspec.Struct, frozen=True, tag=True):
    """Its last word."""

    tally: Tally


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Its last word: it could not begin."""

    sentence: str
    exit: Exit


Order = Job | Begin | Stop
Answer = Ready | Progress | Finished | Failed

encode = msgspec.json.Encoder().encode
decode_order = msgspec.json.Decoder(Order).decode
decode_answer = msgspec.json.Decoder(Answer).decode
