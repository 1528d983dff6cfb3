"""A tensor's bytes are written once and read where they are: the statistics count every copy, and here they add up.

What the design names: a payload is received into its slot; rows that do not lie one behind the other are gathered
once; outputs are written into their slots; inline outputs are copied to the socket. Nothing else.
"""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tensord import Client

from .conftest import wait_until

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

ROW_BYTES = 64 * 1024
COPIES = ("inline_bytes", "arena_bytes", "viewed_bytes", "gathered_bytes", "written_bytes", "replied_bytes")


class Copies:
    """What the daemon has copied for a model since this object was made."""

    def __init__(self, daemon: "Daemon", model: str = "large") -> None:
        self._daemon = daemon
        self._model = model
        self._before = self._counters()

    def _counters(self) -> dict[str, int]:
        return next(model.counters for model in self._daemon.status().models if model.name == self._model)

    def after(self, rows: int) -> dict[str, int]:
        """The copies in bytes, once the worker has counted so many rows; without those that are 0."""
        wait_until(lambda: self._counters()["batch_rows"] - self._before["batch_rows"] == rows)
        now = self._counters()
        return {name: now[name] - self._before[name] for name in COPIES if now[name] != self._before[name]}


def test_an_inline_request_is_read_in_place_and_its_result_copied_once_to_its_slot_and_once_to_the_socket(
    daemon: "Daemon",
) -> None:
    copies = Copies(daemon)
    with Client(daemon.socket) as client:
        client.infer("large", np.ones((3, ROW_BYTES), np.uint8))
    nbytes = 3 * ROW_BYTES
    assert copies.after(3) == {
        "inline_bytes": nbytes,
        "viewed_bytes": nbytes,
        "written_bytes": nbytes,
        "replied_bytes": nbytes,
    }


def test_a_leased_request_is_read_and_written_in_place(daemon: "Daemon") -> None:
    copies = Copies(daemon)
    with Client(daemon.socket) as client, client.lease("large", rows=16) as slot:
        slot.inputs["x"][:] = 5
        slot.infer()
    nbytes = 16 * ROW_BYTES
    assert copies.after(16) == {"arena_bytes": nbytes, "viewed_bytes": nbytes, "written_bytes": nbytes}


def test_inline_requests_that_come_one_after_the_other_are_one_view(daemon: "Daemon", connect: "Connect") -> None:
    raw = connect()
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    raw.call("echo", x)
    batches = daemon.counter("echo", "batches")
    copies = Copies(daemon, "echo")
    raw.send(*(raw.request("echo", x) for _ in range(20)))
    for _ in range(20):
        raw.receive().result()
    assert copies.after(20) == dict.fromkeys(
        ("inline_bytes", "viewed_bytes", "written_bytes", "replied_bytes"), 20 * 16
    )
    assert daemon.counter("echo", "batches") - batches < 20, "some of them ran together"


def test_rows_of_several_slots_are_gathered_once(daemon: "Daemon", connect: "Connect") -> None:
    raw = connect()
    arena = raw.attach(1024 * 1024)
    opened = raw.open("echo")
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    copies = Copies(daemon, "echo")
    frames = []
    for number in range(20):
        arena.write(number * 256, x)
        source = raw.placed(0, x, arena.number, number * 256)
        frames.append(raw.infer(opened.handle, [source], outputs=[raw.place(0, 16, arena.number, number * 256 + 128)]))
    raw.send(*frames)
    for _ in range(20):
        raw.receive().result()
    counted = copies.after(20)
    assert counted.pop("viewed_bytes", 0) + counted.pop("gathered_bytes") == 20 * 16
    assert counted == {"arena_bytes": 20 * 16, "written_bytes": 20 * 16}
