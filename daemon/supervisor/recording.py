"""The supervisor's part of a recording: it opens the file, and waits for the front end to have filled it."""

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from .. import control
from .. import messages as m
from ..exits import Exit

SECONDS_MAX: Final = 86_400.0
BYTES_MIN: Final = 1024 * 1024
"""The header has room in it whatever is served."""

BYTES_MAX: Final = 256 * 1024**2
"""What a trace's reader takes."""

PATIENCE_S: Final = 5.0
"""Beyond the recording's own time, for a front end that is busy."""


class Recording:
    """At most one at a time."""

    def __init__(self) -> None:
        self._outcome: asyncio.Future[control.Recorded] | None = None

    async def run(
        self, request: control.Record, send: Callable[[m.Message, Sequence[int]], None]
    ) -> control.Recorded | control.Refused:
        """Record, and return when it has ended."""
        refusal = self._check(request)
        if refusal:
            return control.Refused(refusal, Exit.USAGE)
        try:
            fd = os.open(request.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return control.Refused(f"{request.path}: {error.strerror}; give a file that is not there yet", Exit.USAGE)
        outcome = self._outcome = asyncio.get_running_loop().create_future()
        try:
            send(m.StartRecording(request.seconds, request.bytes_max), [fd])
            return await asyncio.wait_for(outcome, request.seconds + PATIENCE_S)
        except TimeoutError:
            return control.Refused("the front end did not end the recording in time: see the daemon's log")
        finally:
            self._outcome = None
            os.close(fd)

    def _check(self, request: control.Record) -> str:
        if self._outcome is not None:
            return "another recording is under way: wait for its end"
        if not (math.isfinite(request.seconds) and 0 < request.seconds <= SECONDS_MAX):
            return f"seconds = {request.seconds}: give more than 0 and at most {SECONDS_MAX:.0f}"
        if not BYTES_MIN <= request.bytes_max <= BYTES_MAX:
            return f"bytes_max = {request.bytes_max}: give {BYTES_MIN} to {BYTES_MAX}"
        if not Path(request.path).is_absolute():
            return f"path = {request.path!r}: give an absolute path"
        return ""

    def ended(self, records: int, complaint: str) -> None:
        """The front end says so, or has died; of no effect where nobody waits."""
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(control.Recorded(records, complaint))
