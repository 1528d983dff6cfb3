"""The scheduler as a whole, driven at random in virtual time and checked against a plain model of it."""

from collections import Counter, defaultdict

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensord.daemon.scheduling import Batch, GlobalPolicy, ModelPolicy, Request, RequestState, Scheduler, TenantPolicy
from tensord.daemon.scheduling.balance import BALANCE_POLICIES
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.scheduling.order import ORDER_POLICIES
from tensord.ipc.errors import (
    ConcurrencyLimit,
    DeadlineExceeded,
    DeadlineInfeasible,
    QueueBytesFull,
    QueueFull,
    QueueRowsFull,
    TenantQueueFull,
    TensordError,
    TooManyTenantRows,
)

from .reference import place
from .rig import FAR_NS, MS, make

MODELS = (0, 1, 2)
WORKERS = (1, 2, 3)
ENDED = (RequestState.DONE, RequestState.EXPIRED, RequestState.CANCELLED, RequestState.REFUSED)

policies = st.builds(
    ModelPolicy,
    max_batch=st.sampled_from([1, 2, 4, 8]),
    window_ns=st.sampled_from([0, MS, 20 * MS]),
    queue_max=st.sampled_from([3, 1000]),
    weight=st.sampled_from([0.5, 1.0, 3.0]),
    balance=st.sampled_from(list(BALANCE_POLICIES)),
    response_half_life_ns=st.sampled_from([MS, 1000 * MS]),
    retries=st.integers(0, 2),
    order=st.sampled_from(list(ORDER_POLICIES)),
    mlfq_levels=st.integers(2, 4),
    mlfq_quantum_ns=st.sampled_from([1, MS, 20 * MS]),
    mlfq_boost_ns=st.sampled_from([MS, 100 * MS]),
    batching=st.sampled_from(["fixed", "aimd", "deferred"]),
    latency_target_ns=st.sampled_from([MS, 5 * MS, 60 * MS]),
    preferred_batches=st.sampled_from([(), (2,), (3, 6), (4, 100)]),
    queue_rows_max=st.sampled_from([9, 100_000]),
    queue_bytes_max=st.sampled_from([9, 100_000]),
    tenant_queue_percent=st.sampled_from([50, 100]),
    deadline_check=st.booleans(),
    codel_target_ns=st.sampled_from([0, MS // 10, 5 * MS]),
    codel_interval_ns=st.sampled_from([MS, 20 * MS]),
    adaptive_concurrency=st.booleans(),
)

tenant_policies = st.builds(
    TenantPolicy, weight=st.sampled_from([0.5, 1.0, 3.0]), rows_max=st.sampled_from([4, 30, 100_000])
)


def user_of(tenant: str) -> str:
    return tenant.partition("/")[0]


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.depth = 2
        self.ageing_ns = 10 * MS
        self.tenants: defaultdict[str, TenantPolicy] = defaultdict(TenantPolicy)
        self.scheduler: Scheduler[Request] = Scheduler(GlobalPolicy(ageing_ns=self.ageing_ns), self.tenant)
        self.policies: dict[int, ModelPolicy] = {}
        self.submitted: list[Request] = []
        self.ended: Counter[Request] = Counter()
        self.in_flight: dict[int, list[Batch[Request]]] = {}
        self.refused = self.requeued = 0

    @initialize(policy=policies)
    def start(self, policy: ModelPolicy) -> None:
        for key in MODELS:
            self.policies[key] = policy
            self.scheduler.add_model(key, f"m{key}", policy, idempotent=key != 2)
            self.scheduler.expect_replica(0, key, True, "loading")
        for worker in WORKERS:
            self.worker_comes(worker)

    def worker_comes(self, worker: int) -> None:
        self.scheduler.add_worker(worker, f"cpu:{worker}")
        self.in_flight[worker] = []
        for key in self.policies:
            if key != 1 or worker == 1:
                self.scheduler.add_replica(self.now, worker, key)

    def tenant(self, tenant: str) -> tuple[str, TenantPolicy]:
        return user_of(tenant), self.tenants[user_of(tenant)]

    def end(self, request: Request) -> None:
        self.ended[request] += 1

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    @rule(
        count=st.integers(1, 12),
        model=st.sampled_from(MODELS),
        bucket=st.sampled_from("ab"),
        tenant=st.sampled_from(["t", "t", "u", "v/1", "v/2"]),
        priority=st.sampled_from([0, 1, 1, 1, 2]),
        rows=st.sampled_from([1, 1, 1, 2, 3, 9]),
        patience_ns=st.sampled_from([0, MS, 30 * MS, FAR_NS, FAR_NS]),
        flow=st.integers(0, 2),
        session=st.integers(0, 5),
        other_session=st.integers(0, 5),
        latest=st.booleans(),
    )
    def submit(
        self,
        count: int,
        model: int,
        bucket: str,
        tenant: str,
        priority: int,
        rows: int,
        patience_ns: int,
        flow: int,
        session: int,
        other_session: int,
        latest: bool,
    ) -> None:
        for number in range(count):
            request = make(
                model=model,
                bucket=bucket,
                tenant=tenant,
                priority=priority,
                rows=rows,
                arrival_ns=self.now,
                deadline_ns=self.now + patience_ns,
                flow=flow,
                session=(session, other_session)[number % 2],
                latest=latest,
                nbytes=rows,
            )
            before = self.waiting(model)
            error = self.scheduler.submit(self.now, request)
            replaced = set(before) - set(self.waiting(model))
            assert (error is None) == (request.state is RequestState.QUEUED)
            if error is not None:
                assert not replaced
                self.check_refusal(request, error, before)
                continue
            assert patience_ns > 0
            self.submitted.append(request)
            self.check_bounds(request, replaced)

    def check_refusal(self, request: Request, error: TensordError, waiting: list[Request]) -> None:
        """A bound is only named where it would have been passed."""
        policy, user = self.policies[request.model], user_of(request.tenant)
        assert request.state is RequestState.REFUSED
        assert (error.code == DeadlineExceeded.code) == (request.deadline_ns <= self.now)
        if isinstance(error, QueueFull):
            assert len(waiting) >= policy.queue_max
        elif isinstance(error, QueueRowsFull):
            assert sum(one.rows for one in waiting) + request.rows > policy.queue_rows_max
        elif isinstance(error, QueueBytesFull):
            assert sum(one.nbytes for one in waiting) + request.nbytes > policy.queue_bytes_max
        elif isinstance(error, TenantQueueFull):
            assert any(user_of(one.tenant) == user for one in waiting)
        elif isinstance(error, TooManyTenantRows):
            assert self.inside(user) + request.rows > self.tenants[user].rows_max
        elif isinstance(error, DeadlineInfeasible):
            assert policy.deadline_check
        elif isinstance(error, ConcurrencyLimit):
            assert policy.adaptive_concurrency
        else:
            assert isinstance(error, DeadlineExceeded)

    def check_bounds(self, request: Request, replaced: set[Request]) -> None:
        """What was let in is within all bounds; what it replaced was of its session, and let it have its place."""
        policy, user = self.policies[request.model], user_of(request.tenant)
        waiting = self.waiting(request.model)
        assert replaced or (
            len(waiting) <= policy.queue_max
            and sum(one.rows for one in waiting) <= policy.queue_rows_max
            and sum(one.nbytes for one in waiting) <= policy.queue_bytes_max
        )
        own = [one for one in waiting if user_of(one.tenant) == user]
        assert replaced or len(own) == 1 or len(own) * 100 <= policy.queue_max * policy.tenant_queue_percent
        assert replaced or self.inside(user) <= self.tenants[user].rows_max
        for old in replaced:
            assert (old.tenant, old.session, old.latest) == (request.tenant, request.session, request.latest)
            assert (old.state, old.seq) == (RequestState.REFUSED, request.seq)
            assert request.latest
            assert request.session

    @rule()
    def dispatch(self) -> None:
        waiting = [request for request in self.submitted if request.state is RequestState.QUEUED]
        for batch in self.scheduler.dispatch(self.now):
            self.check_batch(batch)
            self.in_flight[batch.worker].append(batch)
        self.check_order(waiting)
        self.expire()
        wake_ns = self.scheduler.wake_at()
        assert wake_ns is None or wake_ns > self.now

    def check_batch(self, batch: Batch[Request]) -> None:
        requests = batch.requests
        assert batch.rows == sum(request.rows for request in requests)
        assert batch.rows <= self.policies[batch.model].max_batch or len(requests) == 1
        assert {(request.model, request.bucket) for request in requests} == {(batch.model, batch.bucket)}
        assert len(set(requests)) == len(requests)
        running = {request for batches in self.in_flight.values() for other in batches for request in other.requests}
        assert running.isdisjoint(requests)
        for request in requests:
            assert request.state is RequestState.RUNNING
            assert request.deadline_ns > self.now
            assert not request.solo or len(requests) == 1
        for request in requests:
            assert self.bound(request) in (None, batch.worker)
        neighbours = [request for other in self.in_flight[batch.worker] for request in other.requests]
        assert not any(request.solo for request in neighbours)
        assert not (requests[0].solo and neighbours)
        assert len(self.in_flight[batch.worker]) < self.depth

    def bound(self, request: Request) -> int | None:
        """The worker that alone may run the request, as its balance policy says."""
        model = self.scheduler._models[request.model]
        if not request.session or not model.balance.binds or len(model.replicas) < 2:
            return None
        worker = model.balance.bound(request.session)
        assert worker is not None
        assert model.replicas[worker.id] is worker
        return worker.id

    def check_order(self, waiting: list[Request]) -> None:
        """Of one model, tenant, class, bucket and, where it is bound, worker nobody was left behind by one that should
        go later."""
        lines = defaultdict(list)
        for request in waiting:
            if not request.solo:
                worker = self.bound(request)
                lines[request.model, request.tenant, request.priority, request.bucket, worker].append(request)
        for (model, *_), line in lines.items():
            order, level = self.policies[model].order, self.scheduler._models[model].flows.level
            line.sort(key=lambda request: place(order, request, self.now, self.ageing_ns, level))
            gone = (RequestState.EXPIRED, RequestState.REFUSED)
            kept = [one.state is RequestState.QUEUED for one in line if one.state not in gone]
            assert kept == sorted(kept)

    @rule(step_ns=st.sampled_from([1, MS // 3, MS, 7 * MS, 40 * MS]))
    def wait(self, step_ns: int) -> None:
        """Time passes; nothing may become possible before wake_at()."""
        wake_ns = self.scheduler.wake_at()
        end_ns = self.now + step_ns
        if wake_ns is None or wake_ns > self.now + 1:
            self.now = end_ns if wake_ns is None else min(end_ns, wake_ns - 1)
            assert self.scheduler.expire(self.now) == []
            settled = wake_ns is None or self.now < wake_ns
            assert not settled or self.scheduler.dispatch(self.now) == []
        self.now = end_ns

    @rule(
        model=st.sampled_from(MODELS), patience_ns=st.lists(st.sampled_from([30 * MS, FAR_NS]), min_size=3, max_size=5)
    )
    def trickle_and_sleep(self, model: int, patience_ns: list[int]) -> None:
        """Single rows keep the workers busy, and one waits for more; nothing is possible before wake_at()."""
        for patience in patience_ns:
            self.submit(1, model, "a", "t", 1, 1, patience, 0, 0, 0, latest=False)
            self.dispatch()
        self.dispatch()
        wake_ns = self.scheduler.wake_at()
        if wake_ns is not None and wake_ns < self.now + 100 * MS:
            self.now = wake_ns - 1
            assert self.scheduler.expire(self.now) == []
            assert self.scheduler.dispatch(self.now) == []
            self.now = wake_ns

    @rule()
    def expire(self) -> None:
        for request, error in self.scheduler.expire(self.now):
            self.end(request)
            assert isinstance(error, DeadlineExceeded) == (request.state is RequestState.EXPIRED)
            self.refused += request.state is RequestState.REFUSED
        for request in self.submitted:
            assert request.state is not RequestState.QUEUED or request.deadline_ns > self.now

    @rule(
        data=st.data(),
        compute_ns=st.sampled_from([0, 1, MS, 50 * MS]),
        fails=st.booleans(),
        failed=st.sampled_from([False, False, True]),
    )
    @precondition(lambda self: any(self.in_flight.values()))
    def complete(self, data: st.DataObject, compute_ns: int, fails: bool, failed: bool) -> None:
        worker = data.draw(st.sampled_from([worker for worker, batches in self.in_flight.items() if batches]))
        batch = self.in_flight[worker].pop(0)
        self.scheduler.complete(self.now, batch, compute_ns, failed=failed)
        again = self.scheduler.retry_alone(self.now, batch) if fails else []
        self.requeued += len(again)
        assert not again or (set(again) == set(batch.requests) and batch.model != 2)
        for request in batch.requests:
            if request not in again:
                self.end(request)

    @rule(worker=st.sampled_from(WORKERS))
    @precondition(lambda self: self.in_flight)
    def worker_dies(self, worker: int) -> None:
        if worker not in self.in_flight:
            return
        held = [request for batch in self.in_flight.pop(worker) for request in batch.requests]
        lost = self.scheduler.remove_worker(self.now, worker)
        assert Counter(held) == Counter(lost.requeued) + Counter(request for request, _ in lost.refused)
        assert all(request.model != 2 and request.solo for request in lost.requeued)
        self.requeued += len(lost.requeued)
        self.refuse(lost.refused)

    def refuse(self, refused: list[tuple[Request, TensordError]]) -> None:
        self.refused += len(refused)
        for request, _ in refused:
            assert request.state is RequestState.REFUSED
            self.end(request)

    @rule(worker=st.sampled_from(WORKERS))
    def worker_returns(self, worker: int) -> None:
        if worker not in self.in_flight:
            self.worker_comes(worker)

    @rule(data=st.data())
    @precondition(lambda self: self.submitted)
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.submitted[-40:]))
        queued = request.state is RequestState.QUEUED
        assert self.scheduler.cancel(self.now, request) == queued
        if queued:
            self.end(request)

    @rule(model=st.sampled_from(MODELS), policy=policies)
    def set_policy(self, model: int, policy: ModelPolicy) -> None:
        self.policies[model] = policy
        self.scheduler.set_policy(model, policy)

    @rule(depth=st.integers(1, 3), ageing_ns=st.sampled_from([0, MS, 10 * MS]))
    def set_global(self, depth: int, ageing_ns: int) -> None:
        self.depth, self.ageing_ns = depth, ageing_ns
        self.scheduler.set_global(GlobalPolicy(depth, ageing_ns))

    @rule(worker=st.sampled_from(WORKERS), weight=st.sampled_from([0.01, 1.0, 100.0]), health=st.floats(0.01, 1.0))
    def judge_device(self, worker: int, weight: float, health: float) -> None:
        self.scheduler.set_device_weight(f"cpu:{worker}", weight)
        self.scheduler.set_device_health(f"cpu:{worker}", health)

    @rule(worker=st.sampled_from(WORKERS))
    def replica_goes_and_comes(self, worker: int) -> None:
        if worker in self.in_flight:
            self.scheduler.remove_replica(self.now, worker, 0)
            self.scheduler.add_replica(self.now, worker, 0)

    @rule(user=st.sampled_from("tuv"), policy=tenant_policies)
    def set_tenants(self, user: str, policy: TenantPolicy) -> None:
        self.tenants[user] = policy
        self.scheduler.set_tenants(self.tenant)

    @rule(model=st.sampled_from(MODELS))
    def give_up_hope_and_take_heart(self, model: int) -> None:
        self.refuse(self.scheduler.expect_replica(self.now, model, False, "gone"))
        self.scheduler.expect_replica(self.now, model, True, "loading")

    # ── what always holds ───────────────────────────────────────────────────────────────────────

    def waiting(self, model: int) -> list[Request]:
        return [
            request for request in self.submitted if request.model == model and request.state is RequestState.QUEUED
        ]

    def inside(self, user: str) -> int:
        states = (RequestState.QUEUED, RequestState.RUNNING)
        return sum(one.rows for one in self.submitted if one.state in states and user_of(one.tenant) == user)

    @invariant()
    def nobody_ends_twice(self) -> None:
        assert all(count == 1 for count in self.ended.values())

    @invariant()
    def counters_add_up(self) -> None:
        if not self.policies:
            return
        statistics = self.scheduler.statistics()
        states = Counter(request.state for request in self.submitted)
        models = statistics.models
        assert statistics.queued_requests == states[RequestState.QUEUED]
        waiting = [request for request in self.submitted if request.state is RequestState.QUEUED]
        assert statistics.queued_rows == sum(request.rows for request in waiting)
        assert statistics.running_requests == states[RequestState.RUNNING]
        assert sum(model.completed for model in models) == states[RequestState.DONE]
        assert sum(model.expired for model in models) == states[RequestState.EXPIRED]
        assert sum(model.cancelled for model in models) == states[RequestState.CANCELLED]
        evicted = [request for request, _ in self.scheduler._evicted]
        evicted_refused = sum(request.state is RequestState.REFUSED for request in evicted)
        refused = states[RequestState.REFUSED]
        assert sum(model.refused_accepted for model in models) == refused == self.refused + evicted_refused
        for user in statistics.users:
            own = [request for request in self.submitted if user_of(request.tenant) == user.user]
            assert user.queued_rows == sum(one.rows for one in own if one.state is RequestState.QUEUED)
            assert user.running_rows == sum(one.rows for one in own if one.state is RequestState.RUNNING)
        for model in self.scheduler._models.values():
            self.check_shares(model)
        assert sum(model.requeued for model in models) == self.requeued
        assert sum(model.submitted for model in models) == len(self.submitted)
        for worker in statistics.workers:
            batches = self.in_flight[worker.worker_id]
            assert worker.in_flight_batches == len(batches)
            assert 0 < worker.health <= 1
            assert worker.outstanding_ns == sum(batch.predicted_ns for batch in batches)

    def check_shares(self, model: ModelQueue) -> None:
        """The counts of users and names are exact, whether kept one by one or the model's own."""
        waiting = self.waiting(model.key)
        for name in {user_of(one.tenant) for one in waiting}:
            own = [one for one in waiting if user_of(one.tenant) == name]
            load = len(own), sum(one.rows for one in own), sum(one.nbytes for one in own)
            assert model.load(self.scheduler._users.by_name[name]) == load
            if model.crowded:
                assert model.shares[name].names == len({one.tenant for one in own})
        if model.crowded:
            weights = sum(self.tenants[name].weight for name in {user_of(one.tenant) for one in waiting})
            assert model.weights == pytest.approx(weights)

    def teardown(self) -> None:
        """With workers and time enough everybody ends, exactly once."""
        if not self.policies:
            return
        for worker in WORKERS:
            self.worker_returns(worker)
        for _ in range(len(self.submitted) + 10):
            for batches in self.in_flight.values():
                for batch in batches:
                    self.scheduler.complete(self.now, batch, MS)
                    for request in batch.requests:
                        self.end(request)
                batches.clear()
            self.now += 30 * MS
            self.expire()
            self.dispatch()
        assert self.scheduler.queued == 0
        assert all(request.state in ENDED for request in self.submitted)
        assert set(self.ended) == set(self.submitted)
        self.nobody_ends_twice()


TestScheduler = SchedulerMachine.TestCase
