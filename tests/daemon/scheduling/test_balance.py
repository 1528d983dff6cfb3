from tensord.daemon.scheduling.balance import BALANCE_POLICIES, LeastWork
from tensord.daemon.scheduling.workers import Worker

from .rig import make


def worker(worker_id: int, outstanding_ns: int, *, used_at: int = 0, depth: int = 1) -> Worker:
    one = Worker(worker_id, f"cpu:{worker_id}", depth)
    one.outstanding_ns = outstanding_ns
    one.used_at = used_at
    return one


def test_least_work_is_known_by_name() -> None:
    assert isinstance(BALANCE_POLICIES["least_work"](), LeastWork)


def test_the_worker_with_the_least_predicted_work_is_chosen() -> None:
    busy, free = worker(1, 500), worker(2, 400)
    assert LeastWork().choose([busy, free], make()) is free


def test_of_equals_the_least_recently_used_is_chosen() -> None:
    recent, older = worker(1, 0, used_at=9), worker(2, 0, used_at=4)
    assert LeastWork().choose([recent, older], make()) is older


def test_a_worker_without_a_place_is_not_chosen() -> None:
    full, free = worker(1, 0, depth=0), worker(2, 10**9)
    assert LeastWork().choose([full, free], make()) is free


def test_without_any_place_nobody_is_chosen() -> None:
    assert LeastWork().choose([worker(1, 0, depth=0)], make()) is None
