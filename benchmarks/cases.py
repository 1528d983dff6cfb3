"""What is measured: the tables to add to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from .generator import Lane
from .request import Array, Request, identity

Random = np.random.Generator


# ── the hop ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Payload:
    """Rows of the identity model, one in a request, and the loads under which they are measured."""

    name: str
    floats: int
    max_batch: int
    """The best of 1, 4, 16 and 64 for this payload under load: a larger batch spares descriptors and wake-ups, and
    gathers more bytes that lie in several places."""
    inline: bool
    """Whether it may go inline: `inline_bytes_max` is 1 MiB."""
    loads: tuple[tuple[int, int], ...]
    """Connections and depth."""

    def is_slow(self, load: tuple[int, int]) -> bool:
        """Whether a request takes so long that few are answered in a second."""
        in_flight_bytes = 4 * self.floats * load[0] * load[1]
        return self.floats > 1_000_000 or in_flight_bytes > 64 * 2**20

    @property
    def model(self) -> str:
        """Its model's name in the benchmark's repository."""
        return f"identity-{self.floats}"

    @property
    def request(self) -> Request:
        """One row."""
        return identity(self.model, self.floats)


PAYLOADS: Final = (
    Payload("4 KiB", 1024, 64, True, ((1, 1), (1, 16), (16, 1), (16, 16), (64, 1), (64, 16))),
    Payload("588 KiB", 3 * 224 * 224, 16, True, ((1, 1), (1, 16), (16, 1), (16, 16), (64, 1))),
    Payload("16 MiB", 4 * 1024 * 1024, 1, False, ((1, 1), (1, 16), (16, 1))),
)
"""Larger loads of large payloads would take more than 4 GiB of memory."""

LATENCY: Final = (1, 1)
THROUGHPUT: Final = (64, 1)
"""The loads that budgets are about."""


# ── models at saturation ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Pressure:
    """How a model is saturated. Without rows a request is a whole batch of the best size."""

    name: str
    rows: int | None
    lane: Lane
    connections: int
    depth: int


PRESSURES: Final = (
    Pressure("one row a request, inline", 1, "inline", 64, 16),
    Pressure("one row a request, arena", 1, "arena", 64, 16),
    Pressure("a batch a request, inline", None, "inline", 4, 4),
    Pressure("a batch a request, arena", None, "arena", 4, 4),
)

BATCHES: Final = (1, 8, 16, 32, 64, 128, 256)
"""Of these the offline loop's best is taken, and the daemon and the peer are told it as their largest batch."""


@dataclass(frozen=True, slots=True)
class Saturated:
    """A model that is served at saturation, and how to make a batch of its inputs."""

    name: str
    """In configs/models, or of an example that is installed."""
    inputs: Callable[[int, Random], list[Array]]
    pressures: tuple[Pressure, ...] = PRESSURES
    batches: tuple[int, ...] = BATCHES


TOKENS: Final = 16
"""Of a sentence."""

SLOW_PRESSURES: Final = (
    Pressure("one row a request, inline", 1, "inline", 16, 8),
    Pressure("a batch a request, arena", None, "arena", 2, 2),
)
"""For a model that takes some hundred rows a second: what is in flight must be answered within the window."""


def sentences(rows: int, random: Random) -> list[Array]:
    """Tokens that are words, and the mask that says so."""
    return [random.integers(1_000, 30_000, (rows, TOKENS)), np.ones((rows, TOKENS), np.int64)]


SATURATED: Final = (
    Saturated("digits", lambda rows, random: [random.random((rows, 1, 8, 8), np.float32)]),
    Saturated("minilm", sentences, SLOW_PRESSURES, (1, 8, 16, 32)),
)


# ── overload ────────────────────────────────────────────────────────────────────────────────────

OVERLOAD: Final = 5
"""Times the capacity."""


@dataclass(frozen=True, slots=True)
class Overload:
    """Arrivals that do not wait for answers, each worth nothing after its deadline."""

    model: Saturated
    rows: int
    connections: int
    peak_depth: int
    """Of the closed loop that finds the capacity."""
    deadline_ms: float

    @property
    def name(self) -> str:
        """For the tables."""
        return f"{self.model.name}, rows a request: {self.rows}, deadline {self.deadline_ms:g} ms"


OVERLOADS: Final = (Overload(SATURATED[0], 64, 16, 4, 100.0), Overload(SATURATED[0], 1, 64, 16, 100.0))
OPEN_DEPTH: Final = 256
"""Requests that a connection may have in flight in the open loop, well below `in_flight_max`."""
