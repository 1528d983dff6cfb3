"""How an instance ends: drained, at once, or killed; in each case nothing is left and a new one can start."""

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tensord import Client
from tensord.daemon.exits import Exit
from tensord.ipc.errors import ConnectionLost, DaemonNotFound, ShuttingDown

if TYPE_CHECKING:
    from itertools import count

    from tests.process.operation.conftest import Connect, Instance, Site

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def served(site: "Site") -> "Site":
    """A place with the models `echo` and `gate`."""
    site.models.add("echo")
    site.models.add("gate", "gate", ("int64", ()), knobs="max_batch = 1")
    site.write_config()
    return site


def test_second_daemon_is_refused_and_sigterm_drains_the_first(
    served: "Site", connect_raw: "Connect", gates: "count[int]"
) -> None:
    instance = served.serve().wait_ready()
    second = served.serve()
    assert second.wait_end() == Exit.RUNNING
    assert f"another tensord (pid {instance.pid}) runs in {served.runtime_dir}: stop it" in second.last_line()
    assert instance.sockets() == ["control.sock", "lock", "tensord.sock"]

    numbers = [next(gates) for _ in range(4)]  # one at work, one behind it, two in the queue
    client, late = connect_raw(instance, "gate"), connect_raw(instance, "echo")
    client.send({number: np.array([number]) for number in numbers})
    served.models.wait_entered(numbers[0])
    instance.signal(signal.SIGTERM)
    instance.wait_status(lambda now: now.state == "draining")
    late.send({7: X})
    request_id, refused = late.receive()
    assert (request_id, type(refused)) == (7, ShuttingDown)
    newcomer = Client(instance.socket, reconnect_timeout=0.05)
    with newcomer, pytest.raises(ShuttingDown):
        newcomer.infer("echo", X)
    assert instance.process.poll() is None
    for number in numbers:
        served.models.open_gate(number)
    expected = {number: np.array([number]).tobytes() for number in numbers}
    assert dict(client.receive() for _ in numbers) == expected
    assert client.expect_end() == []
    assert instance.wait_end() == Exit.OK
    assert instance.sockets() == []


def test_drain_ends_when_its_time_is_over(served: "Site", gates: "count[int]") -> None:
    served.write_config("drain_timeout_s = 0")
    instance = served.serve().wait_ready()
    number = next(gates)
    with Client(instance.socket, reconnect_timeout=0.05) as client:
        future = client.submit("gate", np.array([number]))
        served.models.wait_entered(number)
        instance.signal(signal.SIGTERM)
        with pytest.raises((ConnectionLost, DaemonNotFound, ShuttingDown)):
            future.result(30)
        served.models.open_gate(number)
    assert instance.wait_end() == Exit.OK
    assert instance.sockets() == []


def test_children_end_with_a_killed_supervisor_and_stale_sockets_are_replaced(
    served: "Site", gates: "count[int]"
) -> None:
    first = served.serve().wait_ready()
    number = next(gates)
    with Client(first.socket) as client:
        client.infer("echo", X)
        future = client.submit("gate", np.array([number]))  # a worker that is busy must not live on
        served.models.wait_entered(number)
        first.signal(signal.SIGKILL)
        first.wait_end()
        assert first.sockets() == ["control.sock", "lock", "tensord.sock"]
        served.models.open_gate(number)
        second = served.serve().wait_ready()
        with contextlib.suppress(ConnectionLost, DaemonNotFound):  # the client waited one second for a daemon
            assert future.result(30) == [number]
        np.testing.assert_array_equal(client.infer("echo", X), X)
        client.infer("echo", np.ones((32, 4), np.float32))
        os.kill(second.frontend_pid(), signal.SIGSTOP)  # kill -9 of all, one of them even stopped
        for pid in [second.pid, *second.children()]:
            os.kill(pid, signal.SIGKILL)
    second.wait_end()
    stop_at_once(served, served.serve().wait_ready(), next(gates))


def stop_at_once(served: "Site", instance: "Instance", number: int) -> None:
    """It serves; the first signal has it wait for a request in flight, the second one does not."""
    with Client(instance.socket, reconnect_timeout=0.05) as client:
        np.testing.assert_array_equal(client.infer("echo", X), X)
        future = client.submit("gate", np.array([number]))
        served.models.wait_entered(number)
        instance.signal(signal.SIGINT)
        instance.wait_status(lambda now: now.state == "draining")
        instance.signal(signal.SIGINT)
        assert instance.wait_end() == Exit.OK
        assert instance.sockets() == []
        with pytest.raises((ConnectionLost, DaemonNotFound, ShuttingDown)):
            future.result(30)


def test_of_two_that_start_together_one_starts_and_a_signal_ends_it(served: "Site") -> None:
    both = [served.serve(), served.serve()]
    both[0].wait_until(lambda: any(each.process.poll() is not None for each in both))
    (winner,) = [each for each in both if each.process.poll() is None]
    (loser,) = [each for each in both if each is not winner]
    assert loser.wait_end() == Exit.RUNNING
    winner.wait_status(lambda now: now.state == "starting")
    winner.signal(signal.SIGTERM)
    assert winner.wait_end() == Exit.OK
    assert winner.sockets() == []
