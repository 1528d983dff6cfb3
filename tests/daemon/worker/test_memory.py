import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tensord.daemon.worker.device import CpuDevice
from tensord.daemon.worker.memory import Memory, UnknownArena
from tensord.ipc.arena import create_arena, map_arena
from tensord.ipc.errors import BadRequest
from tensord.ipc.segment import Segment


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


def test_a_run_beyond_the_end_is_only_shorter(memory: Memory) -> None:
    assert [len(part) for part in memory.parts([(0, 10, 4000), (0, 1, 5000)], 64)] == [96, 0]


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
