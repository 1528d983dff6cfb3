import random

import pytest

from tensord.daemon.bench.histogram import Histogram, bounds_ns, bucket_of, merged


@pytest.mark.parametrize("duration_ns", [0, 1, 511, 1023, 1024, 1025, 2047, 2048, 999_999, 10**9, 3_600 * 10**9])
def test_a_duration_lies_within_the_bounds_of_its_bucket(duration_ns: int) -> None:
    low, high = bounds_ns(bucket_of(duration_ns))
    assert low <= duration_ns < high
    assert high - low <= max(1, duration_ns / 512)


def test_buckets_follow_one_another_without_gap() -> None:
    bounds = [bounds_ns(bucket) for bucket in range(5_000)]
    assert [high for _, high in bounds[:-1]] == [low for low, _ in bounds[1:]]


def test_observing_uses_the_bucket_of_the_duration() -> None:
    for duration_ns in (0, 700, 5_000, 123_456_789):
        histogram = Histogram()
        histogram.observe(duration_ns)
        assert histogram.buckets == {bucket_of(duration_ns): 1}


def test_percentiles_are_those_of_the_sorted_durations() -> None:
    durations = [int(each) for each in random.Random(1).choices(range(10**4, 10**9), k=20_000)]
    histogram = Histogram()
    for each in durations:
        histogram.observe(each)
    durations.sort()
    for fraction in (0.5, 0.9, 0.99, 0.999):
        assert histogram.percentile_ns(fraction) == pytest.approx(durations[int(fraction * 20_000) - 1], rel=0.001)
    assert histogram.max_ns == durations[-1]
    assert histogram.mean_ns == sum(durations) / 20_000


@pytest.mark.parametrize(("count", "known"), [(1, []), (2, [0.5]), (99, [0.5, 0.9]), (100, [0.5, 0.9, 0.99])])
def test_a_percentile_is_unknown_where_no_duration_lies_beyond_it(count: int, known: list[float]) -> None:
    histogram = Histogram()
    for number in range(count):
        histogram.observe(number)
    assert [each for each in (0.5, 0.9, 0.99, 0.999) if histogram.percentile_ns(each) is not None] == known


def test_a_percentile_never_exceeds_the_maximum() -> None:
    histogram = Histogram()
    for _ in range(2):
        histogram.observe(1_048_577)
    assert histogram.percentile_ns(0.5) == 1_048_577


def test_an_empty_histogram_has_no_figures() -> None:
    assert (Histogram().percentile_ns(0.5), Histogram().mean_ns, list(Histogram().middles_ns())) == (None, None, [])


def test_a_negative_duration_counts_as_none() -> None:
    histogram = Histogram()
    histogram.observe(-5)
    assert (histogram.buckets, histogram.sum_ns) == ({0: 1}, 0)


def test_merging_is_observing_all() -> None:
    first, second, both = Histogram(), Histogram(), Histogram()
    for histogram, number in ((first, 5), (first, 70_000), (second, 5), (second, 10**8)):
        histogram.observe(number)
        both.observe(number)
    assert merged([first, second]) == both


def test_histograms_share_nothing() -> None:
    Histogram().observe(1)
    assert Histogram() == Histogram(buckets={}, count=0, sum_ns=0, max_ns=0)
