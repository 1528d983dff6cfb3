"""The tables of a scenario's file, each read strictly."""

from typing import Annotated, Any, Final, TypeAlias

import msgspec

from tensord.ipc.limits import PRIORITY_CLASSES, PRIORITY_NORMAL

from .shapes import Kind
from .workload import Arrivals

SECONDS_MAX: Final = 1e9
"""Of virtual time: 2^63 nanoseconds are nine times as long."""

DEVICES_MAX: Final = 1_024
CLIENTS_MAX: Final = 100_000

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
    worker_us: NotNegative = 0.0


class DeviceTable(_Strict, frozen=True):
    kind: str = "cpu"
    count: Annotated[int, msgspec.Meta(ge=1, le=DEVICES_MAX)] = 1
    speed: Positive = 1.0
    knobs: dict[str, Any] = {}


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
    latest: bool = False
    deadline_ms: Positive | None = None
    """The model's timeout_ms, where nothing is said."""


class SettingTable(_Strict, frozen=True):
    name: Name
    knobs: dict[str, Any] = {}
    replicas: Count | None = None


class ScalingTable(_Strict, frozen=True):
    replicas: Annotated[list[Count], msgspec.Meta(min_length=3, max_length=32)]


class SweepTable(_Strict, frozen=True):
    load: Annotated[list[Positive], msgspec.Meta(min_length=2, max_length=32)]
    workloads: list[str] | None = None


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
    tenants: dict[Name, dict[str, Any]] = {}
    workloads: list[dict[str, Any]] = []
    settings: list[dict[str, Any]] = []
    scaling: dict[str, Any] | None = None
    sweep: dict[str, Any] | None = None
