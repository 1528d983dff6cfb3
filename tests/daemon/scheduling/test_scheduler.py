"""The scheduler as a whole, driven at random in virtual time and checked against a plain model of it."""

from collections import Counter, defaultdict

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensord.daemon.scheduling import Batch, GlobalPolicy, ModelPolicy, Request, RequestState, Scheduler
from tensord.daemon.scheduling.balance import BALANCE_POLICIES
from tensord.daemon.scheduling.order import ORDER_POLICIES
from tensord.ipc.errors import QueueFull, TensordError

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
)


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.depth = 2
        self.ageing_ns = 10 * MS
        self.scheduler: Scheduler[Request] = Scheduler(GlobalPolicy(ageing_ns=self.ageing_ns))
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

    def end(self, request: Request) -> None:
        self.ended[request] += 1

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    @rule(
        count=st.integers(1, 12),
        model=st.sampled_from(MODELS),
        bucket=st.sampled_from("ab"),
        tenant=st.sampled_from(["t", "u"]),
        priority=st.sampled_from([0, 1, 1, 1, 2]),
        rows=st.sampled_from([1, 1, 1, 2, 3, 9]),
        patience_ns=st.sampled_from([0, MS, 30 * MS, FAR_NS, FAR_NS]),
        flow=st.integers(0, 2),
        session=st.integers(0, 5),
        other_session=st.integers(0, 5),
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
            )
            queued = self.queued(model)
            error = self.scheduler.submit(self.now, request)
            assert isinstance(error, QueueFull) == (patience_ns > 0 and queued >= self.policies[model].queue_max)
            assert (error is None) == (request.state is RequestState.QUEUED)
            if error is None:
                self.submitted.append(request)

    @rule()
    def dispatch(self) -> None:
        waiting = [request for request in self.submitted if request.state is RequestState.QUEUED]
        for batch in self.scheduler.dispatch(self.now):
            self.check_batch(batch)
            self.in_flight[batch.worker].append(batch)
        self.check_order(waiting)
        late = self.scheduler.expire(self.now)
        for request in late:
            self.end(request)
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
            kept = [one.state is RequestState.QUEUED for one in line if one.state is not RequestState.EXPIRED]
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
            self.submit(1, model, "a", "t", 1, 1, patience, 0, 0, 0)
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
        for request in self.scheduler.expire(self.now):
            assert request.deadline_ns <= self.now
            self.end(request)
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

    @rule(model=st.sampled_from(MODELS))
    def give_up_hope_and_take_heart(self, model: int) -> None:
        self.refuse(self.scheduler.expect_replica(self.now, model, False, "gone"))
        self.scheduler.expect_replica(self.now, model, True, "loading")

    # ── what always holds ───────────────────────────────────────────────────────────────────────

    def queued(self, model: int) -> int:
        return sum(request.state is RequestState.QUEUED for request in self.submitted if request.model == model)

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
        assert sum(model.refused_accepted for model in models) == states[RequestState.REFUSED] == self.refused
        assert sum(model.requeued for model in models) == self.requeued
        assert sum(model.submitted for model in models) == len(self.submitted)
        for worker in statistics.workers:
            batches = self.in_flight[worker.worker_id]
            assert worker.in_flight_batches == len(batches)
            assert 0 < worker.health <= 1
            assert worker.outstanding_ns == sum(batch.predicted_ns for batch in batches)

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
