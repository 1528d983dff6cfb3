"""A scenario, all its settings and replications: one table of figures."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from ..scheduling.policy import GlobalPolicy, ModelPolicy
from .engine import NEVER, Engine, SimulatedModel
from .intervals import Estimate, estimate
from .replay import replayed
from .results import Summary, summary
from .scaling import Law, fit
from .scenario import Scenario, SettingPlan
from .sources import Source, source_of
from .tally import Tally

Display = Callable[[str, int, int], None]
"""Told what runs now, how many runs are done, and how many there are."""


class Scaling(msgspec.Struct, frozen=True):
    """Throughput of one setting by number of replicas."""

    setting: str
    replicas: list[int]
    throughput_per_s: list[Estimate]
    laws: list[Law]


class Sweep(msgspec.Struct, frozen=True):
    """One setting by offered load."""

    setting: str
    load: list[float]
    """Factors of the rates that are swept."""
    points: list[Summary]


class Report(msgspec.Struct, frozen=True):
    """All that was simulated."""

    seed: int
    duration_s: float
    """Virtual time that is measured, of one replication; 0: a whole trace."""
    settings: list[Summary]
    scaling: list[Scaling]
    sweeps: list[Sweep] = []


def simulate(scenario: Scenario, setting: SettingPlan, replication: int, replicas: int | None = None) -> Tally:
    """One replication. Settings that are compared meet the same requests: the seed does not depend on them."""
    replicas = replicas or setting.replicas
    models = []
    timeouts_ns = []
    for model in scenario.models:
        knobs = scenario.model_knobs(setting, model)
        timeouts_ns.append(int(knobs["timeout_ms"]) * 1_000_000)
        models.append(SimulatedModel(model.name, ModelPolicy.of(knobs), model.service, list(model.workers)[:replicas]))
    from_ns = round(scenario.warmup_s * 1e9)
    until_ns = NEVER if scenario.trace is not None else from_ns + round(scenario.duration_s * 1e9)
    tally = Tally(from_ns, until_ns)
    engine = Engine(
        models,
        scenario.weighted_devices(setting),
        _sources(scenario, timeouts_ns, (scenario.seed, replication)),
        tally,
        GlobalPolicy.of(scenario.general_knobs(setting)),
        scenario.hop,
        scenario.tenant_lookup(setting),
    )
    engine.run(until_ns)
    return tally


def _sources(scenario: Scenario, timeouts_ns: Sequence[int], seed: tuple[int, int]) -> Sequence[Source]:
    if scenario.trace is not None:
        names, services = [model.name for model in scenario.models], [model.service for model in scenario.models]
        return [replayed(scenario.trace, names, services, scenario.devices, seed)] * len(names)
    return [
        source_of(
            number,
            replace(workload, deadline_ns=workload.deadline_ns or timeouts_ns[workload.model]),
            scenario.models[workload.model].service.shape,
            seed,
        )
        for number, workload in enumerate(scenario.workloads)
    ]


def compare(scenario: Scenario, display: Display = lambda *_: None) -> Report:
    """Run everything."""
    runs = _Runs(scenario, display)
    summaries = [runs.summary(setting, scenario) for setting in scenario.settings]
    scaling = [runs.scaling(setting) for setting in scenario.settings] if scenario.scaling else []
    sweeps = [runs.sweep(setting) for setting in scenario.settings] if scenario.sweep.load else []
    duration_s = 0.0 if scenario.trace is not None else scenario.duration_s
    return Report(scenario.seed, duration_s, summaries, scaling, sweeps)


class _Runs:
    def __init__(self, scenario: Scenario, display: Display) -> None:
        self._scenario = scenario
        self._display = display
        self._done = 0
        each = 1 + len(scenario.scaling) + len(scenario.sweep.load)
        self._all = scenario.replications * len(scenario.settings) * each

    def _tallies(self, scenario: Scenario, setting: SettingPlan, replicas: int | None = None) -> list[Tally]:
        made = []
        for replication in range(scenario.replications):
            self._display(setting.name, self._done, self._all)
            made.append(simulate(scenario, setting, replication, replicas))
            self._done += 1
        return made

    def summary(self, setting: SettingPlan, scenario: Scenario) -> Summary:
        """All replications of one setting; the scenario may be at another load."""
        devices = {worker: device.name for worker, device in scenario.devices.items()}
        names = [model.name for model in scenario.models]
        return summary(setting.name, self._tallies(scenario, setting), devices, names, scenario.workload_names)

    def sweep(self, setting: SettingPlan) -> Sweep:
        load = list(self._scenario.sweep.load)
        return Sweep(setting.name, load, [self.summary(setting, self._scenario.at_load(each)) for each in load])

    def scaling(self, setting: SettingPlan) -> Scaling:
        numbers = list(self._scenario.scaling)
        throughputs = [
            estimate([tally.answered / tally.window_s for tally in self._tallies(self._scenario, setting, number)])
            for number in numbers
        ]
        return Scaling(setting.name, numbers, throughputs, fit(numbers, [each.mean for each in throughputs]))
