"""When a request that comes now would be answered, and how far that may be trusted.

    finish = now + level + own batch
    level: the first time at which the replicas have done what is in flight and what waits and goes before the request

What goes before it are the rows of the same or a higher class; with several users at most what fair shares let pass,
its user's own rows · total weight / own weight, and the same among the names of the user. Rows are priced by the
batches that they make (a batch's time divided by its rows, learned from those behind which others waited: so it also
tells how well batches fill where requests do not fit together), and a model has only its share of a device that others
want too.

A prediction is wrong by some error. As for the retransmission timer of TCP (V. Jacobson, "Congestion Avoidance and
Control", SIGCOMM 1988) the mean and the mean deviation of (actual - predicted) are followed, one sample per batch, the
worst of its requests, and a deadline must be met with

    margin = mean + 4 · deviation

in hand. The margin counts only where something goes before the request, and an estimate that nothing has confirmed for
a second is tried again: so no error can keep a model idle, and with that itself, for ever.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .model import ModelQueue
    from .queues import BucketQueue
    from .request import Request
    from .workers import Worker

GAIN: Final = 1 / 64
"""Weight of a sample. Far smaller than in TCP: all that wait together are late together, so samples are not independent
until the queue has been exchanged."""
DEVIATIONS: Final = 4.0
PACE_GAIN: Final = 0.1
"""Weight of a batch in the averages of rows and time."""
PROBE_NS: Final = 1_000_000_000
"""After so long without a completed batch one request is let in against the prediction."""


class Forecast:
    """What one model's predictions are made of and how good they were."""

    __slots__ = (
        "_batch_ns",
        "_deviation_ns",
        "_error_ns",
        "_ns",
        "_probed_ns",
        "_rows",
        "_samples",
        "batches",
        "margin_ns",
        "proven_ns",
    )

    def __init__(self) -> None:
        self._rows = self._ns = 0.0
        """Averages of the batches behind which others waited."""
        self._batch_ns = 0.0
        """Average time of a batch that came back while the worker had others."""
        self._error_ns = self._deviation_ns = 0.0
        self._samples = 0
        self.batches = 0
        """Batches that came back."""
        self.margin_ns = 0
        """What a deadline must leave beyond the predicted finish."""
        self.proven_ns = self._probed_ns = -PROBE_NS
        """When a batch came back last."""

    def returned(self, rows: int, compute_ns: int, *, behind: bool) -> None:
        """A batch came back that took so long; `behind`: others of the model still wait."""
        if behind:
            self._rows += PACE_GAIN * (rows - self._rows) if self._rows else rows
            self._ns += PACE_GAIN * (compute_ns - self._ns) if self._ns else compute_ns
        self._batch_ns += PACE_GAIN * (compute_ns - self._batch_ns) if self._batch_ns else compute_ns

    def learn(self, late_ns: int) -> None:
        """A request ended so much later than predicted (negative: earlier)."""
        self._samples += 1
        gain = max(GAIN, 1 / (1 + self._samples))
        error_ns = late_ns - self._error_ns
        self._error_ns += gain * error_ns
        self._deviation_ns += gain * (abs(error_ns) - self._deviation_ns)
        self.margin_ns = max(0, int(self._error_ns + DEVIATIONS * self._deviation_ns))

    def row_ns(self, model: "ModelQueue", bucket: "BucketQueue | None", device: str) -> float:
        """Device time per row of what waits."""
        if self._rows:
            return self._ns / self._rows
        rows_max = model.policy.max_batch
        return model.costs.of(bucket.key if bucket else None, device).predicted_ns(rows_max) / rows_max

    def batch_ns(self) -> float:
        """Device time of a batch as they are while the workers are busy; 0 where there was none yet."""
        return self._batch_ns

    def is_stale(self, now: int) -> bool:
        """No batch has come back for long, so nobody knows whether the predictions still hold."""
        return now >= self.proven_ns + PROBE_NS

    def probe(self, now: int) -> bool:
        """Whether to let a request in, whatever is predicted, to find that out; once in a while."""
        if not self.is_stale(now) or now < self._probed_ns + PROBE_NS:
            return False
        self._probed_ns = now
        return True


def water_level(loads: Iterable[tuple[int, float]], work_ns: float) -> float:
    """When workers that are busy for `load` each, and then give this `share` of their time, have done `work_ns`."""
    level = given = rate = 0.0
    for busy_ns, share in sorted(loads):
        load_ns = float(busy_ns)
        if rate and given + (load_ns - level) * rate >= work_ns:
            break
        given += (load_ns - level) * rate
        level = load_ns
        rate += share
    return level + (work_ns - given) / rate


def level_ns(now: int, model: "ModelQueue", work_ns: float) -> float:
    """From now until the replicas of `model`, at least one, have done what is in flight and `work_ns` more."""
    replicas = model.replicas
    if len(replicas) == 1:
        for worker in replicas.values():
            return worker.remaining_ns(now) + (work_ns / _share(model, worker) if work_ns else 0.0)
    return water_level([(worker.remaining_ns(now), _share(model, worker)) for worker in replicas.values()], work_ns)


def _share(model: "ModelQueue", worker: "Worker") -> float:
    """The model's share of a worker while the models that wait there now keep waiting."""
    others = model.others_waiting()
    if not others:
        return 1.0
    weight = model.policy.weight
    return weight / (weight + sum([other.policy.weight for other in others if worker.id in other.replicas]))


def rows_before(request: "Request", model: "ModelQueue") -> float:
    """Rows that wait and will go before a request that comes now."""
    rows = sum(model.class_rows[: request.priority + 1])
    if not model.crowded or not rows:
        return rows
    account = model.accounts.get(request.tenant)
    share = account.share if account else model.shares.get(model.users.of(request.tenant).name)
    if share is None or not share.rows:
        return 0.0
    names = share.names + (not (account and account.rows))
    own = min(share.rows, account.rows * names if account else 0)
    return min(rows, own * model.weights / share.weight)


def own_batch_ns(request: "Request", model: "ModelQueue", *, waits: bool) -> float | None:
    """Predicted device time of the batch that a new request would be in; None where nothing was learned yet."""
    device = next(iter(model.replicas.values())).device
    if not model.costs.knows(request.bucket, device):
        return None
    cost = model.costs.of(request.bucket, device)
    bucket = model.buckets.get(request.bucket)
    rows = request.rows + (bucket.rows if bucket else 0)
    own_ns = float(cost.predicted_ns(max(request.rows, min(rows, model.policy.max_batch))))
    return max(own_ns, model.forecast.batch_ns()) if waits else own_ns


def drain_ns(now: int, model: "ModelQueue", rows: float) -> float:
    """Predicted time until what is in flight and `rows` of what waits are through."""
    if not model.replicas:
        return 0.0
    device = next(iter(model.replicas.values())).device
    bucket = next(iter(model.waiting), None)
    return level_ns(now, model, rows * model.forecast.row_ns(model, bucket, device))
