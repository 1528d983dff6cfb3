"""How large requests are cut, and that their parts end in one outcome whatever happens to each."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensord.daemon.scheduling import Batch, GlobalPolicy, ModelPolicy, Request, RequestState, Scheduler
from tensord.daemon.scheduling.split import Assembly, cut
from tensord.ipc.errors import Cancelled, TensordError, WorkerLost

from .rig import FAR_NS, MS, make


@pytest.mark.parametrize(
    ("rows", "rows_max", "preferred", "parts"),
    [
        (130, 64, (), [44, 43, 43]),
        (128, 64, (), [64, 64]),
        (65, 64, (), [33, 32]),
        (64, 64, (), [64]),
        (1, 64, (), [1]),
        (3, 1, (), [1, 1, 1]),
        (130, 64, (16, 32, 64), [64, 64, 2]),
        (100, 64, (8, 48), [48, 48, 4]),
        (96, 64, (8, 48), [48, 48]),
        (100, 64, (100,), [50, 50]),
        (60, 64, (8, 48), [60]),
    ],
)
def test_a_request_is_cut(rows: int, rows_max: int, preferred: tuple[int, ...], parts: list[int]) -> None:
    assert cut(rows, rows_max, preferred) == parts


@given(
    rows=st.integers(1, 5_000),
    rows_max=st.integers(1, 300),
    preferred=st.lists(st.integers(1, 400), max_size=4, unique=True).map(sorted),
)
def test_parts_fit_a_batch_and_are_the_whole(rows: int, rows_max: int, preferred: list[int]) -> None:
    parts = cut(rows, rows_max, preferred)
    assert sum(parts) == rows
    assert min(parts) >= 1
    assert max(parts) <= rows_max
    if not any(size <= rows_max for size in preferred):
        assert len(parts) == -(-rows // rows_max)
        assert max(parts) - min(parts) <= 1


class TestAssembly:
    def test_it_is_complete_with_the_last_part(self) -> None:
        assembly = Assembly("abc")
        assert [assembly.end(part) for part in "bca"] == [False, False, True]
        assert (assembly.error, assembly.open()) == (None, ())

    def test_the_first_failure_decides_the_error(self) -> None:
        assembly = Assembly("abc")
        assert not assembly.end("a")
        assert not assembly.end("c", first := WorkerLost("m"))
        assert assembly.end("b", Cancelled())
        assert assembly.error is first

    def test_after_a_failure_the_others_are_still_waited_for(self) -> None:
        assembly = Assembly("abc")
        assert not assembly.end("b", error := Cancelled())
        assert assembly.open() == ("a", "c")
        assert [assembly.end("a"), assembly.end("c")] == [False, True]
        assert assembly.error is error

    def test_the_whole_may_fail_before_any_part(self) -> None:
        assembly = Assembly("ab")
        assembly.fail(Cancelled())
        assert [assembly.end("a"), assembly.end("b", WorkerLost("m"))] == [False, True]
        assert isinstance(assembly.error, Cancelled)

    def test_a_part_ends_once(self) -> None:
        assembly = Assembly("ab")
        assembly.end("a")
        with pytest.raises(KeyError):
            assembly.end("a")


Whole = Assembly[Request]


class SplitMachine(RuleBasedStateMachine):
    """A driver that submits large requests in parts to a scheduler whose workers die and whose models fail."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.scheduler: Scheduler[Request] = Scheduler(GlobalPolicy(ageing_ns=0))
        self.whole_of: dict[Request, Whole] = {}
        self.answers: Counter[Whole] = Counter()
        self.succeeded: Counter[Request] = Counter()
        self.in_flight: list[Batch[Request]] = []

    @initialize(
        batching=st.sampled_from(["fixed", "aimd", "deferred"]),
        preferred=st.sampled_from([(), (3,)]),
        queue_max=st.sampled_from([4, 100]),
    )
    def start(self, batching: str, preferred: tuple[int, ...], queue_max: int) -> None:
        policy = ModelPolicy(max_batch=4, batching=batching, preferred_batches=preferred, queue_max=queue_max)
        self.scheduler.add_model(0, "m", policy, idempotent=True)
        self.scheduler.expect_replica(0, 0, True, "loading")
        self.add_worker()

    def add_worker(self) -> None:
        self.scheduler.add_worker(1, "cpu:0")
        self.scheduler.add_replica(self.now, 1, 0)

    # ── the driver ──────────────────────────────────────────────────────────────────────────────

    def end(self, part: Request, error: TensordError | None = None) -> None:
        whole = self.whole_of[part]
        if error is None:
            self.succeeded[part] += 1
        if whole.end(part, error):
            self.answers[whole] += 1
        elif whole.error is not None:
            self.take_back(whole)

    def take_back(self, whole: Whole) -> None:
        for part in whole.open():
            if self.scheduler.cancel(self.now, part):
                self.end(part, Cancelled())

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    @rule(rows=st.integers(1, 30), patience_ns=st.sampled_from([MS, 30 * MS, FAR_NS]))
    def submit(self, rows: int, patience_ns: int) -> None:
        sizes = self.scheduler.parts(0, rows)
        deadline_ns = self.now + patience_ns
        whole = Assembly([make(rows=each, arrival_ns=self.now, deadline_ns=deadline_ns) for each in sizes])
        for part in whole.parts:
            self.whole_of[part] = whole
        for part in whole.parts:
            error = whole.error or self.scheduler.submit(self.now, part)
            if error is not None and part in whole.open():
                self.end(part, error)

    @rule(step_ns=st.sampled_from([1, MS, 20 * MS]))
    def turn(self, step_ns: int) -> None:
        self.now += step_ns
        self.in_flight += self.scheduler.dispatch(self.now)
        for part, error in self.scheduler.expire(self.now):
            self.end(part, error)

    @rule(data=st.data(), outcome=st.sampled_from(["done", "done", "done", "failed", "retried"]))
    @precondition(lambda self: self.in_flight)
    def complete(self, data: st.DataObject, outcome: str) -> None:
        batch = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        self.scheduler.complete(self.now, batch, MS)
        again = self.scheduler.retry_alone(self.now, batch) if outcome == "retried" else []
        for part in batch.requests:
            if part not in again:
                self.end(part, None if outcome == "done" else WorkerLost("m"))
        self.cancel_failed(again)

    @rule()
    def worker_dies_and_returns(self) -> None:
        self.in_flight.clear()
        lost = self.scheduler.remove_worker(self.now, 1)
        for part, error in lost.refused:
            self.end(part, error)
        self.cancel_failed(lost.requeued)
        self.add_worker()

    def cancel_failed(self, requeued: list[Request]) -> None:
        """Parts that would run again, of requests that have failed meanwhile."""
        for part in requeued:
            if self.whole_of[part].error is not None and self.scheduler.cancel(self.now, part):
                self.end(part, Cancelled())

    @rule(data=st.data())
    @precondition(lambda self: self.whole_of)
    def client_cancels(self, data: st.DataObject) -> None:
        whole = self.whole_of[data.draw(st.sampled_from(list(self.whole_of)[-40:]))]
        if whole.open():
            whole.fail(Cancelled())
            self.take_back(whole)

    # ── what always holds ───────────────────────────────────────────────────────────────────────

    @invariant()
    def one_outcome(self) -> None:
        for whole in self.whole_of.values():
            assert self.answers[whole] == (not whole.open())
            if whole.error is None:
                assert all((self.succeeded[part] == 1) == (part not in whole.open()) for part in whole.parts)
            else:
                assert all(part.state is not RequestState.QUEUED for part in whole.open())

    def teardown(self) -> None:
        """With time enough all parts end, and each request has its outcome."""
        for _ in range(len(self.whole_of) + 10):
            if not (self.scheduler.has_work or self.in_flight):
                break
            for batch in self.in_flight:
                self.scheduler.complete(self.now, batch, MS)
                for part in batch.requests:
                    self.end(part)
            self.in_flight.clear()
            self.turn(60 * MS)
        assert all(not whole.open() for whole in self.whole_of.values())
        assert set(self.answers) == set(self.whole_of.values())
        self.one_outcome()


TestSplit = SplitMachine.TestCase
