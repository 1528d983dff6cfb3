from pathlib import Path

import pytest

from tensord.daemon.config import ConfigError
from tensord.daemon.knob import Scope
from tensord.daemon.simulation.engine import Device, Hop
from tensord.daemon.simulation.scenario import (
    ClassPlan,
    Scenario,
    SettingPlan,
    Sweep,
    of_trace,
)
from tensord.daemon.simulation.scenario_file import load_scenario, parse_knobs
from tensord.daemon.simulation.shapes import Kind, Shape
from tensord.daemon.simulation.workload import Arrivals, Choice, Rows

from .test_replay import MS, ran, record, trace

MODEL = "[models.m]\nfixed_us = 100\n"
WORKLOAD = '[[workloads]]\nmodel = "m"\nrate_per_s = 50\n'


def load(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return load_scenario(path)


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'scenario.toml'}: ")
    assert "\n" not in line
    return line.removeprefix(f"{tmp_path / 'scenario.toml'}: ")


def test_a_model_and_a_workload_are_enough(tmp_path: Path) -> None:
    scenario = load(tmp_path, MODEL + WORKLOAD)
    assert scenario.devices == {1: Device("cpu:0")}
    assert [(model.name, list(model.workers)) for model in scenario.models] == [("m", [1])]
    assert [setting.name for setting in scenario.settings] == ["default"]
    assert (scenario.workloads[0].arrivals, scenario.workloads[0].rate_per_s) == (Arrivals.POISSON, 50.0)
    assert scenario.workload_names == ["m 1"]


def test_everything_that_can_be_said_is_taken(tmp_path: Path) -> None:
    scenario = load(
        tmp_path,
        """
        seed = 7
        duration_s = 2.5
        warmup_s = 0.5
        replications = 3
        [hop]
        latency_us = 1
        request_us = 2
        batch_us = 3
        worker_us = 4
        [knobs]
        pipeline_depth = 3
        window_us = "2ms"
        [[devices]]
        kind = "cuda"
        count = 2
        speed = 4.0
        knobs = { device_weight = 2 }
        [[devices]]
        [models.m]
        row_us = 5
        shape = "lognormal"
        scv = 0.3
        devices = ["cuda:1"]
        [models.m.buckets.long]
        fixed_us = 9
        [models.m.knobs]
        max_batch = 4
        [tenants.night]
        users = ["a", "b"]
        tenant_weight = 0.5
        [tenants.day]
        [[workloads]]
        name = "everyone"
        model = "m"
        arrivals = "closed"
        clients = 3
        think_ms = 4
        rows = { mean = 5, shape = "exponential" }
        row_bytes = 6
        buckets = [["", 1], ["long", 2]]
        tenants = [["a", 1], ["b", 1]]
        priorities = [[0, 1], [2, 3]]
        sessions = 8
        latest = true
        deadline_ms = 9
        [[settings]]
        name = "one"
        knobs = { window_us = 0, "m.order" = "fcfs" }
        replicas = 2
        [scaling]
        replicas = [1, 2, 3]
        [sweep]
        load = [0.5, 2]
        workloads = ["everyone"]
        """,
    )
    assert (scenario.seed, scenario.duration_s, scenario.warmup_s, scenario.replications) == (7, 2.5, 0.5, 3)
    assert scenario.hop == Hop(1_000, 2_000, 3_000, 4_000)
    assert scenario.knobs == {"pipeline_depth": 3, "window_us": 2_000}
    assert list(scenario.devices.values()) == [Device("cuda:0", 4.0), Device("cuda:1", 4.0), Device("cpu:0", 1.0)]
    (model,), (workload,), (setting,) = scenario.models, scenario.workloads, scenario.settings
    assert (list(model.workers), model.knobs, model.service.shape) == (
        [2],
        {"max_batch": 4},
        Shape(Kind.LOGNORMAL, 0.3),
    )
    assert model.service.compute_ns("long", 1, 1.0) == 9_000
    assert (workload.clients, workload.think_ns, workload.row_bytes, workload.sessions) == (3, 4e6, 6, 8)
    assert workload.rows == Rows(5.0, Shape(Kind.EXPONENTIAL))
    assert workload.priorities == Choice([0, 2], [1.0, 3.0])
    assert workload.deadline_ns == 9_000_000
    assert setting == SettingPlan("one", {"window_us": 0, "m.order": "fcfs"}, 2)
    assert scenario.scaling == [1, 2, 3]
    assert (workload.latest, scenario.sweep) == (True, Sweep([0.5, 2], frozenset({0})))
    assert scenario.classes == [ClassPlan("night", ["a", "b"], {"tenant_weight": 0.5}), ClassPlan("day", ["day"])]
    assert [device.weight for device in scenario.weighted_devices(setting).values()] == [2.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seeds = 1\n" + MODEL + WORKLOAD, "seeds = 1: no such key; did you mean seed?"),
        ("seed = -1\n" + MODEL + WORKLOAD, "seed = -1: expected `int` >= 0"),
        ("duration_s = inf\n" + MODEL + WORKLOAD, "duration_s = inf: give a number"),
        ('duration_s = "long"\n' + MODEL + WORKLOAD, "duration_s = 'long': expected `float`, got `str`"),
        ("x", "not TOML"),
        (WORKLOAD, "models: name a model"),
        (MODEL, "workloads: say who asks"),
        ("[models.m]\n" + WORKLOAD, "models.m: say how long a batch takes"),
        (MODEL + "spead = 2\n" + WORKLOAD, "models.m.spead = 2: no such key"),
        (MODEL + 'devices = ["cpu:7"]\n' + WORKLOAD, "models.m.devices = 'cpu:7': no such device"),
        (MODEL + 'shape = "square"\n' + WORKLOAD, "models.m.shape = 'square': invalid enum value 'square'"),
        (MODEL + 'shape = "hyperexponential"\n' + WORKLOAD, "models.m.scv = 1.0: a hyperexponential distribution"),
        (MODEL + 'shape = "empirical"\n' + WORKLOAD, "models.m.shape = 'empirical': only a trace has measured times"),
        (MODEL + "[models.m.knobs]\nmax_batch = 0\n" + WORKLOAD, "models.m.knobs.max_batch = 0: give a whole number"),
        (MODEL + "[models.m.buckets.b]\nrow_us = -1\n" + WORKLOAD, "models.m.buckets.b.row_us = -1: expected"),
        (
            MODEL + "[knobs]\nspin_us = 1\n" + WORKLOAD,
            "knobs.spin_us = 1: this is a device knob, of which the simulation",
        ),
        (MODEL + "[knobs]\nwindow = 1\n" + WORKLOAD, "knobs.window = 1: no such knob"),
        (MODEL + '[[workloads]]\nmodel = "n"\nrate_per_s = 1', "workloads.1.model = 'n': no such model"),
        (MODEL + '[[workloads]]\nmodel = "m"', "workloads.1.rate_per_s: an open loop needs a rate"),
        (MODEL + '[[workloads]]\nmodel = "m"\narrivals = "closed"', "workloads.1.clients: a closed loop needs clients"),
        (MODEL + WORKLOAD + "rows = 0", "workloads.1.rows = 0: expected"),
        (MODEL + WORKLOAD + "priorities = [[3, 1]]", "workloads.1.priorities[0][0] = [[3, 1]]: expected `int` <"),
        (MODEL + WORKLOAD + '[[settings]]\nname = "a"\n[[settings]]\nname = "a"', "settings.2.name = 'a': named twice"),
        (MODEL + WORKLOAD + "[[settings]]\nknobs = {}", "settings.1: object missing required field `name`"),
        (
            MODEL + WORKLOAD + '[[settings]]\nname = "a"\nknobs = { order = "lifo" }',
            "settings.1.knobs.order = 'lifo': give one of",
        ),
        (
            MODEL + WORKLOAD + '[[settings]]\nname = "a"\nknobs = { "n.order" = "fcfs" }',
            "settings.1.knobs.n.order = 'fcfs': there is no model n",
        ),
        (
            MODEL + WORKLOAD + '[[settings]]\nname = "a"\nknobs = { window_us = "2s", timeout_ms = 60 }',
            "m.window_us = 2000000: in the setting a, longer than timeout_ms (60 ms)",
        ),
        (MODEL + WORKLOAD + '[[settings]]\nname = "a"\nreplicas = 2', "settings.1.replicas = 2: there are 1 devices"),
        (MODEL + WORKLOAD + "[scaling]\nreplicas = [1, 2, 3]", "scaling.replicas = [1, 2, 3]: give three or more"),
        (MODEL + WORKLOAD + "latest = true", "workloads.1.latest = True: a newer request is one of the same session"),
        (MODEL + "[tenants.t]\nusers = 3\n" + WORKLOAD, "tenants.t.users = 3: give a list of names"),
        (MODEL + '[tenants.t]\n[tenants.u]\nusers = ["t"]\n' + WORKLOAD, "tenants.u.users = 't': is of the class t"),
        (MODEL + "[tenants.t]\nmax_batch = 3\n" + WORKLOAD, "tenants.t.max_batch = 3: this is a model knob"),
        (
            MODEL + "[tenants.t]\ntenant_connections_max = 3\n" + WORKLOAD,
            "tenants.t.tenant_connections_max = 3: this is a tenant knob, of which the simulation",
        ),
        (
            MODEL + WORKLOAD + '[[settings]]\nname = "a"\nknobs = { "t.tenant_weight" = 2 }',
            "settings.1.knobs.t.tenant_weight = 2: there is no tenant t",
        ),
        ("devices = [{ knobs = { order = 'sjf' } }]\n" + MODEL + WORKLOAD, "devices.1.knobs.order = 'sjf': this is a"),
        (MODEL + WORKLOAD + "[sweep]\nload = [2, 1]", "sweep.load = [2.0, 1.0]: give factors in ascending order"),
        (MODEL + WORKLOAD + '[sweep]\nload = [1, 2]\nworkloads = ["w"]', "sweep.workloads = 'w': no such workload"),
        (MODEL + WORKLOAD + "[sweep]\nload = [1, 1e9]", "duration_s = 10.0: this makes"),
        ("duration_s = 2e9\n" + MODEL + WORKLOAD, "duration_s = 2000000000.0: expected `float` <="),
        ("duration_s = 1e9\n" + MODEL + WORKLOAD, "duration_s = 1000000000.0: this makes"),
        ("devices = [{ kind = 'tpu' }]\n" + MODEL + WORKLOAD, "devices.1.kind = 'tpu': give cpu or cuda"),
    ],
)
def test_what_makes_no_sense_is_one_line_with_key_and_value(tmp_path: Path, text: str, line: str) -> None:
    assert complaint(tmp_path, text).startswith(line)


def test_knobs_of_a_model_beat_those_of_all_and_settings_beat_the_file(tmp_path: Path) -> None:
    scenario = load(
        tmp_path,
        "[knobs]\nmax_batch = 2\nwindow_us = 3\n"
        "[models.m]\nfixed_us = 1\n[models.m.knobs]\nmax_batch = 4\n[models.n]\nfixed_us = 1\n"
        + WORKLOAD
        + '[[settings]]\nname = "s"\nknobs = { max_batch = 5, window_us = 6, "n.window_us" = 7 }\n',
    )
    (setting,) = scenario.with_knobs({"queue_max": 8}).settings
    m, n = (scenario.model_knobs(setting, model) for model in scenario.models)
    assert (m["max_batch"], m["window_us"], m["queue_max"]) == (4, 6, 8)
    assert (n["max_batch"], n["window_us"], n["queue_max"]) == (5, 7, 8)


def test_knobs_of_one_model_are_model_knobs() -> None:
    with pytest.raises(ConfigError, match="pipeline_depth"):
        parse_knobs(None, "", {"m.pipeline_depth": 1}, {Scope.MODEL: ["m"]})


def test_a_user_has_the_knobs_of_its_class_whatever_name_it_gives(tmp_path: Path) -> None:
    scenario = load(
        tmp_path,
        "[knobs]\ntenant_weight = 3\n[tenants.night]\nusers = ['a']\ntenant_rows_max = 5\n"
        + MODEL
        + WORKLOAD
        + '[[settings]]\nname = "s"\nknobs = { "night.tenant_weight" = 0.5 }\n',
    )
    lookup = scenario.tenant_lookup(scenario.settings[0])
    user, policy = lookup("a/web")
    assert (user, policy.name, policy.weight, policy.rows_max) == ("a", "night", 0.5, 5)
    user, policy = lookup("b")
    assert (user, policy.name, policy.weight) == ("b", "default", 3.0)


def test_only_the_rates_that_are_swept_change(tmp_path: Path) -> None:
    text = MODEL + WORKLOAD + WORKLOAD + '[sweep]\nload = [1, 3]\nworkloads = ["m 2"]\n'
    assert [workload.rate_per_s for workload in load(tmp_path, text).at_load(3).workloads] == [50.0, 150.0]


# ── with a trace ────────────────────────────────────────────────────────────────────────────────

TRACE = trace(*(ran(number, 1, MS) for number in range(10)))


def test_a_trace_alone_is_a_scenario() -> None:
    scenario = of_trace(TRACE)
    assert [model.name for model in scenario.models] == ["m"]
    assert scenario.models[0].service.compute_ns("", 1, 1.0) == MS
    assert (scenario.trace, scenario.hop, scenario.warmup_s) == (TRACE, Hop(50_000), 0.0)


def test_a_trace_takes_the_place_of_the_workloads(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("[models.m]\n[[devices]]\ncount = 2\n")
    scenario = load_scenario(path, TRACE)
    assert (scenario.trace, len(scenario.devices), list(scenario.workloads)) == (TRACE, 2, [])
    assert scenario.models[0].service.compute_ns("", 1, 1.0) == MS, "as measured, since the file says nothing of it"


def test_a_model_that_only_the_trace_has_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("[models.n]\nfixed_us = 1\n")
    with pytest.raises(ConfigError, match=r"models\.m: the trace asks for this model"):
        load_scenario(path, TRACE)


def test_a_trace_that_says_nothing_of_a_models_time_needs_a_scenario() -> None:
    with pytest.raises(ConfigError, match=r"models\.m: the trace has no batch of it"):
        of_trace(trace(record(0, outcome=200)))
