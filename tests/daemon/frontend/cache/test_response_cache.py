"""Virtual time, no sockets: the scheduler is a list of requests that a test computes when it likes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tensord.daemon.frontend.cache.answers import Answer
from tensord.daemon.frontend.cache.key import Keys
from tensord.daemon.frontend.cache.response_cache import Found, ResponseCache
from tensord.daemon.frontend.cache.sealed import seal
from tensord.daemon.frontend.ingest import Ingest
from tensord.daemon.frontend.models import Model
from tensord.daemon.frontend.requests import InferRequest
from tensord.daemon.knobs import KNOBS
from tensord.daemon.scheduling import Batch, ModelPolicy, ReleaseReason
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.scheduling.queues import BucketQueue
from tensord.ipc.errors import Cancelled, DeadlineExceeded, ModelFailed, QueueFull, TensordError
from tensord.ipc.statistics import Block, Counter

MakeRequest = Callable[..., InferRequest]
SECRET = bytes(32)
COMPUTE_NS = 4_000


class FakeTier:
    """Notes what it is asked; the test answers."""

    def __init__(self) -> None:
        self.well = True
        self.asked: list[tuple[bytes, Found]] = []
        self.kept: dict[bytes, tuple[bytes, int]] = {}

    def look_up(self, key: bytes, bytes_max: int, found: Found) -> bool:
        if self.well:
            self.asked.append((key, found))
        return self.well

    def keep(self, key: bytes, value: bytes, ttl_ms: int) -> None:
        self.kept[key] = value, ttl_ms


def queue_of(request: InferRequest) -> ModelQueue:
    """The scheduler's queue of its model."""
    return ModelQueue(request.model, "pair", ModelPolicy(), idempotent=True)


def batch_of(request: InferRequest, rows: int, released_ns: int) -> Batch[InferRequest]:
    """A batch of so many rows that the request is in."""
    return Batch(
        1, queue_of(request), request.bucket, 1, [request], rows, ReleaseReason.IDLE, released_ns, 0, request.priority
    )


class Kitchen:
    """A cache and its host. Requests are told apart by their ids, and what they ask by a byte."""

    def __init__(self, model: Model, make: MakeRequest, ingest: Ingest) -> None:
        self.model = model
        self.block = Block.format(memoryview(bytearray(Block.nbytes(model.index + 1))), model.index + 1)
        self.ingest_view = memoryview(bytearray(ingest.nbytes))
        self.now = 1_000
        self.tier = FakeTier()
        self.cache = ResponseCache(self, SECRET)
        self.scheduled: list[int] = []
        self.answers: dict[int, bytes] = {}
        self.batches: dict[int, tuple[int, int, int]] = {}
        self.errors: dict[int, type[TensordError]] = {}
        self.full = False
        self._requests: dict[int, InferRequest] = {}
        self._make = make
        self.set()

    def with_second_tier(self) -> "Kitchen":
        self.cache = ResponseCache(self, SECRET, self.tier)
        self.set()
        return self

    def set(self, **knobs: Any) -> None:
        values = {name: knob.default for name, knob in KNOBS.items()}
        self.cache.configure(self.model, {**values, "cache_bytes": 100_000, **knobs})

    # ── Host ────────────────────────────────────────────────────────────────────────────────────

    def compute(self, now: int, request: InferRequest) -> None:
        if self.full:
            self.refuse(request, QueueFull("pair", 1))
        else:
            self.scheduled.append(request.request_id)

    def give(
        self, now: int, request: InferRequest, answer: Answer, batch_rows: int, queue_ns: int, compute_ns: int
    ) -> None:
        assert request.request_id not in {*self.answers, *self.errors}
        self.answers[request.request_id] = answer.payload
        self.batches[request.request_id] = batch_rows, queue_ns, compute_ns

    def refuse(self, request: InferRequest, error: TensordError) -> None:
        assert request.request_id not in {*self.answers, *self.errors}
        self.errors[request.request_id] = type(error)
        if request.flight is not None:
            self.cache.ended(request, error)

    # ── what happens ────────────────────────────────────────────────────────────────────────────

    def ask(self, request_id: int, what: int = 1, *, tenant: str = "0", priority: int = 1, **form: Any) -> InferRequest:
        """A request arrives."""
        request = self._requests[request_id] = self._make(request_id=request_id, **form)
        request.tenant, request.priority, request.arrival_ns = tenant, priority, self.now
        for position in range(len(request.form.inline_bytes)):
            offset = request.inline_offset(position)
            self.ingest_view[offset] = what
        if self.model.cache is None or not self.cache.takes(self.now, request):
            self.compute(self.now, request)
        return request

    def computed(self, request_id: int, result: int = 9, rows: int = 2) -> None:
        """A worker has computed it, in a batch of so many rows."""
        self.scheduled.remove(request_id)
        request = self._requests[request_id]
        for position, nbytes in request.form.output_spans:
            offset = request.inline_offset(position)
            self.ingest_view[offset : offset + nbytes] = bytes([result]) * nbytes
        if request.flight is not None:
            self.cache.computed(self.now, request, batch_of(request, rows, self.now + 7), COMPUTE_NS)

    def failed(self, request_id: int, error: TensordError) -> None:
        """It gets this for an answer."""
        if request_id in self.scheduled:
            self.scheduled.remove(request_id)
        self.refuse(self._requests[request_id], error)

    def counted(self, *names: str) -> tuple[int, ...]:
        counters = self.block.counters(self.model.index)
        return tuple(counters[Counter[f"CACHE_{name}"]] for name in names)


@pytest.fixture
def kitchen(model: Model, make_request: MakeRequest, ingest: Ingest) -> Iterator[Kitchen]:
    """Afterwards nobody waits for anything."""
    made = Kitchen(model, make_request, ingest)
    yield made
    assert (len(made.cache.waiting), made.scheduled) == (0, [])
    assert all(not kept.flights for kept in made.cache._models.values())


PAYLOAD = b"\x09" * 13


# ── hits ────────────────────────────────────────────────────────────────────────────────────────


def test_a_hit_ran_in_no_batch_and_spares_its_share_of_one(kitchen: Kitchen) -> None:
    kitchen.ask(1)
    kitchen.computed(1, rows=4)
    kitchen.ask(2)
    assert (kitchen.answers, kitchen.batches) == ({2: PAYLOAD}, {2: (0, 0, 0)})
    assert kitchen.counted("HITS", "MISSES", "SAVED_NS", "HASHED_BYTES") == (1, 1, COMPUTE_NS // 4, 40)


def test_tenants_get_each_others_answers_only_where_they_share(kitchen: Kitchen) -> None:
    for shared, answers in ((False, {}), (True, {4: PAYLOAD})):
        kitchen.set(cache_shared=shared)
        first = len(kitchen._requests) + 1
        kitchen.ask(first, tenant="1")
        kitchen.computed(first)
        kitchen.ask(first + 1, tenant="2")
        assert kitchen.answers == answers
        if not shared:
            kitchen.computed(first + 1)


def test_what_lies_in_an_arena_or_is_too_large_is_not_looked_at(kitchen: Kitchen) -> None:
    kitchen.set(cache_item_bytes_max=33)
    kitchen.ask(1, rows=1)
    kitchen.ask(2, rows=2)
    kitchen.ask(3, inputs_in={0: (1, 0)})
    kitchen.ask(4, outputs_in={1: (1, 0)})
    assert kitchen.counted("MISSES", "HASHED_BYTES") == (1, 20)
    for request_id in (1, 2, 3, 4):
        kitchen.computed(request_id)


def test_a_request_that_came_too_late_is_the_schedulers_to_refuse(kitchen: Kitchen) -> None:
    kitchen.ask(1)
    kitchen.computed(1)
    kitchen.now = 10**18
    kitchen.ask(2)
    assert kitchen.scheduled.pop() == 2
    assert kitchen.answers == {}


def test_a_model_that_is_not_idempotent_has_no_cache(kitchen: Kitchen) -> None:
    kitchen.model.idempotent = False
    kitchen.set()
    assert kitchen.model.cache is None


def test_bytes_and_evictions_are_written_down(kitchen: Kitchen) -> None:
    kitchen.ask(1)
    kitchen.computed(1)
    (taken,) = kitchen.counted("BYTES")
    assert taken > 13
    kitchen.set(cache_bytes=0)
    assert kitchen.counted("BYTES", "EVICTED") == (0, 1)
    assert kitchen.model.cache is None


def test_a_model_that_is_unloaded_loses_its_answers(kitchen: Kitchen) -> None:
    kitchen.ask(1)
    kitchen.computed(1)
    kitchen.ask(2, what=2)
    kitchen.cache.forget(kitchen.model)
    assert kitchen.counted("BYTES", "EVICTED") == (0, 1)
    kitchen.computed(2)
    kitchen.set()
    kitchen.ask(3)
    assert kitchen.answers == {}
    kitchen.computed(3)


def test_outputs_whose_sizes_came_from_the_data_are_kept_as_they_were(
    ragged_model: Model, make_ragged: MakeRequest, ingest: Ingest
) -> None:
    kitchen = Kitchen(ragged_model, make_ragged, ingest)
    form: dict[str, Any] = {"sizes": {"tokens": 5, "beams": 3}}
    request = kitchen.ask(1, **form)
    request.data_sizes = (2,)
    kitchen.computed(1)
    kitchen.ask(2, **form)
    assert len(kitchen.answers[2]) == 5 * 3 * 2 + 2 * 4 * 4 + 4
    kitchen.ask(3, **form, omitted=[2])
    assert kitchen.scheduled == [3], "another form"


# ── flights ─────────────────────────────────────────────────────────────────────────────────────


def test_identical_requests_in_flight_get_the_result_of_the_first(kitchen: Kitchen) -> None:
    kitchen.ask(1)
    kitchen.now += 5
    for request_id in (2, 3):
        kitchen.ask(request_id)
    assert (kitchen.scheduled, len(kitchen.cache.waiting)) == ([1], 2)
    kitchen.computed(1)
    assert kitchen.answers == {2: PAYLOAD, 3: PAYLOAD}
    assert set(kitchen.batches.values()) == {(2, 7, COMPUTE_NS)}
    assert kitchen.counted("HITS", "JOINED", "MISSES") == (0, 2, 1)


def test_when_the_first_gets_no_result_the_next_is_computed(kitchen: Kitchen) -> None:
    for request_id in (1, 2, 3):
        kitchen.ask(request_id)
    kitchen.failed(1, Cancelled())
    assert kitchen.scheduled == [2]
    kitchen.failed(2, DeadlineExceeded("queue", 1.0))
    assert kitchen.scheduled == [3]
    kitchen.computed(3)
    assert (kitchen.errors, kitchen.answers) == ({1: Cancelled, 2: DeadlineExceeded}, {})
    assert kitchen.counted("JOINED", "MISSES") == (0, 3)


def test_a_long_line_of_refused_ones_is_no_deep_recursion(kitchen: Kitchen) -> None:
    for request_id in range(1, 3001):
        kitchen.ask(request_id)
    kitchen.full = True
    kitchen.failed(1, Cancelled())
    assert len(kitchen.errors) == 3000
    assert kitchen.errors[3000] is QueueFull


def test_an_error_of_the_model_is_everybodys(kitchen: Kitchen) -> None:
    for request_id in (1, 2, 3):
        kitchen.ask(request_id)
    kitchen.failed(1, ModelFailed("pair", "no"))
    assert kitchen.errors == dict.fromkeys((1, 2, 3), ModelFailed)
    kitchen.ask(4)
    assert kitchen.scheduled == [4], "an error is not kept"
    kitchen.computed(4)


def test_who_leaves_leaves_alone(kitchen: Kitchen) -> None:
    for request_id in (1, 2, 3):
        kitchen.ask(request_id)
    kitchen.failed(2, Cancelled())
    kitchen.computed(1)
    assert (kitchen.errors, list(kitchen.answers)) == ({2: Cancelled}, [3])


def test_a_more_urgent_request_does_not_wait_behind_one_in_the_queue(kitchen: Kitchen) -> None:
    queued = kitchen.ask(1, priority=2)
    BucketQueue(queue_of(queued), queued.bucket).push(queued)
    kitchen.ask(2, priority=0)
    assert kitchen.scheduled == [1, 2]
    queued.home = None
    kitchen.ask(3, priority=0)
    assert kitchen.scheduled == [1, 2], "a worker has the first: no other way is faster"
    kitchen.computed(1)
    kitchen.computed(2)
    assert list(kitchen.answers) == [3]


def test_a_flight_goes_on_when_the_cache_is_turned_off(kitchen: Kitchen) -> None:
    kitchen.ask(1)
    kitchen.ask(2)
    kitchen.set(cache_bytes=0)
    kitchen.computed(1)
    assert kitchen.answers == {2: PAYLOAD}
    assert kitchen.counted("BYTES") == (0,)


# ── the second tier ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def far(kitchen: Kitchen) -> Kitchen:
    """With a second tier."""
    return kitchen.with_second_tier()


def test_a_computed_answer_goes_to_the_second_tier_for_its_time(far: Kitchen) -> None:
    far.set(cache_ttl_s=3)
    far.ask(1)
    ((key, found),) = far.tier.asked
    assert far.scheduled == []
    found(None, True)
    far.computed(1)
    assert [(each, ttl_ms) for each, (_, ttl_ms) in far.tier.kept.items()] == [(key, 3000)]
    assert far.counted("MISSES", "REDIS_FAILED") == (1, 0)


def test_what_the_second_tier_has_is_given_to_all_and_kept(far: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    far.ask(1)
    far.tier.asked.pop()[1](None, True)
    far.computed(1)
    other = Kitchen(far.model, far._make, Ingest(1 << 20)).with_second_tier()
    other.ingest_view = far.ingest_view
    other.ask(11)
    other.ask(12)
    key, found = other.tier.asked.pop()
    found(far.tier.kept[key][0], True)
    other.ask(13)
    assert other.answers == dict.fromkeys((11, 12, 13), PAYLOAD)
    assert other.counted("REDIS_HITS", "JOINED", "HITS", "MISSES") == (1, 1, 1, 0)
    assert len(other.cache.waiting) == 0


@pytest.mark.parametrize("value", [None, b"", b"nonsense", b"\1" * 200])
@pytest.mark.parametrize("well", [True, False])
def test_what_the_second_tier_has_not_is_computed(far: Kitchen, value: bytes | None, well: bool) -> None:
    far.ask(1)
    far.ask(2)
    far.tier.asked.pop()[1](value, well)
    assert far.scheduled == [1]
    far.computed(1)
    assert list(far.answers) == [2]
    assert far.counted("MISSES", "JOINED", "REDIS_FAILED") == (1, 1, int(not well))


def test_an_answer_beyond_its_time_is_computed_again(far: Kitchen) -> None:
    far.set(cache_ttl_s=1)
    far.ask(1)
    key, found = far.tier.asked.pop()
    found(seal(SECRET, key, Answer(b"", b"", 0, 0), 10**10, 10**10), True)
    assert far.scheduled == [1]
    far.computed(1)


def test_nothing_waits_for_a_second_tier_that_cannot_be_asked(far: Kitchen) -> None:
    far.tier.well = False
    far.ask(1)
    assert far.scheduled == [1]
    far.computed(1)


def test_those_who_leave_while_it_is_asked_are_not_computed(far: Kitchen) -> None:
    for request_id in (1, 2, 3):
        far.ask(request_id)
    ((_, found),) = far.tier.asked
    far.failed(1, Cancelled())
    far.failed(3, Cancelled())
    assert far.scheduled == []
    found(None, True)
    assert far.scheduled == [2]
    far.computed(2)


def test_its_word_comes_too_late_for_those_who_left(far: Kitchen) -> None:
    far.ask(1)
    ((_, found),) = far.tier.asked
    far.failed(1, Cancelled())
    found(b"anything", True)
    assert (far.scheduled, far.answers) == ([], {})


def test_the_secret_keys_what_is_asked(far: Kitchen) -> None:
    request = far.ask(1)
    ((key, found),) = far.tier.asked
    tensors = [memoryview(b"\1" + bytes(11)), memoryview(b"\1" + bytes(7))]
    assert key == Keys(SECRET, far.model).digest(request.form, "0", tensors)
    found(None, True)
    far.computed(1)
