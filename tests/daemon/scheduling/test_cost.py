import random

import pytest

from tensord.daemon.scheduling.cost import LINES_MAX, CostTable, LinearCost


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


def test_an_outlier_moves_the_prediction_little() -> None:
    samples = [(8, 180_000), (16, 260_000)] * 50
    before, after = taught(*samples), taught(*samples, (8, 10**10))
    assert after.predicted_ns(8) < 2 * before.predicted_ns(8)


def test_a_model_that_became_slower_is_followed() -> None:
    assert taught(*[(8, 10_000)] * 100, *[(8, 10_000_000)] * 150).predicted_ns(8) == pytest.approx(10**7, rel=0.1)


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
