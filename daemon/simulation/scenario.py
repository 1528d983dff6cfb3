"""What to simulate: models, devices, workloads, and the settings that are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ..config import DEFAULT_CLASS, ConfigError
from ..knob import Scope, Setting
from ..knobs import KNOBS
from ..scheduling.policy import TenantPolicy
from ..scheduling.users import TenantLookup
from .engine import Device, Hop
from .replay import Calibration, calibrate
from .service import Service
from .trace import Trace
from .workload import Workload

Knobs: TypeAlias = dict[str, Setting]


@dataclass(frozen=True)
class Sweep:
    """How the load is varied."""

    load: Sequence[float] = ()
    """Factors of the rates of open loops."""
    workloads: frozenset[int] = frozenset()
    """By number: those whose rates they are."""


@dataclass(frozen=True)
class ClassPlan:
    """A class of tenants."""

    name: str
    users: Sequence[str]
    knobs: Knobs = field(default_factory=dict)


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
    """By address: `order`, `digits.order`, `cuda:0.device_weight`, `nightly.tenant_weight`."""
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
    sweep: Sweep = field(default_factory=Sweep)
    trace: Trace | None = None
    classes: Sequence[ClassPlan] = ()
    device_knobs: Mapping[str, Knobs] = field(default_factory=dict)
    """By name of the device."""

    def with_knobs(self, knobs: Knobs) -> "Scenario":
        """These knobs, by address, in every setting."""
        return replace(self, settings=[replace(each, knobs=each.knobs | knobs) for each in self.settings])

    def at_load(self, factor: float) -> "Scenario":
        """The same, but so many times as many requests of the workloads that are swept."""
        rates = [
            replace(each, rate_per_s=each.rate_per_s * factor) if number in self.sweep.workloads else each
            for number, each in enumerate(self.workloads)
        ]
        return replace(self, workloads=rates)

    @property
    def targets(self) -> Mapping[Scope, Sequence[str]]:
        """What a knob may be set for."""
        return {
            Scope.MODEL: [model.name for model in self.models],
            Scope.DEVICE: [device.name for device in self.devices.values()],
            Scope.TENANT: [each.name for each in self.classes] or [DEFAULT_CLASS],
        }

    def general_knobs(self, setting: SettingPlan) -> Knobs:
        """What holds for the instance, and for all of which nothing else is said."""
        general = {name: value for name, value in setting.knobs.items() if "." not in name}
        return {name: knob.default for name, knob in KNOBS.items()} | self.knobs | general

    def model_knobs(self, setting: SettingPlan, model: ModelPlan) -> Knobs:
        """What holds for one model."""
        return self._knobs_of(setting, model.name, model.knobs)

    def weighted_devices(self, setting: SettingPlan) -> dict[int, Device]:
        """The devices with the weights of this setting, by worker."""
        return {
            worker: device._replace(weight=self._device_weight(setting, device.name))
            for worker, device in self.devices.items()
        }

    def _device_weight(self, setting: SettingPlan, name: str) -> float:
        return float(self._knobs_of(setting, name, self.device_knobs.get(name, {}))["device_weight"])

    def tenant_lookup(self, setting: SettingPlan) -> TenantLookup:
        """Whose a tenant is, and what its user may use: what stands before the slash is the user, as in the daemon."""
        plans = {user: each for each in self.classes for user in each.users}
        policies = {
            each.name: TenantPolicy.of(each.name, self._knobs_of(setting, each.name, each.knobs))
            for each in (ClassPlan(DEFAULT_CLASS, ()), *self.classes)
        }

        def lookup(tenant: str) -> tuple[str, TenantPolicy]:
            user, _, _ = tenant.partition("/")
            return user, policies[plans[user].name if user in plans else DEFAULT_CLASS]

        return lookup

    def _knobs_of(self, setting: SettingPlan, target: str, own: Knobs) -> Knobs:
        """What is said of a model, device or class beats what is said of all."""
        prefix = f"{target}."
        set_here = {
            name.removeprefix(prefix): value for name, value in setting.knobs.items() if name.startswith(prefix)
        }
        return self.general_knobs(setting) | own | set_here


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
    return with_trace(
        Scenario(models, calibration.devices, [], [], [SettingPlan("as recorded")], knobs), trace, calibration
    )


def with_trace(scenario: Scenario, trace: Trace, calibration: Calibration) -> Scenario:
    """Its requests alone, from the first to the last; nothing but the noise of service times differs by seed."""
    return replace(
        scenario, trace=trace, workloads=[], workload_names=[model.name for model in scenario.models], warmup_s=0.0,
        hop=calibration.hop if scenario.hop == Hop() else scenario.hop,
    )  # fmt: skip
