"""A knob by itself, of kinds and ranges that no declared one may have; test_knobs.py holds what is declared to it."""

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon.knob import (
    BYTES,
    NANOSECONDS,
    SWITCH_WORDS,
    Context,
    Kind,
    Knob,
    KnobError,
    Scope,
    Setting,
    shown,
    suggestion,
)

NOT_SCALARS = ([1], {"a": 1}, None, b"1", 1j)


def knob(kind: Kind, **fields: Any) -> Knob:
    stated: dict[str, Any] = {"name": "k", "default": 0, "scope": Scope.GLOBAL, "help": "Helps.", "trades": "Trades."}
    return Knob(kind=kind, **stated | fields)


def refusal(one: Knob, value: Any) -> str:
    with pytest.raises(KnobError) as caught:
        one.parse(value)
    assert (caught.value.name, caught.value.value) == (one.name, value)
    return str(caught.value)


SWITCH = knob(Kind.SWITCH, default=False)
CHOICE = knob(Kind.CHOICE, default="a", choices=("a", "b"))
DEGREES = knob(Kind.INTEGER, unit="degrees", minimum=-5, maximum=5)
SHARE = knob(Kind.NUMBER, unit="cores", minimum=0.5, maximum=2)
PAUSE = knob(Kind.DURATION, unit="ms", minimum=0, maximum=10_000)
SIZE = knob(Kind.BYTES, unit="bytes", minimum=0, maximum=2**40)
EVERY_KIND = pytest.mark.parametrize("one", [SWITCH, CHOICE, DEGREES, SHARE, PAUSE, SIZE], ids=lambda one: one.kind)


def test_a_knob_acts_at_once_unless_it_says_otherwise() -> None:
    assert DEGREES.context is Context.LIVE


# ── values ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("one", "given_", "value"),
    [
        (DEGREES, "-5", -5),
        (DEGREES, -0.0, 0),
        (DEGREES, "4.0", 4),
        (SHARE, 1, 1.0),
        (SHARE, "0.5", 0.5),
        (PAUSE, "0.25 s", 250),
        (PAUSE, 3, 3),
        (SIZE, "0.5KiB", 512),
        (SWITCH, "On", True),
        (SWITCH, False, False),
        (CHOICE, "b", "b"),
    ],
)
def test_a_value_is_read_in_the_knobs_own_unit(one: Knob, given_: Setting, value: Setting) -> None:
    parsed = one.parse(given_)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("one", "value"),
    [
        (DEGREES, -6),
        (DEGREES, "5.5"),
        (DEGREES, "5ms"),
        (DEGREES, "+5"),
        (DEGREES, "1e0"),
        (DEGREES, "."),
        (DEGREES, ""),
        (SHARE, 2.0000001),
        (SHARE, "1KiB"),
        (SHARE, 10**400),
        (SHARE, float("inf")),
        (SHARE, "9" * 5000),
        (PAUSE, "1ns"),
        (PAUSE, "1KiB"),
        (PAUSE, "1 MS"),
        (SIZE, "1ms"),
        (SIZE, "0.5B"),
        (SIZE, True),
        (SWITCH, "yes"),
        (SWITCH, 0),
        (CHOICE, "A"),
        (CHOICE, ""),
    ],
)
def test_what_is_not_exactly_allowed_is_refused(one: Knob, value: Setting) -> None:
    assert refusal(one, value) == f"k = {shown(value)}: give {one.allowed}"


@EVERY_KIND
@pytest.mark.parametrize("value", NOT_SCALARS, ids=repr)
def test_what_is_no_scalar_is_refused(one: Knob, value: object) -> None:
    assert refusal(one, value).endswith(f"give {one.allowed}")


@given(unit=st.sampled_from(list(NANOSECONDS)), own=st.sampled_from(list(NANOSECONDS)), amount=st.integers(0, 10**6))
def test_a_duration_is_exact_in_the_knobs_unit_or_refused(unit: str, own: str, amount: int) -> None:
    one = knob(Kind.DURATION, unit=own, maximum=2**70)
    nanoseconds = amount * NANOSECONDS[unit]
    if nanoseconds % NANOSECONDS[own]:
        refusal(one, f"{amount}{unit}")
    else:
        assert one.parse(f"{amount}{unit}") == nanoseconds // NANOSECONDS[own]


@given(unit=st.sampled_from(list(BYTES)), amount=st.integers(0, 10**6))
def test_a_size_is_a_number_of_bytes_whatever_its_unit(unit: str, amount: int) -> None:
    assert knob(Kind.BYTES, maximum=2**70).parse(f"{amount}{unit}") == amount * BYTES[unit]


@given(own=st.sampled_from(list(NANOSECONDS)), value=st.integers(0, 2**60))
def test_a_duration_of_any_unit_is_read_back(own: str, value: int) -> None:
    one = knob(Kind.DURATION, unit=own, maximum=2**60)
    assert one.parse(one.format(value)) == value


@pytest.mark.parametrize(
    ("one", "value", "text"),
    [
        (PAUSE, 9_000, "9s"),
        (PAUSE, 0, "0ms"),
        (SIZE, 2**40, "1TiB"),
        (SIZE, 1_500, "1500B"),
        (SHARE, 2.0, "2"),
        (SHARE, 1.5, "1.5"),
        (DEGREES, -5, "-5"),
        (CHOICE, "b", "b"),
        (SWITCH, True, "on"),
        (SWITCH, False, "off"),
    ],
)
def test_text_is_the_shortest_and_is_read_back(one: Knob, value: Setting, text: str) -> None:
    assert one.format(value) == text
    assert one.parse(text) == value


def test_every_word_of_a_switch_is_read_in_any_case() -> None:
    for word, value in SWITCH_WORDS.items():
        assert [SWITCH.parse(spelt) for spelt in (word, word.upper(), word.title())] == [value] * 3


# ── words ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("one", "range_", "allowed"),
    [
        (SWITCH, "on or off", "on or off"),
        (CHOICE, "a, b", "one of a, b"),
        (knob(Kind.CHOICE, choices=("a",)), "a", "a"),
        (DEGREES, "-5 to 5 degrees", "a whole number, -5 to 5 degrees"),
        (knob(Kind.INTEGER, maximum=3), "0 to 3", "a whole number, 0 to 3"),
        (SHARE, "0.5 to 2 cores", "a number, 0.5 to 2 cores"),
        (PAUSE, "0ms to 10s", 'a duration in whole ms, 0ms to 10s (such as "5s", or a bare number of ms)'),
        (SIZE, "0B to 1TiB", 'a size, 0B to 1TiB (such as "64MiB", or a bare number of bytes)'),
    ],
)
def test_the_range_is_said_with_its_unit(one: Knob, range_: str, allowed: str) -> None:
    assert (one.range, one.allowed) == (range_, allowed)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KnobError("digits.max_batch", 0, "give more"), "digits.max_batch = 0: give more"),
        (KnobError("k", False, "give more"), "k = False: give more"),
        (KnobError("k", None, "no such knob"), "k: no such knob"),
        (KnobError("k\x1b[2J", None, "no such knob"), "'k\\x1b[2J': no such knob"),
    ],
)
def test_an_error_is_one_sentence(error: KnobError, sentence: str) -> None:
    assert str(error) == sentence
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(again), str(again), again.value) == (KnobError, sentence, error.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb", r"'a\nb'"),
        ("x" * 78, repr("x" * 78)),
        ("x" * 79, "'" + "x" * 78 + "…"),
        ([10**5000], "a number of thousands of digits"),
    ],
    ids=["control", "fits", "cut", "digits"],
)
def test_a_value_is_shown_on_one_line_of_80_characters(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("max_bach", ["window_us", "max_batch"], "did you mean max_batch?"),
        ("zz", ["window_us", "max_batch"], "known: max_batch, window_us"),
        ("zz", [], "known: none"),
    ],
)
def test_a_suggestion_is_the_nearest_or_all(word: str, known: list[str], said: str) -> None:
    assert suggestion(word, iter(known)) == said
