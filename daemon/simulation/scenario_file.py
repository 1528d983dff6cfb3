"""The file of a scenario, TOML: read strictly; whatever is wrong is one line with key and value.

seed, duration_s, warmup_s, replications
[hop]                     latency_us, request_us, batch_us, worker_us: what the way through the daemon costs
[knobs]                   global knobs, and general values of all others, as in the daemon's configuration
[[devices]]               kind, count, speed, knobs: cpu:0, cpu:1, …
[models.NAME]             fixed_us, row_us, shape, scv, devices; [models.NAME.buckets.B]; [models.NAME.knobs]
[tenants.NAME]            a class of tenants: users (those of this name, where nothing is said), and its knobs
[[workloads]]             who asks: see Workload; the tenant `user/name` is one name of a user
[[settings]]              name, knobs (`order`, or `NAME.order` for one model, device or class), replicas: compared
[scaling]                 replicas: numbers of them for which each setting runs, too
[sweep]                   load: factors of the rates for which each setting runs, too; workloads: of these only
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ..config import DEFAULT_CLASS, ConfigError, read_toml
from ..knob import KnobError, Scope, suggestion
from ..knobs import contradiction, find
from .engine import Device, Hop
from .replay import Calibration, calibrate
from .scenario import ClassPlan, Knobs, ModelPlan, Scenario, SettingPlan, Sweep, with_trace
from .scenario_tables import (
    BucketTable,
    DeviceTable,
    HopTable,
    ModelTable,
    RowsTable,
    ScalingTable,
    ScenarioFile,
    SettingTable,
    SweepTable,
    WorkloadTable,
)
from .service import Line, Service
from .shapes import Kind, Shape
from .trace import Trace
from .workload import Arrivals, Choice, Rows, Workload

REQUESTS_MAX: Final = 20_000_000
"""Arrivals of an open loop over all replications and settings: hours of computing."""

SIMULATED: Final = frozenset({"device_weight", "tenant_weight", "tenant_rows_max"})
"""The knobs of devices and tenants that the scheduler obeys; the others are for workers and connections."""


def load_scenario(path: Path, trace: Trace | None = None) -> Scenario:
    """The scenario in the TOML file `path`. With a trace, that takes the place of its workloads. Raises ConfigError."""
    return _Reader(str(path), trace).scenario(read_toml(path))


def parse_knobs(
    origin: str | None, section: str, knobs: Mapping[str, Any], targets: Mapping[Scope, Sequence[str]], *,
    scope: Scope | None = None,
) -> Knobs:  # fmt: skip
    """Knobs by address, in their units; of one scope only where it is given. Raises ConfigError.

    `targets` are the models, devices and classes that a knob may be set for.
    """
    parsed: Knobs = {}
    for address, value in knobs.items():
        target, dot, name = address.rpartition(".")
        key = f"{section}.{address}" if section else address
        try:
            knob = find(name, value, scope=scope)
            if dot:
                knob = find(name, value, scope=Scope.MODEL if knob.scope is Scope.GLOBAL else knob.scope)
            parsed[address] = knob.parse(value)
        except KnobError as error:
            raise ConfigError(origin, key, error.value, error.remedy) from None
        if knob.scope not in (Scope.MODEL, Scope.GLOBAL) and name not in SIMULATED:
            raise ConfigError(origin, key, value, f"this is a {knob.scope} knob, of which the simulation knows nothing")
        known = targets.get(knob.scope, ())
        if dot and target not in known:
            raise ConfigError(origin, key, value, f"there is no {knob.scope} {target}; {suggestion(target, known)}")
    return parsed


T = TypeVar("T")


class _Reader:
    """Tables into plans; errors name file, key and value."""

    def __init__(self, origin: str, trace: Trace | None) -> None:
        self._origin = origin
        self._trace = trace

    def scenario(self, document: dict[str, Any]) -> Scenario:
        file = self._convert("", document, ScenarioFile)
        hop = self._convert("hop", file.hop, HopTable)
        devices = dict(self._devices(file.devices or [{}]))
        names = list(file.models)
        calibration = None if self._trace is None else calibrate(self._trace)
        device_knobs = self._device_knobs(file.devices, devices)
        models = [self._model(name, table, devices, calibration) for name, table in file.models.items()]
        if not models:
            raise self._error("models", None, "name a model: a line [models.NAME], with fixed_us and row_us below")
        workloads = list(self._workloads(file.workloads, names))
        scenario = Scenario(
            models, devices, [each for _, each in workloads], [name for name, _ in workloads],
            [SettingPlan("default")], parse_knobs(self._origin, "knobs", file.knobs, {}),
            Hop(*(round(each * 1e3) for each in (hop.latency_us, hop.request_us, hop.batch_us, hop.worker_us))),
            file.seed, file.duration_s, file.warmup_s, file.replications, self._scaling(file.scaling, devices),
            self._sweep(file.sweep, workloads), self._trace, self._classes(file.tenants), device_knobs,
        )  # fmt: skip
        if file.settings:
            settings = [self._setting(number, table, scenario) for number, table in enumerate(file.settings)]
            scenario = replace(scenario, settings=settings)
        if calibration is not None and self._trace is not None:
            missing = sorted({record.model for record in self._trace.records} - set(names))
            if missing:
                raise self._error(f"models.{missing[0]}", None, "the trace asks for this model, and it is not here")
            return with_trace(scenario, self._trace, calibration)
        self._check(scenario)
        return scenario

    def _check(self, scenario: Scenario) -> None:
        if not scenario.workloads:
            raise self._error("workloads", None, "say who asks: a line [[workloads]], and model and rate_per_s below")
        names = [setting.name for setting in scenario.settings]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise self._error(
                    f"settings.{place + 1}.name", name, "named twice: give each setting a name of its own"
                )
        for setting in scenario.settings:
            for model in scenario.models:
                knobs = scenario.model_knobs(setting, model)
                if (found := contradiction(knobs)) is not None:
                    knob, remedy = found
                    raise self._error(f"{model.name}.{knob}", knobs[knob], f"in the setting {setting.name}, {remedy}")
        runs = scenario.replications * len(scenario.settings)
        rates = [self._rate(scenario)] * (1 + len(scenario.scaling))
        rates += [self._rate(scenario.at_load(factor)) for factor in scenario.sweep.load]
        requests = sum(rates) * (scenario.duration_s + scenario.warmup_s) * runs
        if requests > REQUESTS_MAX:
            remedy = f"this makes {requests:,.0f} requests over all runs, {REQUESTS_MAX:,} are allowed: shorten it"
            raise self._error("duration_s", scenario.duration_s, remedy)

    def _rate(self, scenario: Scenario) -> float:
        return sum(workload.rate_per_s for workload in scenario.workloads)

    def _devices(self, tables: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Device]]:
        counts: dict[str, int] = {}
        for number, table in enumerate(tables, 1):
            spec = self._convert(f"devices.{number}", table, DeviceTable)
            if spec.kind not in ("cpu", "cuda"):
                raise self._error(f"devices.{number}.kind", spec.kind, "give cpu or cuda")
            for _ in range(spec.count):
                index = counts.get(spec.kind, 0)
                counts[spec.kind] = index + 1
                yield sum(counts.values()), Device(f"{spec.kind}:{index}", spec.speed)

    def _device_knobs(self, tables: Sequence[dict[str, Any]], devices: Mapping[int, Device]) -> dict[str, Knobs]:
        """By name of the device; tables and devices come in the same order."""
        names = iter(devices.values())
        found: dict[str, Knobs] = {}
        for number, table in enumerate(tables, 1):
            spec = self._convert(f"devices.{number}", table, DeviceTable)
            knobs = parse_knobs(self._origin, f"devices.{number}.knobs", spec.knobs, {}, scope=Scope.DEVICE)
            found |= {next(names).name: knobs for _ in range(spec.count)}
        return found

    def _classes(self, tables: Mapping[str, dict[str, Any]]) -> list[ClassPlan]:
        classes = []
        owner: dict[str, str] = {}
        for name, table in tables.items():
            section = f"tenants.{name}"
            own = dict(table)
            users = own.pop("users", [] if name == DEFAULT_CLASS else [name])
            if not isinstance(users, list) or not all(isinstance(user, str) for user in users):
                raise self._error(f"{section}.users", users, 'give a list of names, such as ["a", "b"]')
            for user in users:
                if owner.setdefault(user, name) != name:
                    raise self._error(f"{section}.users", user, f"is of the class {owner[user]} already")
            knobs = parse_knobs(self._origin, section, own, {}, scope=Scope.TENANT)
            classes.append(ClassPlan(name, users, knobs))
        return classes

    def _model(
        self, name: str, table: dict[str, Any], devices: Mapping[int, Device], calibration: Calibration | None
    ) -> ModelPlan:
        section = f"models.{name}"
        spec = self._convert(section, table, ModelTable)
        worker_of = {device.name: worker for worker, device in devices.items()}
        for device in spec.devices or ():
            if device not in worker_of:
                raise self._error(f"{section}.devices", device, f"no such device; {suggestion(device, worker_of)}")
        workers = list(devices) if spec.devices is None else [worker_of[device] for device in spec.devices]
        if not workers:
            raise self._error(f"{section}.devices", [], "name a device, or leave it out: then all have the model")
        knobs = parse_knobs(self._origin, f"{section}.knobs", spec.knobs, {}, scope=Scope.MODEL)
        return ModelPlan(name, self._service(section, name, spec, calibration), workers, knobs)

    def _service(self, section: str, name: str, spec: ModelTable, calibration: Calibration | None) -> Service:
        if spec.fixed_us is None and spec.row_us is None and not spec.buckets:
            if calibration is None or name not in calibration.services:
                raise self._error(section, None, "say how long a batch takes: fixed_us, row_us, or both")
            return calibration.services[name]
        buckets = {
            bucket: self._convert(f"{section}.buckets.{bucket}", table, BucketTable)
            for bucket, table in spec.buckets.items()
        }
        return Service(
            Line((spec.fixed_us or 0.0) * 1e3, (spec.row_us or 0.0) * 1e3),
            {bucket: Line(line.fixed_us * 1e3, line.row_us * 1e3) for bucket, line in buckets.items()},
            self._shape(section, spec.shape, spec.scv),
        )

    def _shape(self, section: str, kind: Kind, scv: float) -> Shape:
        if kind is Kind.EMPIRICAL:
            raise self._error(f"{section}.shape", kind.value, "only a trace has measured times: give another shape")
        if kind is Kind.HYPEREXPONENTIAL and scv <= 1:
            raise self._error(f"{section}.scv", scv, "a hyperexponential distribution has more than 1")
        return Shape(kind, scv)

    def _workloads(self, tables: Sequence[dict[str, Any]], models: Sequence[str]) -> Iterator[tuple[str, Workload]]:
        for number, table in enumerate(tables, 1):
            section = f"workloads.{number}"
            spec = self._convert(section, table, WorkloadTable)
            if spec.model not in models:
                raise self._error(f"{section}.model", spec.model, f"no such model; {suggestion(spec.model, models)}")
            closed = spec.arrivals is Arrivals.CLOSED
            if closed and spec.clients is None:
                raise self._error(f"{section}.clients", None, "a closed loop needs clients: say how many")
            if not closed and spec.rate_per_s is None:
                raise self._error(f"{section}.rate_per_s", None, "an open loop needs a rate: requests per second")
            if spec.latest and not spec.sessions:
                raise self._error(
                    f"{section}.latest", True, "a newer request is one of the same session: give sessions"
                )
            yield spec.name or f"{spec.model} {number}", Workload(
                models.index(spec.model), spec.arrivals, 0.0 if closed else spec.rate_per_s or 0.0, spec.burst_s,
                spec.pause_s, spec.clients or 0, spec.think_ms * 1e6, self._rows(section, spec.rows), spec.row_bytes,
                _choice(spec.buckets), _choice(spec.tenants), _choice(spec.priorities), spec.sessions, spec.latest,
                round((spec.deadline_ms or 0) * 1e6),
            )  # fmt: skip

    def _rows(self, section: str, rows: int | list[tuple[int, float]] | RowsTable) -> Choice | Rows:
        if isinstance(rows, RowsTable):
            return Rows(rows.mean, self._shape(f"{section}.rows", rows.shape, rows.scv))
        return Choice([rows]) if isinstance(rows, int) else _choice(rows)

    def _setting(self, number: int, table: dict[str, Any], scenario: Scenario) -> SettingPlan:
        section = f"settings.{number + 1}"
        spec = self._convert(section, table, SettingTable)
        if spec.replicas is not None and spec.replicas > len(scenario.devices):
            raise self._error(f"{section}.replicas", spec.replicas, f"there are {len(scenario.devices)} devices")
        knobs = parse_knobs(self._origin, f"{section}.knobs", spec.knobs, scenario.targets)
        return SettingPlan(spec.name, knobs, spec.replicas)

    def _sweep(self, table: dict[str, Any] | None, workloads: Sequence[tuple[str, Workload]]) -> Sweep:
        if table is None:
            return Sweep()
        spec = self._convert("sweep", table, SweepTable)
        if list(spec.load) != sorted(set(spec.load)):
            raise self._error("sweep.load", spec.load, "give factors in ascending order, each once")
        names = [name for name, _ in workloads]
        for name in spec.workloads or ():
            if name not in names:
                raise self._error("sweep.workloads", name, f"no such workload; {suggestion(name, names)}")
        swept = range(len(names)) if spec.workloads is None else map(names.index, spec.workloads)
        return Sweep(spec.load, frozenset(swept))

    def _scaling(self, table: dict[str, Any] | None, devices: Mapping[int, Device]) -> list[int]:
        if table is None:
            return []
        numbers = self._convert("scaling", table, ScalingTable).replicas
        if numbers != sorted(set(numbers)) or numbers[-1] > len(devices):
            remedy = f"give three or more numbers, ascending, up to the {len(devices)} devices"
            raise self._error("scaling.replicas", numbers, remedy)
        return numbers

    def _convert(self, section: str, table: Mapping[str, Any], kind: type[T]) -> T:
        known = kind.__struct_fields__  # type: ignore[attr-defined]
        for key, value in table.items():
            dotted = f"{section}.{key}" if section else key
            if key not in known:
                raise self._error(dotted, value, f"no such key; {suggestion(key, known)}")
            if isinstance(value, float) and not isfinite(value):
                raise self._error(dotted, value, "give a number")
        try:
            return msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            reason, _, place = str(error).partition(" - at `$")
            key = place.rstrip("`").lstrip(".")
            name = key.partition(".")[0].partition("[")[0]
            dotted = f"{section}.{key}" if section and key else section or key
            raise self._error(dotted, table.get(name), reason[:1].lower() + reason[1:]) from None

    def _error(self, key: str, value: object, remedy: str) -> ConfigError:
        return ConfigError(self._origin, key, value, remedy)


def _choice(pairs: Sequence[tuple[Any, float]]) -> Choice:
    return Choice([value for value, _ in pairs], [weight for _, weight in pairs])
