"""What a benchmark is asked to do, and whether that makes sense: by itself, for a model, and for this daemon."""

import math
from enum import StrEnum
from typing import Final

import msgspec

from tensord.ipc.client.model import RequestPlan
from tensord.ipc.client.request import fits_inline, takes_arena
from tensord.ipc.tensors import ModelSpec, align
from tensord.ipc.wire import Welcome

CLIENTS_MAX: Final = 10_000
"""Connections: as many as a daemon takes by default."""

DEPTH_MAX: Final = 65_536
"""Requests in flight on one connection: the largest value of the knob in_flight_max."""

ROWS_MAX: Final = 65_536
"""Rows of one request: the largest value of the knob max_batch."""

SECONDS_MAX: Final = 3_600
RATE_MAX: Final = 1_000_000
"""Arrivals per second; a process of the load makes about twenty thousand."""

TIMEOUT_MS_MAX: Final = 3_600_000
SEED_MAX: Final = 2**63 - 1

IN_FLIGHT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes in flight on one connection of an open loop whose depth nobody has chosen."""


class Lane(StrEnum):
    """How tensors shall travel."""

    AUTO = "auto"
    """As the client library chooses by their size."""
    INLINE = "inline"
    ARENA = "arena"


class Arrivals(StrEnum):
    """How the arrivals of an open loop are spaced."""

    POISSON = "poisson"
    """Independently of each other, as those of many users are."""
    CONSTANT = "constant"


class BadOption(Exception):
    """An option has a value that makes no sense; `str()` names option, value and remedy."""

    def __init__(self, option: str, value: object, remedy: str) -> None:
        super().__init__(f"{option} is {value}: {remedy}")


class Plan(msgspec.Struct, frozen=True):
    """What was asked for on the command line."""

    model: str
    clients: int = 16
    """Connections."""
    depth: int | None = None
    """Requests in flight on each. None: 1 in a closed loop, in an open one as many as the daemon takes."""
    seconds: float = 10.0
    warmup_s: float = 1.0
    rate_per_s: float | None = None
    """Arrivals per second of an open loop; None for a closed one."""
    arrivals: Arrivals | None = None
    lane: Lane = Lane.AUTO
    rows: int = 1
    timeout_ms: int = 30_000
    """Of a request, from its begin."""
    seed: int = 1

    def check(self) -> None:
        """Raises BadOption."""
        _within("--clients", self.clients, 1, CLIENTS_MAX, "connections")
        _within("--seconds", self.seconds, 0.1, SECONDS_MAX, "seconds")
        _within("--warmup", self.warmup_s, 0, SECONDS_MAX, "seconds")
        _within("--rows", self.rows, 1, ROWS_MAX, "rows")
        _within("--timeout", self.timeout_ms, 1, TIMEOUT_MS_MAX, "milliseconds")
        _within("--seed", self.seed, 0, SEED_MAX, "as seed")
        if self.depth is not None:
            _within("--depth", self.depth, 1, DEPTH_MAX, "requests in flight on each connection")
        if self.rate_per_s is not None:
            _within("--rate", self.rate_per_s, 0.1, RATE_MAX, "requests per second")
        elif self.arrivals is not None:
            raise BadOption("--arrivals", self.arrivals, "only an open loop has arrivals: give --rate, too")

    def check_rows(self, spec: ModelSpec) -> None:
        """Raises BadOption where the model takes fewer."""
        if self.rows > spec.rows_max:
            raise BadOption(
                "--rows", f"{self.rows:,}", f"model {spec.name!r} takes 1 to {spec.rows_max:,} in one request"
            )


def _within(option: str, value: float, least: float, most: int, noun: str) -> None:
    """Raises BadOption for a value outside, and for one that is no number."""
    if not (math.isfinite(value) and least <= value <= most):
        raise BadOption(option, f"{value:,}", f"use {least} to {most:,} {noun}")


class Form(msgspec.Struct, frozen=True):
    """What the plan comes to with this model and this daemon."""

    lane: Lane
    """INLINE or ARENA."""
    depth: int
    request_bytes: int
    answer_bytes: int
    """At most, where sizes come from the data."""
    arena_bytes: int
    """Of a connection's arena; 0 on the inline lane."""


def form(plan: Plan, request: RequestPlan, welcome: Welcome) -> Form:
    """Lane, depth and sizes. Raises BadOption where the daemon would refuse what is asked for."""
    inline_max = welcome.inline_bytes_max
    lane = plan.lane
    if lane is Lane.AUTO:
        lane = Lane.ARENA if takes_arena(request, inline_max) else Lane.INLINE
    if lane is Lane.INLINE and not fits_inline(request, inline_max):
        needed = max(request.input_bytes, request.output_bytes)
        raise BadOption(
            "--lane",
            "inline",
            f"{plan.rows} rows have {needed:,} bytes, and the daemon takes {inline_max:,} inline: use --lane arena or "
            f"fewer --rows, or raise the knob inline_bytes_max",
        )
    slot_bytes = align(request.slot_bytes) if lane is Lane.ARENA else 0
    depth = plan.depth or _usual_depth(plan, request, slot_bytes, welcome)
    if depth > welcome.in_flight_max:
        remedy = f"the daemon takes {welcome.in_flight_max:,} in flight on one connection: use more --clients, or"
        raise BadOption("--depth", f"{depth:,}", f"{remedy} raise the knob in_flight_max")
    if depth * slot_bytes > welcome.arena_bytes_max:
        places = f"{depth:,} in flight × {slot_bytes:,} bytes do not fit into an arena, which has at most"
        remedy = f"{places} {welcome.arena_bytes_max:,}: use less, fewer --rows, or raise the knob arena_bytes_max"
        raise BadOption("--depth", f"{depth:,}", remedy)
    return Form(lane, depth, request.input_bytes, request.output_bytes, depth * slot_bytes)


def _usual_depth(plan: Plan, request: RequestPlan, slot_bytes: int, welcome: Welcome) -> int:
    if plan.rate_per_s is None:
        return 1
    each = max(slot_bytes, request.input_bytes, 1)
    return max(1, min(welcome.in_flight_max, IN_FLIGHT_BYTES_MAX // each))
