"""The response cache of a real daemon, and its second tier: a real server, which hangs and dies."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest

from tensord.ipc.errors import DeadlineExceeded, ModelFailed
from tensord.ipc.wire import FrameType, frame

from .redis_server import WATCHDOG_S, RedisServer, until

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon, RawClient, StartDaemon

pytestmark = pytest.mark.process

CACHED: Final = 'cache_bytes = "1MiB"'
TIMEOUT_MS: Final = 100
"""The second tier's, here."""


@pytest.fixture(scope="module")
def caching(daemon: "Daemon", tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Daemon]":
    """A daemon that keeps the answers of all models; each test asks what no other has asked."""
    with contextlib.ExitStack() as stack:
        running = type(daemon)(tmp_path_factory.mktemp("caching"), CACHED)
        stack.callback(running.stop)
        yield running.wait_ready()


_numbers = itertools.count(1)


def unheard() -> Any:
    """A row for `echo` that nobody has sent yet."""
    return echo(next(_numbers))


@contextlib.contextmanager
def counted(daemon: "Daemon", model: str, **expected: int) -> Iterator[None]:
    """What happens inside counts so many more; an answer is counted when it has been sent."""
    before = {name: daemon.counter(model, name) for name in expected}

    def more() -> dict[str, int]:
        return {name: daemon.counter(model, name) - before[name] for name in expected}

    yield
    with contextlib.suppress(AssertionError):
        until(lambda: more() == expected, 2.0)
    assert more() == expected


def echo(number: float) -> Any:
    return np.full((1, 4), number, np.float32)


def gate(number: int) -> Any:
    return np.array([number], np.int64)


# ── the memory tier ─────────────────────────────────────────────────────────────────────────────


def test_the_second_of_two_identical_requests_is_answered_without_a_worker(
    caching: "Daemon", connect: "Connect"
) -> None:
    client, x = connect(caching), unheard()
    saved_ns = caching.counter("echo", "cache_saved_ns")
    first, _ = client.ask(client.request("echo", x)).result()
    wanted = {"cache_hits": 1, "cache_misses": 0, "batches": 0, "requests": 1, "succeeded": 1, "cache_hashed_bytes": 16}
    with counted(caching, "echo", **wanted):
        answer = client.ask(client.request("echo", x))
    head, (tensor,) = answer.result()
    assert answer.payload == x.tobytes()
    assert (first.version, first.batch_rows) == (1, 1)
    assert (head.version, head.batch_rows, head.queue_us, head.compute_us) == (1, 0, 0, 0)
    assert (tensor.shape, tensor.nbytes) == ((1, 4), 16)
    assert caching.counter("echo", "cache_saved_ns") > saved_ns


def test_other_bytes_another_number_of_rows_and_another_tenant_are_misses(
    caching: "Daemon", connect: "Connect"
) -> None:
    client, other, x = connect(caching), connect(caching, tenant="other"), unheard()
    with counted(caching, "echo", cache_hits=0, cache_misses=4):
        for each in (x, unheard(), np.repeat(x, 2, axis=0)):
            np.testing.assert_array_equal(client.call("echo", each)[0], each)
        other.call("echo", x)
    with caching.knobs(cache_shared=True), counted(caching, "echo", cache_hits=1, cache_misses=1):
        client.call("echo", x)
        other.call("echo", x)


def test_requests_in_arenas_and_large_ones_are_never_kept(caching: "Daemon", connect: "Connect") -> None:
    client, x = connect(caching), unheard()
    arena = client.attach(4096)
    arena.write(0, x)
    with counted(caching, "echo", cache_hits=0, cache_misses=0, cache_hashed_bytes=0, batches=2):
        for _ in range(2):
            placed = client.placed(0, x, arena.number, 0)
            client.ask(client.infer(client.open("echo").handle, [placed])).result()
    large = np.zeros((1, 64 * 1024), np.uint8)
    with counted(caching, "large", cache_hits=0, cache_misses=0, cache_hashed_bytes=0, batches=2):
        for _ in range(2):
            client.call("large", large)


def test_nothing_is_kept_or_hashed_where_the_cache_is_off(daemon: "Daemon", connect: "Connect") -> None:
    client, x = connect(), unheard()
    with counted(daemon, "echo", cache_hits=0, cache_misses=0, cache_hashed_bytes=0, batches=2):
        for _ in range(2):
            client.call("echo", x)


def test_a_bound_of_zero_empties_the_cache_at_once(caching: "Daemon", connect: "Connect") -> None:
    client, x = connect(caching), unheard()
    client.call("echo", x)
    assert caching.counter("echo", "cache_bytes") > x.nbytes
    with caching.knobs(echo__cache_bytes=0):
        assert caching.counter("echo", "cache_bytes") == 0
        with counted(caching, "echo", cache_hits=0, cache_misses=0, batches=1):
            client.call("echo", x)
    with counted(caching, "echo", cache_hits=1, cache_misses=1):
        client.call("echo", x)
        client.call("echo", x)


def test_an_answer_has_its_time(caching: "Daemon", connect: "Connect") -> None:
    client, x = connect(caching), unheard()
    with caching.knobs(cache_ttl_s=1):
        client.call("echo", x)
        kept_s = time.monotonic()
        client.call("echo", x)
        until(lambda: time.monotonic() > kept_s + 1)
        with counted(caching, "echo", cache_hits=0, cache_misses=1, cache_evicted=1):
            client.call("echo", x)


# ── identical requests in flight ────────────────────────────────────────────────────────────────


def test_identical_requests_in_flight_run_the_model_once(
    caching: "Daemon", connect: "Connect", gates: "itertools.count[int]"
) -> None:
    clients, number = [connect(caching) for _ in range(5)], next(gates)
    with counted(caching, "gate", cache_misses=1, cache_joined=49, batches=1, succeeded=50, requests=50):
        arrived = caching.counter("gate", "requests") + 50
        for client in clients:
            client.send(*[client.request("gate", gate(number)) for _ in range(10)])
        until(lambda: caching.counter("gate", "requests") == arrived)
        caching.open_gate(number)
        for client in clients:
            for _ in range(10):
                np.testing.assert_array_equal(client.outputs()[0], gate(number))


def test_the_others_get_their_answer_when_the_first_of_them_is_killed(
    caching: "Daemon", connect: "Connect", gates: "itertools.count[int]"
) -> None:
    """Twice: one that a worker runs already, and one that still waits in the queue."""
    first, second = next(gates), next(gates)
    running, queued, waiting = connect(caching), connect(caching), connect(caching)
    arrived, computed = caching.counter("gate", "requests"), caching.counter("gate", "cache_misses")
    with caching.knobs(pipeline_depth=1), counted(caching, "gate", cancelled=2, succeeded=2, cache_joined=1):
        running.send(running.request("gate", gate(first)))
        caching.wait_entered(first)
        queued.send(queued.request("gate", gate(second)))
        until(lambda: caching.counter("gate", "requests") == arrived + 2)
        waiting.send(waiting.request("gate", gate(first)), waiting.request("gate", gate(second)))
        until(lambda: caching.counter("gate", "requests") == arrived + 4)
        running.close()
        queued.close()
        until(lambda: caching.counter("gate", "cache_misses") == computed + 3)
        for number in (first, second):
            caching.open_gate(number)
            np.testing.assert_array_equal(waiting.outputs()[0], gate(number))
        until(lambda: caching.status().frontend.running == 0)


def test_each_keeps_its_own_deadline_and_may_leave(
    caching: "Daemon", connect: "Connect", gates: "itertools.count[int]"
) -> None:
    client, number = connect(caching), next(gates)
    with counted(caching, "gate", expired=1, cancelled=1, succeeded=1, batches=1):
        client.send(client.request("gate", gate(number), request_id=1001))
        caching.wait_entered(number)
        deadline_ns = time.monotonic_ns() + 50_000_000
        expired = client.ask(client.request("gate", gate(number), request_id=1002, deadline_ns=deadline_ns))
        assert (expired.request_id, type(expired.error())) == (1002, DeadlineExceeded)
        assert time.monotonic_ns() >= deadline_ns
        unwanted = client.request("gate", gate(number), request_id=1003)
        assert client.ask(unwanted, frame(FrameType.CANCEL, 1003)).request_id == 1003
        caching.open_gate(number)
        answer = client.receive()
        answer.result()
        assert answer.request_id == 1001
        client.ping()


def test_an_error_of_the_model_is_everybodys_and_not_kept(caching: "Daemon", connect: "Connect") -> None:
    client = connect(caching)
    with counted(caching, "picky", cache_hits=0, failed_model=20, requests=20):
        client.send(*[client.request("picky", echo(-1)) for _ in range(20)])
        assert {type(client.receive().error()) for _ in range(20)} == {ModelFailed}


def test_waiting_requests_are_answered_before_the_daemon_stops(own_daemon: "StartDaemon", connect: "Connect") -> None:
    daemon = own_daemon(CACHED)
    client = connect(daemon)
    client.send(*[client.request("gate", gate(1)) for _ in range(3)])
    daemon.wait_entered(1)
    until(lambda: daemon.counter("gate", "requests") == 3)
    os.kill(daemon.status().pid, signal.SIGTERM)
    daemon.wait_status(lambda now: now.state == "draining")
    daemon.open_gate(1)
    answers = [each for each in client.expect_end() if each.frame_type == FrameType.RESULT]
    assert len(answers) == 3


# ── the second tier ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


def with_redis(redis: RedisServer) -> str:
    """Lines below [knobs]; every daemon with them shares its answers with the others."""
    return (
        f"{CACHED}\nredis_timeout_ms = {TIMEOUT_MS}\n"
        f'[cache]\nredis = "{redis.socket}"\nkey_file = "{redis.directory / "key"}"\n'
    )


@pytest.fixture
def start_second(tmp_path: Path) -> Iterator["Callable[[type[Daemon], str], Daemon]"]:
    """Starts another daemon with the same models, as after a restart."""
    with contextlib.ExitStack() as stack:

        def start(kind: "type[Daemon]", knobs: str) -> "Daemon":
            running = kind(tmp_path / "second", knobs)
            stack.callback(running.stop)
            return running.wait_ready()

        yield start


def test_the_next_daemon_finds_the_answers_of_the_last_one(
    redis: RedisServer, own_daemon: "StartDaemon", start_second: Any, connect: "Connect"
) -> None:
    first = own_daemon(with_redis(redis))
    connect(first).call("echo", echo(1))
    until(lambda: redis.size == 1)
    assert (redis.directory / "key").stat().st_mode & 0o777 == 0o600
    second = start_second(type(first), with_redis(redis))
    client = connect(second)
    with counted(second, "echo", cache_redis_hits=1, cache_hits=1, cache_misses=0, batches=0, cache_redis_failed=0):
        for _ in range(2):
            np.testing.assert_array_equal(client.call("echo", echo(1))[0], echo(1))


def test_values_that_somebody_else_wrote_are_no_answers(
    redis: RedisServer, own_daemon: "StartDaemon", connect: "Connect"
) -> None:
    daemon = own_daemon(with_redis(redis))
    client = connect(daemon)
    client.call("echo", echo(1))
    until(lambda: redis.size == 1)
    key = redis.command(b"KEYS", b"*").partition(b"\r\n")[2].partition(b"\r\n")[2][:-2]
    value = redis.command(b"GET", key).partition(b"\r\n")[2][:-2]
    for forged in (value[:-1] + bytes([value[-1] ^ 1]), value[:-1], b"", b"\1", b"x" * 1_000_000):
        assert redis.command(b"SET", key, forged) == b"+OK\r\n"
        with daemon.knobs(echo__cache_bytes=0):
            pass  # only the second tier knows it now
        with counted(daemon, "echo", cache_redis_hits=0, cache_misses=1, batches=1, succeeded=1):
            np.testing.assert_array_equal(client.call("echo", echo(1))[0], echo(1))
        until(lambda: redis.command(b"STRLEN", key) == b":%d\r\n" % len(value))


def latencies(client: "RawClient", numbers: Iterator[int], count: int) -> list[float]:
    """Milliseconds of requests that nobody has sent before; each is answered rightly."""
    took = []
    for _ in range(count):
        x = echo(next(numbers))
        started_s = time.monotonic()
        np.testing.assert_array_equal(client.call("echo", x)[0], x)
        took.append(1000 * (time.monotonic() - started_s))
    return took


def test_a_server_that_hangs_or_dies_costs_one_timeout_and_no_request(
    redis: RedisServer, own_daemon: "StartDaemon", connect: "Connect"
) -> None:
    daemon = own_daemon(with_redis(redis))
    clients = [connect(daemon) for _ in range(3)]
    over = threading.Event()
    failures: list[BaseException] = []
    took: list[list[float]] = [[], [], []]

    def load(place: int) -> None:
        mine = iter(range(10**6 * (place + 1), 10**6 * (place + 2)))
        try:
            while not over.is_set():
                took[place] += latencies(clients[place], mine, 10)
        except BaseException as failure:
            failures.append(failure)

    def answered(count: int) -> None:
        before = sum(map(len, took))
        until(lambda: sum(map(len, took)) >= before + count or bool(failures))

    threads = [threading.Thread(target=load, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    try:
        answered(500)
        normal, failed = max(itertools.chain(*took)), daemon.counter("echo", "cache_redis_failed")
        redis.signal(signal.SIGSTOP)
        answered(1000)
        redis.signal(signal.SIGCONT)
        failed = daemon.counter("echo", "cache_redis_failed") - failed
        assert failed <= len(clients), "those that were under way, and not every request"
        redis.kill()
        answered(1000)
        daemon.wait_status(lambda now: now.frontend.notes == ["the cache's second tier does not answer"])
        redis.start_again()
        until(lambda: redis.size > 0)
    finally:
        over.set()
        for thread in threads:
            thread.join(WATCHDOG_S)
    assert failures == []
    everything = sorted(itertools.chain(*took))
    p99 = everything[len(everything) * 99 // 100]
    assert p99 <= TIMEOUT_MS + normal, (p99, normal)
    until(lambda: daemon.counter("echo", "succeeded") == daemon.counter("echo", "requests"))
    daemon.wait_status(lambda now: now.frontend.notes == [])
    assert "second tier answers again" in daemon.log.read_text()
