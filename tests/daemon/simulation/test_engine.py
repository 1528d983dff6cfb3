from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import accumulate, count, repeat
from typing import Any

import numpy as np
import pytest

from tensord.daemon.scheduling import GlobalPolicy, ModelPolicy, ReleaseReason
from tensord.daemon.simulation.engine import NEVER, Device, Engine, Hop, SimulatedModel
from tensord.daemon.simulation.request import SimulatedRequest
from tensord.daemon.simulation.service import Line, Service
from tensord.daemon.simulation.sources import ClosedSource, OpenSource, Source
from tensord.daemon.simulation.tally import Tally
from tensord.ipc.errors import (
    ConcurrencyLimit,
    DeadlineExceeded,
    DeadlineInfeasible,
    QueueDelay,
    QueueFull,
    QueueRowsFull,
    Superseded,
)

from .rig import UNBOUNDED, YEAR_NS

US, MS = 1_000, 1_000_000


def request(sent_ns: int, *, rows: int = 1, factor: float = 1.0, **changes: Any) -> SimulatedRequest:
    draw = (rows, "", "t", changes.get("priority", 1), changes.get("session", 0), factor)
    deadline_ns = sent_ns + changes.get("deadline_ns", YEAR_NS)
    return SimulatedRequest(
        changes.get("workload", 0), changes.get("model", 0), draw, sent_ns, deadline_ns,
        flow=changes.get("flow", 1), latest=changes.get("latest", False),
    )  # fmt: skip


def simulated(
    sources: Iterable[SimulatedRequest] | Source,
    *,
    fixed_ns: int = 0,
    row_ns: int = MS,
    speeds: Sequence[float] = (1.0,),
    hop: Hop | None = None,
    until_ns: int = NEVER,
    from_ns: int = 0,
    depth: int = 1,
    splits: bool = True,
    **policy: Any,
) -> Tally:
    """One model on all devices."""
    source = sources if isinstance(sources, ClosedSource) else OpenSource(iter(sources))  # type: ignore[arg-type]
    devices = {worker: Device(f"cpu:{worker}", speed) for worker, speed in enumerate(speeds)}
    model = SimulatedModel("m", ModelPolicy(**policy), Service(Line(fixed_ns, row_ns)), list(devices), splits)
    tally = Tally(from_ns, until_ns)
    Engine([model], devices, [source], tally, GlobalPolicy(depth, ageing_ns=0), hop).run(until_ns)
    return tally


def responses_us(tally: Tally) -> list[int]:
    return [each // US for each in tally.times[0].responses]


def random_load(seed: int, length: int) -> tuple[list[int], list[int]]:
    """Arrival times and rows: a training without any queue, then 80 % load."""
    random = np.random.default_rng(seed)
    rows = [int(each) for each in np.maximum(1, random.exponential(1_000, length))]
    gaps = [10**9] * 50 + [int(each) for each in random.exponential(1.25 * MS, length - 50)]
    return list(accumulate(gaps)), rows


# ── request by request ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_first_come_first_served_is_lindleys_recursion(depth: int) -> None:
    """W' = max(0, W + S − A): D. V. Lindley, 1952. What waits in the worker's pipeline waits as well."""
    arrivals, rows = random_load(1, 3_000)
    made = (request(at, rows=many) for at, many in zip(arrivals, rows, strict=True))
    tally = simulated(made, row_ns=US, depth=depth, max_batch=1, splits=False, **UNBOUNDED)
    expected, free_ns = [], 0
    for at, many in zip(arrivals, rows, strict=True):
        expected.append(max(0, free_ns - at))
        free_ns = max(free_ns, at) + many * US
    assert list(tally.times[0].waits) == expected


def test_shortest_job_first_takes_the_shortest_that_waits() -> None:
    arrivals, rows = random_load(2, 3_000)
    made = (request(at, rows=many) for at, many in zip(arrivals, rows, strict=True))
    tally = simulated(made, row_ns=US, order="sjf", max_batch=1, splits=False, **UNBOUNDED)
    waiting: list[tuple[int, int]] = []
    expected, free_ns, come = [], 0, 0
    while come < len(arrivals) or waiting:
        if not waiting:
            free_ns = max(free_ns, arrivals[come])
        while come < len(arrivals) and arrivals[come] <= free_ns:
            heappush(waiting, (rows[come], come))
            come += 1
        _, number = heappop(waiting)
        expected.append(free_ns - arrivals[number])
        free_ns += rows[number] * US
    assert list(tally.times[0].waits) == expected


def test_the_same_seed_gives_the_same_again() -> None:
    arrivals, rows = random_load(3, 500)

    def once() -> list[int]:
        made = (request(at, rows=many) for at, many in zip(arrivals, rows, strict=True))
        return list(simulated(made, row_ns=US, splits=False).times[0].responses)

    assert once() == once()


# ── time ────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_takes_its_line_times_the_factor_of_its_leader() -> None:
    tally = simulated([request(0, rows=3, factor=2.0)], fixed_ns=4 * MS)
    assert list(tally.times[0].services) == [14 * MS]


def test_a_faster_device_takes_less() -> None:
    tally = simulated([request(0, rows=3)], speeds=[2.0])
    assert list(tally.times[0].services) == [1_500_000]


def test_the_hop_is_waited_for_there_and_back() -> None:
    tally = simulated([request(0)], hop=Hop(latency_ns=100 * US))
    assert list(tally.times[0].waits) == [100 * US]
    assert list(tally.times[0].responses) == [1_200_000]


@pytest.mark.parametrize(("depth", "third_us"), [(1, 3_600), (2, 3_200)])
def test_a_deeper_pipeline_hides_the_hop(depth: int, third_us: int) -> None:
    made = [request(0), request(1), request(2)]
    tally = simulated(made, hop=Hop(latency_ns=100 * US), depth=depth, max_batch=1)
    assert responses_us(tally)[-1] == third_us - 1


def test_the_next_batch_waits_for_the_worker_s_own_time_too() -> None:
    tally = simulated([request(0), request(0)], hop=Hop(worker_ns=100 * US), max_batch=1)
    assert list(tally.times[0].waits) == [0, 1_100 * US]
    assert list(tally.times[0].responses) == [1_100 * US, 2_200 * US]


def test_the_front_end_handles_one_turn_after_the_other() -> None:
    """Ten requests at once are one turn of ten times 100 µs; what comes meanwhile is the next turn."""
    tally = simulated(
        [*(request(0) for _ in range(10)), request(500 * US)],
        row_ns=0,
        hop=Hop(request_ns=100 * US, batch_ns=50 * US),
    )
    first = 10 * 100 + 50  # submitted and released
    answered = first + 50 + 100 + 50  # and taken back, with the eleventh read and released in the same turn
    assert responses_us(tally)[:10] == [answered] * 10
    assert responses_us(tally)[10] == answered + 50 - 500


def test_what_is_released_in_a_turn_leaves_at_its_end() -> None:
    tally = simulated([request(0)], hop=Hop(request_ns=300 * US))
    assert list(tally.times[0].waits) == [300 * US]


# ── the scheduler is driven as in the front end ─────────────────────────────────────────────────


def test_requests_share_a_batch_while_the_device_computes() -> None:
    tally = simulated(request(at * US) for at in range(9))
    assert tally.batches == {1: 1, 8: 1}
    assert tally.released == {ReleaseReason.IDLE: 2}


def test_the_window_is_slept_for() -> None:
    """The second worker place is free, and the request waits there for others: until the window is over."""
    tally = simulated([request(0), request(100 * US)], row_ns=10 * MS, depth=2, window_ns=2 * MS)
    assert tally.released == {ReleaseReason.IDLE: 1, ReleaseReason.WINDOW: 1}


def test_a_request_whose_deadline_passes_in_the_queue_gets_an_error() -> None:
    made = [request(0, rows=32), request(1, deadline_ns=5 * MS)]
    tally = simulated(made, deadline_check=False)
    assert (tally.answered, tally.refused, tally.waiting) == (1, {DeadlineExceeded.code: 1}, 0)


def test_a_full_queue_refuses() -> None:
    tally = simulated((request(at) for at in range(5)), max_batch=1, queue_max=2, tenant_queue_percent=100)
    assert (tally.arrived, tally.answered, tally.refused) == (5, 3, {QueueFull.code: 2})


def test_all_devices_work_at_once() -> None:
    tally = simulated([request(0), request(1), request(2)], speeds=[1.0, 1.0, 1.0], max_batch=1)
    assert list(tally.times[0].responses) == [MS, MS, MS]
    assert tally.busy_ns == {0: MS, 1: MS, 2: MS}


def test_each_refusal_is_counted_by_its_code() -> None:
    def flood() -> Iterable[SimulatedRequest]:
        return (request(at * US * 500, deadline_ns=200 * MS) for at in range(2_000))

    def refused(**policy: Any) -> set[int]:
        return set(simulated(flood(), max_batch=4, **{"deadline_check": False, **policy}).refused)

    assert refused() == {DeadlineExceeded.code}
    assert refused(deadline_check=True) == {DeadlineInfeasible.code}
    assert refused(codel_target_ns=10 * MS) == {QueueDelay.code}
    assert refused(adaptive_concurrency=True) == {ConcurrencyLimit.code}


def test_a_newer_request_of_a_session_takes_the_place_of_a_waiting_one() -> None:
    made = [request(at, rows=4, session=7, latest=True) for at in range(5)]
    tally = simulated(made, max_batch=4)
    assert (tally.arrived, tally.answered, tally.refused, tally.waiting) == (5, 2, {Superseded.code: 3}, 0)


# ── requests of more rows than a batch ──────────────────────────────────────────────────────────


def test_a_large_request_is_cut_and_answered_once() -> None:
    tally = simulated([request(0, rows=10), request(0)], max_batch=4, fixed_ns=MS)
    assert tally.batches == {4: 2, 3: 1}
    assert (tally.arrived, tally.answered, tally.in_time, tally.waiting) == (2, 2, 2, 0)


def test_a_large_request_runs_on_all_devices_and_waits_for_its_last_part() -> None:
    tally = simulated([request(0, rows=8), request(0, rows=4)], speeds=[1.0, 1.0], max_batch=4)
    times = tally.times[0]
    assert list(times.waits) == [0, 4 * MS]
    assert list(times.services) == [8 * MS, 4 * MS]
    assert list(times.responses) == [4 * MS, 8 * MS]


def test_a_large_request_whose_last_part_is_late_gets_one_error() -> None:
    """Ten of its rows are computed when its time is over; what waits is taken back, and what runs is waited for."""
    tally = simulated([request(0, rows=40, deadline_ns=15 * MS), request(1)], max_batch=10, deadline_check=False)
    assert (tally.answered, tally.refused, tally.waiting) == (1, {DeadlineExceeded.code: 1}, 0)
    assert tally.queue_length * tally.window_s == pytest.approx(0.015 + 0.02, rel=0.01)


def test_a_large_request_is_refused_whole() -> None:
    tally = simulated([request(0, rows=10)], max_batch=4, queue_rows_max=9, tenant_queue_percent=100)
    assert (tally.arrived, tally.answered, tally.refused) == (1, 0, {QueueRowsFull.code: 1})
    assert tally.batches == {}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("order", ["fcfs", "sjf", "edf"])
def test_every_request_gets_one_answer_or_one_error(seed: int, order: str) -> None:
    """Large, small, hurried and replaced ones, more than two devices can do; the scheduler is left empty, too."""
    random = np.random.default_rng(seed)
    made, at = [], 0
    for _ in range(300):
        at += int(random.exponential(2 * MS))
        rows, deadline_ns, latest = int(random.integers(1, 30)), int(random.exponential(30 * MS)) + 1, random.random()
        session = int(random.integers(1, 4)) if latest < 0.3 else 0
        made.append(request(at, rows=rows, deadline_ns=deadline_ns, session=session, latest=latest < 0.3))
    tally = simulated(
        made, speeds=[1.0, 2.0], max_batch=8, depth=2, order=order, deadline_check=bool(seed % 2), queue_rows_max=60
    )
    assert (tally.arrived, tally.waiting) == (300, 0)
    assert tally.answered + tally.refused.total() == 300
    assert len(tally.refused) >= 2


def test_a_client_of_a_closed_loop_waits_for_all_parts() -> None:
    def make(sent_ns: int, flow: int) -> SimulatedRequest:
        return request(sent_ns, rows=10, flow=flow)

    tally = simulated(ClosedSource(1, make, repeat(5 * MS)), max_batch=5, until_ns=100 * MS)
    assert (tally.answered, list(tally.times[0].responses)) == (6, [10 * MS] * 6)


# ── closed loops ────────────────────────────────────────────────────────────────────────────────


def closed(clients: int, think_ns: int) -> ClosedSource:
    return ClosedSource(clients, lambda sent_ns, flow: request(sent_ns, flow=flow), repeat(think_ns))


def test_a_client_thinks_between_answer_and_request() -> None:
    tally = simulated(closed(1, 3 * MS), until_ns=41 * MS)
    assert (tally.answered, list(tally.times[0].responses)) == (10, [MS] * 10)


def test_clients_without_a_thought_keep_the_device_busy() -> None:
    tally = simulated(closed(4, 0), max_batch=1, from_ns=10 * MS, until_ns=60 * MS)
    assert (tally.answered, tally.busy_ns[0], tally.queue_length) == (50, 50 * MS, 3.0)


def test_a_client_that_was_refused_does_not_ask_at_the_same_instant() -> None:
    tally = simulated(
        closed(3, 0), row_ns=10 * MS, max_batch=1, queue_max=1, tenant_queue_percent=100, until_ns=100 * MS
    )
    assert 0 < tally.refused[QueueFull.code] <= 101


def test_sources_are_asked_one_request_ahead() -> None:
    numbers = count()
    made = (request(next(numbers) * MS) for _ in range(1_000_000))
    simulated(made, until_ns=10 * MS)
    assert next(numbers) <= 12
