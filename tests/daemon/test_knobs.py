import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon.knob import NANOSECONDS, shown
from tensord.daemon.knobs import KNOBS, Context, Kind, Knob, KnobError, Scope, Setting, example, find, reference

ROOT = Path(__file__).parents[2]
EVERY_KNOB = pytest.mark.parametrize("knob", KNOBS.values(), ids=KNOBS.keys())
NUMERIC = [knob for knob in KNOBS.values() if knob.kind not in (Kind.CHOICE, Kind.SWITCH, Kind.SIZES)]
QUANTITIES = st.from_regex(r"-?[0-9]{1,6}(\.[0-9]{1,3})? ?(ns|us|ms|s|m|h|B|kB|KiB|MiB|GB|x)?", fullmatch=True)
SWITCH = Knob(name="verbose", kind=Kind.SWITCH, default=False, scope=Scope.GLOBAL, help="Says more.", trades="Noise.")


def sentence_of(name: str, value: Setting) -> str:
    with pytest.raises(KnobError) as caught:
        find(name, value).parse(value)
    return str(caught.value)


@EVERY_KNOB
def test_default_is_allowed_and_in_canonical_form(knob: Knob) -> None:
    parsed = knob.parse(knob.default)
    assert (parsed, type(parsed)) == (knob.default, type(knob.default))


@EVERY_KNOB
def test_declaration_is_complete(knob: Knob) -> None:
    assert re.fullmatch(r"[a-z][a-z_]*", knob.name)  # no dot: addresses split at the last one
    assert knob.help.endswith(".")
    assert knob.trades.endswith(".")
    if knob.kind is Kind.DURATION:
        assert knob.unit in NANOSECONDS
        assert knob.name.endswith(f"_{knob.unit}")
    if knob.kind is Kind.BYTES:
        assert "bytes" in knob.name


@pytest.mark.parametrize("knob", NUMERIC, ids=lambda knob: knob.name)
def test_range_holds_both_ends_and_nothing_beyond(knob: Knob) -> None:
    assert knob.parse(knob.minimum) == knob.minimum
    assert knob.parse(knob.maximum) == knob.maximum
    for beyond in (knob.minimum - 1, knob.maximum + 1):
        with pytest.raises(KnobError):
            knob.parse(beyond)


@given(data=st.data(), knob=st.sampled_from(NUMERIC))
def test_parse_reads_back_what_format_writes(data: st.DataObject, knob: Knob) -> None:
    if knob.kind is Kind.NUMBER:
        value: Setting = data.draw(st.floats(float(knob.minimum), float(knob.maximum)))
    else:
        value = data.draw(st.integers(int(knob.minimum), int(knob.maximum)))
    assert knob.parse(knob.format(value)) == value


@given(text=st.text(max_size=40) | QUANTITIES, knob=st.sampled_from(list(KNOBS.values())))
def test_any_text_is_parsed_or_refused_in_one_line(text: str, knob: Knob) -> None:
    try:
        parsed = knob.parse(text)
    except KnobError as refused:
        sentence = str(refused)
    else:
        assert knob.parse(knob.format(parsed)) == parsed
        return
    assert sentence.startswith(f"{knob.name} = ")
    assert len(sentence.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("window_us", "5ms", 5_000),
        ("window_us", "500us", 500),
        ("window_us", "500 µs", 500),
        ("window_us", "2s", 2_000_000),
        ("window_us", "1.5ms", 1_500),
        ("window_us", "250", 250),
        ("window_us", "7000ns", 7),
        ("timeout_ms", "1m", 60_000),
        ("timeout_ms", "1h", 3_600_000),
        ("timeout_ms", 250, 250),
        ("drain_timeout_s", "2000ms", 2),
        ("inline_bytes_max", "64KiB", 65_536),
        ("inline_bytes_max", "1MiB", 1_048_576),
        ("inline_bytes_max", "2MB", 2_000_000),
        ("inline_bytes_max", "3kB", 3_000),
        ("inline_bytes_max", "4096", 4_096),
        ("arenas_bytes_max", "1TiB", 2**40),
        ("ingest_bytes", "1GiB", 2**30),
        ("max_batch", " 64 ", 64),
        ("max_batch", 64.0, 64),
        ("weight", "0.01", 0.01),
        ("weight", 2, 2.0),
        ("log_level", "debug", "debug"),
        ("preferred_batches", "", ""),
        ("preferred_batches", " 8, 16,32 ", "8,16,32"),
        ("preferred_batches", [8, 16], "8,16"),
        ("preferred_batches", [], ""),
        ("preferred_batches", 8, "8"),
    ],
)
def test_text_and_numbers_become_the_knobs_own_unit(name: str, text: Setting, value: Setting) -> None:
    parsed = KNOBS[name].parse(text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("window_us", 500, "500us"),
        ("window_us", 5_000, "5ms"),
        ("window_us", 1_500, "1500us"),
        ("window_us", 0, "0us"),
        ("timeout_ms", 30_000, "30s"),
        ("hang_timeout_s", 60, "1m"),
        ("hang_timeout_s", 90, "90s"),
        ("inline_bytes_max", 1_048_576, "1MiB"),
        ("inline_bytes_max", 1_000_000, "1000000B"),
        ("inline_bytes_max", 0, "0B"),
        ("weight", 1.0, "1"),
        ("weight", 0.25, "0.25"),
        ("order", "fcfs", "fcfs"),
        ("preferred_batches", "8,16", "8,16"),
        ("deadline_check", True, "on"),
    ],
)
def test_format_is_the_shortest_exact_text(name: str, value: Setting, text: str) -> None:
    assert KNOBS[name].format(value) == text


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_batch", 0, "max_batch = 0: give a whole number, 1 to 65536 rows"),
        ("max_batch", "1.5", "max_batch = '1.5': give a whole number, 1 to 65536 rows"),
        ("max_batch", True, "max_batch = True: give a whole number, 1 to 65536 rows"),
        ("max_batch", "64KiB", "max_batch = '64KiB': give a whole number, 1 to 65536 rows"),
        ("max_batch", "٦٤", "max_batch = '٦٤': give a whole number, 1 to 65536 rows"),
        ("weight", float("nan"), "weight = nan: give a number, 0.01 to 100"),
        ("weight", float("inf"), "weight = inf: give a number, 0.01 to 100"),
        ("log_level", "loud", "log_level = 'loud': give one of debug, info, warning, error"),
        ("order", "lifo", "order = 'lifo': give one of fcfs, sjf, hrrn, mlfq, edf"),
        (
            "timeout_ms",
            "500us",
            "timeout_ms = '500us': give a duration in whole ms, 1ms to 1h (such as \"5s\", or a bare number of ms)",
        ),
        (
            "window_us",
            "1 week",
            "window_us = '1 week': give a duration in whole us, 0us to 10s (such as \"5s\", or a bare number of us)",
        ),
        (
            "ingest_bytes",
            "5m",
            "ingest_bytes = '5m': give a size, 1MiB to 64GiB (such as \"64MiB\", or a bare number of bytes)",
        ),
        (
            "preferred_batches",
            "16,8",
            "preferred_batches = '16,8': give up to 32 whole numbers in ascending order, each 1 to 65536 rows (such as "
            '"8,16,32"), or ""',
        ),
        ("max_bach", 3, "max_bach = 3: no such knob; did you mean max_batch?"),
    ],
)
def test_error_names_the_knob_the_value_and_the_remedy(name: str, value: Setting, sentence: str) -> None:
    assert sentence_of(name, value) == sentence


@pytest.mark.parametrize(
    "value", ["9" * 5000, 10**5000, "1" + "0" * 400, "x" * 5000], ids=["digits", "int", "big", "x"]
)
@pytest.mark.parametrize("name", ["max_batch", "weight", "window_us", "log_level", "preferred_batches", "cache_shared"])
def test_absurd_values_are_refused_briefly(name: str, value: Setting) -> None:
    assert len(sentence_of(name, value)) < 300


@pytest.mark.parametrize("value", ["8,8", "0,8", "8,", ",", "8;16", "8,16.5", [8, "x"], [True], 1.5, "8,70000", [[8]]])
def test_sizes_out_of_order_or_range_are_refused(value: Setting) -> None:
    with pytest.raises(KnobError, match="ascending"):
        KNOBS["preferred_batches"].parse(value)


@pytest.mark.parametrize("value", [["a"], {}, None])
def test_values_that_no_knob_has_are_refused(value: Setting) -> None:
    for knob in (*KNOBS.values(), SWITCH):
        with pytest.raises(KnobError):
            knob.parse(value)


def test_hostile_names_and_values_stay_on_one_line() -> None:
    assert str(KnobError("a\nb", "c\nd", "no")) == "'a\\nb' = 'c\\nd': no"
    assert len(shown("x" * 5000)) == 80


def test_switch_reads_words_and_booleans() -> None:
    assert [SWITCH.parse(value) for value in (True, "on", "TRUE", False, "off", "false")] == [True] * 3 + [False] * 3
    assert [SWITCH.parse(SWITCH.format(value)) for value in (True, False)] == [True, False]
    with pytest.raises(KnobError, match=r"^verbose = 1: give on or off$"):
        SWITCH.parse(1)


def test_find_within_a_scope_says_where_the_knob_belongs() -> None:
    with pytest.raises(KnobError, match=r"^pipeline_depth = 3: this is a global knob, .*: set it in \[knobs\]$"):
        find("pipeline_depth", 3, scope=Scope.MODEL)
    with pytest.raises(
        KnobError, match=r"^spin_us = 3: this is a device knob, not a model knob: set it in \[knobs\] or"
    ):
        find("spin_us", 3, scope=Scope.MODEL)
    with pytest.raises(KnobError, match=r"^zz = 3: no such knob; known: device_weight, spin_us, threads$"):
        find("zz", 3, scope=Scope.DEVICE)


def test_reference_page_is_what_the_declarations_say() -> None:
    assert reference() == (ROOT / "docs/reference/knobs.md").read_text()


def test_reference_describes_every_knob() -> None:
    page = reference()
    for knob in KNOBS.values():
        assert f"### `{knob.name}`" in page
        assert knob.help in page
        assert knob.trades in page


def test_example_uncommented_sets_every_knob_to_its_default() -> None:
    uncommented = re.sub(r"^#(?=[a-z])", "", example(), flags=re.MULTILINE)
    parsed = {name: KNOBS[name].parse(value) for name, value in tomllib.loads(uncommented).items()}
    assert parsed == {name: knob.default for name, knob in KNOBS.items()}


def test_only_what_is_allocated_or_set_up_at_start_needs_a_restart() -> None:
    assert [name for name, knob in KNOBS.items() if knob.context is not Context.LIVE] == ["ingest_bytes", "threads"]
