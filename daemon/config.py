"""The configuration file: TOML in, a checked and frozen Config out, or one line that says what to mend.

    [daemon]                  where the instance lives, what it serves, on which devices
    [knobs]                   global knobs, and the general values of model and device knobs
    [models.digits]           model knobs of one model, and who may use it
    [devices."cpu:0"]         device knobs of one device
    [tenants.batch]           a class of tenants: its users, and their knobs
    [cache]                   the second tier of the response cache

What can be checked from the file alone is checked by `load_config`. What depends on the host or the
repository is checked by `check_devices` and `check_models`, once those are known.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import msgspec

from tensord.ipc.limits import SOCKET_PATH_BYTES_MAX

from .knob import KnobError, Scope, Setting, shown, suggestion
from .knobs import find
from .users import FORM, Access, TenantClass, UnknownUser, Users, parse_users

SYSTEM_RUNTIME_DIR: Final = Path("/run/tensord")
CORES_PER_CPU_DEVICE: Final = 4
"""How `auto` divides a host without GPUs: small models gain little from more threads than this."""

DEFAULT_CLASS: Final = "default"
"""The class of tenants that everybody is of who is in no other."""

Devices: TypeAlias = Literal["auto"] | tuple[str, ...]

_DEVICE = re.compile(r"(cpu|cuda):(0|[1-9][0-9]{0,3})")
_SECTIONS = ("daemon", "knobs", "models", "devices", "tenants", "cache")
_DAEMON_KEYS: dict[str, tuple[Any, str]] = {
    "runtime_dir": (str, 'give a directory, such as "/run/tensord"'),
    "models": (str, 'give a directory, such as "/srv/models"'),
    "state_dir": (str, 'give a directory, such as "/var/lib/tensord"'),
    "devices": (Literal["auto"] | list[str], 'give "auto", or a list such as ["cpu:0", "cuda:0"]'),
}
_CACHE_KEYS: dict[str, tuple[Any, str]] = {
    "redis": (str, 'give the Unix socket of a Redis server, such as "/run/redis/redis.sock"'),
    "key_file": (str, 'give a file that only the daemon may read, such as "/var/lib/tensord/cache.key"'),
}


@dataclass(eq=False, repr=False)
class ConfigError(Exception):
    """A configuration that cannot be used; `str()` is one line: where, which key, which value, what to do."""

    path: str | None
    """The file, `command line`, or None where a default is at fault."""
    key: str
    """The dotted key, or where in the file; empty where the file itself is at fault."""
    value: object
    """The value as given; None where there is none."""
    remedy: str

    def __str__(self) -> str:
        key = self.key if self.key.isprintable() else repr(self.key)
        setting = f"{key} = {shown(self.value)}" if self.value is not None else key
        return ": ".join(part for part in (self.path, setting, self.remedy) if part)


class NoSuchDevice(ConfigError):
    """The file is well-formed, and this host lacks a device that it names."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration that is consistent in itself. Knob values are parsed, in their knobs' units."""

    path: Path | None
    """The file it came from; None: defaults and command line only."""
    runtime_dir: Path
    models: Path
    """The root of the model repository."""
    devices: Devices
    knobs: dict[str, Setting]
    model_knobs: dict[str, dict[str, Setting]]
    device_knobs: dict[str, dict[str, Setting]]
    state_dir: Path | None = None
    """For what shall outlive the instance, the learned execution times; None: nothing does."""
    tenant_knobs: dict[str, dict[str, Setting]] = {}
    """By class of tenants."""
    access: dict[str, Access] = {}
    """By model; everybody may use the others."""
    tenant_classes: tuple[TenantClass, ...] = ()
    """A user is of the first that lists it, else of the class `default`."""
    redis: Path | None = None
    """Socket of the response cache's second tier; None: there is none."""
    key_file: Path | None = None
    """What keys the answers in it; there is one where there is a second tier."""

    @property
    def socket(self) -> Path:
        """Where clients connect."""
        return self.runtime_dir / "tensord.sock"

    @property
    def control_socket(self) -> Path:
        """Where operators' commands connect."""
        return self.runtime_dir / "control.sock"

    @property
    def configured(self) -> dict[str, Setting]:
        """All knob values by address (`max_batch`, `digits.max_batch`, `cpu:0.spin_us`), as KnobStore takes them."""
        targets = [*self.model_knobs.items(), *self.device_knobs.items(), *self.tenant_knobs.items()]
        return self.knobs | {f"{target}.{name}": value for target, table in targets for name, value in table.items()}


def load_config(
    path: Path | None,
    overrides: Mapping[str, object] = MappingProxyType({}),
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration in the TOML file `path`, or the defaults where it is None.

    `overrides` are keys of `[daemon]` from the command line (None: not given); their relative paths
    count from the current directory, those of the file from the file's. Raises ConfigError.
    """
    origin = None if path is None else str(path)
    base = Path.cwd() if path is None else path.absolute().parent
    document = {} if path is None else read_toml(path)
    _check_keys(origin, "", document, _SECTIONS)
    sections = {name: _table(origin, name, document.get(name, {})) for name in _SECTIONS}

    daemon = _paths(origin, base, "daemon", sections["daemon"], _DAEMON_KEYS)
    cache = _paths(origin, base, "cache", sections["cache"], _CACHE_KEYS)
    given = {
        key: str(value) if isinstance(value, Path) else value for key, value in overrides.items() if value is not None
    }
    daemon |= _paths("command line", Path.cwd(), "daemon", given, _DAEMON_KEYS)
    models, access = _access(origin, sections["models"])
    tenants, classes = _tenant_classes(origin, sections["tenants"])
    config = Config(
        path=path,
        runtime_dir=daemon.get("runtime_dir") or _default_runtime_dir(origin, environ),
        models=daemon.get("models", base / "models"),
        state_dir=daemon.get("state_dir"),
        devices=daemon.get("devices", "auto"),
        knobs=_knobs(origin, "knobs", sections["knobs"], None),
        model_knobs=_targets(origin, "models", models, Scope.MODEL),
        device_knobs=_targets(origin, "devices", sections["devices"], Scope.DEVICE),
        tenant_knobs=_targets(origin, "tenants", tenants, Scope.TENANT),
        access=access,
        tenant_classes=classes,
        redis=cache.get("redis"),
        key_file=cache.get("key_file"),
    )
    if (config.redis is None) != (config.key_file is None):
        missing = "redis" if config.redis is None else "key_file"
        raise ConfigError(origin, f"cache.{missing}", None, f"missing: {_CACHE_KEYS[missing][1]}")
    _check_socket_path("command line" if "runtime_dir" in given else origin, config)
    return config


def check_models(config: Config, names: Iterable[str]) -> None:
    """Raise ConfigError when the file has a `[models.X]` for a model X that is not among `names`."""
    known = tuple(names)
    for model in dict.fromkeys([*config.model_knobs, *config.access]):
        if model not in known:
            remedy = f"the repository {config.models} has no such model; {suggestion(model, known)}"
            raise ConfigError(_origin(config), f"models.{model}", None, remedy)


def check_devices(config: Config, cores: Sequence[int], gpu_count: int) -> tuple[str, ...]:
    """The devices of this instance on a host where it may use `cores` (their numbers) and `gpu_count` GPUs.

    Raises NoSuchDevice for one that the host lacks, and ConfigError for a `[devices.X]` that is not used.
    """
    devices = auto_devices(cores, gpu_count) if config.devices == "auto" else config.devices
    for device in devices:
        if device.startswith("cuda:") and _index(device) >= gpu_count:
            remedy = f"no such device: GPUs on this host: {gpu_count}, counted from cuda:0"
            raise NoSuchDevice(_origin(config), "daemon.devices", device, remedy)
    assign_cores(devices, cores, _origin(config))
    for device in config.device_knobs:
        if device not in devices:
            remedy = f"this instance does not use that device; it uses {', '.join(devices)}"
            raise ConfigError(_origin(config), f'devices."{device}"', None, remedy)
    return devices


def auto_devices(cores: Sequence[int], gpu_count: int) -> tuple[str, ...]:
    """What `devices = "auto"` means: every GPU, or without any one CPU device for each CORES_PER_CPU_DEVICE cores."""
    if gpu_count:
        return tuple(f"cuda:{index}" for index in range(gpu_count))
    return tuple(f"cpu:{index}" for index in range(max(1, len(cores) // CORES_PER_CPU_DEVICE)))


def assign_cores(devices: Iterable[str], cores: Sequence[int], origin: str | None = None) -> dict[str, tuple[int, ...]]:
    """The core numbers of each CPU device: disjoint, consecutive in `cores`, all of them used, cpu:0 first.

    Sizes differ by one at most, and earlier devices get the larger. Raises NoSuchDevice for an index
    that this number of cores cannot carry; GPUs among `devices` are passed over.
    """
    cpus = sorted((device for device in devices if device.startswith("cpu:")), key=_index)
    for device in cpus:
        if _index(device) >= len(cores):
            remedy = f"no such device: with {len(cores)} cores there are cpu:0 to cpu:{len(cores) - 1} at most"
            raise NoSuchDevice(origin, "daemon.devices", device, remedy)
    size, larger = divmod(len(cores), len(cpus) or 1)
    bounds = [place * size + min(place, larger) for place in range(len(cpus) + 1)]
    return {device: tuple(cores[start:end]) for device, (start, end) in zip(cpus, pairwise(bounds), strict=True)}


# ── the file's parts ────────────────────────────────────────────────────────────────────────────


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises ConfigError, whose line says why it cannot be read, and where."""
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(str(path), "", None, f"cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"byte {error.start}", None, "not UTF-8: save the file as UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        lines = text.splitlines() or [""]
        end = f"(at line {len(lines)}, column {len(lines[-1]) + 1})"
        reason = str(error).replace("(at end of document)", end)
        raise ConfigError(str(path), "", None, f"not TOML: {reason}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, arrays a thousand deep
        raise ConfigError(str(path), "", None, "a number too long or a table too deep to be meant") from None


def _table(origin: str | None, key: str, value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ConfigError(origin, key, value, f"give a table: a line [{key}], and its keys below")


def _check_keys(origin: str | None, section: str, table: Mapping[str, object], known: Iterable[str]) -> None:
    for key, value in table.items():
        if key not in known:
            dotted = f"{section}.{key}" if section else key
            raise ConfigError(origin, dotted, value, f"no such key; {suggestion(key, known)}")


def _paths(
    origin: str | None, base: Path, name: str, table: Mapping[str, object], known: Mapping[str, tuple[Any, str]]
) -> dict[str, Any]:
    """The keys of a section that are given, as paths and devices."""
    _check_keys(origin, name, table, known)
    section: dict[str, Any] = {}
    for key, value in table.items():
        kind, remedy = known[key]
        try:
            converted = msgspec.convert(value, kind)
        except msgspec.ValidationError:
            raise ConfigError(origin, f"{name}.{key}", value, remedy) from None
        if key == "devices":
            section[key] = converted if converted == "auto" else _devices(origin, converted)
        elif not converted or "\0" in converted:
            raise ConfigError(origin, f"{name}.{key}", value, remedy)
        else:
            section[key] = base / converted
    return section


def _devices(origin: str | None, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise ConfigError(origin, "daemon.devices", [], _DAEMON_KEYS["devices"][1])
    for place, name in enumerate(names):
        if not _DEVICE.fullmatch(name):
            raise ConfigError(origin, "daemon.devices", name, "not a device: give cpu:N or cuda:N, N from 0")
        if name in names[:place]:
            raise ConfigError(origin, "daemon.devices", name, "named twice: name each device once")
    return tuple(names)


def _targets(origin: str | None, section: str, table: Mapping[str, object], scope: Scope) -> dict[str, Any]:
    """The tables `[section.TARGET]`, each with knobs of `scope`."""
    targets = {}
    for target, knobs in table.items():
        key = f'{section}."{target}"' if scope is Scope.DEVICE else f"{section}.{target}"
        if scope is Scope.DEVICE and not _DEVICE.fullmatch(target):
            remedy = 'not a device: write [devices."cpu:N"] or [devices."cuda:N"], N from 0'
            raise ConfigError(origin, key, None, remedy)
        targets[target] = _knobs(origin, key, _table(origin, key, knobs), scope)
    return targets


def _access(origin: str | None, table: Mapping[str, object]) -> tuple[dict[str, object], dict[str, Access]]:
    """The tables `[models.NAME]` without the lists of who may use the model, and those."""
    rest: dict[str, object] = {}
    access = {}
    for model, value in table.items():
        key = f"models.{model}"
        knobs = dict(_table(origin, key, value))
        lists = {name: _users(origin, f"{key}.{name}", knobs.pop(name)) for name in ("allow", "deny") if name in knobs}
        rest[model] = knobs
        if lists:
            access[model] = Access(**lists)
    return rest, access


def _tenant_classes(
    origin: str | None, table: Mapping[str, object]
) -> tuple[dict[str, object], tuple[TenantClass, ...]]:
    """The tables `[tenants.NAME]` without the lists of their users, and the classes in the file's order."""
    rest: dict[str, object] = {}
    classes = []
    for name, value in table.items():
        key = f"tenants.{name}"
        knobs = dict(_table(origin, key, value))
        if name == DEFAULT_CLASS and "users" in knobs:
            raise ConfigError(origin, f"{key}.users", knobs["users"], "this class is everybody who is in no other")
        if name != DEFAULT_CLASS:
            classes.append(TenantClass(name, _users(origin, f"{key}.users", knobs.pop("users", []))))
        rest[name] = knobs
    return rest, tuple(classes)


def _users(origin: str | None, key: str, value: object) -> Users:
    try:
        texts = msgspec.convert(value, list[str])
    except msgspec.ValidationError:
        raise ConfigError(origin, key, value, f"give a list; in it, {FORM}") from None
    if not texts:
        raise ConfigError(origin, key, value, f"lists nobody: {FORM}")
    for text in texts:
        try:
            parse_users([text])
        except UnknownUser as error:
            raise ConfigError(origin, key, text, str(error)) from None
    return parse_users(texts)


def _knobs(origin: str | None, section: str, table: Mapping[str, Any], scope: Scope | None) -> dict[str, Setting]:
    try:
        return {name: find(name, value, scope=scope).parse(value) for name, value in table.items()}
    except KnobError as error:
        raise ConfigError(origin, f"{section}.{error.name}", error.value, error.remedy) from None


def _default_runtime_dir(origin: str | None, environ: Mapping[str, str]) -> Path:
    if os.geteuid() == 0 or os.access(SYSTEM_RUNTIME_DIR, os.W_OK):
        return SYSTEM_RUNTIME_DIR
    user_dir = environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(user_dir):  # unset, or not what its specification allows
        found = f"{SYSTEM_RUNTIME_DIR} is not writable and XDG_RUNTIME_DIR is {user_dir or 'unset'}"
        remedy = f"unset, {found}: set runtime_dir, or make one of the two usable"
        raise ConfigError(origin, "daemon.runtime_dir", None, remedy)
    return Path(user_dir) / "tensord"


def _check_socket_path(origin: str | None, config: Config) -> None:
    longest = max(len(os.fsencode(path)) for path in (config.socket, config.control_socket))
    if longest > SOCKET_PATH_BYTES_MAX:
        remedy = (
            f"its sockets' paths have {longest} bytes, Linux takes {SOCKET_PATH_BYTES_MAX}: give a shorter directory"
        )
        raise ConfigError(origin, "daemon.runtime_dir", str(config.runtime_dir), remedy)


def _index(device: str) -> int:
    return int(device.partition(":")[2])


def _origin(config: Config) -> str | None:
    return None if config.path is None else str(config.path)
