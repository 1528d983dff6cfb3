import json
import random
from collections.abc import Hashable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tensord.daemon.scheduling.cost import LINES_MAX, CostTable, LinearCost

from .rig import MS, Rig, make


def taught(*samples: tuple[int, int]) -> LinearCost:
    cost = LinearCost()
    for rows, compute_ns in samples:
        cost.learn(rows, compute_ns)
    return cost


def test_the_prior_is_a_millisecond_for_a_common_batch() -> None:
    assert 100_000 < LinearCost().predicted_ns(32) < 5_000_000


def test_a_line_is_found_from_two_sizes() -> None:
    cost = taught(*[(1, 110_000), (32, 420_000)] * 20)
    assert cost.fixed_ns == pytest.approx(100_000, rel=0.01)
    assert cost.row_ns == pytest.approx(10_000, rel=0.01)


def test_a_noisy_line_is_found() -> None:
    noise = random.Random(1)
    sizes = [noise.randint(1, 64) for _ in range(300)]
    cost = taught(*((rows, int((50_000 + 3_000 * rows) * noise.uniform(0.95, 1.05))) for rows in sizes))
    assert cost.predicted_ns(64) == pytest.approx(242_000, rel=0.05)
    assert cost.predicted_ns(1) == pytest.approx(53_000, rel=0.15)


def test_one_size_alone_is_predicted_right() -> None:
    assert taught(*[(8, 777_000)] * 30).predicted_ns(8) == pytest.approx(777_000, rel=0.001)


def test_falling_times_make_a_constant() -> None:
    cost = taught(*[(1, 500_000), (32, 100_000)] * 20)
    assert cost.row_ns == 0.0
    assert cost.fixed_ns > 0


def test_a_negative_intercept_makes_a_line_through_the_origin() -> None:
    cost = taught(*[(10, 1_000), (100, 1_000_000)] * 20)
    assert cost.fixed_ns == 0.0
    assert cost.predicted_ns(1) >= 1


LINE = [(8, 180_000), (16, 260_000)] * 50
"""100 µs and 10 µs per row."""


def test_an_outlier_does_not_move_the_prediction() -> None:
    cost = taught(*LINE, (8, 10**10), (16, 260_000), (8, 180_000), (8, 10**10), (8, 180_000))
    assert cost.predicted_ns(8) == pytest.approx(180_000, rel=0.01)


def test_two_outliers_in_a_row_are_forgotten_within_three_batches() -> None:
    cost = taught(*LINE, (8, 10**10), (8, 10**10))
    assert cost.predicted_ns(8) < 10 * 180_000
    for _ in range(3):
        cost.learn(8, 180_000)
    assert cost.predicted_ns(8) == pytest.approx(180_000, rel=0.1)


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.5, 2, 7])
@pytest.mark.parametrize("rows", [8, 16])
def test_a_device_that_changed_is_followed_within_three_batches(rows: int, factor: float) -> None:
    now_ns = int(dict(LINE)[rows] * factor)
    assert taught(*LINE, *[(rows, now_ns)] * 3).predicted_ns(rows) == pytest.approx(now_ns, rel=0.15)


def test_a_device_that_became_a_thousand_times_slower_is_followed_within_five() -> None:
    cost = taught(*[(8, 10_000)] * 100, *[(8, 10_000_000)] * 5)
    assert cost.predicted_ns(8) == pytest.approx(10**7, rel=0.1)


def test_a_device_that_changed_is_followed_at_all_sizes_as_they_come() -> None:
    slower = [(8, 540_000), (16, 780_000)] * 4
    cost = taught(*LINE, *slower)
    assert cost.predicted_ns(8) == pytest.approx(540_000, rel=0.1)
    assert cost.predicted_ns(16) == pytest.approx(780_000, rel=0.1)
    assert cost.predicted_ns(32) == pytest.approx(1_260_000, rel=0.2)


def test_a_slow_first_batch_is_forgotten_after_three_more() -> None:
    assert taught((8, 100 * 180_000), *[(8, 180_000)] * 3).predicted_ns(8) == pytest.approx(180_000, rel=0.1)


def test_a_size_never_seen_is_learned_with_its_second_batch_and_the_others_stay() -> None:
    """One row takes as long as 64, which nothing told before."""
    cost = taught(*[(1, 1_000_000)] * 40, (64, 1_050_000))
    assert cost.predicted_ns(64) > 5_000_000
    cost.learn(64, 1_050_000)
    assert cost.predicted_ns(64) == pytest.approx(1_050_000, rel=0.1)
    assert cost.predicted_ns(1) == pytest.approx(1_000_000, rel=0.1)


def test_a_rare_size_is_learned_among_many_others() -> None:
    cost = taught(*[*[(1, 1_000_000)] * 9, (64, 1_050_000)] * 5)
    assert cost.predicted_ns(64) == pytest.approx(1_050_000, rel=0.1)


class TestError:
    def test_a_line_that_learned_nothing_has_a_wide_margin(self) -> None:
        cost = LinearCost()
        assert cost.upper_ns(8) == pytest.approx(1.75 * cost.predicted_ns(8), rel=0.001)

    def test_exact_times_leave_no_margin(self) -> None:
        cost = taught(*LINE)
        assert cost.upper_ns(16) == pytest.approx(cost.predicted_ns(16), rel=0.01)

    def test_it_is_the_mean_error_of_the_predictions(self) -> None:
        noise = random.Random(3)
        cost = taught(*((8, int(180_000 * noise.uniform(0.6, 1.4))) for _ in range(300)))
        assert cost.error == pytest.approx(0.2, rel=0.4)

    def test_the_upper_limit_is_seldom_exceeded(self) -> None:
        noise = random.Random(4)
        cost, exceeded = taught(*LINE), 0
        for _ in range(1_000):
            taken_ns = int(180_000 * max(noise.gauss(1.0, 0.1), 0.1))
            exceeded += taken_ns > cost.upper_ns(8)
            cost.learn(8, taken_ns)
        assert exceeded < 40

    def test_one_outlier_widens_the_margin_for_a_while(self) -> None:
        cost = taught(*LINE, (8, 10**10))
        assert 1.1 * cost.predicted_ns(8) < cost.upper_ns(8) < 1.5 * cost.predicted_ns(8)
        for _ in range(40):
            cost.learn(8, 180_000)
        assert cost.upper_ns(8) < 1.05 * cost.predicted_ns(8)


def test_a_wrong_prior_is_forgotten_at_once() -> None:
    assert taught((8, 5 * 10**9)).predicted_ns(8) == pytest.approx(5 * 10**9, rel=0.01)


def test_a_new_bucket_starts_from_what_was_learned_last() -> None:
    table = CostTable()
    for _ in range(10):
        table.learn("a", "cpu:0", 4, 4_000_000)
    assert table.of("b", "cpu:1").predicted_ns(4) == pytest.approx(4_000_000, rel=0.01)


def test_devices_learn_apart() -> None:
    table = CostTable()
    table.learn("a", "cpu:0", 4, 4_000_000)
    table.learn("a", "cpu:1", 4, 1_000_000)
    assert table.of("a", "cpu:0").predicted_ns(4) == pytest.approx(4_000_000, rel=0.01)


def test_an_unknown_time_teaches_nothing() -> None:
    table = CostTable()
    before = table.of("a", "cpu:0").predicted_ns(4)
    table.learn("a", "cpu:0", 4, 0)
    assert table.of("a", "cpu:0").predicted_ns(4) == before


def test_buckets_without_number_are_forgotten() -> None:
    table = CostTable()
    for bucket in range(LINES_MAX + 100):
        table.learn(bucket, "cpu:0", 1, 1_000)
    assert len(table._costs) == LINES_MAX


def table_of(*buckets: Hashable) -> CostTable:
    table = CostTable()
    for rows in (1, 8) * 20:
        for place, bucket in enumerate(buckets):
            table.learn(bucket, "cpu:0", rows, (1 + place) * (100_000 + 10_000 * rows))
    return table


def through_a_file(value: object) -> Any:
    return json.loads(json.dumps(value))


class TestSnapshot:
    @pytest.mark.parametrize("bucket", [None, "text", 7, (), (1, 2), (None, "f4", (3, (224, 224))), (-1,)])
    def test_a_line_comes_back_as_it_was(self, bucket: Hashable) -> None:
        before, after = table_of(bucket), CostTable()
        assert after.restore(through_a_file(before.snapshot())) == 1
        for rows in (1, 8, 64):
            expected = before.of(bucket, "cpu:0")
            found = after._costs[bucket, "cpu:0"]
            assert found.predicted_ns(rows) == pytest.approx(expected.predicted_ns(rows), rel=1e-6, abs=1)
            assert found.upper_ns(rows) == pytest.approx(expected.upper_ns(rows), rel=1e-6, abs=1)

    def test_a_table_that_learned_nothing_has_none(self) -> None:
        assert CostTable().snapshot() == []

    @pytest.mark.parametrize(
        "bucket", [1.5, b"bytes", frozenset(), 2**70, "x" * 1_000, "\ud800", ((((((1,),),),),),), tuple(range(1_000))]
    )
    def test_a_bucket_that_cannot_be_told_is_left_out(self, bucket: Hashable) -> None:
        assert [line["bucket"] for line in table_of("a", bucket, "b").snapshot()] == ["a", "b"]

    def test_a_restored_line_is_the_guess_for_new_buckets(self) -> None:
        table = CostTable()
        table.restore(table_of("a").snapshot())
        assert table.of("new", "cuda:0").predicted_ns(8) == pytest.approx(180_000, rel=0.01)

    def test_what_was_learned_since_is_kept(self) -> None:
        table = table_of("a")
        snapshot = table_of("x", "a").snapshot()
        assert table.restore(snapshot) == 1
        assert table.of("a", "cpu:0").predicted_ns(8) == pytest.approx(180_000, rel=0.01)
        assert table.latest is table.of("a", "cpu:0")

    @pytest.mark.parametrize("factor", [0.2, 1.2, 3])
    def test_a_restored_line_follows_a_machine_that_changed(self, factor: float) -> None:
        table = CostTable()
        table.restore(table_of("a").snapshot())
        now_ns = int(180_000 * factor)
        for _ in range(6):
            table.learn("a", "cpu:0", 8, now_ns)
        assert table.of("a", "cpu:0").predicted_ns(8) == pytest.approx(now_ns, rel=0.1)

    def test_a_restored_line_is_not_moved_by_one_outlier(self) -> None:
        table = CostTable()
        table.restore(table_of("a").snapshot())
        table.learn("a", "cpu:0", 8, 10**10)
        assert table.of("a", "cpu:0").predicted_ns(8) == pytest.approx(180_000, rel=0.01)

    def test_no_more_lines_are_restored_than_are_remembered(self) -> None:
        (line,) = table_of("a").snapshot()
        table = table_of("b")
        assert table.restore([{**line, "bucket": number} for number in range(3 * LINES_MAX)]) == LINES_MAX - 1
        table.learn("new", "cpu:0", 1, 1_000)
        assert len(table._costs) == LINES_MAX

    @pytest.mark.parametrize("value", [None, 3, "lines", {}, [], [None], [[]], [{}], {"bucket": None}])
    def test_what_is_no_snapshot_restores_nothing(self, value: object) -> None:
        assert CostTable().restore(value) == 0

    @pytest.mark.parametrize("field", ["fixed_ns", "row_ns", "error", "mean_rows", "mean_square_rows", "device"])
    @pytest.mark.parametrize("value", [None, -1, float("nan"), float("inf"), 10**400, "9" * 10_000, [], {}])
    def test_a_wrong_value_drops_its_line_and_keeps_the_rest(self, field: str, value: object) -> None:
        first, second = table_of("a", "b").snapshot()
        table = CostTable()
        assert table.restore([{**first, field: value}, second]) == 1
        assert list(table._costs) == [("b", "cpu:0")]

    def test_a_line_that_takes_no_time_is_dropped(self) -> None:
        (line,) = table_of("a").snapshot()
        assert CostTable().restore([{**line, "fixed_ns": 0, "row_ns": 0}]) == 0

    def test_a_spread_below_none_is_taken_as_none(self) -> None:
        (line,) = table_of("a").snapshot()
        table = CostTable()
        assert table.restore([{**line, "mean_rows": 100, "mean_square_rows": 1}]) == 1
        table.learn("a", "cpu:0", 8, 180_000)
        assert table.of("a", "cpu:0").predicted_ns(8) == pytest.approx(180_000, rel=0.01)

    wild = st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    numbers = st.integers(-1, 10**20) | st.floats() | wild

    @given(
        lines=st.lists(
            st.fixed_dictionaries(
                {"bucket": wild, "device": st.just("cpu:0") | wild, "error": st.floats(0, 1) | wild},
                optional=dict.fromkeys(("fixed_ns", "row_ns", "mean_rows", "mean_square_rows"), numbers),
            )
            | wild,
            max_size=4,
        ),
        samples=st.lists(st.tuples(st.integers(1, 10**5), st.integers(1, 10**14)), max_size=8),
    )
    @settings(max_examples=100, deadline=None)
    def test_whatever_is_restored_predicts_and_learns(self, lines: list[Any], samples: list[tuple[int, int]]) -> None:
        table = CostTable()
        table.restore(lines)
        for bucket, device in list(table._costs):
            for rows, compute_ns in samples:
                table.learn(bucket, device, rows, compute_ns)
                assert table.of(bucket, device).predicted_ns(rows) >= 1
        again = CostTable()
        assert again.restore(through_a_file(table.snapshot())) == len(table._costs)


def test_the_scheduler_keeps_the_times_of_a_model_over_a_restart() -> None:
    rig, successor = Rig(), Rig()
    rig.model(3)
    successor.model(5)
    rig.submit(make(model=3))
    rig.complete(rig.only(), 7 * MS)
    assert successor.scheduler.restore_costs(5, through_a_file(rig.scheduler.costs_snapshot(3))) == 1
    successor.submit(make(model=5))
    assert successor.only().predicted_ns == pytest.approx(7 * MS, rel=0.01)
