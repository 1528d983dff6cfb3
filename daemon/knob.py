"""One setting: what it may be, and how its value is read from and written as text.

A value is kept in the knob's own unit, which its name ends with where it is a time: the value of
`window_us` is an int of microseconds. Text may bring another unit ("5ms"); it must then be a whole
number of the knob's own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from typing import Final, TypeAlias

Setting: TypeAlias = int | float | str | bool
"""A knob's value, in the knob's own unit."""

NANOSECONDS: Final = {
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1_000,
    "µs": 1_000,
    "ns": 1,
}
BYTES: Final = {
    "TiB": 2**40,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "KB": 10**3,
    "kB": 10**3,
    "B": 1,
}
SWITCH_WORDS: Final = {"on": True, "true": True, "off": False, "false": False}

_QUANTITY = re.compile(r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)\s*")
_SHOWN_CHARACTERS_MAX = 80

SIZES_MAX: Final = 32
"""Numbers in the value of a knob that holds several."""


class Kind(StrEnum):
    """What a knob's value is, and so how its text is read."""

    INTEGER = "integer"
    NUMBER = "number"
    SWITCH = "switch"
    CHOICE = "choice"
    DURATION = "duration"
    BYTES = "bytes"
    SIZES = "sizes"


class Scope(StrEnum):
    """What a knob's value belongs to. All but global knobs have a general value and one per target."""

    GLOBAL = "global"
    MODEL = "model"
    DEVICE = "device"
    TENANT = "tenant"  # a class of tenants


class Context(StrEnum):
    """When a new value acts."""

    LIVE = "live"  # at once in the front end, at the next batch in a worker
    DRAIN = "drain"  # once the work in flight is done
    RESTART = "restart"  # when the process that uses it starts next


@dataclass(eq=False, repr=False)
class KnobError(Exception):
    """A knob that does not exist or cannot have this value; `str()` is one line that says what can be done."""

    name: str
    """The knob, with its target where one was given: `digits.max_batch`."""
    value: Setting | None
    """The value as it was given; None where the fault is not the value's."""
    remedy: str

    def __str__(self) -> str:
        name = self.name if self.name.isprintable() else repr(self.name)
        return f"{name}: {self.remedy}" if self.value is None else f"{name} = {shown(self.value)}: {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """The one declaration of a setting. Everything that reads, shows or documents it derives from this."""

    name: str
    kind: Kind
    unit: str = ""
    """What the value counts; a key of NANOSECONDS for a duration, and then the end of the name."""
    default: Setting
    minimum: int | float = 0
    maximum: int | float = 0
    """The range, both ends allowed, in the knob's unit; of no meaning to a switch or a choice."""
    choices: tuple[str, ...] = ()
    scope: Scope
    context: Context = Context.LIVE
    help: str
    """One sentence: what it decides."""
    trades: str
    """One sentence: what a higher value gives, and what for."""

    def parse(self, value: Setting) -> Setting:
        """`value`, or what its text says, in this knob's unit. Raises KnobError unless it is allowed."""
        parsed: Setting | None
        match self.kind:
            case Kind.SWITCH:
                parsed = SWITCH_WORDS.get(str(value).lower()) if isinstance(value, str | bool) else None
            case Kind.CHOICE:
                parsed = value if value in self.choices else None
            case Kind.SIZES:
                parsed = self._parse_sizes(value)
            case _:
                parsed = self._parse_quantity(value)
        if parsed is None:
            raise KnobError(self.name, value, f"give {self.allowed}")
        return parsed

    def format(self, value: Setting) -> str:
        """The shortest exact text of `value`, a value of this knob; `parse` reads it back."""
        match self.kind:
            case Kind.SWITCH:
                return "on" if value else "off"
            case Kind.DURATION:
                return _in_largest_unit(int(value), self.unit, NANOSECONDS, tuple(NANOSECONDS))
            case Kind.BYTES:
                return _in_largest_unit(int(value), "B", BYTES, ("TiB", "GiB", "MiB", "KiB", "B"))
            case Kind.NUMBER:
                return str(int(value) if float(value).is_integer() else value)
            case _:
                return str(value)

    @property
    def range(self) -> str:
        """The allowed values: `1 to 65536 rows`, `0us to 10s`, `debug, info, warning, error`."""
        if self.kind is Kind.SWITCH:
            return "on or off"
        if self.kind is Kind.CHOICE:
            return ", ".join(self.choices)
        counted = f" {self.unit}" if self.unit and self.kind in (Kind.INTEGER, Kind.NUMBER, Kind.SIZES) else ""
        low, high = self.format(self.minimum), self.format(self.maximum)
        return f"{'each ' if self.kind is Kind.SIZES else ''}{low} to {high}{counted}"

    @property
    def allowed(self) -> str:
        """The allowed values as the object of a sentence that begins with "give"."""
        match self.kind:
            case Kind.INTEGER:
                return f"a whole number, {self.range}"
            case Kind.NUMBER:
                return f"a number, {self.range}"
            case Kind.DURATION:
                return f'a duration in whole {self.unit}, {self.range} (such as "5s", or a bare number of {self.unit})'
            case Kind.BYTES:
                return f'a size, {self.range} (such as "64MiB", or a bare number of bytes)'
            case Kind.SIZES:
                return f'up to {SIZES_MAX} whole numbers in ascending order, {self.range} (such as "8,16,32"), or ""'
            case Kind.CHOICE if len(self.choices) > 1:
                return f"one of {self.range}"
            case _:
                return self.range

    def _parse_quantity(self, value: Setting) -> int | float | None:
        amount = self._in_own_unit(value)
        if amount is None:
            return None
        try:
            number = float(amount) if self.kind is Kind.NUMBER else amount.numerator
        except OverflowError:
            return None
        whole = self.kind is Kind.NUMBER or amount.denominator == 1
        return number if whole and self.minimum <= number <= self.maximum else None

    def _parse_sizes(self, value: object) -> str | None:
        """Text of ascending whole numbers with commas between them; a TOML array says the same."""
        if isinstance(value, str):
            parts: list[object] = list(value.split(",")) if value else []
        elif isinstance(value, list):
            parts = value
        else:
            parts = [value]
        sizes = [self._parse_size(part) for part in parts]
        ascending = all(0 < first < second for first, second in pairwise([0.5, *sizes]))
        return ",".join(map(str, sizes)) if ascending and len(sizes) <= SIZES_MAX else None

    def _parse_size(self, part: object) -> int:
        """0, which is never allowed, for what is none."""
        amount = self._in_own_unit(part) if isinstance(part, int | str) else None
        if amount is None or amount.denominator != 1 or not self.minimum <= amount <= self.maximum:
            return 0
        return amount.numerator

    def _in_own_unit(self, value: Setting) -> Fraction | None:
        if isinstance(value, bool) or not isinstance(value, int | float | str):  # `true`; a table of a TOML file
            return None
        number: Setting = value
        suffix = ""
        if isinstance(value, str):
            match = _QUANTITY.fullmatch(value)
            if match is None:
                return None
            number, suffix = match.groups()
        try:
            amount = Fraction(number)
        except (ValueError, OverflowError):  # nan, inf, or more digits than Python converts
            return None
        if not suffix:
            return amount
        units = {Kind.DURATION: NANOSECONDS, Kind.BYTES: BYTES}.get(self.kind, {})
        own = units.get(self.unit, 1)
        return amount * Fraction(units[suffix], own) if suffix in units else None


def shown(value: object) -> str:
    """`value` for an error message: on one line, quoted where it is text, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[: _SHOWN_CHARACTERS_MAX - 1]}…"


def suggestion(word: str, known: Iterable[str]) -> str:
    """What to write instead of `word`: the nearest of `known`, or all of them where none is near."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"


def _in_largest_unit(value: int, own: str, units: dict[str, int], names: tuple[str, ...]) -> str:
    amount = value * units[own]
    unit = next((name for name in names if amount and amount % units[name] == 0), own)
    return f"{amount // units[unit]}{unit}"
