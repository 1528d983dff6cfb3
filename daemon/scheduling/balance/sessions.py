"""Policies that keep a session on one replica: for models that are faster where they have seen the session before.

Both depend on the names of the devices and nothing else, so a worker that is restarted on its device gets its sessions
back, and every instance with the same devices decides alike. What goes without a session is placed by least work.
"""

from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from ..workers import Worker
from .load import LeastWork
from .mixing import mixed

HASH_P: Final = 2**61 - 1
"""A prime (Mersenne's ninth)."""

HASH_A: Final = 0x1E3779B97F4A7C15
"""The fraction of the golden ratio: 61 of its first 64 bits; above 0 and below HASH_P."""

HASH_B: Final = 0x139CC0605CEDC834
"""61 of its next 64 bits; below HASH_P."""

VIRTUAL_NODES: Final = 128
"""Points of each replica on the ring. The share of a replica varies by about 1 / sqrt(128) = 9 % around 1/n; a ring
is built in a fraction of a millisecond per replica, and a look-up takes log2(128·n) comparisons."""


class Hash(LeastWork):
    """h(x) = ((a·x + b) mod p) mod n, over the n replicas in the order of their devices' names.

    Simple, and as even as can be. But n stands in the formula: a replica that comes or goes moves nearly all sessions,
    (n - 1)/n of them.

    Source: J. L. Carter, M. N. Wegman, "Universal Classes of Hash Functions", Journal of Computer and System Sciences
    18 (2), 1979. For a and b drawn at random two sessions collide with probability 1/n at most; here they are fixed,
    since restarts must not move sessions.
    """

    binds = True

    def __init__(self) -> None:
        self._replicas: list[Worker] = []

    def bound(self, session: int) -> Worker | None:
        replicas = self._replicas
        return replicas[(HASH_A * session + HASH_B) % HASH_P % len(replicas)] if replicas else None

    def set_replicas(self, replicas: Sequence[Worker]) -> None:
        self._replicas = sorted(replicas, key=lambda worker: (worker.device, worker.id))


class ConsistentHash(LeastWork):
    """Devices have VIRTUAL_NODES points each on a ring of 2^64; a session belongs to the next point after its own.

    The points of a replica do not depend on the others: one that comes takes, and one that goes gives back, what lies
    before its own points, about 1/n of the sessions. All others stay where they are.

    Source: D. Karger et al., "Consistent Hashing and Random Trees: Distributed Caching Protocols for Relieving Hot
    Spots on the World Wide Web", STOC 1997.
    """

    binds = True

    def __init__(self) -> None:
        self._points: list[int] = []
        self._owners: list[Worker] = []
        """Of the points, in the same order."""

    def bound(self, session: int) -> Worker | None:
        owners = self._owners
        return owners[bisect(self._points, mixed(session)) % len(owners)] if owners else None

    def set_replicas(self, replicas: Sequence[Worker]) -> None:
        ring = sorted(
            (_point(worker.device, index), worker.id, worker) for worker in replicas for index in range(VIRTUAL_NODES)
        )
        self._points = [point for point, _, _ in ring]
        self._owners = [worker for _, _, worker in ring]


def _point(device: str, index: int) -> int:
    digest = blake2b(f"{device}#{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
