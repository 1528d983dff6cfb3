"""The blocking client against a daemon that behaves."""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tensord import Client
from tensord.ipc.errors import (
    BadRequest,
    ClientClosed,
    DaemonNotFound,
    TooManyRows,
    UnknownModel,
    WrongDType,
    WrongShape,
    WrongTensors,
)
from tensord.ipc.tensors import DType
from tensord.ipc.wire import FrameType, Welcome

from .fake_daemon import FakeDaemon, Infer, one_to_one

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "s")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.path, tenant="tests") as made:
        yield made


def test_the_output_of_a_model_with_one_is_an_array(client: Client) -> None:
    y = client.infer("double", X)
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.float32
    assert y.tolist() == (X * 2).tolist()


def test_several_inputs_and_outputs_go_by_name(client: Client) -> None:
    a = np.array([[5, 6]], dtype=np.int32)
    b = np.array([[1, 2]], dtype=np.int32)
    outputs = client.infer("pair", {"b": b, "a": a})
    assert list(outputs) == ["sum", "difference"]
    assert outputs["sum"].tolist() == [[6, 8]]
    assert outputs["difference"].tolist() == [[4, 4]]


def test_bfloat16_bool_and_row_shapes_without_dimensions_travel(client: Client) -> None:
    half = client.infer("half", np.full((3, 4), 1.5, dtype=ml_dtypes.bfloat16))
    assert half.dtype == ml_dtypes.bfloat16
    assert half.astype(np.float32).tolist() == [[3.0] * 4] * 3
    assert client.infer("flags", np.array([[True, False]])).tolist() == [[False, True]]
    assert client.infer("scalar", np.array([41, 1], dtype=np.int64)).tolist() == [42, 2]


def test_a_list_takes_the_type_of_the_input(client: Client) -> None:
    assert client.infer("double", [[1, 2, 3, 4]]).tolist() == [[2, 4, 6, 8]]


def test_it_connects_on_first_use_only(daemon: FakeDaemon, tmp_path: Path) -> None:
    with Client(tmp_path / "nobody"):
        pass
    with Client(daemon.path):
        assert daemon.connections == []


def test_the_tenant_is_told(client: Client, daemon: FakeDaemon) -> None:
    client.ping()
    assert daemon.connections[0].tenant == "tests"


def test_models_lists_what_is_served(client: Client, daemon: FakeDaemon) -> None:
    assert [entry.name for entry in client.models()] == list(daemon.models)


def test_model_describes_inputs_and_outputs_by_name(client: Client) -> None:
    model = client.model("pair")
    assert model.inputs["a"].shape == (2,)
    assert list(model.outputs) == ["sum", "difference"]
    assert model.rows_max == 16
    assert str(model).startswith("pair:1(a: int32 (rows, 2), b: int32 (rows, 2)) -> (sum:")


def test_a_model_is_opened_once(client: Client, daemon: FakeDaemon) -> None:
    for _ in range(3):
        client.infer("double", X)
    assert len(daemon.seen(FrameType.OPEN)) == 1


def test_ping_returns_seconds(client: Client) -> None:
    assert 0 < client.ping() < 60


@pytest.mark.parametrize(
    ("model", "inputs", "error"),
    [
        ("nothing", X, UnknownModel),
        ("double", X.astype(np.float64), WrongDType),
        ("double", X[:, :3], WrongShape),
        ("double", X[0], WrongShape),
        ("double", X[:0], WrongShape),
        ("double", np.zeros((1_025, 4), np.float32), TooManyRows),
        ("double", {"z": X}, WrongTensors),
        ("pair", X, WrongTensors),
        ("double", "text", BadRequest),
    ],
)
def test_a_wrong_request_is_refused_here(
    client: Client, daemon: FakeDaemon, model: str, inputs: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        client.infer(model, inputs)
    assert daemon.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": 0},
        {"timeout": -1.0},
        {"timeout": 1.1e6},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
        {"priority": "urgent"},
        {"priority": 3},
        {"priority": -1},
        {"session": 0},
        {"session": 2**64},
    ],
)
def test_a_wrong_argument_is_named(client: Client, arguments: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match=next(iter(arguments))):
        client.infer("double", X, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("priority", "number"), [("high", 0), ("normal", 1), ("low", 2), (2, 2)])
def test_the_priority_is_told(client: Client, daemon: FakeDaemon, priority: str | int, number: int) -> None:
    client.infer("double", X, priority=priority)
    assert daemon.requests[0].head.priority == number


def test_the_longest_timeout_works(client: Client) -> None:
    assert client.infer("double", X, timeout=1e6).tolist() == (X * 2).tolist()
    assert client.submit("double", X, timeout=1e6).result().tolist() == (X * 2).tolist()


def test_sessions_are_keys_that_depend_on_the_text_only(client: Client, daemon: FakeDaemon) -> None:
    for session in (None, 7, "anna", b"anna", "otto"):
        client.infer("double", X, session=session)
    none, seven, anna, same, otto = (infer.head.session for infer in daemon.requests)
    assert (none, seven) == (0, 7)
    assert anna == same == 0x8C4A844BCC7444D0
    assert otto not in (0, anna)


def test_threads_share_a_connection_and_each_gets_its_own_answers(client: Client, daemon: FakeDaemon) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(200):
            x = random.random((int(random.integers(1, 9)), 4), dtype=np.float32)
            y = client.infer("double", x)
            if y.tobytes() != (x * 2).tobytes():
                wrong.append((x, y))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(daemon.requests) == 1_600
    assert len(daemon.connections) == 1
    assert client.statistics().answers == 1_600


def test_large_and_small_tensors_of_many_threads_do_not_mix(client: Client) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for turn in range(12):
            model, row = (("image", (3, 64, 64)), ("double", (4,)))[turn % 2]
            x = random.random((int(random.integers(1, 20)), *row), dtype=np.float32)
            y = client.infer(model, x)
            if not np.array_equal(y, x * 2 if model == "double" else x + 1):
                wrong.append(model)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert client.statistics().slots_leased == 0


def test_replies_may_come_in_any_order(client: Client, daemon: FakeDaemon) -> None:
    held: list[Infer] = []

    def hold_three(infer: Infer) -> None:
        held.append(infer)
        if len(held) == 3:
            for one in reversed(held):
                one.answer()

    daemon.on_infer = hold_three
    futures = [client.submit("double", X + step) for step in range(3)]
    assert [future.result().tolist() for future in futures] == [(2 * (X + step)).tolist() for step in range(3)]


def test_a_full_socket_does_not_block_both_ends(tmp_path: Path) -> None:
    """The daemon writes each answer before it reads on; a client that only writes would wait for ever."""
    wide = one_to_one("wide", DType.UINT8, (200_000,), lambda x: x)
    daemon = FakeDaemon(tmp_path / "s", {"wide": wide})
    daemon.start()
    try:
        with Client(daemon.path) as client:
            x = np.arange(200_000, dtype=np.uint8)[None]
            futures = [client.submit("wide", x) for _ in range(100)]
            assert all(np.array_equal(future.result(), x) for future in futures)
    finally:
        daemon.stop()


def test_no_more_requests_are_in_flight_than_the_daemon_takes(client: Client, daemon: FakeDaemon) -> None:
    daemon.welcome = Welcome(1, 42, 4, 1 << 20, 1 << 26)
    held: list[Infer] = []
    most = 0

    def answer_when_full(infer: Infer) -> None:
        nonlocal most
        held.append(infer)
        most = max(most, len(held))
        if len(held) == 4:
            while held:
                held.pop().answer()

    daemon.on_infer = answer_when_full
    futures = [client.submit("double", X + step) for step in range(20)]
    assert [future.result()[0, 0] for future in futures] == [2 * step for step in range(20)]
    assert most == 4


def test_threads_together_keep_to_what_the_daemon_takes(client: Client, daemon: FakeDaemon) -> None:
    daemon.welcome = Welcome(1, 42, 2, 1 << 20, 1 << 26)
    arrived: queue.SimpleQueue[Infer | None] = queue.SimpleQueue()
    counts: list[int] = []
    daemon.on_infer = lambda infer: arrived.put(infer)

    def answer() -> None:
        while infer := arrived.get():
            counts.append(1 + arrived.qsize())
            infer.answer()

    def ask() -> None:
        for step in range(50):
            assert client.infer("double", X + step)[0, 0] == 2 * step

    answering = threading.Thread(target=answer)
    answering.start()
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arrived.put(None)
    answering.join()
    assert max(counts) <= 2
    assert client.statistics().answers == 400


def test_statistics_count_requests_answers_errors_and_lanes(client: Client) -> None:
    client.infer("double", X)
    client.infer("image", np.zeros((8, 3, 64, 64), np.float32))
    with pytest.raises(WrongShape):
        client.infer("double", X[0])
    statistics = client.statistics()
    assert (statistics.requests, statistics.answers, statistics.errors) == (3, 2, 1)
    assert (statistics.inline_requests, statistics.inline_bytes) == (1, 2 * X.nbytes)
    assert (statistics.arena_requests, statistics.arena_bytes) == (1, 2 * 8 * 3 * 64 * 64 * 4)
    assert statistics.reconnects == 0
    assert statistics.in_flight == 0


def test_a_closed_client_says_so(daemon: FakeDaemon) -> None:
    client = Client(daemon.path)
    client.infer("double", X)
    client.close()
    client.close()
    with pytest.raises(ClientClosed):
        client.infer("double", X)
    with pytest.raises(ClientClosed):
        client.ping()
    daemon.wait_seen(FrameType.CLOSE)


def test_closing_ends_what_is_in_flight(daemon: FakeDaemon) -> None:
    daemon.on_infer = lambda infer: None
    client = Client(daemon.path)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            client.infer("double", X)
        except ClientClosed as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    daemon.wait_seen(FrameType.INFER)
    future = client.submit("double", X)
    client.close()
    thread.join()
    assert len(errors) == 1
    assert isinstance(future.exception(), ClientClosed)


def test_where_no_daemon_is_the_error_names_the_path(tmp_path: Path) -> None:
    with Client(tmp_path / "nobody") as client, pytest.raises(DaemonNotFound, match="nobody"):
        client.infer("double", X)


def test_a_socket_that_nobody_listens_on_is_a_daemon_not_found(daemon: FakeDaemon) -> None:
    daemon.stop()
    with Client(daemon.path) as client, pytest.raises(DaemonNotFound, match="connection refused"):
        client.ping()


def test_a_forked_child_connects_on_its_own(client: Client, daemon: FakeDaemon) -> None:
    assert client.infer("double", X).tolist() == (X * 2).tolist()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = 0 if client.infer("double", X + 1).tolist() == (X * 2 + 2).tolist() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.infer("double", X).tolist() == (X * 2).tolist()
    assert len(daemon.connections) == 2
    assert client.statistics().reconnects == 0


def test_importing_the_client_does_not_import_torch() -> None:
    code = "import sys, tensord; tensord.Client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_no_model_can_have_does_not_reach_the_daemon(client: Client, daemon: FakeDaemon) -> None:
    with pytest.raises(BadRequest, match="a name of 5000 bytes"):
        client.model("x" * 5000)
    assert client.ping() > 0
    assert daemon.seen(FrameType.OPEN) == []
