"""How long, and how often, a client tries to connect."""

import time
from typing import Final

from ..errors import ConnectionLost, DaemonNotFound, ShuttingDown, TensordError, TooManyConnections
from .call import copy_error

RECONNECT_TIMEOUT_S: Final = 1.0
"""A restarted front end answers within tens of milliseconds; who waits longer waits for an operator."""

FIRST_PAUSE_S: Final = 0.005
LONGEST_PAUSE_S: Final = 0.2


class Backoff:
    """How long connecting is tried: pauses that double, together at most `total_s`, never beyond a deadline."""

    def __init__(self, total_s: float, *, reconnecting: bool) -> None:
        self._left_s = total_s
        self._pause_s = FIRST_PAUSE_S
        self._reconnecting = reconnecting

    def pause_after(self, error: TensordError, left_s: float) -> float:
        """Seconds to wait before the next attempt. Raises `error` when there is to be none.

        Where no daemon was before, none is waited for; where one was, its successor is.
        """
        absent = isinstance(error, DaemonNotFound) and error.retry_after_ms is None
        if (absent or isinstance(error, ShuttingDown)) and not self._reconnecting:
            raise error
        if not isinstance(error, (DaemonNotFound, ConnectionLost, ShuttingDown, TooManyConnections)):
            raise error
        pause_s = min(self._pause_s, self._left_s)
        if pause_s <= 0 or pause_s >= left_s:
            raise error
        self._left_s -= pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s


class ConnectFailure:
    """The last failure to connect, for those who waited for the same attempt: each trying in turn would take ages."""

    def __init__(self) -> None:
        self._error: TensordError | None = None
        self._at_ns = 0

    def note(self, error: TensordError) -> TensordError:
        """It has just happened; returns it."""
        self._error = error
        self._at_ns = time.monotonic_ns()
        return error

    def check(self, since_ns: int) -> None:
        """Raises a copy of the failure if it happened after `since_ns`."""
        if self._error is not None and self._at_ns > since_ns:
            raise copy_error(self._error)
