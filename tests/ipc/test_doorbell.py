import os
import select

import pytest

from tensord.ipc.doorbell import Doorbell


def test_an_answer_takes_all_that_was_announced() -> None:
    bell = Doorbell()
    for count in (3, 1, 38):
        bell.ring(count)
    assert bell.answer() == 42
    assert bell.answer() == 0
    bell.close()


def test_a_doorbell_is_readable_from_the_first_ring_to_the_answer() -> None:
    bell = Doorbell()
    poller = select.poll()
    poller.register(bell, select.POLLIN)
    assert poller.poll(0) == []
    bell.ring(1)
    assert poller.poll(0) == [(bell.fileno(), select.POLLIN)]
    bell.answer()
    assert poller.poll(0) == []
    bell.close()


def test_both_ends_share_one_counter() -> None:
    listener = Doorbell()
    ringer = Doorbell(os.dup(listener.fd))
    ringer.ring(2)
    ringer.close()
    assert listener.answer() == 2
    listener.close()


def test_a_doorbell_is_closed_on_exec_and_never_waits() -> None:
    bell = Doorbell()
    assert not os.get_inheritable(bell.fd)
    assert not os.get_blocking(bell.fd)
    bell.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        bell.ring(1)
