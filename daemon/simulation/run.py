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


class Report(msgspec.Struct, frozen=True):
    """All that was simulated."""

    seed: int
    duration_s: float
    """Virtual time that is measured, of one replication; 0: a whole trace."""
    settings: list[Summary]
    scaling: list[Scaling]


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
        scenario.devices,
        _sources(scenario, timeouts_ns, (scenario.seed, replication)),
        tally,
        GlobalPolicy.of(scenario.general_knobs(setting)),
        scenario.hop,
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
    devices = {worker: device.name for worker, device in scenario.devices.items()}
    names = [model.name for model in scenario.models]
    summaries = [
        summary(setting.name, runs.tallies(setting), devices, names, scenario.workload_names)
        for setting in scenario.settings
    ]
    scaling = [runs.scaling(setting) for setting in scenario.settings] if scenario.scaling else []
    return Report(scenario.seed, 0.0 if scenario.trace is not None else scenario.duration_s, summaries, scaling)


class _Runs:
    def __init__(self, scenario: Scenario, display: Display) -> None:
        self._scenario = scenario
        self._display = display
        self._done = 0
        self._all = scenario.replications * len(scenario.settings) * (1 + len(scenario.scaling))

    def tallies(self, setting: SettingPlan, replicas: int | None = None) -> list[Tally]:
        made = []
        for replication in range(self._scenario.replications):
            self._display(setting.name, self._done, self._all)
            made.append(simulate(self._scenario, setting, replication, replicas))
            self._done += 1
        return made

    def scaling(self, setting: SettingPlan) -> Scaling:
        numbers = list(self._scenario.scaling)
        throughputs = [
            estimate([tally.answered / tally.window_s for tally in self.tallies(setting, number)]) for number in numbers
        ]
        return Scaling(setting.name, numbers, throughputs, fit(numbers, [each.mean for each in throughputs]))
