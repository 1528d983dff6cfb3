import mmap
import os
from pathlib import Path

import numpy as np
import posix_ipc
import pytest

from tensord.ipc import segment as segments
from tensord.ipc.errors import NoMemory
from tensord.ipc.segment import Segment, sweep

GONE_PID = 2**22 + 1
"""One more than the kernel ever gives (proc(5), pid_max)."""


def ours() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"tensord-{os.getpid()}-")}


def test_a_segment_is_zeroed_private_and_has_no_name() -> None:
    segment = Segment.create(5000)
    assert (segment.nbytes, len(segment.view), bytes(segment.view)) == (5000, 5000, bytes(5000))
    assert os.fstat(segment.fd).st_nlink == 0
    assert os.fstat(segment.fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(segment.fd)
    assert ours() == set()
    segment.close()


def test_the_memory_is_reserved_at_once() -> None:
    segment = Segment.create(1024 * 1024)
    assert os.fstat(segment.fd).st_blocks * 512 >= 1024 * 1024
    segment.close()


def test_who_gets_the_descriptor_sees_the_same_bytes() -> None:
    segment = Segment.create(4096)
    other = Segment(os.dup(segment.fd), 4096)
    segment.view[100:105] = b"hello"
    segment.close()
    assert bytes(other.view[100:105]) == b"hello"
    other.close()


def test_close_gives_descriptor_and_mapping_back() -> None:
    segment = Segment.create(4096)
    fd = segment.fd
    segment.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ValueError, match="released"):
        segment.view[0]


def test_a_slice_that_is_still_held_keeps_the_mapping() -> None:
    segment = Segment.create(4096)
    held = segment.view[10:20]
    segment.close()
    held[0] = 7
    assert held[0] == 7


def test_an_array_that_is_still_held_keeps_the_mapping() -> None:
    segment = Segment.create(4096)
    array = np.frombuffer(segment.view, np.uint8)
    fd = segment.fd
    segment.close()
    assert array.sum() == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_more_than_there_is_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _offset: int, _nbytes: int) -> None:
        raise OSError(28, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(NoMemory, match="the kernel refused 4096 bytes in /dev/shm"):
        Segment.create(4096)
    assert ours() == set()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_room_for_the_mapping_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _nbytes: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(NoMemory):
        Segment.create(4096)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_name_left_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise posix_ipc.ExistentialError("taken")

    monkeypatch.setattr(posix_ipc, "SharedMemory", refuse)
    with pytest.raises(NoMemory, match="a shared-memory segment of 64 bytes"):
        Segment.create(64)


def test_sweep_removes_what_dead_makers_left_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_SHM", tmp_path)
    left = f"tensord-{GONE_PID}-0123456789ab"
    kept = [
        f"tensord-{os.getpid()}-0123456789ab",
        "tensord-x-1",
        f"tensord-{GONE_PID}-xyz",
        f"my-tensord-{GONE_PID}-0a",
    ]
    for name in [left, *kept]:
        (tmp_path / name).touch()
    assert sweep() == [left]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
