"""The values of all knobs, their changes at run time, and who has heard of them.

Which value holds for a model, device or class of tenants: what is said of that target beats what is said of all, and
within each, run time beats the configuration, which beats the model's manifest. From strongest to weakest:

    run time     digits.max_batch=64          Source.ADMIN
    file         [models.digits] max_batch    Source.CONFIG
    manifest     [knobs] max_batch            Source.MANIFEST     (models only)
    run time     max_batch=64                 Source.ADMIN
    file         [knobs] max_batch            Source.CONFIG
    declaration  default                      Source.DEFAULT

A general change therefore leaves alone every target with a value of its own; `Change.keeps_own` names them.
An *address* is `knob` or `target.knob`; targets may hold dots, knobs do not, so it splits at the last one.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .knob import Context, KnobError, Scope, Setting
from .knobs import KNOBS, contradiction, find, in_scope

HISTORY_MAX: Final = 1000
"""Transactions remembered, some hundred bytes each; the oldest is forgotten, and can no longer be undone."""


class Source(StrEnum):
    """Who said so."""

    DEFAULT = "default"
    MANIFEST = "manifest"
    CONFIG = "config"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Value:
    """The value that holds, in the knob's unit, and where it comes from."""

    value: Setting
    source: Source


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction does at one address."""

    address: str
    old: Setting
    """The value that held before, wherever it came from."""
    new: Setting
    """The value that holds after."""
    override_before: Setting | None
    """What run time said before; None: nothing."""
    override: Setting | None
    """What run time says after; None: nothing, so that file, manifest or default hold again."""
    keeps_own: tuple[str, ...]
    """The targets that a general change does not reach, because they have values of their own."""
    pending_restart: bool
    """It takes effect only when the process that uses it starts next."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One line of the history: changes that were applied together."""

    epoch: int
    changes: tuple[Change, ...]
    who: str
    why: str
    at_s: float
    """When, in seconds of the clock that the caller reads."""


@dataclass(eq=False, repr=False)
class StaleEpoch(Exception):
    """The knobs changed since the caller looked at them; nothing was applied."""

    expected: int
    current: int

    def __str__(self) -> str:
        return f"epoch {self.expected} was expected, and {self.current} is current: look again, then repeat the change"


class KnobStore:
    """All values of one instance. Pure: the caller brings the clock and carries new epochs to the processes."""

    def __init__(
        self, configured: Mapping[str, Setting], devices: Iterable[str], tenant_classes: Iterable[str] = ()
    ) -> None:
        """`configured` maps addresses to parsed values (`Config.configured`); the others are all of this instance."""
        self._configured = dict(configured)
        self._devices = tuple(devices)
        self._tenant_classes = tuple(tenant_classes)
        self._manifests: dict[str, dict[str, Setting]] = {}
        self._overrides: dict[str, Setting] = {}
        self._in_force: dict[str, Setting] = {}  # address to value, of RESTART knobs in running processes
        self._history: deque[Transaction] = deque(maxlen=HISTORY_MAX)
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """The number of the last transaction; 0 before the first."""
        return self._epoch

    @property
    def history(self) -> tuple[Transaction, ...]:
        """The last HISTORY_MAX transactions, oldest first."""
        return tuple(self._history)

    # ── targets ───────────────────────────────────────────────────────────────────────────────

    def add_model(self, model: str, manifest: Mapping[str, Setting]) -> None:
        """Make `model` a target, with the values its manifest asks for; a reload replaces those.

        Raises KnobError, changing nothing, when one of them is not a model knob or not allowed, or when the values
        that would hold for the model contradict each other.
        """
        values = {name: parse_at(f"{model}.{name}", value, scope=Scope.MODEL) for name, value in manifest.items()}
        before = self._manifests.get(model)
        self._manifests[model] = values
        try:
            self._check_agreement(model, self._overrides)
        except KnobError:
            del self._manifests[model]
            if before is not None:
                self._manifests[model] = before
            raise

    def remove_model(self, model: str) -> None:
        """Forget the manifest of `model`. What file and run time say of it holds again if it comes back."""
        self._manifests.pop(model, None)

    def started(self, target: str | None) -> None:
        """A process read its values and started: the worker of device `target`, or with None the front end.

        From here on its RESTART knobs have those values, whatever is set later.
        """
        for name, knob in in_scope(Scope.DEVICE if target else Scope.GLOBAL).items():
            if knob.context is Context.RESTART:
                self._in_force[_address(name, target)] = self.effective(name, target).value

    # ── values ────────────────────────────────────────────────────────────────────────────────

    def effective(self, name: str, target: str | None = None) -> Value:
        """The value that holds for `target`, or with None in general. Raises KnobError for unknown names."""
        self._check(name, target, None)
        return self._resolve(name, target, self._overrides)

    def model_values(self, model: str) -> dict[str, Any]:
        """All model knobs as they hold for `model`, in their own units."""
        return {name: self.effective(name, model).value for name in in_scope(Scope.MODEL)}

    def device_values(self, device: str) -> dict[str, Any]:
        """All device knobs as they hold for `device`, in their own units."""
        return {name: self.effective(name, device).value for name in in_scope(Scope.DEVICE)}

    def tenant_values(self, name: str) -> dict[str, Any]:
        """All tenant knobs as they hold for this class, in their own units."""
        return {knob: self.effective(knob, name).value for knob in in_scope(Scope.TENANT)}

    def global_values(self) -> dict[str, Any]:
        """All global knobs, in their own units."""
        return {name: self.effective(name).value for name in in_scope(Scope.GLOBAL)}

    def pending_restart(self) -> tuple[str, ...]:
        """Addresses whose value differs from the one that the running process started with."""
        return tuple(
            address for address, running in self._in_force.items() if self.effective(*_split(address)).value != running
        )

    # ── changes ───────────────────────────────────────────────────────────────────────────────

    def propose(self, settings: Mapping[str, Setting | None]) -> tuple[Change, ...]:
        """What setting these addresses together would do; nothing is changed.

        None takes back what run time said at that address. Raises KnobError when any one is not allowed.
        """
        if not settings:
            raise KnobError("knobs", None, "name at least one to set, such as max_batch or digits.max_batch")
        after = dict(self._overrides)
        for address, value in settings.items():
            name, target = _split(address)
            self._check(name, target, value)
            if value is None:
                after.pop(address, None)
            else:
                after[address] = parse_at(address, value)
        if any(KNOBS[_split(address)[0]].scope is Scope.MODEL for address in settings):
            for model in (None, *self._manifests):
                self._check_agreement(model, after)
        return tuple(self._change(address, after) for address in settings)

    def apply(
        self, changes: Iterable[Change], who: str, why: str, now_s: float, expected_epoch: int | None = None
    ) -> Transaction:
        """Carry out what `propose` returned, all or nothing, as the next epoch.

        The changes are judged again, as others may have come between. Raises StaleEpoch when
        `expected_epoch` is given and no longer current, and KnobError as `propose` does.
        """
        if expected_epoch is not None and expected_epoch != self._epoch:
            raise StaleEpoch(expected_epoch, self._epoch)
        judged = self.propose({change.address: change.override for change in changes})
        for change in judged:
            if change.override is None:
                self._overrides.pop(change.address, None)
            else:
                self._overrides[change.address] = change.override
        self._epoch += 1
        transaction = Transaction(self._epoch, judged, who, why, now_s)
        self._history.append(transaction)
        return transaction

    def propose_undo(self, epoch: int) -> tuple[Change, ...]:
        """The changes that take transaction `epoch` back; applying them is a transaction of its own.

        Raises KnobError when the history no longer holds it, or a later one set the same address.
        """
        undone = next((entry for entry in self._history if entry.epoch == epoch), None)
        if undone is None:
            raise KnobError("epoch", epoch, "the history does not hold it: set the knobs to the values you want")
        for change in undone.changes:
            if self._overrides.get(change.address) != change.override:
                raise KnobError(change.address, None, f"it was set again after epoch {epoch}: undo that change first")
        return self.propose({change.address: change.override_before for change in undone.changes})

    def _check_agreement(self, model: str | None, overrides: Mapping[str, Setting]) -> None:
        """Raises KnobError when the knobs of `model`, or with None in general, contradict each other."""
        values = {name: self._resolve(name, model, overrides).value for name in in_scope(Scope.MODEL)}
        found = contradiction(values)
        if found is not None:
            name, remedy = found
            raise KnobError(_address(name, model), KNOBS[name].format(values[name]), remedy)

    def _change(self, address: str, after: Mapping[str, Setting]) -> Change:
        name, target = _split(address)
        old = self._resolve(name, target, self._overrides).value
        new = self._resolve(name, target, after).value
        targets = () if target else self._targets(KNOBS[name].scope)
        return Change(
            address=address,
            old=old,
            new=new,
            override_before=self._overrides.get(address),
            override=after.get(address),
            keeps_own=tuple(each for each in targets if self._own(name, each, after)),
            pending_restart=KNOBS[name].context is Context.RESTART and new != old,
        )

    def _resolve(self, name: str, target: str | None, overrides: Mapping[str, Setting]) -> Value:
        own = self._own(name, target, overrides) if target else None
        if own:
            return own
        if name in overrides:
            return Value(overrides[name], Source.ADMIN)
        if name in self._configured:
            return Value(self._configured[name], Source.CONFIG)
        return Value(KNOBS[name].default, Source.DEFAULT)

    def _own(self, name: str, target: str, overrides: Mapping[str, Setting]) -> Value | None:
        """What is said of this one target; None where it follows the general value."""
        address = _address(name, target)
        if address in overrides:
            return Value(overrides[address], Source.ADMIN)
        if address in self._configured:
            return Value(self._configured[address], Source.CONFIG)
        if name in self._manifests.get(target, {}):
            return Value(self._manifests[target][name], Source.MANIFEST)
        return None

    def _targets(self, scope: Scope) -> tuple[str, ...]:
        targets = {
            Scope.MODEL: tuple(self._manifests),
            Scope.DEVICE: self._devices,
            Scope.TENANT: self._tenant_classes,
        }
        return targets.get(scope, ())

    def _check(self, name: str, target: str | None, value: Setting | None) -> None:
        """The knob exists, takes a target of this kind, and the target is there; or KnobError."""
        address = _address(name, target)
        try:
            scope = find(name, value).scope
        except KnobError as error:
            raise KnobError(address, value, error.remedy) from None
        if target is None or target in self._targets(scope):
            return
        if scope is Scope.GLOBAL:
            raise KnobError(address, value, f"{name} is a global knob: set it without a target, as {name}")
        known = ", ".join(sorted(self._targets(scope))) or "none"
        raise KnobError(address, value, f"no {scope} {target!r} here; known: {known}")


class Acknowledgements:
    """Which processes have heard of which epoch: a change is converging until all have acknowledged it."""

    def __init__(self) -> None:
        self._heard: dict[str, int] = {}

    def join(self, process: str, epoch: int) -> None:
        """`process` starts with the values of `epoch`; a successor of the same name starts afresh."""
        self._heard[process] = epoch

    def leave(self, process: str) -> None:
        """`process` died or was ended: nobody waits for it."""
        self._heard.pop(process, None)

    def acknowledged(self, process: str, epoch: int) -> None:
        """`process` acts by the values of `epoch`. Of no effect from one that left, or for an older epoch."""
        if process in self._heard:
            self._heard[process] = max(self._heard[process], epoch)

    def converging(self, epoch: int) -> list[tuple[str, int]]:
        """Processes that have not acknowledged `epoch`, each with the last one that it did acknowledge."""
        return [(process, heard) for process, heard in self._heard.items() if heard < epoch]


def parse_at(address: str, value: Setting, *, scope: Scope | None = None) -> Setting:
    """`value` parsed by the knob at `address`; a KnobError names the whole address."""
    name, _ = _split(address)
    try:
        return find(name, value, scope=scope).parse(value)
    except KnobError as error:
        raise KnobError(address, value, error.remedy) from None


def _split(address: str) -> tuple[str, str | None]:
    target, dot, name = address.rpartition(".")
    return name, target if dot else None


def _address(name: str, target: str | None) -> str:
    return name if target is None else f"{target}.{name}"
