"""The scheduler as a whole, driven at random in virtual time and checked against a plain model of it."""

from collections import Counter, defaultdict

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensord.daemon.scheduling import Batch, GlobalPolicy, ModelPolicy, Request, RequestState, Scheduler
from tensord.daemon.scheduling.order import ORDER_POLICIES
from tensord.ipc.errors import QueueFull, TensordError

from .reference import place
from .rig import FAR_NS, MS, make

MODELS = (0, 1, 2)
WORKERS = (1, 2)
ENDED = (RequestState.DONE, RequestState.EXPIRED, RequestState.CANCELLED, RequestState.REFUSED)

policies = st.builds(
    ModelPolicy,
    max_batch=st.sampled_from([1, 2, 4, 8]),
    window_ns=st.sampled_from([0, MS, 20 * MS]),
    queue_max=st.sampled_from([3, 1000]),
    weight=st.sampled_from([0.5, 1.0, 3.0]),
    retries=st.integers(0, 2),
    order=st.sampled_from(list(ORDER_POLICIES)),
    mlfq_levels=st.integers(2, 4),
    mlfq_quantum_ns=st.sampled_from([1, MS, 20 * MS]),
    mlfq_boost_ns=st.sampled_from([MS, 100 * MS]),
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
    )
    def submit(
        self, count: int, model: int, bucket: str, tenant: str, priority: int, rows: int, patience_ns: int, flow: int
    ) -> None:
        for _ in range(count):
            request = make(
                model=model,
                bucket=bucket,
                tenant=tenant,
                priority=priority,
                rows=rows,
                arrival_ns=self.now,
                deadline_ns=self.now + patience_ns,
                flow=flow,
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
        neighbours = [request for other in self.in_flight[batch.worker] for request in other.requests]
        assert not any(request.solo for request in neighbours)
        assert not (requests[0].solo and neighbours)
        assert len(self.in_flight[batch.worker]) < self.depth

    def check_order(self, waiting: list[Request]) -> None:
        """Of one model, tenant, class and bucket nobody was left behind by one that should go later."""
        lines = defaultdict(list)
        for request in waiting:
            if not request.solo:
                lines[request.model, request.tenant, request.priority, request.bucket].append(request)
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

    @rule()
    def expire(self) -> None:
        for request in self.scheduler.expire(self.now):
            assert request.deadline_ns <= self.now
            self.end(request)
        for request in self.submitted:
            assert request.state is not RequestState.QUEUED or request.deadline_ns > self.now

    @rule(data=st.data(), compute_ns=st.sampled_from([0, 1, MS, 50 * MS]), fails=st.booleans())
    @precondition(lambda self: any(self.in_flight.values()))
    def complete(self, data: st.DataObject, compute_ns: int, fails: bool) -> None:
        worker = data.draw(st.sampled_from([worker for worker, batches in self.in_flight.items() if batches]))
        batch = self.in_flight[worker].pop(0)
        self.scheduler.complete(self.now, batch, compute_ns)
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
