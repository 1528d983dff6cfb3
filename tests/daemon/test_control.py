import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tensord.daemon import control
from tensord.daemon.exits import Exit

WATCHDOG_S = 20.0

Serve = Callable[[bytes | None], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Listens, reads one line, and answers with these bytes; closes at once for None."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        threads = []

        def answer_one(answer: bytes | None) -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
                if answer is not None:
                    seen.append(lines.readline())
                    connection.sendall(answer)

        def start(answer: bytes | None) -> Path:
            listener.bind(str(path))
            listener.listen()
            threads.append(threading.Thread(target=answer_one, args=(answer,)))
            threads[-1].start()
            return path

        yield start
        for thread in threads:
            thread.join(WATCHDOG_S)
            assert not thread.is_alive()


seen: list[bytes] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


@pytest.mark.parametrize(
    "request_",
    [
        control.Status(),
        control.Get(),
        control.Get(["digits.max_batch", "window_us"]),
        control.Set({"a": 1, "b": 0.5, "c": True, "d": "5ms", "e": None}, "because", 7),
    ],
)
def test_a_request_is_one_line_and_comes_through(request_: control.Request) -> None:
    encoded = control.encode(request_)
    assert b"\n" not in encoded
    assert control.decode_request(encoded) == request_


@pytest.mark.parametrize(
    "answer",
    [
        control.Refused("no", Exit.CONFIG),
        control.Applied(3, [control.Changed("max_batch", 32, 16, False, ["two"])], ["frontend"]),
        control.Values(3, [control.KnobState("max_batch", 32, "32 rows", "default", "live", "Help.\nMore help.")]),
    ],
)
def test_an_answer_is_one_line_and_comes_through(answer: control.Answer) -> None:
    encoded = control.encode(answer)
    assert b"\n" not in encoded
    assert control.decode_answer(encoded) == answer


def test_a_switch_is_not_taken_for_a_number() -> None:
    request = control.decode_request(b'{"type": "Set", "settings": {"a": true, "b": 1}}')
    assert isinstance(request, control.Set)
    assert [type(value) for value in request.settings.values()] == [bool, int]


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b'{"type": "Stop"}', b'{"type": "Set"}', b'{"type": "Set", "settings": {"a": [1]}}']
)
def test_a_malformed_request_is_an_error(line: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        control.decode_request(line)


def test_asking_sends_one_line_and_returns_the_answer(serve: Serve) -> None:
    path = serve(control.encode(control.Refused("no", Exit.CONFIG)) + b"\n")
    assert control.ask(path, control.Get(["a"])) == control.Refused("no", Exit.CONFIG)
    assert [control.decode_request(line) for line in seen] == [control.Get(["a"])]


def test_nobody_there_is_said_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with pytest.raises(control.Unreachable) as caught:
        control.ask(path, control.Status())
    said = f"no daemon answers at {path} (No such file or directory): is `tensord serve` running?"
    assert str(caught.value) == said


def test_a_socket_left_behind_is_said_too(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(control.Unreachable, match="Connection refused"):
        control.ask(path, control.Status())


@pytest.mark.parametrize("answer", [b"", b'{"type": "Refused", "sentence": "cut'])
def test_a_connection_that_is_closed_is_said(serve: Serve, answer: bytes) -> None:
    path = serve(answer)
    with pytest.raises(control.Unreachable, match="closed the connection: it is stopping, or refuses your user"):
        control.ask(path, control.Status())


def test_a_daemon_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TIMEOUT_S", 0.01)
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(control.Unreachable, match="timed out"):
            control.ask(path, control.Status())


def test_exit_codes_are_all_different() -> None:
    assert len(Exit.__members__) == len(set(Exit))
