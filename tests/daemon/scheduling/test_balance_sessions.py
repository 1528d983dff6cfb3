"""The policies that bind sessions to replicas, and the queues that bound sessions wait in."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest

from tensord.daemon.scheduling import Batch, Request
from tensord.daemon.scheduling.balance import BALANCE_POLICIES
from tensord.daemon.scheduling.balance.sessions import HASH_A, HASH_B, HASH_P, VIRTUAL_NODES
from tensord.daemon.scheduling.workers import Worker

from .rig import MS, Rig, make

BINDING = [name for name in BALANCE_POLICIES if "hash" in name]
_random = random.Random(1)
SESSIONS = [_random.getrandbits(64) for _ in range(10_000)]


def owners(balance: str, devices: Sequence[int]) -> list[str]:
    """The devices that SESSIONS belong to."""
    policy = BALANCE_POLICIES[balance]()
    policy.set_replicas([Worker(100 - number, f"gpu:{number}", 1) for number in devices])
    workers = [policy.bound(session) for session in SESSIONS]
    return [worker.device for worker in workers if worker is not None]


def share_moved(balance: str, before: Sequence[int], after: Sequence[int]) -> float:
    """The share of sessions that change their device."""
    pairs = zip(owners(balance, before), owners(balance, after), strict=True)
    return sum(old != new for old, new in pairs) / len(SESSIONS)


@pytest.mark.parametrize("balance", BINDING)
@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_sessions_are_spread_evenly(balance: str, replicas: int) -> None:
    shares = Counter(owners(balance, range(replicas)))
    assert len(shares) == replicas
    assert all(abs(share * replicas / len(SESSIONS) - 1) < 0.3 for share in shares.values())


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_the_consistent_hash_moves_the_share_of_one_replica(replicas: int) -> None:
    all_of_them = range(replicas)
    for lost in all_of_them:
        rest = [number for number in all_of_them if number != lost]
        assert share_moved("consistent_hash", all_of_them, rest) == pytest.approx(1 / replicas, rel=0.3)
        assert share_moved("consistent_hash", rest, all_of_them) == pytest.approx(1 / replicas, rel=0.3)


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_the_consistent_hash_moves_only_from_the_lost_or_to_the_new(replicas: int) -> None:
    few, many = owners("consistent_hash", range(replicas)), owners("consistent_hash", range(replicas + 1))
    assert {new for old, new in zip(few, many, strict=True) if old != new} == {f"gpu:{replicas}"}


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_the_plain_hash_moves_nearly_everything(replicas: int) -> None:
    """From n to n - 1 replicas a session stays where x mod n = x mod (n - 1): one in n."""
    moved = share_moved("hash", range(replicas), range(replicas - 1))
    assert moved == pytest.approx((replicas - 1) / replicas, rel=0.05)


@pytest.mark.parametrize("balance", BINDING)
def test_the_order_in_which_replicas_come_does_not_matter(balance: str) -> None:
    assert owners(balance, [0, 1, 2, 3]) == owners(balance, [2, 0, 3, 1])


def test_the_hash_is_the_one_that_is_documented() -> None:
    policy = BALANCE_POLICIES["hash"]()
    policy.set_replicas(workers := [Worker(number, f"cpu:{number}", 1) for number in range(5)])
    for session in (1, 2**61, *SESSIONS[:50]):
        assert policy.bound(session) is workers[((HASH_A * session + HASH_B) % HASH_P) % 5]
    assert 0 < HASH_A < HASH_P
    assert 0 <= HASH_B < HASH_P


def test_neighbouring_sessions_are_spread_too() -> None:
    for balance in BINDING:
        policy = BALANCE_POLICIES[balance]()
        policy.set_replicas([Worker(number, f"cpu:{number}", 1) for number in range(4)])
        shares = Counter(worker.id for session in range(1, 4001) if (worker := policy.bound(session)))
        assert all(700 < share < 1300 for share in shares.values())


def test_a_ring_has_all_points_of_all_replicas() -> None:
    policy = BALANCE_POLICIES["consistent_hash"]()
    policy.set_replicas([Worker(number, f"cpu:{number}", 1) for number in range(3)])
    assert Counter(worker.id for worker in policy._owners) == dict.fromkeys(range(3), VIRTUAL_NODES)  # type: ignore[attr-defined]


# ── in the scheduler ────────────────────────────────────────────────────────────────────────────


def fleet(balance: str, workers: int = 3, *, max_batch: int = 4) -> Rig:
    rig = Rig()
    rig.add_workers(*range(2, workers + 1))
    rig.model(workers=tuple(range(1, workers + 1)), balance=balance, max_batch=max_batch, window_ns=0)
    return rig


def of_worker(rig: Rig, worker_id: int, count: int) -> list[int]:
    """Sessions that are bound to a worker."""
    policy, found, session = rig.scheduler._models[0].balance, list[int](), 0
    while len(found) < count:
        session += 1
        worker = policy.bound(session)
        if worker is not None and worker.id == worker_id:
            found.append(session)
    return found


def sessions_of(batches: list[Batch[Request]]) -> dict[int, set[int]]:
    """The sessions that each worker got."""
    got: dict[int, set[int]] = defaultdict(set)
    for batch in batches:
        got[batch.worker] |= {request.session for request in batch.requests}
    return got


@pytest.mark.parametrize("balance", BINDING)
def test_a_session_stays_on_its_worker(balance: str) -> None:
    rig = fleet(balance)
    released = []
    for _ in range(5):
        rig.submit(*(make(session=session) for session in range(1, 31)))
        released += rig.run_all()
    got = sessions_of(released)
    assert sum(len(sessions) for sessions in got.values()) == 30
    assert set(got) == {1, 2, 3}


@pytest.mark.parametrize("balance", BINDING)
def test_a_bound_session_waits_for_its_worker_and_keeps_nobody_else_waiting(balance: str) -> None:
    rig = fleet(balance, 2, max_batch=1)
    mine, other = of_worker(rig, 1, 1)[0], of_worker(rig, 2, 1)[0]
    rig.submit(*(make(session=mine) for _ in range(5)), make(session=other))
    assert Counter(batch.worker for batch in rig.dispatch()) == {1: 2, 2: 1}
    rig.submit(free := make())
    assert [batch.requests for batch in rig.dispatch()] == [[free]]
    assert rig.scheduler.queued == 3
    assert rig.dispatch() == []


@pytest.mark.parametrize("balance", BINDING)
def test_a_batch_holds_sessions_of_its_worker_only_and_is_filled_with_them(balance: str) -> None:
    rig = fleet(balance, 2, max_batch=8)
    mine, others = of_worker(rig, 1, 8), of_worker(rig, 2, 8)
    rig.submit(*(make(session=session) for pair in zip(mine, others, strict=True) for session in pair))
    batches = rig.dispatch()
    assert sessions_of(batches) == {1: set(mine), 2: set(others)}
    assert [batch.rows for batch in batches] == [8, 8]


@pytest.mark.parametrize("balance", BINDING)
def test_requests_without_a_session_go_where_there_is_least_work(balance: str) -> None:
    rig = fleet(balance, 2, max_batch=1)
    rig.submit(make(session=of_worker(rig, 1, 1)[0]))
    rig.dispatch()
    rig.submit(make())
    assert rig.only().worker == 2


@pytest.mark.parametrize("balance", BINDING)
def test_a_sick_worker_keeps_its_sessions(balance: str) -> None:
    rig = fleet(balance, 2)
    rig.scheduler.set_device_health("cpu:0", 0.1)
    rig.submit(make(session=of_worker(rig, 1, 1)[0]))
    assert rig.only().worker == 1


@pytest.mark.parametrize("balance", BINDING)
def test_sessions_move_when_their_worker_dies_and_come_back_with_its_device(balance: str) -> None:
    rig = fleet(balance, 2, max_batch=8)
    mine = of_worker(rig, 1, 6)
    rig.submit(*(make(session=session) for session in mine[:3]))
    rig.dispatch()
    rig.submit(*(waiting := [make(session=session) for session in mine[3:]]))
    lost = rig.scheduler.remove_worker(rig.now, 1)
    assert len(lost.requeued) == 3
    assert sessions_of(rig.run_all()) == {2: set(mine)}
    assert all(request.home is None for request in waiting)
    rig.scheduler.add_worker(9, "cpu:0")
    rig.scheduler.add_replica(rig.now, 9, 0)
    rig.submit(*(make(session=session) for session in mine))
    assert sessions_of(rig.run_all()) == {9: set(mine)}


@pytest.mark.parametrize("balance", BINDING)
def test_what_waits_finds_a_new_replica_in_order(balance: str) -> None:
    rig = fleet(balance, 2, max_batch=1)
    blocked = [make(session=1 + number % 50) for number in range(200)]
    rig.submit(*blocked)
    held = rig.dispatch()
    rig.add_workers(3)
    rig.scheduler.add_replica(rig.now, 3, 0)
    for batch in held:
        rig.complete(batch)
    released = rig.run_all()
    assert Counter(one for batch in held + released for one in batch.requests) == Counter(blocked)
    assert {batch.worker for batch in released} == {1, 2, 3}
    for worker in (1, 2, 3):
        line = [one.seq for batch in released if batch.worker == worker for one in batch.requests]
        assert line == sorted(line)


@pytest.mark.parametrize("before", BALANCE_POLICIES)
@pytest.mark.parametrize("after", BALANCE_POLICIES)
def test_nothing_is_lost_or_doubled_when_the_policy_is_exchanged(before: str, after: str) -> None:
    rig = fleet(before)
    requests = [
        make(session=number % 9, tenant=f"t{number % 3}", bucket=number % 2, priority=number % 3)
        for number in range(120)
    ]
    rig.submit(*requests[:60])
    held = rig.dispatch()
    rig.scheduler.cancel(rig.now, next(one for one in requests if one.home is not None))
    rig.set_policy(balance=after, max_batch=4, window_ns=0)
    rig.submit(*requests[60:])
    queued, rows = rig.scheduler.queued, rig.scheduler.statistics().queued_rows
    waiting = [one for one in requests if one.home is not None]
    assert queued == rows == len(waiting)
    for batch in held:
        rig.complete(batch)
    assert Counter(one for batch in rig.run_all() for one in batch.requests) == Counter(waiting)


def test_a_request_does_not_come_to_life_in_the_queue_that_it_left() -> None:
    """It waits in one queue, is bound elsewhere, and is cancelled and expired there: the first knows nothing of it."""
    rig = fleet("consistent_hash", 2, max_batch=1)
    session = of_worker(rig, 1, 1)[0]
    rig.submit(*(make(session=session) for _ in range(2)))
    rig.dispatch()
    rig.submit(*(waiting := [make(session=session, deadline_ns=50 * MS) for _ in range(4)]))
    rig.set_policy(balance="least_work", max_batch=1)
    assert [batch.worker for batch in rig.dispatch()] == [2, 2]
    rig.set_policy(balance="consistent_hash", max_batch=1)
    rig.now = 50 * MS
    assert [request for request, _ in rig.scheduler.expire(rig.now)] == waiting[2:]
    assert rig.scheduler.queued == 0


def test_debts_of_tenants_are_kept_when_what_waits_moves() -> None:
    rig = fleet("consistent_hash", 2, max_batch=1)
    rig.submit(*(make(tenant=tenant, rows=rows) for _ in range(9) for tenant, rows in (("few", 1), ("many", 500))))
    rig.dispatch()
    accounts = dict(rig.scheduler._models[0].accounts)
    rounds = {name: account.round for name, account in accounts.items()}
    rig.add_workers(3)
    rig.scheduler.add_replica(rig.now, 3, 0)
    assert rig.scheduler._models[0].accounts == accounts
    assert {name: account.round for name, account in accounts.items()} == rounds


def test_empty_queues_of_bound_sessions_are_dropped_beyond_a_few() -> None:
    rig = fleet("consistent_hash")
    for bucket in range(400):
        rig.submit(make(bucket=bucket, session=bucket + 1))
        rig.run_all()
    assert len(rig.scheduler._models[0].buckets) <= 65


def test_a_suspect_of_a_bound_session_runs_alone_and_again_on_another_worker() -> None:
    rig = fleet("consistent_hash", 2)
    session = of_worker(rig, 1, 1)[0]
    rig.submit(*(make(session=session) for _ in range(3)))
    rig.dispatch()
    rig.scheduler.remove_worker(rig.now, 1)
    released = rig.run_all()
    assert [(batch.worker, len(batch.requests)) for batch in released] == [(2, 1)] * 3


if __name__ == "__main__":
    for replicas in (2, 4, 8):
        for balance in BINDING:
            lost = share_moved(balance, range(replicas), range(replicas - 1))
            won = share_moved(balance, range(replicas), range(replicas + 1))
            print(f"{replicas} replicas  {balance:16} one lost {lost:6.1%}  one more {won:6.1%}")
