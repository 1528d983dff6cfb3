"""The supervisor's knobs: the store, as messages to the other processes and as answers to operators."""

from collections.abc import Iterable, Mapping

from .. import control
from .. import messages as m
from ..config import DEFAULT_CLASS
from ..knob import Scope, Setting
from ..knob_store import KnobStore, Transaction
from ..knobs import KNOBS, find, in_scope
from .catalog import Catalog


class Knobs:
    """All settings of an instance, with the models, devices and classes of tenants that they can be set for."""

    def __init__(
        self,
        configured: Mapping[str, Setting],
        devices: Iterable[str],
        catalog: Catalog,
        tenant_classes: Iterable[str] = (),
    ) -> None:
        """Raises KnobError for a manifest that sets a knob to a value that is not allowed."""
        self._devices = tuple(devices)
        self._models = tuple(catalog.names)
        self._tenant_classes = (*tenant_classes, DEFAULT_CLASS)
        self.store = KnobStore(configured, self._devices, self._tenant_classes)
        for manifest in catalog.manifests().values():
            self.store.add_model(manifest.name, manifest.knobs)

    @property
    def epoch(self) -> int:
        """Number of the last change."""
        return self.store.epoch

    def general(self, name: str) -> Setting:
        """A knob's value in general."""
        return self.store.effective(name).value

    def device(self, device: str, name: str) -> Setting:
        """A knob's value for one device."""
        return self.store.effective(name, device).value

    def message(self) -> m.KnobValues:
        """All values in force."""
        general = {name: self.general(name) for name in KNOBS}
        models = {model: _differing(self.store.model_values(model), general) for model in self._models}
        devices = {device: _differing(self.store.device_values(device), general) for device in self._devices}
        tenants = {name: _differing(self.store.tenant_values(name), general) for name in self._tenant_classes}
        return m.KnobValues(self.epoch, general, models, devices, tenants)

    def set(self, request: control.Set, who: str, now_s: float) -> Transaction:
        """Validate all settings and apply them. Raises KnobError or StaleEpoch, changing nothing."""
        changes = self.store.propose(request.settings)
        return self.store.apply(changes, who, request.why, now_s, request.expected_epoch)

    def applied(self, transaction: Transaction, converging: list[str]) -> control.Applied:
        """A transaction as an operator's answer."""
        changes = [
            control.Changed(change.address, change.old, change.new, change.pending_restart, list(change.keeps_own))
            for change in transaction.changes
        ]
        return control.Applied(transaction.epoch, changes, converging)

    def values(self, addresses: list[str]) -> control.Values:
        """Knobs as an operator reads them; for no address, all, with what differs per target.

        Raises KnobError.
        """
        return control.Values(self.epoch, [self._state(address) for address in addresses or self._all()])

    def _all(self) -> list[str]:
        own = []
        targets_of = {Scope.MODEL: self._models, Scope.DEVICE: self._devices, Scope.TENANT: self._tenant_classes}
        for scope, targets in targets_of.items():
            for target in targets:
                for name in in_scope(scope):
                    if self.store.effective(name, target).value != self.general(name):
                        own.append(f"{target}.{name}")
        return [*KNOBS, *own]

    def _state(self, address: str) -> control.KnobState:
        target, _, name = address.rpartition(".")
        value = self.store.effective(name, target or None)
        knob = find(name)
        return control.KnobState(
            address, value.value, knob.format(value.value), str(value.source), str(knob.context), knob.help
        )


def _differing(values: Mapping[str, Setting], general: Mapping[str, Setting]) -> dict[str, Setting]:
    return {name: value for name, value in values.items() if value != general[name]}
