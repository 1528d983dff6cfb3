"""What a dead front end or worker left in rings, slots and arenas reaches nobody, and nothing of it is kept."""

import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tensord import Client
from tensord.ipc.errors import ConnectionLost

if TYPE_CHECKING:
    from itertools import count

    from tests.process.operation.conftest import Connect, Instance, Site

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


def kill_front_end(instance: "Instance") -> None:
    """And wait for its successor."""
    generation = instance.status().frontend.generation
    os.kill(instance.frontend_pid(), signal.SIGKILL)
    instance.wait_status(lambda now: now.frontend.generation > generation and "front end" not in str(now.reasons))


def test_batches_of_a_dead_front_end_are_answered_to_nobody(
    sturdy: "Instance", sturdy_site: "Site", connect_raw: "Connect", gates: "count[int]"
) -> None:
    old_numbers = [next(gates) for _ in range(6)]
    old = connect_raw(sturdy, "gate")
    old.send({100 + number: np.array([number]) for number in old_numbers})
    for number in old_numbers[:2]:  # one in each worker, one behind each in its ring, two in the queue
        sturdy_site.models.wait_entered(number)
    kill_front_end(sturdy)
    assert old.expect_end() == []

    # The same request ids, other models, and rows that lie where those of the old generation lay.
    new = [connect_raw(sturdy, "identity") for _ in range(3)]
    generator = np.random.default_rng(3)
    rows = {100 + number: generator.standard_normal((2, 1024), np.float32) for number in old_numbers}
    for client in new:
        client.send(rows)
    for number in old_numbers:
        sturdy_site.models.open_gate(number)
    for client in new:
        answers = dict(client.receive() for _ in rows)
        assert answers == {request_id: x.tobytes() for request_id, x in rows.items()}
        assert set(client.finals.values()) == {1}
    late = connect_raw(sturdy, "gate")
    late.send({100 + number: np.array([0]) for number in old_numbers})
    assert dict(late.receive() for _ in old_numbers) == {100 + number: bytes(8) for number in old_numbers}
    # What lay in a ring may have run, for nobody; what waited in the queue died with it.
    assert not any((sturdy_site.models.gates / f"{number}.entered").exists() for number in old_numbers[4:])


def test_requests_in_arenas_of_a_dead_front_end_are_left_alone(
    sturdy: "Instance", sturdy_site: "Site", gates: "count[int]"
) -> None:
    number = next(gates)
    with Client(sturdy.socket) as client:
        slot = client.lease("gate", 1)
        slot.input[:] = number
        future = slot.submit()
        sturdy_site.models.wait_entered(number)
        kill_front_end(sturdy)
        with pytest.raises(ConnectionLost, match="lease again"):
            future.result(30)
        slot.release()
        with client.lease("gate", 1) as other:
            other.input[:] = 0
            second = other.submit()
            sturdy_site.models.open_gate(number)
            assert second.result(30) == [0]
        assert client.statistics().unknown_replies == 0


def test_worker_that_is_killed_leaves_nothing_for_its_successor(
    sturdy: "Instance", sturdy_site: "Site", connect_raw: "Connect", gates: "count[int]"
) -> None:
    numbers = [next(gates) for _ in range(4)]
    client = connect_raw(sturdy, "gate")
    client.send({number: np.array([number]) for number in numbers})
    for number in numbers[:2]:
        sturdy_site.models.wait_entered(number)
    for worker in sturdy.status().workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    for number in numbers:
        sturdy_site.models.open_gate(number)
    expected = {number: np.array([number]).tobytes() for number in numbers}
    assert dict(client.receive() for _ in numbers) == expected
    assert client.finals == Counter(numbers)


# ── nothing is kept ─────────────────────────────────────────────────────────────────────────────


def held(pid: int) -> tuple[int, int, int]:
    """What a process holds: descriptors, mapped segments, mapped client arenas."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    segments = len(re.findall(r"/dev/shm/tensord-\S+", maps))
    return len(os.listdir(f"/proc/{pid}/fd")), segments, maps.count("/memfd:")


def test_generations_leave_no_descriptor_and_no_mapping_behind(sturdy: "Instance") -> None:
    def all_held() -> list[tuple[int, int, int]]:
        now = sturdy.status()
        pids = [now.pid, *(worker.pid for worker in now.workers)]
        return [held(pid) for pid in pids if pid is not None]

    def use() -> None:
        with Client(sturdy.socket) as client:
            client.infer("identity", np.ones((100, 1024), np.float32))
            client.infer("identity", np.ones((1, 1024), np.float32))
            kill_front_end(sturdy)
            client.infer("identity", np.ones((100, 1024), np.float32))
        sturdy.wait_idle()

    use()
    before = all_held()
    assert all(segments for _, segments, _ in before)
    for _ in range(2):
        use()
    sturdy.wait_until(lambda: all_held() == before)
