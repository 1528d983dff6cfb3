"""What holds for every order policy, and the three that sort by a number."""

from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensord.daemon.scheduling import ModelPolicy, Request
from tensord.daemon.scheduling.order import BY_SERVICE_TIME, ORDER_POLICIES, OrderPolicy
from tensord.daemon.scheduling.order_mlfq import Flows

from .reference import ReferenceFlows, preference
from .rig import MS, Rig, make, tenant_queue

POLICY = ModelPolicy(mlfq_levels=3, mlfq_quantum_ns=MS, mlfq_boost_ns=20 * MS)
HOME = tenant_queue()


def waiting(seq: int, *, arrival_ns: int = 0, predicted_ns: int = MS, deadline_ns: int = MS, flow: int = 0) -> Request:
    """A request as a queue sees it."""
    request = make(arrival_ns=arrival_ns, deadline_ns=deadline_ns, flow=flow)
    request.seq, request.predicted_ns = seq, predicted_ns
    request.home = HOME
    return request


def make_order(name: str) -> OrderPolicy:
    return ORDER_POLICIES[name](Flows(POLICY))


def taken(order: OrderPolicy, now: int = 0) -> list[Request]:
    """All of them, in order."""
    requests = []
    while (first := order.peek(now)) is not None:
        requests.append(first)
        first.home = None
    return requests


class Order(RuleBasedStateMachine):
    """Requests that come, leave, are taken and return, against the definition."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.policy = POLICY
        self.flows = Flows(POLICY)
        self.reference = ReferenceFlows()
        self.alive: list[Request] = []
        self.gone: list[Request] = []
        self.seqs = count(1)

    @initialize(name=st.sampled_from(list(ORDER_POLICIES)))
    def start(self, name: str) -> None:
        self.name = name
        self.order = ORDER_POLICIES[name](self.flows)
        self.other = ORDER_POLICIES[name](self.flows)

    def expected(self) -> list[Request]:
        def level(flow: int) -> int:
            return self.reference.level(self.now, self.policy, flow)

        return sorted(self.alive, key=lambda request: preference(self.name, request, self.now, level))

    @rule(
        predicted_ns=st.one_of(st.integers(1, 50), st.sampled_from([MS, 3 * MS])),
        patience_ns=st.integers(1, 5),
        flow=st.integers(0, 3),
        elsewhere=st.sampled_from([False, False, True]),
    )
    def push(self, predicted_ns: int, patience_ns: int, flow: int, elsewhere: bool) -> None:
        request = waiting(
            next(self.seqs),
            arrival_ns=self.now,
            predicted_ns=predicted_ns,
            deadline_ns=self.now + patience_ns,
            flow=flow,
        )
        if not elsewhere:
            self.order.push(request)
            self.alive.append(request)
        else:
            self.other.push(request)

    @rule(step_ns=st.sampled_from([1, 7, MS, 9 * MS]))
    def wait(self, step_ns: int) -> None:
        self.now += step_ns

    @rule(flow=st.integers(0, 3), used_ns=st.sampled_from([MS // 2, MS, 2 * MS, 7 * MS]))
    def charge(self, flow: int, used_ns: int) -> None:
        self.flows.charge(self.now, [make(flow=flow)], used_ns)
        self.reference.charge(self.now, self.policy, flow, used_ns)

    @rule(levels=st.integers(2, 4), quantum_ns=st.sampled_from([MS // 2, MS, 3 * MS]))
    def obey(self, levels: int, quantum_ns: int) -> None:
        self.policy = ModelPolicy(mlfq_levels=levels, mlfq_quantum_ns=quantum_ns, mlfq_boost_ns=POLICY.mlfq_boost_ns)
        self.flows.obey(self.policy)

    @precondition(lambda self: self.alive)
    @rule()
    def take(self) -> None:
        request = self.order.peek(self.now)
        assert request is self.expected()[0]
        self.leave(request)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from(self.alive)))

    def leave(self, request: Request) -> None:
        request.home = None
        self.alive.remove(request)
        self.gone.append(request)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.gone))
        self.gone.remove(request)
        self.alive.append(request)
        request.home = HOME
        self.order.push(request)

    @invariant()
    def each_is_known_once(self) -> None:
        if self.gone or self.alive:
            assert sorted(one.seq for one in self.order.living()) == sorted(one.seq for one in self.alive)

    @invariant()
    def keys_agree_with_the_order_also_between_queues(self) -> None:
        """Whoever is first here and first there: the keys say which of the two the policy prefers."""
        if not (self.gone or self.alive):
            return
        here, there = self.order.peek(self.now), self.other.peek(self.now)
        if here is None or there is None:
            return

        def level(flow: int) -> int:
            return self.reference.level(self.now, self.policy, flow)

        def by_key(request: Request) -> tuple[float, int]:
            return self.order.key(request, self.now), request.seq

        def by_definition(request: Request) -> tuple[float, ...]:
            return preference(self.name, request, self.now, level)

        assert min(here, there, key=by_key) is min(here, there, key=by_definition)

    def teardown(self) -> None:
        if self.gone or self.alive:
            expected = self.expected()
            assert taken(self.order, self.now) == expected


TestOrder = Order.TestCase
TestOrder.settings = settings(max_examples=150, stateful_step_count=30)


def test_the_orders_are_those_that_the_knob_takes() -> None:
    assert sorted(ORDER_POLICIES) == ["edf", "fcfs", "hrrn", "mlfq", "sjf"]


def test_fcfs_serves_by_place_of_submission() -> None:
    order = make_order("fcfs")
    requests = [waiting(2, predicted_ns=1, deadline_ns=1), waiting(3), waiting(1)]
    for request in requests:
        order.push(request)
    assert [one.seq for one in taken(order)] == [1, 2, 3]


def test_sjf_serves_the_shortest_first_and_equals_by_place_of_submission() -> None:
    order = make_order("sjf")
    for seq, predicted_ns in [(4, 2), (2, 3), (3, 2), (1, 9)]:
        order.push(waiting(seq, predicted_ns=predicted_ns))
    assert [one.seq for one in taken(order)] == [3, 4, 2, 1]


def test_edf_serves_the_most_urgent_first_and_equals_by_place_of_submission() -> None:
    order = make_order("edf")
    for seq, deadline_ns in [(4, 2), (2, 3), (3, 2), (1, 9)]:
        order.push(waiting(seq, deadline_ns=deadline_ns))
    assert [one.seq for one in taken(order)] == [3, 4, 2, 1]


@pytest.mark.parametrize("name", ORDER_POLICIES)
def test_a_request_that_comes_back_gets_its_old_place(name: str) -> None:
    order = make_order(name)
    first, second, third = waiting(1), waiting(2), waiting(3)
    for one in (first, second, third):
        order.push(one)
    first.home = None
    assert order.peek(0) is second
    first.home = HOME
    order.push(first)
    assert taken(order) == [first, second, third]


@pytest.mark.parametrize("name", ORDER_POLICIES)
def test_a_request_that_comes_back_before_its_entry_was_dropped_is_there_once(name: str) -> None:
    order = make_order(name)
    for one in (first := waiting(1), second := waiting(2)):
        order.push(one)
    order.push(first)
    assert list(order.living()) == [first, second]
    assert taken(order) == [first, second]


@pytest.mark.parametrize("name", ORDER_POLICIES)
def test_an_order_that_was_cleared_starts_anew(name: str) -> None:
    order = make_order(name)
    order.push(gone := waiting(1))
    gone.home = None
    order.clear()
    order.push(one := waiting(2))
    assert list(order.living()) == [one]
    assert taken(order) == [one]


# ── in the scheduler ────────────────────────────────────────────────────────────────────────────


def test_predicted_time_is_fixed_when_the_request_is_queued() -> None:
    rig = Rig()
    rig.model(max_batch=1, order="sjf")
    rig.submit(running := make(rows=2), first := make(rows=2))
    before = first.predicted_ns
    rig.complete(rig.dispatch()[0], 50 * MS)
    rig.submit(later := make(rows=2))
    assert running.predicted_ns == before == first.predicted_ns < later.predicted_ns


def test_predicted_time_is_the_mean_over_the_replicas() -> None:
    rig = Rig()
    rig.scheduler.add_worker(2, "cpu:1")
    rig.model(order="sjf", workers=(1, 2))
    costs = rig.scheduler._models[0].costs
    costs.learn("b", "cpu:0", 1, 2 * MS)
    costs.learn("b", "cpu:1", 1, 6 * MS)
    rig.submit(one := make())
    assert one.predicted_ns == pytest.approx(4 * MS, abs=2)


@pytest.mark.parametrize("name", ORDER_POLICIES)
def test_only_orders_by_service_time_predict(name: str) -> None:
    rig = Rig()
    rig.model(order=name)
    rig.submit(one := make())
    assert (one.predicted_ns > 0) == (name in BY_SERVICE_TIME)


@pytest.mark.parametrize("name", BY_SERVICE_TIME)
def test_what_waits_is_predicted_when_the_order_begins_to_need_it(name: str) -> None:
    rig = Rig()
    rig.model(max_batch=4, order="fcfs")
    rig.submit(*(make(rows=rows) for rows in (4, 4)))
    running = rig.dispatch()
    rig.submit(long := make(rows=4), short := make(rows=1))
    rig.set_policy(max_batch=4, order=name)
    for batch in running:
        rig.now += MS
        rig.complete(batch)
    assert [batch.requests for batch in rig.dispatch()] == [[short], [long]]


@pytest.mark.parametrize("name", BY_SERVICE_TIME)
def test_a_request_that_ran_under_another_order_is_predicted_when_it_comes_back(name: str) -> None:
    rig = Rig()
    rig.model(max_batch=4, order="fcfs")
    rig.submit(back := make())
    rig.dispatch()
    rig.set_policy(max_batch=4, order=name)
    assert rig.scheduler.remove_worker(rig.now, 1).requeued == [back]
    assert back.predicted_ns > 0


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("fcfs", {}, {}),
        ("sjf", {"rows": 1}, {"rows": 2}),
        ("hrrn", {"rows": 1}, {"rows": 4}),
        ("mlfq", {"flow": 2}, {"flow": 1}),
        ("edf", {"deadline_ns": 500 * MS}, {"deadline_ns": 900 * MS}),
    ],
)
@pytest.mark.parametrize("buckets", ["aa", "ab"])
def test_the_preferred_request_leads_whichever_bucket_it_is_in(
    name: str, better: dict[str, Any], worse: dict[str, Any], buckets: str
) -> None:
    rig = Rig()
    rig.model(max_batch=4, order=name, mlfq_quantum_ns=MS)
    rig.submit(make(rows=4, flow=1), make(rows=4))
    running = rig.dispatch()
    requests = [make(bucket=buckets[0], **worse), make(bucket=buckets[1], **better)]
    rig.submit(*(requests[::-1] if name == "fcfs" else requests))
    for batch in running:
        rig.now += 2 * MS
        rig.complete(batch, 2 * MS)
    assert rig.dispatch()[0].requests[0] is requests[1]
