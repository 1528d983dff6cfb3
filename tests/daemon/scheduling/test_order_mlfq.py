import dataclasses
import heapq

import pytest

from tensord.daemon.scheduling import ModelPolicy, Request, order_mlfq
from tensord.daemon.scheduling.order_mlfq import FLOWS_MAX, Entry, Flows, MultilevelFeedback

from .rig import MS, Rig, make
from .test_order import taken, waiting

POLICY = ModelPolicy(mlfq_levels=4, mlfq_quantum_ns=10, mlfq_boost_ns=1_000)


@pytest.fixture
def flows() -> Flows:
    return Flows(POLICY)


def use(flows: Flows, flow: int, device_ns: int, now: int = 0) -> None:
    flows.charge(now, [make(flow=flow)], device_ns)


def order_of(flows: Flows, *requests: Request) -> MultilevelFeedback:
    order = MultilevelFeedback(flows)
    for request in requests:
        order.push(request)
    return order


# ── flows ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("used_ns", "level"), [(0, 0), (9, 0), (10, 1), (29, 1), (30, 2), (69, 2), (70, 3), (149, 3), (150, 3), (10**9, 3)]
)
def test_a_flow_sinks_when_it_has_used_its_quantum_which_doubles_per_level(
    flows: Flows, used_ns: int, level: int
) -> None:
    use(flows, 7, used_ns)
    assert flows.level(7) == level
    assert flows.level(8) == 0


def test_use_in_small_turns_counts_like_use_in_one(flows: Flows) -> None:
    for now in range(30):
        use(flows, 7, 1, now)
    assert flows.level(7) == 2


def test_a_batch_charges_each_flow_with_its_rows(flows: Flows) -> None:
    flows.charge(0, [make(flow=1, rows=1), make(flow=2, rows=5), make(flow=1, rows=2)], 80)
    assert [flows.level(flow) for flow in (0, 1, 2)] == [0, 2, 2]  # 30 and 50
    use(flows, 1, 39)
    use(flows, 2, 19)
    assert [flows.level(flow) for flow in (1, 2)] == [2, 2]
    use(flows, 1, 1)
    use(flows, 2, 1)
    assert [flows.level(flow) for flow in (1, 2)] == [3, 3]


def test_flow_0_is_a_flow_like_any_other(flows: Flows) -> None:
    use(flows, 0, 10)
    assert flows.level(0) == 1


def test_a_boost_lifts_all_and_forgets_them(flows: Flows) -> None:
    use(flows, 1, 10)
    use(flows, 2, 100)
    flows.advance(999)
    assert [flows.level(1), flows.level(2)] == [1, 3]
    flows.advance(1_000)
    assert [flows.level(1), flows.level(2)] == [0, 0]
    assert flows._used_ns == {}


def test_boosts_keep_their_period_however_late_they_are_noticed(flows: Flows) -> None:
    use(flows, 1, 10, now=1_700)
    flows.advance(1_999)
    assert flows.level(1) == 1
    flows.advance(2_000)
    assert flows.level(1) == 0


def test_other_quanta_count_what_was_used_before(flows: Flows) -> None:
    use(flows, 1, 30)
    flows.obey(dataclasses.replace(POLICY, mlfq_quantum_ns=30))
    assert flows.level(1) == 1
    flows.obey(dataclasses.replace(POLICY, mlfq_levels=2, mlfq_quantum_ns=1))
    assert flows.level(1) == 1
    flows.obey(POLICY)
    assert flows.level(1) == 2


def test_flows_beyond_the_bound_bring_the_boost_forward(flows: Flows) -> None:
    flows.charge(0, [make(flow=flow) for flow in range(FLOWS_MAX)], 10 * FLOWS_MAX)
    assert {flows.level(flow) for flow in range(FLOWS_MAX)} == {1}
    use(flows, FLOWS_MAX, 10)
    assert {flows.level(flow) for flow in range(FLOWS_MAX + 1)} == {0}


# ── their requests ──────────────────────────────────────────────────────────────────────────────


def test_what_waits_of_a_flow_that_sinks_goes_behind_the_others(flows: Flows) -> None:
    heavy = [waiting(seq, flow=1) for seq in (1, 2, 4)]
    light = [waiting(seq, flow=2) for seq in (3, 5)]
    order = order_of(flows, *heavy, *light)
    use(flows, 1, 10)
    assert taken(order) == light + heavy


def test_a_request_that_comes_back_goes_before_what_came_later_of_other_flows(flows: Flows) -> None:
    first, second, third = waiting(1, flow=1), waiting(2, flow=2), waiting(3, flow=1)
    order = order_of(flows, first, second, third)
    home, first.home = first.home, None
    assert order.peek(0) is second
    first.home = home
    order.push(first)
    assert taken(order) == [first, second, third]


def test_a_boost_puts_all_back_in_order_of_submission(flows: Flows) -> None:
    requests = [waiting(seq, flow=seq % 3) for seq in range(9)]
    order = order_of(flows, *requests)
    for flow in range(3):
        use(flows, flow, 10 * flow)
    assert order.peek(0) is requests[0]
    requests[0].home = None
    assert order.peek(999) is requests[3]
    assert taken(order, 1_000) == requests[1:]


def test_a_sinking_costs_one_move_however_many_requests_wait(flows: Flows) -> None:
    order = order_of(flows, *(waiting(seq, flow=1) for seq in range(1_000)), light := waiting(1_000, flow=2))
    use(flows, 1, 10)
    assert order.peek(0) is light
    assert [len(heap) for heap in order._heaps] == [1, 1, 0, 0]


def test_a_boost_moves_no_more_entries_than_had_sunk(flows: Flows, monkeypatch: pytest.MonkeyPatch) -> None:
    order = order_of(flows, *(waiting(seq, flow=seq) for seq in range(10_000)))
    for flow in range(3):
        use(flows, flow, 10)
    first = order.peek(0)
    assert first is not None
    assert first.seq == 3
    moved = []

    def push(heap: list[Entry], entry: Entry) -> None:
        moved.append(entry)
        heapq.heappush(heap, entry)

    monkeypatch.setattr(order_mlfq, "heappush", push)
    first = order.peek(1_000)
    assert first is not None
    assert (first.seq, len(moved)) == (0, 3)


def test_dead_requests_behind_a_living_one_are_swept(flows: Flows) -> None:
    order = order_of(flows, waiting(0, flow=1))
    for seq in range(1, 5_000):
        order.push(dead := waiting(seq, flow=seq % 2))
        dead.home = None
    assert order._entries <= 200
    assert sum(len(line.requests) for line in order._lines.values()) == order._entries
    assert sum(map(len, order._heaps)) <= 3


def test_entries_of_flows_do_not_pile_up_when_requests_come_back(flows: Flows) -> None:
    requests = [waiting(seq, flow=1) for seq in range(20)]
    order = order_of(flows, *requests)
    for _ in range(500):
        first = order.peek(0)
        assert first is not None
        first.home = None
        assert order.peek(0) is requests[1]
        first.home = requests[1].home
        order.push(first)
    assert sum(map(len, order._heaps)) <= 3


# ── in the scheduler ────────────────────────────────────────────────────────────────────────────


def test_a_light_connection_goes_before_one_that_has_used_its_quantum() -> None:
    rig = Rig()
    rig.model(max_batch=1, order="mlfq", mlfq_quantum_ns=5 * MS)
    rig.submit(*(make(flow=1) for _ in range(2)))
    running = rig.dispatch()
    rig.submit(heavy := make(flow=1), light := make(flow=2))
    for batch in running:
        rig.now += 4 * MS
        rig.complete(batch, 4 * MS)
    assert [batch.requests for batch in rig.dispatch()] == [[light], [heavy]]


@pytest.mark.parametrize("after", [{"mlfq_levels": 3}, {"mlfq_quantum_ns": 4 * MS}, {"mlfq_boost_ns": 999 * MS}])
def test_changed_knobs_keep_what_flows_have_used(after: dict[str, int]) -> None:
    rig = Rig()
    rig.model(max_batch=1, order="mlfq", mlfq_quantum_ns=5 * MS)
    rig.submit(*(make(flow=1) for _ in range(2)))
    running = rig.dispatch()
    rig.submit(heavy := make(flow=1), light := make(flow=2))
    for batch in running:
        rig.complete(batch, 4 * MS)
    rig.set_policy(max_batch=1, order="mlfq", **{"mlfq_quantum_ns": 5 * MS, **after})
    assert [batch.requests for batch in rig.dispatch()] == [[light], [heavy]]


def test_other_orders_do_not_count_what_flows_use() -> None:
    rig = Rig()
    rig.model()
    rig.submit(make(flow=1))
    rig.run_all()
    assert rig.scheduler._models[0].flows._used_ns == {}


def test_flows_are_forgotten_when_the_order_is_another() -> None:
    rig = Rig()
    rig.model(order="mlfq")
    rig.submit(make(flow=1))
    rig.run_all()
    assert list(rig.scheduler._models[0].flows._used_ns) == [1]
    rig.set_policy(order="fcfs")
    assert rig.scheduler._models[0].flows._used_ns == {}
