"""The statistics page: each process counts into its own block of shared memory, and everybody may read.

    block = 64 words │ per model: 32 counters │ per model and phase: 110 histogram buckets        (all u64)

There is one writer per block and no lock: a reader sees every word as it was at some moment (aligned eight
bytes are stored at once on every CPU that torch runs on), not all words of one moment. Reading costs the
writer nothing.

Histograms have four buckets per factor of two (each a seventh to a quarter wide), from 1 µs to 137 s, so a
percentile read from them is off by a quarter at most, and by less than a tenth where durations are spread.
They add up over processes by adding buckets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAGIC: Final = 0x7461_7473_6473_6E74
BUCKETS_PER_OCTAVE: Final = 4
OCTAVE_MIN: Final = 10
"""2**10 ns: faster is counted in the first bucket."""
OCTAVE_MAX: Final = 37
"""2**37 ns = 137 s: slower is counted in the last bucket."""
BUCKETS: Final = (OCTAVE_MAX - OCTAVE_MIN) * BUCKETS_PER_OCTAVE + 2
assert BUCKETS == 110


class Word(IntEnum):
    """The words at the head of a block."""

    MAGIC = 0
    MODELS = 1  # models that the block has room for
    PID = 2
    GENERATION = 3
    HEARTBEAT_NS = 4
    ACTIVITY = 5
    ACTIVITY_SINCE_NS = 6
    EPOCH = 7  # the last knob change that the process applied
    CONNECTIONS = 8  # front end: open connections
    QUEUED = 9  # front end: requests in queues
    RUNNING = 10  # requests with workers (front end), batches in the pipeline (worker)
    INGEST_USED_BYTES = 11  # front end: leased bytes of the ingest arena
    LOOP_TURNS = 12  # turns of the process's loop
    CONNECTIONS_TOTAL = 13
    BAD_FRAMES = 14  # connections ended because their stream was out of step
    RING_FREE_CELLS = 15
    MEMORY_BYTES = 16  # worker: resident memory, or device memory where there is a device
    PINNED_BYTES = 17  # worker of a GPU: arenas that the GPU copies from and to by itself
    UNPINNED_BYTES = 18  # worker of a GPU: arenas that it could not register
    DEVICE_ALLOCATED_BYTES = 19  # worker of a GPU: what tensors hold of its memory
    DEVICE_FREE_BYTES = 20  # worker of a GPU: of the whole GPU, whoever uses the rest
    DEVICE_TOTAL_BYTES = 21  # worker of a GPU; 0 tells a worker that has none
    SECOND_TIER_FAILING = 22  # front end: 1 while the second tier of the cache does not answer


WORDS: Final = 64


class Counter(IntEnum):
    """Counters per model."""

    REQUESTS = 0  # accepted for this model
    ROWS = 1  # rows of these
    SUCCEEDED = 2
    FAILED_CLIENT = 3  # by who is at fault: see errors.Fault
    FAILED_OPERATOR = 4
    FAILED_MODEL = 5
    FAILED_DAEMON = 6
    EXPIRED = 7  # deadline passed
    CANCELLED = 8
    RETRIED = 9  # run again because a worker died
    BATCHES = 10
    BATCH_ROWS = 11
    RELEASED_FULL = 12
    RELEASED_WINDOW = 13
    RELEASED_IDLE = 14
    RELEASED_DEADLINE = 15
    RELEASED_DRAIN = 16
    INLINE_BYTES = 17  # tensors that came inline
    ARENA_BYTES = 18  # tensors that came in arenas
    GATHERED_BYTES = 19  # input bytes that a worker had to copy together
    VIEWED_BYTES = 20  # input bytes that a worker read in place
    COMPUTE_NS = 21  # device time
    PADDED_BYTES = 22  # input bytes that are padding: what buckets waste
    WRITTEN_BYTES = 23  # output bytes that a worker copied from the model's tensors into slots
    REPLIED_BYTES = 24  # output bytes that the front end copied from slots to the socket
    GRAPHS_CAPTURED = 25  # CUDA graphs: one per worker and form of a batch
    GRAPH_REPLAYS = 26  # batches that ran as one of them
    REFUSED_QUEUE = 27  # by the error that a request got before it could queue, or behind it: QueueFull
    REFUSED_QUEUE_ROWS = 28  # QueueRowsFull
    REFUSED_QUEUE_BYTES = 29  # QueueBytesFull
    REFUSED_TENANT_QUEUE = 30  # TenantQueueFull
    REFUSED_TENANT_ROWS = 31  # TooManyTenantRows
    REFUSED_DEADLINE = 32  # DeadlineInfeasible
    REFUSED_CONCURRENCY = 33  # ConcurrencyLimit
    REFUSED_DELAY = 34  # QueueDelay
    REFUSED_PERMISSION = 35  # NotPermitted
    SUPERSEDED = 36  # a newer request of the session took its place
    SPLIT = 37  # requests that went as several batches' rows
    CACHE_HITS = 38  # answered from memory
    CACHE_REDIS_HITS = 39  # answered from the second tier
    CACHE_JOINED = 40  # answered with the result of an identical request that was in flight
    CACHE_MISSES = 41
    CACHE_EVICTED = 42  # answers dropped for others, or as their time was over
    CACHE_HASHED_BYTES = 43
    CACHE_HASH_NS = 44  # time that hashing took
    CACHE_SAVED_NS = 45  # device time that answers from the cache have spared, as it was when they were computed
    CACHE_REDIS_FAILED = 46  # the second tier did not answer, or not in time
    CACHE_BYTES = 47  # what kept answers take now


COUNTERS: Final = 64


class Phase(IntEnum):
    """Where a request's time goes. Each is measured by the process named."""

    LOAD = 0  # worker: loading and warming the model
    RECEIVE = 1  # front end: from the header to the last payload byte
    QUEUE = 2  # front end: from there to the release of the batch
    COPY_IN = 3  # worker: gathering the inputs
    PREPROCESS = 4
    HOST_TO_DEVICE = 5
    COMPUTE = 6  # worker: the model
    DEVICE_TO_HOST = 7
    POSTPROCESS = 8
    COPY_OUT = 9  # worker: writing the outputs to their slots
    REPLY = 10  # front end: from the worker's answer to the write to the socket
    REQUEST = 11  # front end: from the header to the reply


PHASES: Final = 16
MODEL_WORDS: Final = COUNTERS + PHASES * BUCKETS


_REQUESTS: Final = int(Counter.REQUESTS)
_ROWS: Final = int(Counter.ROWS)
_RECEIVE: Final = COUNTERS + Phase.RECEIVE * BUCKETS


def bucket_of(duration_ns: int) -> int:
    """The histogram bucket of a duration: octave and the two bits below the highest."""
    if duration_ns < 1 << OCTAVE_MIN:
        return 0
    octave = duration_ns.bit_length() - 1
    if octave >= OCTAVE_MAX:
        return BUCKETS - 1
    return (octave - OCTAVE_MIN) * BUCKETS_PER_OCTAVE + ((duration_ns >> (octave - 2)) & 3) + 1


def bucket_bounds_ns(bucket: int) -> tuple[int, int]:
    """Lower (included) and upper (excluded) bound of a bucket, in nanoseconds."""
    if bucket == 0:
        return 0, 1 << OCTAVE_MIN
    octave, quarter = divmod(bucket - 1, BUCKETS_PER_OCTAVE)
    unit = 1 << (octave + OCTAVE_MIN - 2)
    return (4 + quarter) * unit, (5 + quarter) * unit


class Block:
    """One process's block. The owner writes; any number of readers read."""

    __slots__ = ("models_max", "words")

    def __init__(self, view: memoryview) -> None:
        """Take over a mapped block that `format` has prepared."""
        self.words = view.cast("Q")
        assert self.words[Word.MAGIC] == MAGIC
        self.models_max = self.words[Word.MODELS]

    @staticmethod
    def nbytes(models_max: int) -> int:
        """Size of a block with room for `models_max` models."""
        return 8 * (WORDS + models_max * MODEL_WORDS)

    @classmethod
    def format(cls, view: memoryview, models_max: int) -> "Block":
        """Prepare a block in zeroed memory."""
        words = view.cast("Q")
        words[Word.MAGIC] = MAGIC
        words[Word.MODELS] = models_max
        return cls(view)

    def count(self, model: int, counter: int, amount: int = 1) -> None:
        """Add to a counter of the model with this index."""
        self.words[WORDS + model * MODEL_WORDS + counter] += amount

    def gauge(self, model: int, counter: Counter, value: int) -> None:
        """Set a counter that goes up and down."""
        self.words[WORDS + model * MODEL_WORDS + counter] = value

    def observe(self, model: int, phase: int, duration_ns: int, times: int = 1) -> None:
        """Add a duration to a histogram, `times` times."""
        self.words[WORDS + model * MODEL_WORDS + COUNTERS + phase * BUCKETS + bucket_of(duration_ns)] += times

    def arrived(self, model: int, rows: int, receive_ns: int) -> None:
        """Count a request of so many rows: what `count` and `observe` would do, for the busiest place, in one go."""
        words = self.words
        start = WORDS + model * MODEL_WORDS
        words[start + _REQUESTS] += 1
        words[start + _ROWS] += rows
        words[start + _RECEIVE + bucket_of(receive_ns)] += 1

    def counters(self, model: int) -> list[int]:
        """All counters of a model, in the order of Counter."""
        start = WORDS + model * MODEL_WORDS
        return self.words[start : start + COUNTERS].tolist()

    def histogram(self, model: int, phase: Phase) -> "Histogram":
        """A snapshot of one histogram."""
        start = WORDS + model * MODEL_WORDS + COUNTERS + phase * BUCKETS
        words = self.words[start : start + BUCKETS]
        return Histogram(tuple(words)) if any(words.tobytes()) else EMPTY  # most phases of most models are

    def clear(self, model: int) -> None:
        """Zero a model's counters and histograms: its index will be used for another model."""
        start = WORDS + model * MODEL_WORDS
        self.words[start : start + MODEL_WORDS] = memoryview(bytes(8 * MODEL_WORDS)).cast("Q")


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per bucket of durations."""

    buckets: tuple[int, ...] = (0,) * BUCKETS

    @property
    def count(self) -> int:
        """Durations counted."""
        return sum(self.buckets)

    def __add__(self, other: "Histogram") -> "Histogram":
        if other is EMPTY:
            return self
        return Histogram(tuple(map(sum, zip(self.buckets, other.buckets, strict=True))))

    def percentile_us(self, fraction: float) -> float | None:
        """The duration that `fraction` of all do not exceed, in microseconds; None if nothing was counted.

        Geometric interpolation within the bucket.
        """
        total = self.count
        if not total:
            return None
        rank = fraction * total
        below = 0
        for bucket, count in enumerate(self.buckets):
            if count and below + count >= rank:
                low, high = bucket_bounds_ns(bucket)
                share = max(0.0, rank - below) / count
                return max(low, 512) * math.pow(high / max(low, 512), share) / 1000
            below += count
        raise AssertionError("the buckets add up to their total")


EMPTY: Final = Histogram()


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What all processes counted for one model version."""

    counters: tuple[int, ...]
    """In the order of Counter."""
    histograms: tuple[Histogram, ...]
    """In the order of Phase."""

    def __getitem__(self, counter: Counter) -> int:
        return self.counters[counter]

    def phase(self, phase: Phase) -> Histogram:
        """The histogram of one phase."""
        return self.histograms[phase]


def merge(blocks: Sequence[Block], model: int) -> ModelStatistics:
    """Add up what several processes counted for the model with this index."""
    counters = [block.counters(model) for block in blocks]
    histograms = [sum((block.histogram(model, phase) for block in blocks), EMPTY) for phase in Phase]
    return ModelStatistics(tuple(map(sum, zip(*counters, strict=True))), tuple(histograms))
