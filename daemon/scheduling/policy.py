"""The live settings that the scheduling core obeys, as plain values: knobs in, decisions out."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """How one model's requests are ordered, batched and bounded. Replaced whole, at any time."""

    max_batch: int = 32
    """Rows of one batch at most."""
    window_ns: int = 500_000
    """How long a request may wait for others to join its batch while the worker has work, in nanoseconds."""
    queue_max: int = 4096
    """Requests that may wait for this model; the next one gets QueueFull."""
    weight: float = 1.0
    """Share of a device's time relative to the other models that want it; above 0."""
    order: str = "fcfs"
    """A name of ORDER_POLICIES: who of a tenant's requests goes first."""
    balance: str = "least_work"
    """A name of BALANCE_POLICIES: which replica takes the next batch."""
    retries: int = 1
    """How often a request may run again after the death of the worker that ran it."""


@dataclass(frozen=True, slots=True)
class GlobalPolicy:
    """What holds for all models and workers of the instance."""

    pipeline_depth: int = 2
    """Batches that one worker may have in flight: one computing, the others ready."""
    ageing_ns: int = 1_000_000_000
    """A request that has waited k times as long counts as k priority classes higher; 0 turns ageing off."""
