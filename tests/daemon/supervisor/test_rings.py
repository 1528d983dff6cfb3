import os

import pytest

from tensord.daemon.supervisor import rings as module
from tensord.daemon.supervisor.rings import Rings
from tensord.ipc.errors import NoMemory
from tensord.ipc.limits import DONE_RING_BYTES, RING_BYTES


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_rings_have_their_sizes_and_close_leaves_nothing() -> None:
    before = descriptors()
    rings = Rings.create(3)
    work, done, *_ = rings.fds
    assert (rings.generation, os.fstat(work).st_size, os.fstat(done).st_size) == (3, RING_BYTES, DONE_RING_BYTES)
    rings.close()
    assert rings.fds == (-1, -1, -1, -1)
    assert descriptors() == before


@pytest.mark.parametrize("error", [NoMemory("memory"), OSError(24, "Too many open files")])
def test_rings_that_cannot_be_made_whole_leave_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse() -> None:
        raise error

    before = descriptors()
    monkeypatch.setattr(module, "Doorbell", refuse)
    with pytest.raises(NoMemory):
        Rings.create(1)
    assert descriptors() == before
