import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tensord.daemon.worker.device import CpuDevice
from tensord.daemon.worker.memory import VIEWS_MAX, Memory, UnknownArena
from tensord.ipc.arena import create_arena, map_arena
from tensord.ipc.errors import BadRequest
from tensord.ipc.segment import Segment
from tensord.ipc.tensors import DType, TensorSpec


class Counting(CpuDevice):
    """Remembers which regions are open."""

    def __init__(self) -> None:
        super().__init__("cpu:0")
        self.opened = 0
        self.closed = 0

    def open_region(self, buffer: Any) -> torch.Tensor:
        self.opened += 1
        return super().open_region(buffer)

    def close_region(self, region: torch.Tensor) -> None:
        self.closed += 1


@pytest.fixture
def device() -> Counting:
    return Counting()


@pytest.fixture
def memory(device: Counting) -> Iterator[Memory]:
    """Arena 0 is a segment of the daemon, arena 4 a client's; each byte of them is its arena's number."""
    made = Memory(device)
    segment = Segment.create(4096)
    made.map_shared(0, segment.fd, 4096)
    segment.close()
    fd = create_arena(8192)
    with map_arena(fd, 8192) as mapping:
        mapping[:] = b"\x04" * 8192
    made.map_client(4, fd, 8192)
    os.close(fd)
    yield made
    made.unmap_all()


def test_runs_are_byte_ranges_of_their_arenas(memory: Memory) -> None:
    parts = memory.parts([(4, 3, 128), (0, 2, 0), (4, 1, 8192 - 10)], row_bytes=10)
    assert [len(part) for part in parts] == [30, 20, 10]
    assert [int(part.sum()) for part in parts] == [120, 0, 40]
    parts[1][3] = 9
    assert memory.parts([(0, 1, 3)], 1)[0].tolist() == [9]


def test_a_part_is_a_byte_range_of_its_arena(memory: Memory) -> None:
    part = memory.part(4, 8000, 192)
    part.fill_(9)
    assert [len(memory.part(4, 7999, 300)), int(memory.part(4, 7999, 194).sum())] == [193, 4 + 192 * 9]
    with pytest.raises(UnknownArena):
        memory.part(5, 0, 1)


def test_a_run_beyond_the_end_is_only_shorter(memory: Memory) -> None:
    assert [len(part) for part in memory.parts([(0, 10, 4000), (0, 1, 5000)], 64)] == [96, 0]


# ── views ───────────────────────────────────────────────────────────────────────────────────────

X = TensorSpec("x", DType.INT16, (2, 3))


def test_a_view_has_type_and_shape_of_its_rows(memory: Memory) -> None:
    view = memory.view(X, (4, 5, 64))
    assert (view.dtype, tuple(view.shape)) == (torch.int16, (5, 2, 3))
    assert view.unique().tolist() == [0x0404]
    view[4, 1, 2] = 7
    assert memory.part(4, 64 + 5 * 12 - 2, 4).tolist() == [7, 0, 4, 4]


def test_the_same_run_gives_the_same_view_and_another_another(memory: Memory) -> None:
    view = memory.view(X, (4, 5, 64))
    assert memory.view(TensorSpec("y", DType.INT16, (2, 3)), (4, 5, 64)) is view
    others = [
        memory.view(X, (0, 5, 64)),
        memory.view(X, (4, 4, 64)),
        memory.view(X, (4, 5, 128)),
        memory.view(TensorSpec("x", DType.BFLOAT16, (2, 3)), (4, 5, 64)),
        memory.view(TensorSpec("x", DType.INT16, (3, 2)), (4, 5, 64)),
    ]
    assert len({id(each) for each in (view, *others)}) == 6


def test_a_view_ends_with_its_arena(memory: Memory) -> None:
    memory.view(X, (4, 5, 64))
    memory.unmap(4)
    with pytest.raises(UnknownArena):
        memory.view(X, (4, 5, 64))


def test_an_arena_that_comes_again_under_its_number_is_another(memory: Memory) -> None:
    memory.view(X, (4, 5, 64))
    memory.unmap(4)
    fd = create_arena(8192)
    memory.map_client(4, fd, 8192)
    os.close(fd)
    assert memory.view(X, (4, 5, 64)).unique().tolist() == [0]


def test_a_view_beyond_its_arena_is_an_error(memory: Memory) -> None:
    with pytest.raises(RuntimeError):
        memory.view(X, (4, 1, 8192 - 10))


def test_views_are_not_kept_without_bound(memory: Memory) -> None:
    first = memory.view(X, (4, 1, 0))
    for row in range(1, VIEWS_MAX + 1):
        memory.view(X, (4, 1 + row // 500, 2 * (row % 500)))
    assert len(memory._views) <= VIEWS_MAX
    assert memory.view(X, (4, 1, 0)) is not first


# ── arenas ──────────────────────────────────────────────────────────────────────────────────────


def test_an_arena_that_is_not_mapped_is_unknown(memory: Memory) -> None:
    assert [memory.knows(arena) for arena in (0, 4, 5)] == [True, True, False]
    with pytest.raises(UnknownArena):
        memory.parts([(0, 1, 0), (5, 1, 0)], 1)


def test_an_arena_is_forgotten_once(memory: Memory, device: Counting) -> None:
    memory.unmap(4)
    memory.unmap(4)
    memory.unmap(99)
    assert not memory.knows(4)
    assert (device.opened, device.closed) == (2, 1)


def test_a_generation_is_forgotten_whole(memory: Memory, device: Counting) -> None:
    memory.unmap_all()
    assert not memory.knows(0)
    assert not memory.knows(4)
    assert (device.opened, device.closed) == (2, 2)


def test_what_still_reads_an_arena_keeps_its_bytes(memory: Memory) -> None:
    (part,) = memory.parts([(4, 5, 0)], 1)
    memory.unmap(4)
    assert part.tolist() == [4] * 5


def test_a_clients_arena_that_could_shrink_is_not_mapped(memory: Memory) -> None:
    fd = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    with pytest.raises(BadRequest):
        memory.map_client(6, fd, 4096)
    assert not memory.knows(6)
    os.close(fd)
