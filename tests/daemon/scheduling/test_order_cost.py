"""What a request costs must not depend on how many wait: a ratio of CPU times, measured side by side."""

import gc
import random
import time
from collections.abc import Iterator
from statistics import median

import pytest

from tensord.daemon.scheduling import GlobalPolicy
from tensord.daemon.scheduling.order import ORDER_POLICIES

from .rig import FAR_NS, MS, Rig, make

FEW, MANY = 1_000, 100_000
BATCHES, ROUNDS, ATTEMPTS = 60, 7, 4


class Backlog(Rig):
    """A rig in which the same number of requests always waits."""

    def __init__(self, order: str, ageing_ns: int, requests: int) -> None:
        super().__init__()
        self.random = random.Random(order)
        self.scheduler.set_global(GlobalPolicy(ageing_ns=ageing_ns))
        self.model(max_batch=16, order=order, queue_max=2 * MANY, queue_rows_max=10 * MANY, queue_bytes_max=2**62)
        self.feed(requests)

    def feed(self, requests: int) -> None:
        for _ in range(requests):
            self.now += 10_000
            rows, flow, patience_ns = (
                self.random.choice((1, 1, 1, 2, 4)),
                self.random.randrange(200),
                self.random.random(),
            )
            self.submit(make(rows=rows, flow=flow, deadline_ns=self.now + int(FAR_NS * (1 + patience_ns))))

    def cost_ns(self) -> float:
        """CPU time per request of submit(), dispatch() and complete()."""
        served, begin_ns = 0, time.thread_time_ns()
        for _ in range(BATCHES):
            for batch in self.dispatch():
                self.complete(batch, MS)
                served += len(batch.requests)
                self.feed(len(batch.requests))
        return (time.thread_time_ns() - begin_ns) / served


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """The garbage collector walks over all that waits; when it does is not the scheduler's business."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize(("order", "ageing_ns"), [*((order, 0) for order in ORDER_POLICIES), ("sjf", 5 * MS)])
def test_a_hundred_times_as_many_waiting_cost_no_more_than_twice_as_much(order: str, ageing_ns: int) -> None:
    few, many = Backlog(order, ageing_ns, FEW), Backlog(order, ageing_ns, MANY)
    ratios: list[float] = []
    for _ in range(ATTEMPTS):
        ratio = median(many.cost_ns() / few.cost_ns() for _ in range(ROUNDS))
        ratios.append(round(ratio, 2))
        if ratio <= 2:
            break
    assert min(ratios) <= 2, ratios
    assert (few.scheduler.queued, many.scheduler.queued) == (FEW, MANY)
