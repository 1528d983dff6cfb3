"""The memory tier: a model's answers, the least recently used dropped first, none older than its time. Pure."""

from collections import OrderedDict
from typing import Final

ENTRY_BYTES: Final = 512
"""What an answer takes beside its bytes: its key, its objects and its place in the table, rounded up."""


class Answer:
    """What a request got. Never changes."""

    __slots__ = ("computed_ns", "device_ns", "headers", "payload")

    def __init__(self, headers: bytes, payload: bytes, computed_ns: int, device_ns: int) -> None:
        self.headers = headers
        """Tensor headers of the RESULT."""
        self.payload = payload
        self.computed_ns = computed_ns
        """When, on this process's monotonic clock."""
        self.device_ns = device_ns
        """Device time that computing it took: its rows' share of the batch."""

    @property
    def nbytes(self) -> int:
        """What it counts for against `cache_bytes`."""
        return ENTRY_BYTES + len(self.headers) + len(self.payload)


class Answers:
    """Answers of one model version by key, in at most `bytes_max` bytes; with 0 it keeps none."""

    __slots__ = ("_by_key", "bytes_max", "evicted", "nbytes", "ttl_ns")

    def __init__(self) -> None:
        self._by_key: OrderedDict[bytes, Answer] = OrderedDict()
        self.bytes_max = 0
        self.ttl_ns = 0
        self.nbytes = 0
        """Bytes taken now, with what each answer costs beside its own."""
        self.evicted = 0
        """Answers dropped for others, for a smaller bound, or as their time was over."""

    def __len__(self) -> int:
        return len(self._by_key)

    def configure(self, bytes_max: int, ttl_ns: int) -> None:
        """Obey other bounds at once."""
        self.bytes_max, self.ttl_ns = bytes_max, ttl_ns
        self._shrink()

    def get(self, key: bytes, now_ns: int) -> Answer | None:
        """The answer, if it is there and its time is not over."""
        answer = self._by_key.get(key)
        if answer is None:
            return None
        if now_ns - answer.computed_ns >= self.ttl_ns:
            self._drop(key)
            return None
        self._by_key.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer, unless it alone is beyond the bound."""
        old = self._by_key.pop(key, None)
        if old is not None:
            self.nbytes -= old.nbytes
        if answer.nbytes <= self.bytes_max:
            self._by_key[key] = answer
            self.nbytes += answer.nbytes
            self._shrink()

    def _shrink(self) -> None:
        while self.nbytes > self.bytes_max:
            self._drop(next(iter(self._by_key)))

    def _drop(self, key: bytes) -> None:
        self.nbytes -= self._by_key.pop(key).nbytes
        self.evicted += 1
