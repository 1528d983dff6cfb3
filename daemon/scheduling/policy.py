"""The live settings that the scheduling core obeys, as plain values: knobs in, decisions out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """How one model's requests are ordered, batched and bounded. Replaced whole, at any time; checked by the knobs."""

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

    mlfq_levels: int = 3
    """Levels of the order `mlfq`."""
    mlfq_quantum_ns: int = 10_000_000
    """Device time that a flow may use on the highest level; each level below has twice that of the one above."""
    mlfq_boost_ns: int = 1_000_000_000
    """How often all flows come back to the highest level."""
    response_half_life_ns: int = 1_000_000_000
    """Of the average of the balance `fastest_response`: what is so long ago counts half."""

    batching: str = "fixed"
    """`fixed`: max_batch and window as they are. `aimd`: a smaller batch and window, adapted to latency_target_ns.
    `deferred`: a batch waits as long as the deadlines of its requests allow, or else latency_target_ns."""
    latency_target_ns: int = 50_000_000
    """From arrival to the end of the batch: what `aimd` keeps the slow requests below. With `deferred` and far
    deadlines: how long a request waits for others, if the window is not longer."""
    preferred_batches: tuple[int, ...] = ()
    """Rows, ascending: a batch that is not full ends at the largest of these that is reached, where there is one."""

    queue_rows_max: int = 65_536
    """Rows that may wait for this model."""
    queue_bytes_max: int = 1024**3
    """Bytes of tensors, inputs and outputs, of the requests that may wait for this model."""
    tenant_queue_percent: int = 50
    """Of each of the three bounds of the queue: what one tenant may use; of each at least one request."""
    deadline_check: bool = True
    """Refuse a request at once whose deadline cannot be met, as predicted."""
    codel_target_ns: int = 0
    """CoDel: a standing queue that makes all requests wait longer than this is cut; 0 turns it off."""
    codel_interval_ns: int = 100_000_000
    """For how long all must have waited too long, about the longest burst that is still absorbed."""
    adaptive_concurrency: bool = False
    """Limit the requests inside (waiting or running) to what the gradient of their latency allows."""

    def __post_init__(self) -> None:
        assert self.weight > 0
        assert self.max_batch > 0
        assert list(self.preferred_batches) == sorted(set(self.preferred_batches))

    @classmethod
    def of(cls, knobs: Mapping[str, Any]) -> Self:
        """From the values of a model's knobs."""
        return cls(
            max_batch=knobs["max_batch"],
            window_ns=knobs["window_us"] * 1_000,
            queue_max=knobs["queue_max"],
            weight=knobs["weight"],
            order=knobs["order"],
            balance=knobs["balance"],
            retries=knobs["retries"],
            mlfq_levels=knobs["mlfq_levels"],
            mlfq_quantum_ns=knobs["mlfq_quantum_us"] * 1_000,
            mlfq_boost_ns=knobs["mlfq_boost_ms"] * 1_000_000,
            response_half_life_ns=knobs["response_half_life_ms"] * 1_000_000,
            batching=knobs["batching"],
            latency_target_ns=knobs["latency_target_ms"] * 1_000_000,
            preferred_batches=tuple(int(size) for size in knobs["preferred_batches"].split(",") if size),
            queue_rows_max=knobs["queue_rows_max"],
            queue_bytes_max=knobs["queue_bytes_max"],
            tenant_queue_percent=knobs["tenant_queue_percent"],
            deadline_check=knobs["deadline_check"],
            codel_target_ns=knobs["codel_target_ms"] * 1_000_000,
            codel_interval_ns=knobs["codel_interval_ms"] * 1_000_000,
            adaptive_concurrency=knobs["adaptive_concurrency"],
        )


@dataclass(frozen=True, slots=True)
class GlobalPolicy:
    """What holds for all models and workers of the instance."""

    pipeline_depth: int = 2
    """Batches that one worker may have in flight: one computing, the others ready."""
    ageing_ns: int = 1_000_000_000
    """A request that has waited k times as long counts as k priority classes higher, and one that has waited so long
    goes before all that its tenant's order policy would prefer; 0 turns ageing off."""

    @classmethod
    def of(cls, knobs: Mapping[str, Any]) -> Self:
        """From the values of the global knobs."""
        return cls(pipeline_depth=knobs["pipeline_depth"], ageing_ns=knobs["ageing_ms"] * 1_000_000)


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """What a class of tenants may use. A tenant is a user id, refined by a name that its client gives."""

    name: str = "default"
    """Of the class."""
    weight: float = 1.0
    """Of each user of the class, relative to other users; the names of a user share it."""
    rows_max: int = 1_000_000
    """Rows of one user's requests that wait or run, over all models."""

    @classmethod
    def of(cls, name: str, knobs: Mapping[str, Any]) -> Self:
        """From the values of the tenant knobs of the class `name`."""
        return cls(name, weight=knobs["tenant_weight"], rows_max=knobs["tenant_rows_max"])
