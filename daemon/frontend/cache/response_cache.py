"""The response cache of the front end: which requests need no worker, and who waits for whose answer.

Theory
------
A request is looked up when it is complete, and only if all of its tensors are inline: those bytes lie in the ingest
arena, where no client can write, so what was hashed is what would be computed. There are four ways on:

    hit      the memory tier has the answer: it goes out at once, and the scheduler never hears of the request
    joined   an identical request is in flight: this one waits for that one's answer
    looking  the second tier is asked; the answer, its absence, a failure or the time-out come soon, always
    miss     the scheduler gets it. It is the *leader* of a flight: identical requests that come now join it

Whoever waits has its slots, its deadline and its own final answer. When a leader has its result, so has its flight.
When it ends without one, because it expired, was cancelled or refused, or as its worker was lost, that is its own
affair: the next in line leads, with the place in the queue that its own arrival gives it. An error of the model is the
exception: the same bytes would fail again, so everyone gets it.

A request in `waiting` is here and not in the scheduler; every other one of a flight is in the scheduler and not here.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

from tensord.ipc.errors import ModelFault, TensordError
from tensord.ipc.statistics import Block, Counter

from ...scheduling.request import Batch
from ..models import Model
from ..replies import result_frame
from ..requests import InferRequest
from .answers import Answer, Answers
from .flights import Flight, Waiting
from .key import Keys
from .sealed import SEALED_BYTES, seal, unseal

HEADERS_BYTES_MAX: Final = 64 * 1024
"""Of what is asked of the second tier: more than any model's result headers."""

Found = Callable[[bytes | None, bool], None]
"""Takes the value, or None, and whether the tier was well."""


class SecondTier(Protocol):
    """Keeps values for longer than this process lives. Nothing here waits or raises."""

    def look_up(self, key: bytes, bytes_max: int, found: Found) -> bool:
        """Call `found` once, later and within the tier's time-out. False: the tier cannot be asked now."""
        ...

    def keep(self, key: bytes, value: bytes, ttl_ms: int) -> None:
        """Keep the value for so long, if that is possible."""
        ...


class Host(Protocol):
    """What the cache needs of the front end."""

    ingest_view: memoryview

    @property
    def block(self) -> Block: ...
    def compute(self, now: int, request: InferRequest) -> None:
        """Give it to the scheduler; if that refuses it, answer it."""
        ...

    def give(
        self, now: int, request: InferRequest, answer: Answer, batch_rows: int, queue_ns: int, compute_ns: int
    ) -> None:
        """Send the result, and finish the request."""
        ...

    def refuse(self, request: InferRequest, error: TensordError) -> None:
        """Send the error, and finish the request."""
        ...


class ModelCache:
    """What the cache has of one model version."""

    __slots__ = ("answers", "evicted", "flights", "index", "item_bytes_max", "keys", "shared")

    def __init__(self, secret: bytes, model: Model) -> None:
        self.index = model.index
        self.keys = Keys(secret, model)
        self.answers = Answers()
        self.flights: dict[bytes, Flight] = {}
        self.item_bytes_max = 0
        self.shared = False
        self.evicted = 0
        """Evictions that are counted on the statistics page already."""

    def takes(self, request: InferRequest) -> bool:
        """Whether the request is one that is looked up and kept."""
        form = request.form
        return not form.places and form.payload_bytes + form.reply_bytes <= self.item_bytes_max


class ResponseCache:
    """All models' answers. `Model.cache` is None where the cache is off, which is all that other requests look at."""

    def __init__(self, host: Host, secret: bytes, second: SecondTier | None = None) -> None:
        self.waiting = Waiting()
        self._host = host
        self._secret = secret
        self._second = second
        self._models: dict[int, ModelCache] = {}
        self._leaderless: deque[Flight] = deque()
        self._promoting = False

    def configure(self, model: Model, knobs: Mapping[str, Any]) -> None:
        """Take over a model's knobs. Answers beyond a smaller bound are dropped at once; flights go on."""
        bytes_max = int(knobs["cache_bytes"]) if model.idempotent else 0
        kept = self._models.get(model.index)
        if kept is None:
            if not bytes_max:
                return
            kept = self._models[model.index] = ModelCache(self._secret, model)
        kept.item_bytes_max = int(knobs["cache_item_bytes_max"])
        kept.shared = bool(knobs["cache_shared"])
        kept.answers.configure(bytes_max, int(knobs["cache_ttl_s"]) * 10**9)
        model.cache = kept if bytes_max else None
        self._note(kept)

    def forget(self, model: Model) -> None:
        """The model version is served no more: drop its answers. Whoever is in flight is answered by others."""
        kept = self._models.pop(model.index, None)
        model.cache = None
        if kept is not None:
            kept.answers.configure(0, 0)
            self._note(kept)

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def takes(self, now: int, request: InferRequest) -> bool:
        """Look up a request that has arrived whole, of a model with a cache. True: the scheduler is not to get it."""
        kept = request.model_served.cache
        assert kept is not None
        if request.deadline_ns <= now or not kept.takes(request):
            return False
        key = self._key(kept, request)
        answer = kept.answers.get(key, now)
        if answer is not None:
            self._give(now, request, answer, Counter.CACHE_HITS)
            return True
        flight = kept.flights.get(key)
        if flight is None:
            return self._lead(kept, key, request)
        leader = flight.leader
        if leader is not None and leader.home is not None and leader.priority > request.priority:
            self._host.block.count(kept.index, Counter.CACHE_MISSES)  # it would wait behind a less urgent one
            return False
        request.flight = flight
        flight.followers[request] = None
        self.waiting.add(request)
        return True

    def _key(self, kept: ModelCache, request: InferRequest) -> bytes:
        form, view = request.form, self._host.ingest_view
        tensors = []
        for position in range(len(form.inline_inputs)):
            offset = request.inline_offset(position)
            tensors.append(view[offset : offset + form.inline_bytes[position]])
        started_ns = time.perf_counter_ns()
        key = kept.keys.digest(form, None if kept.shared else request.tenant, tensors)
        block = self._host.block
        block.count(kept.index, Counter.CACHE_HASH_NS, time.perf_counter_ns() - started_ns)
        block.count(kept.index, Counter.CACHE_HASHED_BYTES, form.payload_bytes)
        return key

    def _lead(self, kept: ModelCache, key: bytes, request: InferRequest) -> bool:
        """The first of its kind. True: it waits for the second tier."""
        flight = request.flight = kept.flights[key] = Flight(kept, key, request)
        if self._second is not None:
            bytes_max = SEALED_BYTES + HEADERS_BYTES_MAX + kept.item_bytes_max
            flight.looking = self._second.look_up(key, bytes_max, partial(self._looked_up, flight))
        if flight.looking:
            self.waiting.add(request)
            return True
        self._host.block.count(kept.index, Counter.CACHE_MISSES)
        return False

    def _looked_up(self, flight: Flight, value: bytes | None, well: bool) -> None:
        """The second tier's word. Whoever wanted it may have left."""
        flight.looking = False
        kept, leader, now = flight.kept, flight.leader, time.monotonic_ns()
        if not well:
            self._host.block.count(kept.index, Counter.CACHE_REDIS_FAILED)
        if leader is None:
            return
        outputs = len(leader.model_served.outputs)
        answer = value and unseal(self._secret, flight.key, value, outputs, now, time.time_ns())
        if not answer or now - answer.computed_ns >= kept.answers.ttl_ns:
            self._compute(now, flight)
            return
        self._keep(flight, answer)
        leader.flight = None
        self._end(flight)
        self.waiting.discard(leader)
        self._give(now, leader, answer, Counter.CACHE_REDIS_HITS)
        self._give_followers(now, flight, answer)

    def _compute(self, now: int, flight: Flight) -> None:
        """Its leader goes to the scheduler."""
        leader = flight.leader
        assert leader is not None
        self.waiting.discard(leader)
        self._host.block.count(flight.kept.index, Counter.CACHE_MISSES)
        self._host.compute(now, leader)

    # ── what became of a leader ─────────────────────────────────────────────────────────────────

    def computed(self, now: int, request: InferRequest, batch: Batch[InferRequest], compute_ns: int) -> None:
        """A leader's result lies in its slots: keep it, and give it to all that wait for it."""
        flight, request.flight = request.flight, None
        assert flight is not None
        self._end(flight)
        _, headers, *payload = result_frame(request, self._host.ingest_view, 0, 0, 0)
        answer = Answer(bytes(headers), b"".join(payload), now, compute_ns * request.rows // batch.rows)
        self._keep(flight, answer)
        if self._second is not None and request.model_served.cache is not None:
            value = seal(self._secret, flight.key, answer, now, time.time_ns())
            self._second.keep(flight.key, value, flight.kept.answers.ttl_ns // 10**6)
        self._give_followers(now, flight, answer, batch, compute_ns)

    def ended(self, request: InferRequest, error: TensordError) -> None:
        """A request of a flight has had this error for an answer."""
        flight, request.flight = request.flight, None
        assert flight is not None
        self.waiting.discard(request)
        if flight.leader is not request:
            del flight.followers[request]
            return
        if isinstance(error, ModelFault):
            self._end(flight)
            followers, flight.followers = flight.followers, {}
            for follower in followers:
                follower.flight = None
                self.waiting.discard(follower)
                self._host.refuse(follower, error)
            return
        flight.leader = next(iter(flight.followers), None)
        if flight.leader is None:
            self._end(flight)
        else:
            del flight.followers[flight.leader]
            if not flight.looking:
                self._leaderless.append(flight)
                self._promote()

    def _promote(self) -> None:
        """Compute the new leaders. One that is refused at once has a successor: a loop, since it may be a long line."""
        if self._promoting:
            return
        self._promoting = True
        while self._leaderless:
            self._compute(time.monotonic_ns(), self._leaderless.popleft())
        self._promoting = False

    # ── answers ─────────────────────────────────────────────────────────────────────────────────

    def _give_followers(
        self,
        now: int,
        flight: Flight,
        answer: Answer,
        batch: Batch[InferRequest] | None = None,
        compute_ns: int = 0,
    ) -> None:
        followers, flight.followers = flight.followers, {}
        for follower in followers:
            follower.flight = None
            self.waiting.discard(follower)
            if batch is None:
                self._give(now, follower, answer, Counter.CACHE_JOINED)
            else:
                queue_ns = max(0, batch.released_ns - follower.arrival_ns)
                self._give(now, follower, answer, Counter.CACHE_JOINED, batch.rows, queue_ns, compute_ns)

    def _give(
        self,
        now: int,
        request: InferRequest,
        answer: Answer,
        counter: Counter,
        batch_rows: int = 0,
        queue_ns: int = 0,
        compute_ns: int = 0,
    ) -> None:
        """Without a batch the answer says that it ran in none: 0 rows, no time."""
        block = self._host.block
        block.count(request.model, counter)
        block.count(request.model, Counter.CACHE_SAVED_NS, answer.device_ns)
        self._host.give(now, request, answer, batch_rows, queue_ns, compute_ns)

    def _keep(self, flight: Flight, answer: Answer) -> None:
        flight.kept.answers.put(flight.key, answer)
        self._note(flight.kept)

    def _end(self, flight: Flight) -> None:
        """Who comes now begins another one."""
        del flight.kept.flights[flight.key]
        flight.leader = None

    def _note(self, kept: ModelCache) -> None:
        """Write down what the memory tier did."""
        block, answers = self._host.block, kept.answers
        block.gauge(kept.index, Counter.CACHE_BYTES, answers.nbytes)
        block.count(kept.index, Counter.CACHE_EVICTED, answers.evicted - kept.evicted)
        kept.evicted = answers.evicted
