from dataclasses import replace
from pathlib import Path

import pytest

from tensord.daemon.simulation import theory
from tensord.daemon.simulation.run import compare, simulate
from tensord.daemon.simulation.scenario import Knobs, Scenario, SettingPlan, of_trace
from tensord.daemon.simulation.scenario_file import load_scenario

from .test_replay import MS, ran, trace

EXAMPLES = sorted((Path(__file__).parents[3] / "configs" / "simulations").glob("*.toml"))

TEXT = """
duration_s = 2
warmup_s = 0.2
replications = 4
[[devices]]
count = 4
[models.m]
row_us = 1000
shape = "exponential"
[[workloads]]
name = "some"
model = "m"
rate_per_s = 500
[[settings]]
name = "lone"
knobs = { max_batch = 1 }
replicas = 1
[[settings]]
name = "two"
knobs = { max_batch = 1 }
replicas = 2
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_text(TEXT)
    return load_scenario(path)


def test_settings_meet_the_same_requests(scenario: Scenario) -> None:
    report = compare(scenario)
    lone, two = report.settings
    assert lone.offered_per_s == two.offered_per_s
    assert lone.service.mean_us is not None
    assert two.service.mean_us is not None
    assert lone.service.mean_us.mean == pytest.approx(two.service.mean_us.mean, rel=0.01)
    assert lone.queue_length.mean > 2 * two.queue_length.mean


def test_a_setting_may_use_fewer_replicas(scenario: Scenario) -> None:
    lone, two = compare(scenario).settings
    assert [round(each.mean, 1) for each in lone.utilisation.values()] == [0.5, 0.0, 0.0, 0.0]
    assert sum(each.mean > 0 for each in two.utilisation.values()) == 2


def test_replications_differ_and_seeds_repeat(scenario: Scenario) -> None:
    setting = scenario.settings[0]
    first, again, second = (simulate(scenario, setting, number) for number in (0, 0, 1))
    assert first.times[0].responses == again.times[0].responses
    assert first.times[0].responses != second.times[0].responses
    assert simulate(replace(scenario, seed=2), setting, 0).times[0].responses != first.times[0].responses


def test_progress_is_told(scenario: Scenario) -> None:
    told: list[tuple[str, int, int]] = []
    compare(scenario, lambda *each: told.append(each))
    assert told == [*(("lone", number, 8) for number in range(4)), *(("two", number, 8) for number in range(4, 8))]


def test_a_workload_without_deadline_has_the_models_timeout(scenario: Scenario) -> None:
    knobs: Knobs = {"max_batch": 1, "timeout_ms": 1, "deadline_check": False}
    hurried = replace(scenario, settings=[SettingPlan("hurried", knobs, 1)])
    (summary,) = compare(hurried).settings
    assert summary.refused_per_s["DeadlineExceeded"].mean > 20


def test_a_closed_loop_answers_as_mean_value_analysis_says(tmp_path: Path) -> None:
    path = tmp_path / "closed.toml"
    path.write_text(
        "duration_s = 20\nwarmup_s = 1\nreplications = 5\n[knobs]\npipeline_depth = 1\nmax_batch = 1\n[models.m]\n"
        'row_us = 1000\nshape = "exponential"\n[[workloads]]\nmodel = "m"\narrivals = "closed"\nclients = 5\n'
        "think_ms = 4\n"
    )
    (summary,) = compare(load_scenario(path)).settings
    assert summary.throughput_per_s.contains(theory.closed_mm1(5, 4e-3, 1e-3))
    assert summary.throughput_per_s.relative < 0.02


def test_throughput_grows_with_replicas_until_the_front_end_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "scaling.toml"
    path.write_text(
        "duration_s = 1\nwarmup_s = 0.2\nreplications = 2\n[hop]\nrequest_us = 200\n[[devices]]\ncount = 8\n"
        '[models.m]\nrow_us = 1000\n[[workloads]]\nmodel = "m"\narrivals = "closed"\nclients = 50\n'
        "[knobs]\nmax_batch = 1\n[scaling]\nreplicas = [1, 2, 4, 8]\n"
    )
    (scaling,) = compare(load_scenario(path)).scaling
    measured = [each.mean for each in scaling.throughput_per_s]
    assert measured == pytest.approx([1_000, 2_000, 4_000, 5_000], rel=0.02)
    assert [law.name for law in scaling.laws] == ["Amdahl", "Gustafson", "USL"]


def test_tenants_share_a_busy_device_by_the_weights_of_their_classes(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    clients = 'arrivals = "closed"\nclients = 40\nmodel = "m"\n'
    path.write_text(
        "duration_s = 1\nwarmup_s = 0.2\nreplications = 2\n[models.m]\nrow_us = 1000\n[knobs]\nmax_batch = 4\n"
        '[tenants.day]\nusers = ["a"]\n'
        f'[[workloads]]\n{clients}tenants = [["a/1", 1], ["a/2", 1]]\n[[workloads]]\n{clients}tenants = [["b", 1]]\n'
        '[[settings]]\nname = "equal"\n[[settings]]\nname = "3 to 1"\nknobs = { "day.tenant_weight" = 3 }\n'
    )
    equal, weighted = compare(load_scenario(path)).settings
    assert equal.tenants == pytest.approx({"a/1": 0.25, "a/2": 0.25, "b": 0.5}, abs=0.02)
    assert weighted.tenants == pytest.approx({"a/1": 0.375, "a/2": 0.375, "b": 0.25}, abs=0.02)


def test_devices_get_batches_by_their_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.toml"
    path.write_text(
        "duration_s = 2\nwarmup_s = 0.1\nreplications = 2\n[models.m]\nrow_us = 1000\n[knobs]\nmax_batch = 1\n"
        'balance = "weighted_round_robin"\n[[devices]]\nknobs = { device_weight = 3 }\n[[devices]]\n'
        '[[workloads]]\nmodel = "m"\nrate_per_s = 300\narrivals = "constant"\n'
    )
    (summary,) = compare(load_scenario(path)).settings
    assert [each.mean for each in summary.utilisation.values()] == pytest.approx([0.225, 0.075], abs=0.01)


def test_a_sweep_runs_every_setting_at_every_load(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(TEXT + "[sweep]\nload = [0.5, 1, 1.5]\n")
    report = compare(load_scenario(path))
    assert [(sweep.setting, sweep.load) for sweep in report.sweeps] == [("lone", [0.5, 1, 1.5]), ("two", [0.5, 1, 1.5])]
    assert report.sweeps[0].points[1] == report.settings[0]
    offered = [point.offered_per_s.mean for point in report.sweeps[0].points]
    assert offered == pytest.approx([250, 500, 750], rel=0.05)


def test_a_trace_is_replayed_whole() -> None:
    recorded = trace(*(ran(number, 1, MS) for number in range(20)))
    report = compare(replace(of_trace(recorded), replications=2))
    (summary,) = report.settings
    assert report.duration_s == 0
    assert summary.throughput_per_s == summary.offered_per_s
    assert summary.response.mean_us is not None
    assert summary.response.mean_us.mean == pytest.approx(1_100), "1 ms on the device and twice 50 µs of the hop"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_run(path: Path) -> None:
    example = load_scenario(path)
    short = replace(example, duration_s=0.2, warmup_s=0.05, replications=1, scaling=example.scaling[:3])
    report = compare(short)
    assert [summary.setting for summary in report.settings] == [setting.name for setting in example.settings]
    assert all(summary.throughput_per_s.mean > 0 for summary in report.settings)
    assert len(report.scaling) == (len(example.settings) if example.scaling else 0)


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"orders", "overload", "scaling"}
