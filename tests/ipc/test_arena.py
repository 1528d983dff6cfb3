import fcntl
import os
from collections.abc import Iterator

import pytest

from tensord.ipc.arena import F_GET_SEALS, SEALS, create_arena, map_arena, release_pages
from tensord.ipc.errors import BadRequest, NoMemory

NBYTES = 3 * 4096


@pytest.fixture
def arena() -> Iterator[int]:
    fd = create_arena(NBYTES)
    yield fd
    os.close(fd)


def test_an_arena_is_sealed_private_reserved_and_zeroed(arena: int) -> None:
    status = os.fstat(arena)
    assert (status.st_size, status.st_mode & 0o777, status.st_nlink) == (NBYTES, 0o600, 0)
    assert status.st_blocks * 512 >= NBYTES
    assert fcntl.fcntl(arena, F_GET_SEALS) & SEALS == SEALS
    assert not os.get_inheritable(arena)
    assert os.pread(arena, NBYTES, 0) == bytes(NBYTES)


@pytest.mark.parametrize("nbytes", [0, NBYTES - 1, NBYTES + 1])
def test_its_size_is_final(arena: int, nbytes: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(arena, nbytes)
    assert os.fstat(arena).st_size == NBYTES


def test_it_can_be_mapped_after_its_descriptor_is_closed() -> None:
    fd = create_arena(NBYTES)
    mapping = map_arena(fd, NBYTES)
    twin = map_arena(fd, NBYTES)
    os.close(fd)
    mapping[5:8] = b"abc"
    assert twin[5:8] == b"abc"
    mapping.close()
    twin.close()


@pytest.mark.parametrize("nbytes", [NBYTES - 1, NBYTES + 1])
def test_another_size_than_agreed_is_not_mapped(arena: int, nbytes: int) -> None:
    with pytest.raises(BadRequest, match=f"expected a sealed memfd of {nbytes}"):
        map_arena(arena, nbytes)


def test_a_memfd_without_seals_is_not_mapped() -> None:
    fd = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, NBYTES)
    with pytest.raises(BadRequest, match="sealed"):
        map_arena(fd, NBYTES)
    os.close(fd)


def test_a_file_that_cannot_be_sealed_is_not_mapped() -> None:
    end, other_end = os.pipe()
    with pytest.raises(BadRequest, match="sealed"):
        map_arena(end, NBYTES)
    os.close(end)
    os.close(other_end)


def test_released_pages_read_as_zeros_for_whoever_still_maps_them(arena: int) -> None:
    mapping = map_arena(arena, NBYTES)
    mapping[:] = b"x" * NBYTES
    release_pages(arena, NBYTES)
    assert mapping[:] == bytes(NBYTES)
    assert os.fstat(arena).st_size == NBYTES
    mapping.close()


def test_a_kernel_without_noexec_seals_gets_by_without(monkeypatch: pytest.MonkeyPatch) -> None:
    memfd_create = os.memfd_create
    flags_asked = []

    def old_kernel(name: str, flags: int) -> int:
        flags_asked.append(flags)
        if len(flags_asked) == 1:
            raise OSError(22, "Invalid argument")
        return memfd_create(name, flags)

    monkeypatch.setattr(os, "memfd_create", old_kernel)
    fd = create_arena(NBYTES)
    assert flags_asked[0] & ~flags_asked[1] == 0x0008
    assert fcntl.fcntl(fd, F_GET_SEALS) & SEALS == SEALS
    os.close(fd)


def test_no_descriptor_left_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str, _flags: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(NoMemory, match="the kernel refused a memfd"):
        create_arena(NBYTES)


def test_more_than_the_host_has_is_no_memory_and_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _offset: int, _nbytes: int) -> None:
        raise OSError(28, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(NoMemory, match=f"the kernel refused an arena of {NBYTES} bytes"):
        create_arena(NBYTES)
    assert len(os.listdir("/proc/self/fd")) == before
