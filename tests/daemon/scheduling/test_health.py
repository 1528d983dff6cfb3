import random

import pytest

from tensord.daemon.scheduling.health import (
    HEALTH_MIN,
    NORMAL_HALF_LIFE_NS,
    NORMAL_SAMPLES_MIN,
    NORMALS_MAX,
    OUTLIER_FACTOR,
    PACE_SAMPLES,
    RECOVERY_HALF_LIFE_NS,
    SLOW_FROM,
    Health,
    Normal,
)

from .rig import MS, Rig, make

FEW = 3 * PACE_SAMPLES


@pytest.fixture
def health() -> Health:
    """Of a device that is known well: one batch per millisecond of virtual time, each of which took one."""
    health = Health()
    for step in range(1000):
        health.measured(step * MS, "kind", MS)
    return health


START = 1000 * MS


def run(health: Health, now: int, compute_ns: int, batches: int = FEW) -> int:
    """Run batches one after the other; the time afterwards."""
    for _ in range(batches):
        now += compute_ns
        health.measured(now, "kind", compute_ns)
    return now


def test_a_new_device_is_well() -> None:
    assert Health().factor == 1.0


def test_each_failure_halves_health_and_never_below_the_least() -> None:
    health = Health()
    seen = []
    for _ in range(6):
        health.failed(0)
        seen.append(health.factor)
    assert seen == [1 / 2, 1 / 4, 1 / 8, 1 / 16, HEALTH_MIN, HEALTH_MIN]


def test_half_of_what_is_missing_comes_back_in_a_half_life() -> None:
    health = Health()
    health.failed(0)
    health.failed(0)
    for step in (1, 2, 3):
        health.recover(step * RECOVERY_HALF_LIFE_NS)
        assert health.factor == pytest.approx(1 - 0.75 / 2**step)
    health.recover(20 * RECOVERY_HALF_LIFE_NS)
    assert health.factor == 1.0


def test_recovery_is_the_same_in_one_step_or_in_many() -> None:
    once, often = Health(), Health()
    once.failed(0)
    often.failed(0)
    once.recover(7 * 10**9)
    for second in range(1, 8):
        often.recover(second * 10**9)
    assert often.factor == pytest.approx(once.factor)


def test_a_device_at_half_speed_has_half_the_health_as_long_as_it_is_slow(health: Health) -> None:
    now = run(health, START, 2 * MS, batches=4 * PACE_SAMPLES)
    assert health.factor == pytest.approx(0.5, abs=0.07)
    run(health, now, 2 * MS, batches=100)
    assert health.factor < 0.65


def test_health_comes_back_with_the_speed(health: Health) -> None:
    now = run(health, START, 3 * MS)
    assert health.factor < 0.5
    run(health, now, MS)
    assert health.factor == 1.0


def test_health_comes_back_with_time_where_the_slow_get_no_work(health: Health) -> None:
    now = run(health, START, 3 * MS)
    health.recover(now + RECOVERY_HALF_LIFE_NS)
    half_way = health.factor
    health.recover(now + 10 * RECOVERY_HALF_LIFE_NS)
    assert 0.5 < half_way < health.factor == 1.0


def test_a_device_that_is_still_slow_loses_health_again(health: Health) -> None:
    now = run(health, START, 3 * MS)
    now += 10 * RECOVERY_HALF_LIFE_NS
    health.recover(now)
    assert health.factor == 1.0
    run(health, now, 3 * MS)
    assert health.factor < 0.5


def test_one_outlier_changes_nothing(health: Health) -> None:
    health.measured(START, "kind", 10_000 * MS)
    assert health.factor == 1.0
    assert 1 + (OUTLIER_FACTOR - 1) / PACE_SAMPLES < SLOW_FROM


def test_noise_is_not_slowness() -> None:
    health, draw = Health(), random.Random(1)
    seen = set()
    for step in range(5000):
        health.measured(step * MS, "kind", int(MS * draw.lognormvariate(0, 0.25)))
        seen.add(health.factor)
    assert seen == {1.0}


def test_a_larger_batch_is_not_a_slow_one(health: Health) -> None:
    for step in range(FEW):
        health.measured(START + step * MS, "larger", 50 * MS)
    assert health.factor == 1.0


def test_what_lasts_becomes_normal() -> None:
    normal = Normal()
    for step in range(100):
        normal.ratio(step * MS, MS)
    now, step_ns = 100 * MS, NORMAL_HALF_LIFE_NS // 100
    for _ in range(600):
        now += step_ns
        ratio = normal.ratio(now, 2 * MS)
    assert ratio == pytest.approx(1.0, abs=0.02)


def test_nothing_is_slow_before_enough_is_known() -> None:
    normal = Normal()
    ratios = [normal.ratio(0, compute_ns) for compute_ns in [MS] + [3 * MS] * NORMAL_SAMPLES_MIN]
    assert ratios[:-1] == [1.0] * NORMAL_SAMPLES_MIN
    assert ratios[-1] > 1.0


def test_kinds_are_forgotten_beyond_a_bound() -> None:
    health = Health()
    for kind in range(2 * NORMALS_MAX):
        health.measured(0, kind, MS)
    assert len(health._normals) == NORMALS_MAX


def test_outside_knowledge_and_own_are_multiplied_and_kept_apart() -> None:
    health = Health()
    health.set_outside(0.5)
    assert health.factor == 0.5
    health.failed(0)
    assert health.factor == 0.25
    health.set_outside(1.0)
    assert health.factor == 0.5
    health.set_outside(0.001)
    assert health.factor == HEALTH_MIN


def test_outside_knowledge_does_not_heal_with_time() -> None:
    health = Health()
    health.set_outside(0.5)
    health.failed(0)
    health.recover(100 * RECOVERY_HALF_LIFE_NS)
    assert health.factor == 0.5


def factors(rig: Rig) -> list[float]:
    return [worker.health for worker in rig.scheduler.statistics().workers]


def test_a_failed_batch_counts_against_its_device_and_teaches_nothing() -> None:
    rig = Rig()
    rig.add_workers(2)
    rig.model(workers=(1, 2))
    costs = rig.scheduler._models[0].costs
    before_ns = costs.of("b", "cpu:0").predicted_ns(1)
    rig.submit(make())
    rig.complete(rig.only(), 1, failed=True)
    assert factors(rig) == [0.5, 1.0]
    assert [worker.failed_batches for worker in rig.scheduler.statistics().workers] == [1, 0]
    assert costs.of("b", "cpu:0").predicted_ns(1) == before_ns


def test_a_sick_worker_recovers_while_others_work() -> None:
    rig = Rig()
    rig.add_workers(2)
    rig.model(workers=(1, 2))
    rig.submit(make())
    rig.complete(rig.only(), failed=True)
    rig.now += RECOVERY_HALF_LIFE_NS
    rig.submit(make())
    rig.complete(batch := rig.only())
    assert batch.worker == 2
    assert factors(rig) == [pytest.approx(0.75), 1.0]


def test_the_only_worker_recovers_too() -> None:
    rig = Rig()
    rig.model()
    for failed in (True, False):
        rig.submit(make())
        rig.complete(rig.only(), failed=failed)
        rig.now += RECOVERY_HALF_LIFE_NS
    rig.submit(make())
    rig.complete(rig.only())
    assert factors(rig) == [pytest.approx(0.875)]


def test_speed_is_watched_where_there_is_a_choice() -> None:
    rig = Rig()
    rig.add_workers(2)
    rig.model(balance="round_robin", workers=(1, 2))
    for step in range(200):
        rig.submit(make())
        batch = rig.only()
        compute_ns = 3 * MS if batch.worker == 1 and step > 100 else MS
        rig.now += compute_ns
        rig.complete(batch, compute_ns)
    slow, well = factors(rig)
    assert slow < 0.6
    assert well == 1.0


def test_a_device_keeps_its_health_over_a_restart() -> None:
    rig = Rig()
    rig.model()
    rig.submit(make())
    rig.complete(rig.only(), failed=True)
    rig.scheduler.remove_worker(rig.now, 1)
    rig.scheduler.add_worker(7, "cpu:0")
    rig.scheduler.add_worker(8, "cpu:1")
    assert factors(rig) == [0.5, 1.0]


def test_what_is_said_of_a_device_holds_for_workers_to_come() -> None:
    rig = Rig()
    rig.scheduler.set_device_health("cpu:1", 0.25)
    rig.scheduler.set_device_weight("cpu:1", 3.0)
    rig.scheduler.set_device_weight("cpu:0", 2.0)
    rig.add_workers(2)
    assert factors(rig) == [1.0, 0.25]
    assert [worker.weight for worker in rig.scheduler.statistics().workers] == [2.0, 3.0]
