"""One bucket by itself: its counts, whom it names first, and what it takes along with a leader."""

import sys
from itertools import count
from operator import attrgetter
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensord.daemon.scheduling import ModelPolicy, Request, RequestState
from tensord.daemon.scheduling.lazy_queue import LazyQueue
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.scheduling.order import ORDER_POLICIES
from tensord.daemon.scheduling.queues import TENANTS_KEPT, BucketQueue, Level
from tensord.daemon.scheduling.tenants import QUANTUM_NS, Account
from tensord.ipc.limits import BATCH_REQUESTS_MAX, PRIORITY_CLASSES

from .rig import FAR_NS, make

AGE_NS = 100

_seqs = count(1)


class Lifo:
    """Last come, first served."""

    by_age: ClassVar = False

    def __init__(self) -> None:
        queue = LazyQueue(lambda request: -request.seq)
        self.push, self.peek, self.living, self.clear = queue.push, queue.peek, queue.living, queue.clear

    def key(self, request: Request, now: int) -> float:
        return -request.seq


def empty_bucket() -> BucketQueue:
    return BucketQueue(ModelQueue(0, "m0", ModelPolicy(), idempotent=True), "b")


@pytest.fixture
def bucket() -> BucketQueue:
    return empty_bucket()


def push(bucket: BucketQueue, *requests: Request) -> None:
    """Queue new requests, in order of submission."""
    for request in requests:
        request.seq = next(_seqs)
        bucket.push(request)


def head(bucket: BucketQueue) -> Request:
    """Whoever goes first where nobody has aged."""
    return bucket.first(now=0, ageing_ns=0, highest=0).leader


def take_shares(bucket: BucketQueue, rows_max: int, row_ns: float) -> tuple[list[Request], dict[Account, int]]:
    """The batch of whoever goes first, and who pays for it."""
    return bucket.take(head(bucket), rows_max, row_ns, now=0, ageing_ns=0)


def take(bucket: BucketQueue, rows_max: int, row_ns: float = 0.0) -> list[Request]:
    """The batch of whoever goes first."""
    return take_shares(bucket, rows_max, row_ns)[0]


class Bucket(RuleBasedStateMachine):
    """Requests pushed, removed, taken and back again, against a list of those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.bucket = empty_bucket()
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.seqs = count(1)

    def in_line(self) -> dict[tuple[str, int], list[Request]]:
        """Who waits, for each tenant and class in order of submission."""
        lines: dict[tuple[str, int], list[Request]] = {}
        for request in sorted(self.waiting, key=attrgetter("seq")):
            lines.setdefault((request.tenant, request.priority), []).append(request)
        return lines

    @rule(
        tenant=st.sampled_from("abc"),
        priority=st.integers(0, PRIORITY_CLASSES - 1),
        rows=st.integers(1, 4),
        deadline_ns=st.integers(1, 9),
    )
    def push(self, tenant: str, priority: int, rows: int, deadline_ns: int) -> None:
        seq = next(self.seqs)
        request = make(tenant=tenant, priority=priority, rows=rows, arrival_ns=10 * seq, deadline_ns=deadline_ns)
        request.seq = seq
        self.bucket.push(request)
        self.waiting.append(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running))
        request.solo = True
        self.bucket.push(request)
        self.running.remove(request)
        self.waiting.append(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), state=st.sampled_from([RequestState.CANCELLED, RequestState.EXPIRED]))
    def remove(self, data: st.DataObject, state: RequestState) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        self.bucket.remove(request, state)
        self.waiting.remove(request)
        assert (request.state, request.home) == (state, None)

    @precondition(lambda self: self.waiting)
    @rule(rows_max=st.integers(1, 8), row_ns=st.sampled_from([0.0, QUANTUM_NS / 3, 5.0 * QUANTUM_NS]))
    def take(self, rows_max: int, row_ns: float) -> None:
        lines = self.in_line()
        taken, shares = take_shares(self.bucket, rows_max, row_ns)
        rows = sum(request.rows for request in taken)
        assert rows <= rows_max or len(taken) == 1
        assert len(taken) == 1 or not any(request.solo for request in taken)
        assert sum(shares.values()) == rows
        for line in lines.values():
            gone = [request for request in line if request in taken]
            assert gone == line[: len(gone)], "nobody is passed over"
        for request in taken:
            assert (request.state, request.home) == (RequestState.RUNNING, None)
            self.waiting.remove(request)
        self.running += taken

    @invariant()
    def counts_are_exact_at_every_level(self) -> None:
        assert (self.bucket.count, self.bucket.rows) == (
            len(self.waiting),
            sum(request.rows for request in self.waiting),
        )
        lines = self.in_line()
        for level in self.bucket.levels:
            own = {name: line for (name, priority), line in lines.items() if priority == level.priority}
            assert level.count == sum(map(len, own.values()))
            assert {name: each.count for name, each in level.tenants.items() if each.count} == {
                name: len(line) for name, line in own.items()
            }

    @invariant()
    def whoever_waits_is_at_home(self) -> None:
        for request in self.waiting:
            assert request.state is RequestState.QUEUED
            assert request.home is not None
            assert (request.home.name, request.home.level.priority) == (request.tenant, request.priority)
            assert request.home.level.bucket is self.bucket

    @invariant()
    def the_first_the_oldest_and_the_most_urgent_are_known(self) -> None:
        if self.waiting:
            first = head(self.bucket)
            assert first.priority == min(request.priority for request in self.waiting)
            assert first is self.in_line()[first.tenant, first.priority][0]
            assert self.bucket.oldest_arrival_ns == min(request.arrival_ns for request in self.waiting)
            assert self.bucket.earliest_deadline_ns == min(request.deadline_ns for request in self.waiting)


TestBucket = Bucket.TestCase
TestBucket.settings = settings(max_examples=40, stateful_step_count=25)


# ── who goes first ──────────────────────────────────────────────────────────────────────────────


def low(bucket: BucketQueue) -> Level:
    """The level of the lowest class."""
    return bucket.levels[-1]


def aged(tenant: str, arrival_ns: int) -> Request:
    return make(tenant=tenant, priority=2, arrival_ns=arrival_ns)


@pytest.mark.parametrize(
    ("now", "priority"),
    [(0, 2), (AGE_NS - 1, 2), (AGE_NS, 1), (2 * AGE_NS, 0), (9 * AGE_NS, 0), (-5 * AGE_NS, 2)],
)
def test_waiting_raises_a_request_class_by_class_up_to_the_highest(
    bucket: BucketQueue, now: int, priority: int
) -> None:
    push(bucket, request := aged("t", 0))
    assert low(bucket).leader(now, AGE_NS) == (priority, request)
    assert low(bucket).leader(now, 0) == (2, request), "no ageing"


def test_the_oldest_raises_the_level_and_turns_say_who_goes_first(bucket: BucketQueue) -> None:
    push(bucket, first := aged("a", 0), aged("b", 0))
    bucket.remove(first, RequestState.CANCELLED)
    push(bucket, again := aged("a", 1))
    assert low(bucket).leader(AGE_NS, AGE_NS) == (1, again)


def test_age_raises_nobody_above_the_highest_class_that_waits(bucket: BucketQueue) -> None:
    push(bucket, request := aged("a", 0))
    assert low(bucket).leader(9 * AGE_NS, AGE_NS, highest=1) == (1, request)
    assert low(bucket).leader(9 * AGE_NS, AGE_NS, highest=2) == (2, request)


def test_who_replaced_an_older_one_counts_as_old(bucket: BucketQueue) -> None:
    push(bucket, request := aged("a", AGE_NS))
    request.inherited_ns = AGE_NS
    assert low(bucket).leader(AGE_NS, AGE_NS) == (1, request)
    assert bucket.oldest_arrival_ns == 0


def test_the_highest_class_does_not_age(bucket: BucketQueue) -> None:
    push(bucket, request := make(priority=0))
    assert bucket.levels[0].leader(9 * AGE_NS, AGE_NS) == (0, request)


# ── what is taken along ─────────────────────────────────────────────────────────────────────────


def test_a_batch_fills_class_by_class_up_to_the_first_that_does_not_fit(bucket: BucketQueue) -> None:
    low_, normal, wide, small = make(priority=2), make(rows=2), make(rows=2), make(rows=1)
    push(bucket, low_, normal, high := make(priority=0), wide, small)
    assert take(bucket, 4) == [high, normal]
    assert take(bucket, 4) == [wide, small, low_]


def test_the_leader_need_not_be_the_first_in_line(bucket: BucketQueue) -> None:
    push(bucket, high := make(priority=0), leader := make(priority=2))
    assert bucket.take(leader, 4, 0.0, now=0, ageing_ns=0)[0] == [leader, high]


@pytest.mark.parametrize("rows", [4, 5])
def test_a_leader_that_fills_a_batch_goes_alone(bucket: BucketQueue, rows: int) -> None:
    push(bucket, leader := make(rows=rows), make())
    assert take(bucket, 4) == [leader]


def test_a_suspect_goes_alone_and_nobody_takes_it_along(bucket: BucketQueue) -> None:
    suspects = [make(), make()]
    push(bucket, first := make(), *suspects, last := make())
    for suspect in suspects:
        suspect.solo = True
    assert [take(bucket, 8) for _ in range(4)] == [[first], *([suspect] for suspect in suspects), [last]]


def test_a_batch_holds_no_more_requests_than_a_descriptor(bucket: BucketQueue) -> None:
    push(bucket, *(make() for _ in range(BATCH_REQUESTS_MAX + 1)))
    assert len(take(bucket, 10 * BATCH_REQUESTS_MAX)) == BATCH_REQUESTS_MAX
    assert bucket.count == 1


def test_tenants_pay_for_their_rows_and_take_turns(bucket: BucketQueue) -> None:
    push(bucket, *(make(tenant=name) for name in "aaabbb"))
    taken, shares = take_shares(bucket, 5, 0.4 * QUANTUM_NS)
    assert [request.tenant for request in taken] == list("abaab")
    assert shares == {bucket.model.accounts["a"]: 3, bucket.model.accounts["b"]: 2}


def test_newcomers_join_in_the_round_of_who_is_served(bucket: BucketQueue) -> None:
    push(bucket, make(tenant="debtor"))
    bucket.model.accounts["debtor"].pay(4.0 * QUANTUM_NS)  # for what it has in another bucket
    take(bucket, 1, 4.0 * QUANTUM_NS)
    push(bucket, make(tenant="new"))
    rounds = {name: share.round for name, share in bucket.model.shares.items()}
    assert rounds == {"debtor": 9, "new": 5}


def test_without_a_price_nobody_pays(bucket: BucketQueue) -> None:
    push(bucket, *(make(tenant=name) for name in "aab"))
    before = [(account.round, account.deficit_ns) for account in bucket.model.accounts.values()]
    take(bucket, 8)
    assert [(account.round, account.deficit_ns) for account in bucket.model.accounts.values()] == before


# ── what is kept ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("tenants", "kept"), [(TENANTS_KEPT, TENANTS_KEPT), (TENANTS_KEPT + 1, 0)])
def test_an_emptied_bucket_keeps_a_few_tenants_and_no_request(bucket: BucketQueue, tenants: int, kept: int) -> None:
    push(bucket, *(requests := [make(tenant=f"t{number}") for number in range(tenants)]))
    for request in requests:
        bucket.remove(request, RequestState.CANCELLED)
    level = bucket.levels[1]
    assert len(level.tenants) == kept
    held = [bucket.deadlines.peek(), level.ages.peek(), *(tenant.order.peek(0) for tenant in level.tenants.values())]
    assert held == [None] * (2 + kept)
    push(bucket, again := make(tenant="t1"))
    assert take(bucket, 8) == [again]


@pytest.mark.parametrize("order", ORDER_POLICIES)
def test_an_emptied_bucket_holds_nobody(bucket: BucketQueue, order: str) -> None:
    bucket.model.set_policy(ModelPolicy(order=order))
    requests = [make(tenant=tenant) for tenant in "aab"]
    before = [sys.getrefcount(request) for request in requests]
    push(bucket, *requests)
    bucket.remove(requests[1], RequestState.CANCELLED)
    assert len(take(bucket, 8)) == 2
    assert [sys.getrefcount(request) for request in requests] == before


def test_a_tenant_that_has_nothing_more_leaves_when_its_turn_comes(bucket: BucketQueue) -> None:
    push(bucket, gone := make(tenant="a"), make(tenant="b"))
    tenants = bucket.levels[1].tenants
    leaving = tenants["a"]
    bucket.remove(gone, RequestState.CANCELLED)
    assert (sorted(tenants), leaving.listed) == (["a", "b"], True)
    assert head(bucket).tenant == "b"
    assert (sorted(tenants), leaving.listed) == (["b"], False)


def test_a_tenant_that_is_back_before_its_turn_has_one_turn(bucket: BucketQueue) -> None:
    push(bucket, gone := make(tenant="a"), make(tenant="b"), make(tenant="b"))
    bucket.remove(gone, RequestState.CANCELLED)
    push(bucket, again := make(tenant="a"))
    assert take(bucket, 1, QUANTUM_NS) == [again]
    assert [request.tenant for request in (take(bucket, 1, QUANTUM_NS) + take(bucket, 1, QUANTUM_NS))] == ["b", "b"]


def test_another_order_sorts_what_waits_and_what_comes(bucket: BucketQueue) -> None:
    push(bucket, *(requests := [make() for _ in range(4)]))
    bucket.remove(requests[2], RequestState.CANCELLED)
    (tenant,) = bucket.levels[1].tenants.values()
    tenant.reorder(Lifo())
    push(bucket, newest := make())
    assert take(bucket, 8) == [newest, requests[3], requests[1], requests[0]]


def test_a_deadline_that_is_far_is_the_earliest_where_it_is_the_only_one(bucket: BucketQueue) -> None:
    push(bucket, make(), near := make(deadline_ns=5))
    assert bucket.earliest_deadline_ns == 5
    bucket.remove(near, RequestState.EXPIRED)
    assert bucket.earliest_deadline_ns == FAR_NS
