"""Tickets and calls: what those who wait are told, and when."""

from typing import Any

import pytest

from tensord.ipc.client.call import Call, RoomTicket, Ticket, copy_error
from tensord.ipc.errors import (
    ArenaQuotaExceeded,
    ConnectionLost,
    QueueFull,
    ShuttingDown,
    TensordError,
    UnknownError,
    UnknownModel,
)
from tensord.ipc.wire import FrameType


@pytest.mark.parametrize("ticket", [Ticket(), RoomTicket(), Call(1, FrameType.PONG)])
def test_a_ticket_is_done_before_its_hook_is_called(ticket: Ticket) -> None:
    told: list[bool] = []
    ticket.hook = lambda: told.append(ticket.done)
    assert not ticket.done
    ticket.finish()
    assert told == [True]


def test_a_ticket_that_nobody_waits_for_yet_remembers_that_it_is_done() -> None:
    ticket = Ticket()
    ticket.finish()
    assert ticket.done


def test_the_outcome_of_a_call_is_its_value() -> None:
    call = Call(7, FrameType.OPENED)
    call.value = (1, "spec")
    call.finish()
    assert call.outcome() == (1, "spec")


def test_or_its_error() -> None:
    call = Call(7, FrameType.OPENED)
    call.value = "what came before"
    call.error = UnknownModel("m", ["other"])
    with pytest.raises(UnknownModel) as caught:
        call.outcome()
    assert caught.value is call.error


def after(error: TensordError, retry_after_ms: int) -> TensordError:
    error.retry_after_ms = retry_after_ms
    return error


@pytest.mark.parametrize(
    "error",
    [
        ShuttingDown(),
        ConnectionLost("gone"),
        UnknownModel("m", ["a", "b"]),
        after(QueueFull("m", 5), 40),
        after(ArenaQuotaExceeded(1, 2, "arena_bytes_max"), 0),
        UnknownError(999, "a sentence of a later version"),
    ],
)
def test_a_copied_error_says_the_same_and_is_another(error: TensordError) -> None:
    def told(each: TensordError) -> tuple[Any, ...]:
        return type(each), each.data(), each.retry_after_ms, str(each)

    copy = copy_error(error)
    assert copy is not error
    assert told(copy) == told(error)


def test_a_copied_error_has_a_traceback_of_its_own() -> None:
    with pytest.raises(ConnectionLost) as caught:
        raise ConnectionLost("gone")
    assert caught.value.__traceback__ is not None
    assert copy_error(caught.value).__traceback__ is None
