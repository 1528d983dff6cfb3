"""A slot as the user holds it: arrays in memory that the daemon's workers read and write in place."""

from .arena import ArenaSlot
from .arrays import Array
from .model import Model
from .request import InferRequest


class LeasedSlot:
    """The inputs and outputs of one request, in an arena. Leased until `release`, or the end of the `with` block.

    Outputs are views: they are valid until the slot is released or its next request is sent. The slot
    ends with its connection; what was leased before a reconnect must be leased again.
    """

    def __init__(self, name: str, slot: ArenaSlot) -> None:
        spec = slot.plan.spec
        self.model = Model.of(spec)
        self.rows = slot.plan.rows
        self.inputs = slot.inputs
        """Writable arrays by name, of shape (rows, …). They hold what the slot was last used for."""
        self.outputs = slot.outputs
        """Where the outputs will be; where their sizes come from the data, only `infer` knows how much of it is."""
        self._name = name
        self._slot = slot

    def __getitem__(self, name: str) -> Array:
        """The input of this name."""
        return self.inputs[name]

    @property
    def input(self) -> Array:
        """The input of a model that has only one. Raises AttributeError for others."""
        if len(self.inputs) != 1:
            raise AttributeError(f"model {self._name!r} has the inputs {', '.join(self.inputs)}: use slot[name]")
        return next(iter(self.inputs.values()))

    def _request(
        self, timeout: float, priority: str | int, session: int | str | bytes | None, latest: bool
    ) -> InferRequest:
        return InferRequest(self._name, None, timeout, priority, session, latest, self._slot)

    def release(self) -> None:
        """Give the slot back, once a request that is still in flight in it has its answer. Safe to call again."""
        self._slot.release()
