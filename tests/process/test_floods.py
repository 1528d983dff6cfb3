"""A client that sends as fast as it can has its turn like everybody else, and not more of the daemon's memory."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from tensord.ipc.wire import HEADER, MAGIC, FrameType, encode_open, frame

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon, RawClient, StartBystander

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

X: Final = np.zeros((1, 4), np.float32)
FLOODS: Final[dict[str, tuple[int, Callable[["RawClient"], bytes]]]] = {
    "pings": (300_000, lambda _: frame(FrameType.PING, 5)),
    "unknown frames": (120_000, lambda _: HEADER.pack(MAGIC, 200, 0, 0, 5, 0)),
    "requests": (100_000, lambda client: client.request("echo", X)),
    "models to open": (40_000, lambda _: encode_open(5, "echo")),
    "long answers": (1_500, lambda _: encode_open(5, "labels")),
    "lists": (15_000, lambda _: frame(FrameType.LIST, 5)),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_flood_leaves_others_their_turns(
    daemon: "Daemon", connect: "Connect", start_bystander: "StartBystander", flood: str
) -> None:
    """The flood has a thousand frames in every read; answered as they come, nobody else would have 30 answers."""
    count, build = FLOODS[flood]
    client = connect()
    data = build(client) * count
    bystander = start_bystander(daemon)
    client.ping()
    before = bystander.answers
    sender = threading.Thread(target=client.send, args=(data,))
    sender.start()
    for _ in range(count):
        client.receive()
    sender.join()
    assert bystander.answers - before > 30


@pytest.mark.parametrize("question", ["labels", "LIST"])
def test_unread_long_answers_are_not_piled_up(unharmed: "Daemon", connect: "Connect", question: str) -> None:
    client = connect()
    before = unharmed.frontend_bytes()
    data = (frame(FrameType.LIST, 5) if question == "LIST" else encode_open(5, "labels")) * 4000
    sender = threading.Thread(target=client.send, args=(data,))
    sender.start()
    sender.join()  # the socket takes all of it
    connect().ping()
    unharmed.status()
    assert unharmed.frontend_bytes() - before < 16 * 2**20
    answers = [client.receive() for _ in range(4000)]
    assert len({answer.meta for answer in answers}) == 1
