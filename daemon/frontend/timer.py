"""A timer with microseconds: uvloop's own timers have whole milliseconds, and fire early.

timerfd_create(2) through ctypes, since Python has it only from 3.13. The clock is CLOCK_MONOTONIC, the one
that `time.monotonic_ns` reads and that clients' deadlines are given in.
"""

import contextlib
import ctypes
import os
import time
from typing import Final

TFD_TIMER_ABSTIME: Final = 1
TFD_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Timer:
    """Readable when its time has come. Arming costs 7 µs, so a later time leaves an earlier one as it is."""

    def __init__(self) -> None:
        self.fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_FLAGS)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._armed_ns: int | None = None
        self._spec = _Itimerspec()

    def arm(self, at_ns: int | None) -> None:
        """Fire at this moment at the latest, at once if it has passed; None: no moment matters.

        It may fire earlier, for a moment it was armed for before: look what is due, and arm it again.
        """
        if at_ns is None or (self._armed_ns is not None and self._armed_ns <= at_ns):
            return
        self._armed_ns = at_ns
        self._spec.value_s, self._spec.value_ns = divmod(max(at_ns, 1), 1_000_000_000)
        _libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None)

    def fired(self) -> None:
        """Take notice that it fired."""
        self._armed_ns = None
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
