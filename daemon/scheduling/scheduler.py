"""The scheduler: requests in, batches out; nothing else decides what runs next.

Theory
------
The scheduler holds no socket, clock, process or tensor. Its driver passes the time, in nanoseconds of one
monotonic clock, with every event: the front end passes the real time, tests and simulations a virtual one.
One turn of the driver is

    submit(now, …), complete(now, …), … → dispatch(now) → expire(now) → sleep until wake_at() or an event

What runs next on a worker that has a free place is decided level by level:

    priority class    strict: 0 before 1 before 2. A request that has waited k times `ageing_ns` counts as k
                      classes higher where those keep it waiting, so nothing waits for ever (ageing as in
                      time-sharing systems).
    model             weighted fair share of this device's time: start-time fair queueing (Goyal, Vin & Cheng,
                      SIGCOMM 1996) with predicted device time, corrected when the batch is back. See fairness.py.
    user, tenant      deficit round robin (Shreedhar & Varghese, SIGCOMM 1995) in predicted device time, over all
                      buckets of the model: among its users, and of each among its names. See tenants.py.
    request           the model's order policy among all that the tenant has sent. See order.py. Those that have waited
                      `ageing_ns` go before it, the oldest first.

That finds the batch's *leader*. The batch then fills with requests of the same model and bucket, class by class
and tenant by tenant, lower classes too: rows that would stay empty cost nothing. It closes at the first request
that does not fit, because skipping over it would reorder. Order is kept per tenant, class and bucket: requests of
another bucket cannot share the batch, and waiting for them would leave it nearly empty.

A batch is released by the rule in batching.py: full, worker idle, window over, deadline near, draining. Waiting for
more rows is only worth it while the worker has something to do: an idle one takes what there is, unless the model's
batching defers. A request of more rows than a batch runs alone; its driver may cut it first, by parts() (split.py).

Where a model has several replicas, its balance policy (balance/) picks one among those with a free place, and only
that one gets the batch; or it binds each session to one, and then every replica has a queue of its own for them. A
device that errs or slows down gets less for a while (health.py). Execution time is learned per model, bucket and
device (cost.py); all predictions come from there.

A worker that dies makes suspects of all requests it held: they go back to their old place and run again alone, on a
worker that has nothing else in flight (it is *reserved*: it empties its pipeline first), so that the second death
convicts the right one (recovery.py).

Overload is met three times. On arrival (admission.py): quotas of users, deadlines that cannot be met as predicted
(feasibility.py), a limit of what is inside (concurrency.py), bounds of the queue. While a request waits: its deadline
ends it to the nanosecond, and a newer one of its session may take its place. At dispatch (overload.py): what would be
answered too late is not started, and a standing queue is cut (codel.py). expire() returns all who left that way.

Cost: submit() and the share of a request in dispatch() and complete() are O(log tenants), and constant with one
tenant; orders other than FCFS add O(log n) of the n requests that wait in their queue. A released batch costs a look
at every model and bucket that has requests waiting, and none at the others. Where sessions are bound, a bucket counts
once per replica, and a replica that comes or goes sorts what waits anew.
Removing a request from the middle is lazy: it loses its home, and its entries are dropped when they come to a front.
Queues are bounded by admission (admission.py); everything else here is proportional to what is queued.
"""

from typing import Any, Final, Generic, cast

from tensord.ipc.errors import Superseded, TensordError
from tensord.ipc.limits import PARTS_MAX

from .admission import admit, deadline_exceeded
from .health import Health
from .hierarchy import Offer, best_offer, next_release_ns
from .model import ModelQueue
from .overload import learn_from, learn_late, observe_waits, shed
from .policy import GlobalPolicy, ModelPolicy
from .recovery import Lost, refuse_queued, run_alone, take_back
from .request import Batch, R, Request, RequestState
from .split import cut
from .statistics import SchedulerStatistics, model_statistics, user_statistics, worker_statistics
from .users import TenantLookup, User, Users, own_user
from .workers import Worker

_NEVER: Final = 2**63 - 1
_DONE: Final = RequestState.DONE


class Scheduler(Generic[R]):
    """Decides which requests run together, when and where. R is the driver's subclass of Request.

    Every accepted request leaves exactly once: in a batch that is completed, from expire(), by cancel(), or
    with an error from remove_model(), remove_worker() or expect_replica(). Not thread-safe.
    """

    def __init__(self, policy: GlobalPolicy | None = None, tenants: TenantLookup = own_user) -> None:
        self._policy = policy or GlobalPolicy()
        self._users = Users(tenants)
        self._tenants = self._users.by_tenant
        self._models: dict[int, ModelQueue] = {}
        self._workers: dict[int, Worker] = {}
        self._weights: dict[str, float] = {}
        self._healths: dict[str, Health] = {}
        """By device, as a restarted worker takes over both."""
        self._waiting: dict[ModelQueue, None] = {}
        """The models for which something waits: what is decided costs nothing for the others, however many they are."""
        self._draining = False
        self._submitted = 0
        self._released = 0
        self._evicted: list[tuple[Request, TensordError]] = []
        """Left the queue with an error, but not yet returned by expire()."""
        self._deadline_ns = _NEVER
        """No queued request has an earlier deadline; the true earliest may be later."""

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def submit(self, now: int, request: R) -> TensordError | None:
        """Queue a request; None: accepted. An error: refused, and the scheduler keeps nothing of it.

        Where it takes the place of an older one (`latest`), expire() returns that.
        """
        model = self._models[request.model]
        try:
            user = self._tenants[request.tenant]
        except KeyError:
            user = self._users.of(request.tenant)
        rows = request.rows
        user_rows = user.rows + rows
        high, normal, low = model.class_rows
        if (
            high + normal + low + rows > model.ease_rows
            or user_rows > user.rows_max
            or request.deadline_ns - now <= model.ease_ns
            or model.nbytes + request.nbytes > model.ease_bytes
            or request.latest
        ):
            error = self._look_closely(now, request, model, user)
            if error is not None:
                return error
            user_rows = user.rows + rows
        else:
            self._submitted = request.seq = self._submitted + 1
        user.rows = user_rows
        model.submitted += 1
        model.push(request)
        if request.deadline_ns < self._deadline_ns:
            self._deadline_ns = request.deadline_ns
        return None

    def _look_closely(self, now: int, request: Request, model: ModelQueue, user: User) -> TensordError | None:
        """All checks; who passes them has its place in the order, and nobody else holds that any more."""
        replaced = model.predecessor(request)
        error = admit(now, request, model, user, replaced)
        if error is not None:
            return model.refuse(request, error)
        if replaced is None:
            self._submitted = request.seq = self._submitted + 1
        else:
            self._replace(replaced, request, model)
        if request.latest and request.session:
            model.remember_latest(request)
        return None

    def _replace(self, old: Request, new: Request, model: ModelQueue) -> None:
        """The newer gets the older one's place in the order: at the end of it a fast sender would never be served."""
        new.seq = old.seq
        new.inherited_ns = max(0, new.arrival_ns - old.arrival_ns + old.inherited_ns)
        model.remove(old, RequestState.REFUSED)
        self._evicted.append((old, model.refuse_accepted(old, Superseded())))

    def cancel(self, now: int, request: R) -> bool:  # noqa: ARG002 - every event carries its time
        """True: it was queued and is now removed. False: it is running or has ended; drop its result."""
        if request.home is None:
            return False
        model = self._models[request.model]
        model.remove(request, RequestState.CANCELLED)
        model.cancelled += 1
        return True

    def expire(self, now: int) -> list[tuple[R, TensordError]]:
        """The requests that have left the queue unanswered since the last call, each once, and why.

        Their deadline has passed, or would before the answer; CoDel has cut a standing queue; or a newer request of
        the same session took their place. Ask after dispatch().
        """
        if now >= self._deadline_ns:
            self._collect_overdue(now)
        if not self._evicted:
            return []
        evicted, self._evicted = self._evicted, []
        return cast("list[tuple[R, TensordError]]", evicted)

    def _collect_overdue(self, now: int) -> None:
        self._deadline_ns = _NEVER
        for model in list(self._waiting):
            for bucket in list(model.waiting):
                late = model.take_late(bucket, now)
                learn_late(model, late, now)
                self._evicted += [(request, deadline_exceeded(now, request, "queue")) for request in late]
            for bucket in model.waiting:
                self._deadline_ns = min(self._deadline_ns, bucket.earliest_deadline_ns)

    # ── batches ─────────────────────────────────────────────────────────────────────────────────

    def dispatch(self, now: int) -> list[Batch[R]]:
        """All batches that should go to workers now, one per worker and round."""
        batches: list[Batch[R]] = []
        changed = bool(self._waiting)
        while changed:
            changed = False
            for worker in self._workers.values():
                if worker.has_place():
                    batch = self._next_batch(now, worker)
                    if batch is not None:
                        batches.append(batch)
                    # A worker that has just been reserved makes others the best for what is left.
                    changed |= batch is not None or not worker.has_place()
        return batches

    def next_batch(self, now: int, worker_id: int) -> Batch[R] | None:
        """The batch that this worker should get now; None: its pipeline is full, or waiting is better."""
        worker = self._workers[worker_id]
        return self._next_batch(now, worker) if worker.has_place() else None

    def _next_batch(self, now: int, worker: Worker) -> Batch[R] | None:
        if now >= self._deadline_ns:
            self._collect_overdue(now)
        while True:
            offer = best_offer(now, worker, self._waiting, self._policy.ageing_ns, draining=self._draining)
            if offer is None:
                return None
            evicted = shed(now, worker, offer.leader)
            if not evicted:
                break
            self._evicted += evicted
        if offer.leader.solo:
            worker.reserved_for = offer.leader
            if worker.in_flight:
                return None
        return self._release(now, worker, offer)

    def _release(self, now: int, worker: Worker, offer: Offer) -> Batch[R]:
        leader, priority, reason = offer.leader, offer.priority, offer.reason
        model = self._models[leader.model]
        taken, users = model.take(leader, worker.device, now, self._policy.ageing_ns, reason)
        requests = cast("list[R]", taken)
        rows = sum(users.values())
        predicted_ns = model.costs.of(leader.bucket, worker.device).predicted_ns(rows)
        self._released += 1
        batch = Batch(
            self._released, model, leader.bucket, worker.id, requests, rows, reason, now, predicted_ns, priority, users
        )
        if len(model.replicas) > 1:
            model.balance.released(worker, batch)
        if not worker.in_flight:
            worker.busy_since_ns = now
        if model.policy.codel_target_ns:
            observe_waits(now, batch)
        for user, part in users.items():
            user.running_rows += part
        worker.start(batch, model.policy.weight)
        model.running += len(requests)
        model.released[reason] += 1
        model.released_rows += rows
        return batch

    def complete(self, now: int, batch: Batch[R], compute_ns: int, *, failed: bool = False) -> None:
        """A batch came back after `compute_ns` of device time (0: unknown); its place is free again.

        What became of its requests is the driver's business. `failed` says that the device or the daemon is at
        fault, not the model or a request: that lowers the device's health, and its time is no example for others.
        A batch of a worker that was removed is ignored.
        """
        worker = self._workers.get(batch.worker)
        if worker is None or not worker.finish(batch):
            return
        alone = worker.busy_since_ns == batch.released_ns
        worker.busy_since_ns = now
        model, requests = batch.queue, batch.requests
        learn_from(now, batch)
        for request in requests:
            request.state = _DONE
        for user, rows in batch.users.items():
            user.rows -= rows
            user.running_rows -= rows
            user.device_ns += compute_ns * rows // batch.rows
        model.running -= len(requests)
        model.completed += len(requests)
        if compute_ns > 0:
            model.charge(now, batch, compute_ns)
            if not failed:
                if worker.in_flight:
                    model.forecast.returned(batch.rows, compute_ns, behind=model.queued > 0)
                model.learn(now, batch, worker.device, compute_ns, alone=alone)
            excess_ns = compute_ns - batch.predicted_ns
            worker.clocks[batch.priority].correct(batch.model, excess_ns, model.policy.weight)
        worker.health.recover(now)
        if failed:
            worker.failed += 1
            worker.health.failed(now)
        if len(model.replicas) > 1:
            self._compare(now, worker, batch, compute_ns, failed=failed)

    def _compare(self, now: int, worker: Worker, batch: Batch[R], compute_ns: int, *, failed: bool) -> None:
        """Learn from a completed batch which of the model's replicas is to be preferred."""
        model = batch.queue
        for replica in model.replicas.values():
            replica.health.recover(now)
        if not failed:
            model.balance.completed(now, worker, batch)
            if compute_ns > 0:
                worker.health.measured(now, (batch.model, batch.bucket, batch.rows), compute_ns)

    def retry_alone(self, now: int, batch: Batch[R]) -> list[R]:  # noqa: ARG002 - as in cancel()
        """The model failed on a completed batch of several requests: those returned run again, each alone.

        Empty where that may not be or proves nothing: not idempotent, no retries, removed, or one request only.
        """
        again = run_alone(batch)
        self._note_deadlines(again)
        return again

    def wake_at(self) -> int | None:
        """When expire() or dispatch() could next do something without another event; None: never.

        Never too late; seldom too early: a deadline may be that of a request that has left. After
        dispatch(now) and expire(now) it is later than `now`.
        """
        if self._evicted:
            return 0
        wake_ns = _NEVER
        for model in self._waiting:
            release_ns = next_release_ns(model, draining=self._draining)
            wake_ns = min(wake_ns, self._deadline_ns, _NEVER if release_ns is None else release_ns)
        return None if wake_ns == _NEVER else wake_ns

    def drain(self, now: int) -> None:  # noqa: ARG002 - as in cancel()
        """From now on no batch waits for more rows. Requests are still accepted; refusing them is the driver's."""
        self._draining = True

    # ── models, workers, replicas ───────────────────────────────────────────────────────────────

    def set_global(self, policy: GlobalPolicy) -> None:
        """Obey other settings from now on. What is in flight beyond a smaller pipeline runs to its end."""
        self._policy = policy
        for worker in self._workers.values():
            worker.pipeline_depth = policy.pipeline_depth

    def set_tenants(self, tenants: TenantLookup) -> None:
        """Ask `tenants` from now on whose a tenant is and what its user may use; those who are known are asked anew."""
        self._users.ask_again(tenants)
        for model in self._models.values():
            model.reweigh()

    def add_model(self, key: int, name: str, policy: ModelPolicy, *, idempotent: bool) -> None:
        """A model version can be asked for; it has no replica and none is expected yet."""
        assert key not in self._models
        self._models[key] = ModelQueue(key, name, policy, self._waiting, self._users, idempotent=idempotent)

    def set_policy(self, key: int, policy: ModelPolicy) -> None:
        """Obey other settings for this model from now on; nothing is lost or doubled."""
        self._models[key].set_policy(policy)

    def parts(self, key: int, rows: int) -> list[int]:
        """The rows of the parts that a request of `rows` should be submitted in, now; one where it fits a batch.

        Sizes that would make more than PARTS_MAX of them, whether preferred or adapted, are passed over.
        """
        model = self._models[key]
        least = -(-rows // PARTS_MAX)
        preferred = [size for size in model.policy.preferred_batches if size >= least]
        return cut(rows, max(model.batching.rows_max, least), preferred)

    def costs_snapshot(self, key: int) -> list[dict[str, Any]]:
        """The execution times that were learned for this model, as lists, dicts, strings and numbers."""
        return self._models[key].costs.snapshot()

    def restore_costs(self, key: int, value: object) -> int:
        """Start from the times of a snapshot, which may come from a file; returns how many were of use."""
        return self._models[key].costs.restore(value)

    def remove_model(self, now: int, key: int) -> list[tuple[R, TensordError]]:
        """The model is gone: its queued requests are refused. What is in flight of it still completes."""
        model = self._models[key]
        refused = refuse_queued(now, model)
        for worker_id in list(model.replicas):
            self.remove_replica(now, worker_id, key)
        model.removed = True
        del self._models[key]
        return cast("list[tuple[R, TensordError]]", refused)

    def expect_replica(self, now: int, key: int, expected: bool, reason: str) -> list[tuple[R, TensordError]]:
        """Say whether a replica is being loaded, so that requests may wait although there is none.

        Without a replica and without hope what waits is refused, and whatever comes is: `reason` says why.
        """
        model = self._models[key]
        model.expected, model.reason = expected, reason
        model.ease_rows = 0
        hopeless = not expected and not model.replicas
        return cast("list[tuple[R, TensordError]]", refuse_queued(now, model) if hopeless else [])

    def add_worker(self, worker_id: int, device: str) -> None:
        """A worker is there; it has no replica yet. The id of a removed worker may be used again."""
        assert worker_id not in self._workers
        worker = Worker(worker_id, device, self._policy.pipeline_depth, self._health_of(device))
        worker.weight = self._weights.get(device, 1.0)
        self._workers[worker_id] = worker

    def set_device_weight(self, device: str, weight: float) -> None:
        """The share of batches (above 0) that a device gets by weighted round robin, now and after a restart."""
        assert weight > 0
        self._weights[device] = weight
        for worker in self._workers.values():
            if worker.device == device:
                worker.weight = weight

    def set_device_health(self, device: str, factor: float) -> None:
        """Others say, until they say otherwise, what the device is worth (above 0, at most 1) of what it is when well.

        For what batches cannot tell, or only later, such as the throttle reasons of NVML.
        """
        self._health_of(device).set_outside(factor)

    def _health_of(self, device: str) -> Health:
        return self._healths.setdefault(device, Health())

    def remove_worker(self, now: int, worker_id: int) -> Lost[R]:  # noqa: ARG002 - as in cancel()
        """The worker died: its replicas are gone, and what it had in flight runs again or is refused.

        A request that runs again waits in the queue even beyond queue_max, and without a replica until
        expect_replica() gives up hope. One whose deadline has passed is requeued too; expire() returns it.
        """
        worker = self._workers.pop(worker_id)
        for model in worker.models.values():
            model.remove_replica(worker_id)
        lost: Lost[R] = Lost([], [])
        for batch in worker.in_flight.values():
            part = take_back(batch)
            lost.requeued.extend(part.requeued)
            lost.refused.extend(part.refused)
        self._note_deadlines(lost.requeued)
        return lost

    def _note_deadlines(self, requeued: list[R]) -> None:
        self._deadline_ns = min([self._deadline_ns, *(request.deadline_ns for request in requeued)])

    def add_replica(self, now: int, worker_id: int, key: int) -> None:  # noqa: ARG002 - as in cancel()
        """The worker has loaded the model and may get its batches."""
        model, worker = self._models[key], self._workers[worker_id]
        model.add_replica(worker)
        worker.models[key] = model
        for other in worker.models.values():
            other.ease_rows = 0

    def remove_replica(self, now: int, worker_id: int, key: int) -> None:  # noqa: ARG002 - as in cancel()
        """The worker gets no more batches of the model; those in flight still complete."""
        self._models[key].remove_replica(worker_id)
        self._workers[worker_id].remove_model(key)

    @property
    def has_work(self) -> bool:
        """Whether expire() or dispatch() could do anything, now or later, without another event."""
        return bool(self._waiting or self._evicted)

    @property
    def queued(self) -> int:
        """Requests that wait, those included that expire() has yet to return."""
        return sum(model.queued for model in self._waiting) + len(self._evicted)

    def statistics(self) -> SchedulerStatistics:
        """All counters now."""
        models = tuple(model_statistics(model) for model in self._models.values())
        workers = tuple(worker_statistics(worker) for worker in self._workers.values())
        return SchedulerStatistics(
            queued_requests=sum(model.queued_requests for model in models),
            queued_rows=sum(model.queued_rows for model in models),
            running_requests=sum(model.running_requests for model in models),
            running_batches=sum(worker.in_flight_batches for worker in workers),
            draining=self._draining,
            models=models,
            workers=workers,
            users=tuple(user_statistics(user) for user in self._users.by_name.values()),
        )
