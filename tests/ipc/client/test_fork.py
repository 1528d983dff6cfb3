"""Who is told in a forked child."""

import os
import weakref

import pytest

from tensord.ipc.client.fork import reset_in_children

pytestmark = pytest.mark.timeout(20)


class Holder:
    """Counts how often it was reset in this process."""

    def __init__(self) -> None:
        self.resets = 0
        reset_in_children(self)

    def reset_after_fork(self) -> None:
        self.resets += 1


def resets_in_a_child(*holders: Holder) -> list[int]:
    """Fork, and have the child say how often each of its holders was reset."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writing, bytes(holder.resets for holder in holders))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = list(pipe.read())
    assert os.waitpid(pid, 0) == (pid, 0)
    return said


def test_every_holder_is_reset_in_the_child_and_none_in_the_parent() -> None:
    holders = [Holder(), Holder()]
    assert resets_in_a_child(*holders) == [1, 1]
    assert [holder.resets for holder in holders] == [0, 0]


def test_a_holder_is_reset_once_per_fork_however_often_it_asked() -> None:
    holder = Holder()
    reset_in_children(holder)
    assert resets_in_a_child(holder) == [1]
    assert resets_in_a_child(holder) == [1]


def test_asking_keeps_nobody_alive() -> None:
    holder = Holder()
    seen = weakref.ref(holder)
    del holder
    assert seen() is None
    assert resets_in_a_child(Holder()) == [1]
