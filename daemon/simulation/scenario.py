"""What to simulate: a TOML file, read strictly, or a trace.

seed, duration_s, warmup_s, replications
[hop]                     latency_us, request_us, batch_us: what the way through the daemon costs
[knobs]                   global knobs, and general values of model knobs, as in the daemon's configuration
[[devices]]               kind, count, speed: cpu:0, cpu:1, …
[models.NAME]             fixed_us, row_us, shape, scv, devices; [models.NAME.buckets.B]; [models.NAME.knobs]
[[workloads]]             who asks: see Workload
[[settings]]              name, knobs (`order`, or `NAME.order` for one model), replicas: compared side by side
[scaling]                 replicas: numbers of them for which each setting runs, too
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec

from tensord.ipc.limits import PRIORITY_CLASSES, PRIORITY_NORMAL

from ..config import ConfigError, read_toml
from ..knob import KnobError, Scope, Setting, suggestion
from ..knobs import KNOBS, contradiction, find
from .engine import Device, Hop
from .replay import Calibration, calibrate
from .service import Line, Service
from .shapes import Kind, Shape
from .trace import Trace
from .workload import Arrivals, Choice, Rows, Workload

REQUESTS_MAX: Final = 20_000_000
"""Arrivals of an open loop over all replications and settings: hours of computing."""

SECONDS_MAX: Final = 1e9
"""Of virtual time: 2^63 nanoseconds are nine times as long."""

DEVICES_MAX: Final = 1_024
CLIENTS_MAX: Final = 100_000

Knobs: TypeAlias = dict[str, Setting]
Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
NotNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Class: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=PRIORITY_CLASSES)]
Filled: Final = msgspec.Meta(min_length=1, max_length=1000)


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class HopTable(_Strict, frozen=True):
    latency_us: NotNegative = 0.0
    request_us: NotNegative = 0.0
    batch_us: NotNegative = 0.0


class DeviceTable(_Strict, frozen=True):
    kind: str = "cpu"
    count: Annotated[int, msgspec.Meta(ge=1, le=DEVICES_MAX)] = 1
    speed: Positive = 1.0


class BucketTable(_Strict, frozen=True):
    fixed_us: NotNegative = 0.0
    row_us: NotNegative = 0.0


class ModelTable(_Strict, frozen=True):
    fixed_us: NotNegative | None = None
    row_us: NotNegative | None = None
    shape: Kind = Kind.CONSTANT
    scv: Positive = 1.0
    devices: list[str] | None = None
    """Those that have it loaded; all, where nothing is said."""
    buckets: dict[str, Any] = {}
    knobs: dict[str, Any] = {}


class RowsTable(_Strict, frozen=True):
    mean: Annotated[float, msgspec.Meta(ge=1, le=1_000_000)]
    shape: Kind = Kind.EXPONENTIAL
    scv: Positive = 1.0


class WorkloadTable(_Strict, frozen=True):
    model: Name
    name: Name | None = None
    arrivals: Arrivals = Arrivals.POISSON
    rate_per_s: Positive | None = None
    burst_s: Positive = 1.0
    pause_s: Positive = 1.0
    clients: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_MAX)] | None = None
    think_ms: NotNegative = 0.0
    rows: Count | Annotated[list[tuple[Count, Positive]], Filled] | RowsTable = 1
    row_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    buckets: Annotated[tuple[tuple[str, Positive], ...], Filled] = (("", 1.0),)
    tenants: Annotated[tuple[tuple[Name, Positive], ...], Filled] = (("default", 1.0),)
    priorities: Annotated[tuple[tuple[Class, Positive], ...], Filled] = ((PRIORITY_NORMAL, 1.0),)
    sessions: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    deadline_ms: Positive | None = None
    """The model's timeout_ms, where nothing is said."""


class SettingTable(_Strict, frozen=True):
    name: Name
    knobs: dict[str, Any] = {}
    replicas: Count | None = None


class ScalingTable(_Strict, frozen=True):
    replicas: Annotated[list[Count], msgspec.Meta(min_length=3, max_length=32)]


class ScenarioFile(_Strict, frozen=True):
    """The file's top level."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 1
    duration_s: Annotated[float, msgspec.Meta(gt=0, le=SECONDS_MAX)] = 10.0
    warmup_s: Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)] = 1.0
    replications: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    hop: dict[str, Any] = {}
    knobs: dict[str, Any] = {}
    devices: list[dict[str, Any]] = []
    """One CPU device, where nothing is said."""
    models: dict[Name, dict[str, Any]] = {}
    workloads: list[dict[str, Any]] = []
    settings: list[dict[str, Any]] = []
    scaling: dict[str, Any] | None = None


@dataclass(frozen=True)
class ModelPlan:
    """One model."""

    name: str
    service: Service
    workers: Sequence[int]
    knobs: Knobs = field(default_factory=dict)


@dataclass(frozen=True)
class SettingPlan:
    """One of those that are compared."""

    name: str
    knobs: Knobs = field(default_factory=dict)
    """By address: `order`, `digits.order`."""
    replicas: int | None = None
    """Of the model's devices only so many have it loaded."""


@dataclass(frozen=True)
class Scenario:
    """What can be simulated, consistent in itself."""

    models: Sequence[ModelPlan]
    devices: Mapping[int, Device]
    workloads: Sequence[Workload]
    """Without trace; a workload's deadline of 0 stands for its model's timeout_ms."""
    workload_names: Sequence[str]
    settings: Sequence[SettingPlan]
    knobs: Knobs = field(default_factory=dict)
    hop: Hop = field(default_factory=Hop)
    seed: int = 1
    duration_s: float = 10.0
    warmup_s: float = 1.0
    replications: int = 5
    scaling: Sequence[int] = ()
    trace: Trace | None = None

    def with_knobs(self, knobs: Knobs) -> "Scenario":
        """These knobs, by address, in every setting."""
        return replace(self, settings=[replace(each, knobs=each.knobs | knobs) for each in self.settings])

    def general_knobs(self, setting: SettingPlan) -> Knobs:
        """What holds for the instance, and for models of which nothing else is said."""
        general = {name: value for name, value in setting.knobs.items() if "." not in name}
        return {name: knob.default for name, knob in KNOBS.items()} | self.knobs | general

    def model_knobs(self, setting: SettingPlan, model: ModelPlan) -> Knobs:
        """What holds for one model: what is said of it beats what is said of all."""
        prefix = f"{model.name}."
        own = {name.removeprefix(prefix): value for name, value in setting.knobs.items() if name.startswith(prefix)}
        return self.general_knobs(setting) | model.knobs | own


def of_trace(trace: Trace) -> Scenario:
    """The trace by itself: its models, devices and knobs, service times as they were measured. Raises ConfigError."""
    calibration = calibrate(trace)
    for name in sorted({record.model for record in trace.records} - set(calibration.services)):
        remedy = "the trace has no batch of it, so nobody knows how long one takes: give a scenario, too"
        raise ConfigError("trace", f"models.{name}", None, remedy)
    knobs = {name: value for name, value in trace.header.knobs.items() if name in KNOBS}
    models = [
        ModelPlan(
            name, service, list(calibration.devices), {k: v for k, v in trace.header.models[name].items() if k in KNOBS}
        )
        for name, service in calibration.services.items()
    ]
    return _with_trace(
        Scenario(models, calibration.devices, [], [], [SettingPlan("as recorded")], knobs), trace, calibration
    )


def load_scenario(path: Path, trace: Trace | None = None) -> Scenario:
    """The scenario in the TOML file `path`. With a trace, that takes the place of its workloads. Raises ConfigError."""
    return _Reader(str(path), trace).scenario(read_toml(path))


def parse_knobs(origin: str | None, section: str, knobs: Mapping[str, Any], models: Sequence[str]) -> Knobs:
    """Knobs by address, in their units. Raises ConfigError."""
    parsed: Knobs = {}
    for address, value in knobs.items():
        model, dot, name = address.rpartition(".")
        key = f"{section}.{address}" if section else address
        if dot and model not in models:
            raise ConfigError(origin, key, value, f"there is no model {model}; {suggestion(model, models)}")
        try:
            knob = find(name, value, scope=Scope.MODEL if dot else None)
            parsed[address] = knob.parse(value)
        except KnobError as error:
            raise ConfigError(origin, key, error.value, error.remedy) from None
        if knob.scope not in (Scope.MODEL, Scope.GLOBAL):
            raise ConfigError(origin, key, value, f"this is a {knob.scope} knob, of which the simulation knows nothing")
    return parsed


def _with_trace(scenario: Scenario, trace: Trace, calibration: Calibration) -> Scenario:
    """Its requests alone, from the first to the last; nothing but the noise of service times differs by seed."""
    return replace(
        scenario, trace=trace, workloads=[], workload_names=[model.name for model in scenario.models], warmup_s=0.0,
        hop=calibration.hop if scenario.hop == Hop() else scenario.hop,
    )  # fmt: skip


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
        models = [self._model(name, table, devices, calibration) for name, table in file.models.items()]
        if not models:
            raise self._error("models", None, "name a model: a line [models.NAME], with fixed_us and row_us below")
        workloads = list(self._workloads(file.workloads, names))
        settings = [self._setting(number, table, names, devices) for number, table in enumerate(file.settings)]
        scenario = Scenario(
            models, devices, [each for _, each in workloads], [name for name, _ in workloads],
            settings or [SettingPlan("default")], parse_knobs(self._origin, "knobs", file.knobs, ()),
            Hop(round(hop.latency_us * 1e3), round(hop.request_us * 1e3), round(hop.batch_us * 1e3)), file.seed,
            file.duration_s, file.warmup_s, file.replications, self._scaling(file.scaling, devices), self._trace,
        )  # fmt: skip
        if calibration is not None and self._trace is not None:
            missing = sorted({record.model for record in self._trace.records} - set(names))
            if missing:
                raise self._error(f"models.{missing[0]}", None, "the trace asks for this model, and it is not here")
            return _with_trace(scenario, self._trace, calibration)
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
        rate = sum(workload.rate_per_s for workload in scenario.workloads)
        runs = scenario.replications * len(scenario.settings) * (1 + len(scenario.scaling))
        requests = rate * (scenario.duration_s + scenario.warmup_s) * runs
        if requests > REQUESTS_MAX:
            remedy = f"this makes {requests:,.0f} requests over all runs, {REQUESTS_MAX:,} are allowed: shorten it"
            raise self._error("duration_s", scenario.duration_s, remedy)

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
        knobs = parse_knobs(self._origin, f"{section}.knobs", spec.knobs, ())
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
            yield spec.name or f"{spec.model} {number}", Workload(
                models.index(spec.model), spec.arrivals, 0.0 if closed else spec.rate_per_s or 0.0, spec.burst_s,
                spec.pause_s, spec.clients or 0, spec.think_ms * 1e6, self._rows(section, spec.rows), spec.row_bytes,
                _choice(spec.buckets), _choice(spec.tenants), _choice(spec.priorities), spec.sessions,
                round((spec.deadline_ms or 0) * 1e6),
            )  # fmt: skip

    def _rows(self, section: str, rows: int | list[tuple[int, float]] | RowsTable) -> Choice | Rows:
        if isinstance(rows, RowsTable):
            return Rows(rows.mean, self._shape(f"{section}.rows", rows.shape, rows.scv))
        return Choice([rows]) if isinstance(rows, int) else _choice(rows)

    def _setting(
        self, number: int, table: dict[str, Any], models: Sequence[str], devices: Mapping[int, Device]
    ) -> SettingPlan:
        section = f"settings.{number + 1}"
        spec = self._convert(section, table, SettingTable)
        if spec.replicas is not None and spec.replicas > len(devices):
            raise self._error(f"{section}.replicas", spec.replicas, f"there are {len(devices)} devices")
        return SettingPlan(spec.name, parse_knobs(self._origin, f"{section}.knobs", spec.knobs, models), spec.replicas)

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
