"""Models that fail: only the requests at fault get an error, and those beside them in the batch their answers."""

from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tensord.ipc.errors import BadModelOutput, ModelFailed, PoisonousRequest

if TYPE_CHECKING:
    from tests.process.conftest import Array, Connect, Daemon, RawClient, Received, StartBystander, StartDaemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


def rows(*numbers: float) -> "Array":
    """One row of four equal numbers for each."""
    return np.repeat(np.array(numbers, np.float32)[:, None], 4, 1)


def in_one_batch(
    daemon: "Daemon", clients: "list[RawClient]", model: str, inputs: "list[Array]", gate: int
) -> "list[Received]":
    """Have requests of several clients, one each, run as one batch; what each is answered."""
    holder, *others = clients
    rows_together = sum(len(each) for each in inputs)
    with daemon.knobs(**{f"{model}__max_batch": rows_together, f"{model}__window_us": 10_000_000}):
        holder.send(holder.request("gate", np.array([gate]), request_id=1))
        daemon.wait_entered(gate)
        for client, tensor in zip(others, inputs, strict=True):
            client.send(client.request(model, tensor))
            client.ping()
        daemon.open_gate(gate)
        assert holder.receive().request_id == 1
        return [client.receive() for client in others]


def test_raising_model_fails_only_the_marked_request(
    unharmed: "Daemon", connect: "Connect", gates: "count[int]"
) -> None:
    clients = [connect() for _ in range(5)]
    inputs = [rows(1), rows(2, -1), rows(3, 4, 5), rows(6)]
    for client in clients[1:]:
        client.open("picky")
    retried = unharmed.counter("picky", "retried")
    answers = in_one_batch(unharmed, clients, "picky", inputs, next(gates))
    assert unharmed.counter("picky", "retried") == retried + 4  # they were one batch, and ran again, each alone
    for place, (answer, tensor) in enumerate(zip(answers, inputs, strict=True)):
        if place == 1:
            error = answer.error()
            assert isinstance(error, ModelFailed)
            assert error.model == "picky"
            assert error.reason == "ValueError: a marked row"
        else:
            assert answer.result()[0].batch_rows == len(tensor)
            assert answer.payload == tensor.tobytes()
    for client in clients[1:]:
        np.testing.assert_array_equal(client.call("picky", rows(9))[0], rows(9))


@pytest.mark.parametrize(
    ("marker", "got"),
    [
        (1, "float32 (2, 1)"),
        (2, "float64 (2, 4)"),
        (3, "one of 2"),
        (4, "of type str"),
        (5, "float32 (4, 4)"),
        (6, "missing"),
    ],
)
def test_wrong_output_is_the_models_fault(unharmed: "Daemon", connect: "Connect", marker: int, got: str) -> None:
    client = connect()
    error = client.ask(client.request("wrong", rows(marker, 0))).error()
    assert isinstance(error, BadModelOutput)
    assert (error.model, error.tensor, error.got) == ("wrong", "y", got)
    np.testing.assert_array_equal(client.call("wrong", rows(0, 1))[0], rows(0, 1))


def test_wrong_output_fails_only_its_own_request(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    clients = [connect() for _ in range(3)]
    for client in clients[1:]:
        client.open("wrong")
    answers = in_one_batch(unharmed, clients, "wrong", [rows(2), rows(0)], next(gates))
    assert isinstance(answers[0].error(), BadModelOutput)
    assert answers[1].payload == rows(0).tobytes()


def test_model_that_writes_to_its_input_does_not_write_to_the_clients(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    x = rows(1, 2)
    arena = client.attach(4096)
    arena.write(0, x)
    handle = client.open("inplace").handle
    source = client.placed(0, x, arena.number, 0)
    assert client.ask(client.infer(handle, [source])).payload == (2 * x).tobytes()
    answer = client.ask(client.infer(handle, [source], outputs=[client.place(0, x.nbytes, arena.number, 2048)]))
    answer.result()
    np.testing.assert_array_equal(arena.read(0, x), x)
    np.testing.assert_array_equal(arena.read(2048, x), 2 * x)


def test_any_byte_but_0_is_true(unharmed: "Daemon", connect: "Connect") -> None:
    """A model sees a bool as 0 or 1 whatever byte its client wrote."""
    client = connect()
    bytes_ = np.array([[0, 1, 2, 127, 128, 254, 255, 0], [255] * 8], np.uint8)
    arena = client.attach(4096)
    arena.write(0, bytes_)
    truths = bytes_.view(np.bool_)
    for model, expected in (("counts", np.array([6, 8])), ("same-bool-0", (bytes_.ravel() != 0))):
        opened = client.open(model)
        tensor = truths if model == "counts" else truths.reshape(-1)
        client.send(
            client.infer(opened.handle, [client.inline(0, tensor)], bytes_.tobytes()),
            client.infer(opened.handle, [client.placed(0, tensor, arena.number, 0)]),
        )
        for _ in range(2):
            assert client.outputs()[0].tobytes() == expected.tobytes()


def test_request_that_kills_its_worker_is_convicted_and_the_others_are_answered(
    own_daemon: "StartDaemon", start_bystander: "StartBystander", connect: "Connect", gates: "count[int]"
) -> None:
    daemon = own_daemon("backoff_max_s = 1")
    start_bystander(daemon)
    supervisor, frontend, worker = daemon.pids
    clients = [connect(daemon) for _ in range(4)]
    for client in clients[1:]:
        client.open("deadly")
    answers = in_one_batch(daemon, clients, "deadly", [rows(1), rows(666), rows(2, 3)], next(gates))
    assert [answers[0].payload, answers[2].payload] == [rows(1).tobytes(), rows(2, 3).tobytes()]
    error = answers[1].error()
    assert isinstance(error, PoisonousRequest)
    assert error.data() == {"model": "deadly", "attempts": 2}
    daemon.wait_status(lambda now: now.state == "ready")
    assert daemon.pids[:2] == (supervisor, frontend)
    assert daemon.pids[2] != worker
    assert daemon.status().workers[0].restarts == 2
    for client in clients[1:]:
        np.testing.assert_array_equal(client.call("deadly", rows(9))[0], rows(9))
