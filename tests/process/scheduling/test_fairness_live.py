"""Who shares a real daemon: tenants by their names, sessions of which only the newest request counts, and the gone."""

import time
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from tensord.ipc.errors import Cancelled, Superseded
from tensord.ipc.wire import FrameType, frame

from .load import Ask, Flow, errors, nap_s, run

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon, RawClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

FULL: Final = np.zeros((8, 2), np.float32)
"""A whole batch of `nap`."""
WAITING: Final = 20
"""Whole batches that keep the worker busy for a tenth of a second."""


def occupy(client: "RawClient") -> None:
    """Whole batches: what comes now waits behind them."""
    client.send(*[client.request("nap", FULL) for _ in range(WAITING)])


def test_a_tenant_that_sends_twenty_times_as_much_gets_half(idle: "Daemon", join: "Connect") -> None:
    """Two names of one user, requests of different sizes: shares of rows, which is device time, within a tenth."""
    greedy = Flow(join("greedy"), iter(lambda: Ask(rows=5), None), depth=400)
    modest = Flow(join("modest"), iter(lambda: Ask(rows=2), None), depth=20)
    run(greedy, modest, seconds=2.0)
    from_s = max(flow.ended[0].ended_s for flow in (greedy, modest)) + 0.3
    until_s = from_s + 1.5
    rows = [sum(each.ask.rows for each in flow.ended if from_s <= each.ended_s < until_s) for flow in (greedy, modest)]
    print(rows)
    assert errors(greedy.ended + modest.ended) == {}
    assert rows[1] / sum(rows) == pytest.approx(0.5, rel=0.1)


def test_a_newer_request_of_the_session_takes_the_place_of_the_waiting_one(idle: "Daemon", join: "Connect") -> None:
    """At its place in the queue: however often it is replaced, it goes before what came after the first."""
    client, other = join(), join()
    for each in (client, other):
        each.open("nap")
    superseded = idle.counter("nap", "superseded")
    occupy(other)
    other.ping()
    for request_id in range(1, 6):
        x = np.full((1, 2), request_id, np.float32)
        client.send(client.request("nap", x, request_id=request_id, session=7, latest=True))
        if request_id == 1:
            client.ping()
            client.send(client.request("nap", FULL, request_id=9))
    answers = [client.receive() for _ in range(6)]
    assert [answer.request_id for answer in answers] == [1, 2, 3, 4, 5, 9]
    assert [type(answer.error()) for answer in answers[:4]] == [Superseded] * 4
    assert np.frombuffer(answers[4].payload, np.float32)[:2].tolist() == [5, 5]
    idle.wait_status(lambda now: [m.counters["superseded"] for m in now.models if m.name == "nap"] == [superseded + 4])


def test_what_is_cancelled_leaves_the_queue_at_once(idle: "Daemon", join: "Connect") -> None:
    client = join()
    client.open("nap")
    completed = idle.counter("nap", "succeeded")
    begun_s = time.monotonic()
    client.send(*[client.request("nap", FULL, request_id=request_id) for request_id in range(1, WAITING + 1)])
    client.send(*[frame(FrameType.CANCEL, request_id) for request_id in range(5, WAITING + 1)])
    answers = {answer.request_id: answer for answer in (client.receive() for _ in range(WAITING))}
    taken_s = time.monotonic() - begun_s
    assert answers.keys() == set(range(1, WAITING + 1))
    assert {type(answers[request_id].error()) for request_id in range(5, WAITING + 1)} == {Cancelled}
    assert {answers[request_id].frame_type for request_id in range(1, 5)} == {FrameType.RESULT}
    assert taken_s < 0.8 * WAITING * nap_s(8)
    idle.wait_status(lambda now: [m.counters["succeeded"] for m in now.models if m.name == "nap"] == [completed + 4])


def test_who_disconnects_leaves_the_queue(idle: "Daemon", join: "Connect") -> None:
    """The next waits for what is in the worker, and for nothing that the gone client had sent."""
    client, gone = join(), join()
    client.open("nap")
    cancelled = idle.counter("nap", "cancelled")
    for _ in range(3):
        occupy(gone)
    gone.close()
    idle.wait_status(lambda now: [m.counters["cancelled"] for m in now.models if m.name == "nap"] > [cancelled + 40])
    (ended,) = run(Flow(client, [Ask()]))
    assert ended.response_s < WAITING * nap_s(8)
