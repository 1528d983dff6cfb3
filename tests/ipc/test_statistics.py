import random
import statistics
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc.statistics import (
    BUCKETS,
    COUNTERS,
    MODEL_WORDS,
    PHASES,
    WORDS,
    Block,
    Counter,
    Histogram,
    Phase,
    Word,
    bucket_bounds_ns,
    bucket_of,
    merge,
)

durations = st.integers(0, 2**38)


def block_of(models_max: int) -> Block:
    return Block.format(memoryview(bytearray(Block.nbytes(models_max))), models_max)


def histogram_of(durations_ns: list[int]) -> Histogram:
    block = block_of(1)
    for duration_ns in durations_ns:
        block.observe(0, Phase.QUEUE, duration_ns)
    return block.histogram(0, Phase.QUEUE)


# ── buckets ─────────────────────────────────────────────────────────────────────────────────────


def test_buckets_follow_one_another_without_gap() -> None:
    bounds = [bucket_bounds_ns(bucket) for bucket in range(BUCKETS)]
    assert [low for low, _ in bounds] == [0] + [high for _, high in bounds[:-1]]


def test_every_bucket_holds_its_bounds() -> None:
    for bucket in range(BUCKETS):
        low, high = bucket_bounds_ns(bucket)
        assert bucket_of(low) == bucket
        assert bucket_of(high - 1) == bucket


def test_a_bucket_is_a_seventh_to_a_quarter_wide() -> None:
    for bucket in range(1, BUCKETS):
        low, high = bucket_bounds_ns(bucket)
        assert 1 / 7 <= (high - low) / low <= 1 / 4


def test_the_shortest_and_the_longest_have_no_end() -> None:
    assert bucket_of(0) == bucket_of(1023) == 0
    assert bucket_of(2**37) == bucket_of(2**63) == BUCKETS - 1


@given(durations)
def test_a_duration_lies_within_its_bucket(duration_ns: int) -> None:
    low, high = bucket_bounds_ns(bucket_of(duration_ns))
    assert low <= duration_ns
    assert duration_ns < high or duration_ns >= 2**37


# ── histograms ──────────────────────────────────────────────────────────────────────────────────


@given(st.lists(durations, min_size=1), st.floats(0, 1))
def test_a_percentile_lies_in_the_bucket_of_the_duration_of_that_rank(durations_ns: list[int], fraction: float) -> None:
    in_order = sorted(durations_ns)
    rank = fraction * len(in_order)
    exact = in_order[max(0, -int(-rank // 1) - 1)]
    low, high = bucket_bounds_ns(bucket_of(exact))
    read_us = histogram_of(durations_ns).percentile_us(fraction)
    assert read_us is not None
    assert max(low, 512) / 1000 * (1 - 1e-9) <= read_us <= high / 1000 * (1 + 1e-9)


@pytest.mark.parametrize("scale_us", [20, 300, 5_000, 2_000_000])
def test_percentiles_of_latencies_are_off_by_less_than_a_tenth(scale_us: int) -> None:
    rng = random.Random(scale_us)
    durations_ns = [int(scale_us * 1000 * rng.lognormvariate(0, 0.5)) for _ in range(20_000)]
    exact = statistics.quantiles(durations_ns, n=100)
    histogram = histogram_of(durations_ns)
    for percent in (1, 25, 50, 95, 99):
        assert histogram.percentile_us(percent / 100) == pytest.approx(exact[percent - 1] / 1000, rel=0.1)


def test_nothing_counted_has_no_percentile() -> None:
    assert Histogram().percentile_us(0.5) is None
    assert Histogram().count == 0


def test_percentiles_never_fall() -> None:
    histogram = histogram_of([1_000, 5_000, 5_100, 80_000, 2**40])
    read = [histogram.percentile_us(percent / 100) or 0.0 for percent in range(101)]
    assert read == sorted(read)


@given(st.lists(durations), st.lists(durations))
def test_histograms_add_up(ours: list[int], theirs: list[int]) -> None:
    assert histogram_of(ours) + histogram_of(theirs) == histogram_of(ours + theirs)


# ── blocks ──────────────────────────────────────────────────────────────────────────────────────


def test_every_word_counter_and_phase_has_its_place() -> None:
    assert max(Word) < WORDS
    assert max(Counter) < COUNTERS
    assert max(Phase) < PHASES
    assert Block.nbytes(3) == 8 * (WORDS + 3 * MODEL_WORDS)


def test_no_two_numbers_share_a_word() -> None:
    block = block_of(2)
    amount = 0
    for model in (0, 1):
        for counter in Counter:
            block.count(model, counter, amount := amount + 1)
        for phase in Phase:
            block.observe(model, phase, 0, amount := amount + 1)
    written = [word for word in block.words[WORDS:] if word]
    assert sorted(written) == list(range(1, amount + 1))
    assert block.counters(1)[: len(Counter)] == list(
        range(1 + len(Counter) + len(Phase), 1 + 2 * len(Counter) + len(Phase))
    )


def test_another_process_reads_what_the_owner_wrote() -> None:
    memory = memoryview(bytearray(Block.nbytes(2)))
    owner = Block.format(memory, 2)
    reader = Block(memory)
    owner.count(1, Counter.ROWS, 5)
    owner.observe(1, Phase.COMPUTE, 3_000, times=2)
    assert reader.models_max == 2
    assert reader.counters(1)[Counter.ROWS] == 5
    assert reader.histogram(1, Phase.COMPUTE).count == 2
    assert reader.counters(0) == [0] * COUNTERS


def test_an_unformatted_block_is_not_believed() -> None:
    with pytest.raises(AssertionError):
        Block(memoryview(bytearray(Block.nbytes(1))))


def test_a_gauge_goes_up_and_down() -> None:
    block = block_of(2)
    for value in (7, 3):
        block.gauge(1, Counter.CACHE_BYTES, value)
    assert [block.counters(model)[Counter.CACHE_BYTES] for model in range(2)] == [0, 3]


def test_clear_takes_only_the_model_that_is_meant() -> None:
    block = block_of(3)
    for model in range(3):
        block.count(model, Counter.BATCHES)
        block.observe(model, Phase.LOAD, 10**9)
    block.clear(1)
    assert [block.counters(model)[Counter.BATCHES] for model in range(3)] == [1, 0, 1]
    assert [block.histogram(model, Phase.LOAD).count for model in range(3)] == [1, 0, 1]
    assert block.words[Word.MODELS] == 3


def test_merge_adds_what_all_processes_counted() -> None:
    frontend, worker = block_of(2), block_of(2)
    frontend.count(1, Counter.REQUESTS, 10)
    frontend.observe(1, Phase.QUEUE, 5_000, times=10)
    worker.count(1, Counter.BATCHES, 3)
    worker.observe(1, Phase.QUEUE, 5_000)
    worker.observe(1, Phase.COMPUTE, 9_000, times=3)
    merged = merge([frontend, worker], 1)
    assert (merged[Counter.REQUESTS], merged[Counter.BATCHES], merged[Counter.FAILED_MODEL]) == (10, 3, 0)
    assert merged.phase(Phase.QUEUE) == histogram_of([5_000] * 11)
    assert merged.phase(Phase.COMPUTE).count == 3
    assert len(merged.histograms) == len(Phase)


def test_merged_statistics_do_not_move_with_their_blocks() -> None:
    block = block_of(1)
    merged = merge([block], 0)
    block.count(0, Counter.ROWS)
    assert merged[Counter.ROWS] == 0
    with pytest.raises(FrozenInstanceError):
        merged.counters = ()  # type: ignore[misc]
