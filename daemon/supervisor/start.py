"""From a configuration to a supervisor: everything that can be wrong before the first process is found here."""

import os

from ..config import Config, assign_cores, check_devices, check_models
from ..exits import Exit
from ..knob import KnobError
from ..models.repository import scan
from .catalog import Catalog
from .discovery import Gpu, discover
from .failures import InstanceFailure
from .knobs import Knobs
from .supervisor import DevicePlan, Supervisor


def prepare(config: Config) -> Supervisor:
    """The supervisor of this configuration, nothing started. Raises ConfigError or InstanceFailure."""
    wants_gpu = config.devices == "auto" or any(name.startswith("cuda:") for name in config.devices)
    gpus = discover() if wants_gpu else []
    cores = sorted(os.sched_getaffinity(0))
    devices = check_devices(config, cores, len(gpus))
    catalog = Catalog(config.models, scan(config.models), config.access)
    check_models(config, catalog.names)
    try:
        knobs = Knobs(config.configured, devices, catalog, [each.name for each in config.tenant_classes])
    except KnobError as error:
        raise InstanceFailure(Exit.MODELS, f"{config.models}: a model's [knobs]: {error}") from error
    return Supervisor(config, catalog, knobs, _plan(config, devices, cores, gpus))


def worker_cores(devices: tuple[str, ...], cores: list[int]) -> list[int]:
    """The cores that CPU devices share: all but the first, which is the front end's, where there are enough.

    A front end that has to wait for a computing worker's time slice delays every client by milliseconds, and
    threads that wait for one another at a barrier, one of them preempted, lose tens of milliseconds.
    """
    needed = max((int(name[4:]) + 1 for name in devices if name.startswith("cpu:")), default=0)
    return cores[1:] if len(cores) > needed else cores


def _plan(config: Config, devices: tuple[str, ...], cores: list[int], gpus: list[Gpu]) -> list[DevicePlan]:
    origin = str(config.path) if config.path else None
    assigned = assign_cores(devices, worker_cores(devices, cores), origin)
    plans = []
    for name in devices:
        kind, _, index = name.partition(":")
        visible_gpu = gpus[int(index)].uuid if kind == "cuda" else ""
        plans.append(DevicePlan(name, assigned.get(name, ()), visible_gpu))
    return plans
