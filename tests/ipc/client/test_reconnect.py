"""How long a client tries to connect."""

import contextlib

import pytest

from tensord.ipc.client.reconnect import Backoff, ConnectFailure
from tensord.ipc.errors import ConnectionLost, DaemonNotFound, TensordError, TooManyConnections, UnsupportedVersion

GONE = DaemonNotFound(["/s"], "connection refused")


def pauses(backoff: Backoff, error: TensordError, left_s: float = 100.0) -> list[float]:
    """All pauses until the error is raised."""
    result: list[float] = []
    with contextlib.suppress(type(error)):
        while len(result) < 100:
            result.append(backoff.pause_after(error, left_s))
    return result


@pytest.mark.parametrize("error", [GONE, ConnectionLost("x"), TooManyConnections(1)])
def test_pauses_double_and_add_up_to_the_limit(error: TensordError) -> None:
    taken = pauses(Backoff(1.0, reconnecting=True), error)
    assert taken[:3] == [0.005, 0.01, 0.02]
    assert sum(taken) == pytest.approx(1.0)
    assert max(taken) == 0.2


def test_a_daemon_that_never_was_is_not_waited_for() -> None:
    assert pauses(Backoff(1.0, reconnecting=False), GONE) == []


def test_a_full_backlog_is_waited_for_even_the_first_time() -> None:
    full = DaemonNotFound(["/s"], "full")
    full.retry_after_ms = 5
    assert len(pauses(Backoff(1.0, reconnecting=False), full)) > 1


def test_other_errors_are_final() -> None:
    assert pauses(Backoff(1.0, reconnecting=True), UnsupportedVersion(1, 1, 2)) == []


def test_no_pause_goes_beyond_the_deadline() -> None:
    assert pauses(Backoff(1.0, reconnecting=True), GONE, left_s=0.015) == [0.005, 0.01]


def test_a_failure_is_shared_by_those_who_waited_for_it() -> None:
    failure = ConnectFailure()
    failure.check(0)
    assert failure.note(GONE) is GONE
    with pytest.raises(DaemonNotFound) as caught:
        failure.check(0)
    assert caught.value is not GONE
    assert caught.value.data() == GONE.data()
    failure.check(2**63)
