import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensord.daemon.frontend.ingest import CHUNK_BYTES, CHUNK_ROWS_MIN, SLABS_MAX, Ingest, IngestStatistics, Lease, Slab

MIB = 1024 * 1024


def ranges_of(lease: Lease) -> list[tuple[int, int]]:
    """The bytes of a lease, per tensor, as start and stop."""
    row_bytes = lease.chunk.slab.row_bytes
    starts = [lease.offset(tensor) for tensor in range(len(row_bytes))]
    return [(start, start + lease.rows * each) for start, each in zip(starts, row_bytes, strict=True)]


def must_lease(slab: Slab, rows: int) -> Lease:
    lease = slab.lease(rows)
    assert lease is not None
    return lease


class Leasing(RuleBasedStateMachine):
    """Leases of several slabs, taken and given back in any order, in an arena that is often full."""

    @initialize(
        nbytes=st.sampled_from([4096, 70_000, MIB, 5 * MIB]),
        slabs=st.lists(st.lists(st.integers(1, 3_000), min_size=1, max_size=4), min_size=1, max_size=3),
    )
    def make(self, nbytes: int, slabs: list[list[int]]) -> None:
        self.ingest = Ingest(nbytes)
        self.slabs = [self.ingest.slab((index,), row_bytes) for index, row_bytes in enumerate(slabs)]
        self.out: list[Lease] = []

    @rule(data=st.data(), rows=st.integers(1, 100))
    def lease(self, data: st.DataObject, rows: int) -> None:
        slab = data.draw(st.sampled_from(self.slabs))
        current = slab.current
        place = None if current is None else (current, current.cursor)
        lease = slab.lease(rows)
        if place and place[1] + rows <= place[0].rows_max:
            assert lease is not None
            assert (lease.chunk, lease.first) == place, "rows that fit lie behind those leased before"
        if lease is not None:
            assert lease.rows == rows
            self.out.append(lease)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.out) - 1))
        self.out.pop(index).release()

    @rule()
    def trim(self) -> None:
        self.ingest._trim()

    @invariant()
    def leases_are_disjoint_and_inside(self) -> None:
        if hasattr(self, "ingest"):
            end = 0
            for start, stop in sorted(bounds for lease in self.out for bounds in ranges_of(lease)):
                assert start >= end
                end = stop
            assert end <= self.ingest.nbytes

    @invariant()
    def statistics_count_them(self) -> None:
        if hasattr(self, "ingest"):
            statistics = self.ingest.statistics()
            assert statistics.leases == len(self.out)
            assert statistics.chunks == sum(slab.chunks for slab in self.slabs)
            assert statistics.chunk_bytes <= self.ingest.nbytes

    @invariant()
    def no_more_than_two_chunks_of_a_slab_are_empty(self) -> None:
        if hasattr(self, "ingest"):
            leased = {lease.chunk for lease in self.out}
            for slab in self.slabs:
                assert slab.chunks - len({chunk for chunk in leased if chunk.slab is slab}) <= 2

    def teardown(self) -> None:
        if hasattr(self, "ingest"):
            random.Random(0).shuffle(self.out)
            for lease in self.out:
                lease.release()
            self.ingest._trim()
            nbytes = self.ingest.nbytes
            assert self.ingest.statistics() == IngestStatistics(nbytes, 0, 0, len(self.slabs), 0)
            assert self.ingest._ranges.statistics().largest_free_bytes == nbytes // 64 * 64


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=60)


# ── where rows lie ──────────────────────────────────────────────────────────────────────────────


def test_leases_one_after_the_other_are_one_stretch_of_every_tensor() -> None:
    slab = Ingest(16 * MIB).slab(("m",), [12, 4])
    leases = [must_lease(slab, rows) for rows in (1, 3, 2)]
    for tensor in (0, 1):
        ranges = [ranges_of(lease)[tensor] for lease in leases]
        assert [ranges[0][1], ranges[1][1]] == [ranges[1][0], ranges[2][0]]


def test_the_regions_of_a_chunk_are_aligned() -> None:
    slab = Ingest(16 * MIB).slab(("m",), [3, 5, 7])
    assert [start % 64 for start, _ in ranges_of(must_lease(slab, 1))] == [0, 0, 0]


def test_a_lightly_used_slab_reuses_the_same_rows() -> None:
    slab = Ingest(16 * MIB).slab(("m",), [4096])
    offsets = set()
    for _ in range(10_000):
        lease = must_lease(slab, 1)
        offsets.add(lease.offset(0))
        lease.release()
    assert offsets == {0}


def test_a_slab_is_made_once_per_key() -> None:
    ingest = Ingest(MIB)
    assert ingest.slab(("a",), [4]) is ingest.slab(("a",), [4])
    assert ingest.slab(("a",), [4]) is not ingest.slab(("b",), [4])
    assert ingest.statistics().slabs == 2


@pytest.mark.parametrize("row_bytes", [4, 4096, 100_000])
def test_large_rows_lie_together_too(row_bytes: int) -> None:
    slab = Ingest(256 * MIB).slab(("m",), [row_bytes])
    chunk = must_lease(slab, 1).chunk
    assert chunk.rows_max == max(CHUNK_ROWS_MIN, CHUNK_BYTES // row_bytes)


def test_a_chunk_of_large_rows_takes_a_sixteenth_of_the_arena_at_most() -> None:
    slab = Ingest(256 * MIB).slab(("m",), [4 * MIB])
    assert must_lease(slab, 1).chunk.rows_max == 4
    assert must_lease(slab, 9).chunk.rows_max == 9, "unless one request has more"


def test_rows_lie_together_in_a_small_arena_too() -> None:
    slab = Ingest(MIB).slab(("m",), [1024])
    assert must_lease(slab, 1).chunk is must_lease(slab, 1).chunk


# ── slow clients and full arenas ────────────────────────────────────────────────────────────────


def test_a_slow_client_pins_one_chunk_and_not_the_arena() -> None:
    ingest = Ingest(16 * MIB)
    slab = ingest.slab(("m",), [4096])
    slow = must_lease(slab, 1)
    recent: list[Lease] = []
    for _ in range(20_000):
        recent.append(must_lease(slab, 1))
        if len(recent) > 32:
            recent.pop(0).release()
    assert slab.chunks <= 3
    slow.release()


def fill(slab: Slab, rows: int) -> list[Lease]:
    leases = []
    while (lease := slab.lease(rows)) is not None:
        leases.append(lease)
    return leases


@pytest.mark.parametrize("nbytes", [MIB, 16 * MIB])
@pytest.mark.parametrize("row_bytes", [[1024], [700, 300]])
def test_a_full_arena_says_so_and_recovers(nbytes: int, row_bytes: list[int]) -> None:
    slab = Ingest(nbytes).slab(("m",), row_bytes)
    leases = fill(slab, 8)
    assert sum(lease.rows for lease in leases) * sum(row_bytes) > 0.9 * nbytes
    assert slab.lease(8) is None
    for lease in leases:
        lease.release()
    assert len(fill(slab, 8)) >= 0.9 * len(leases)


def test_what_one_model_has_not_in_use_another_can_have() -> None:
    ingest = Ingest(16 * MIB)
    first, second = ingest.slab(("a",), [1024]), ingest.slab(("b",), [2048])
    for lease in fill(first, 8):
        lease.release()
    assert sum(lease.rows for lease in fill(second, 8)) * 2048 > 0.9 * 16 * MIB
    assert first.lease(1) is None


def test_a_request_larger_than_the_arena_finds_no_room_and_costs_none() -> None:
    ingest = Ingest(MIB)
    slab = ingest.slab(("m",), [1024])
    assert slab.lease(1025) is None
    assert ingest.statistics() == IngestStatistics(MIB, 0, 0, 1, 0)
    assert must_lease(slab, 1024).rows == 1024


def test_rows_of_no_bytes_can_be_leased() -> None:
    lease = must_lease(Ingest(MIB).slab(("m",), [0, 0]), 5)
    assert ranges_of(lease) == [(0, 0), (0, 0)]
    lease.release()


def test_slabs_that_hold_nothing_are_forgotten_beyond_the_limit() -> None:
    ingest = Ingest(16 * MIB)
    held = ingest.slab(("held",), [64])
    lease = must_lease(held, 1)
    for index in range(3 * SLABS_MAX):
        must_lease(ingest.slab((index,), [64]), 1).release()
        assert ingest.statistics().slabs <= SLABS_MAX
    assert ingest.slab(("held",), [64]) is held
    assert ranges_of(lease) == [(0, 64)]
    lease.release()
