"""A recording of the load under way: into a file that the supervisor has opened, for a while or until it is full."""

import os
import time
from collections.abc import Callable
from typing import Any, Final

from ..knob import Setting
from ..scheduling.request import Batch, Request
from ..simulation.trace import ANSWERED, Recorder

NO_ROOM: Final = "the file is full: allow more bytes, or record for less long"


class Recording:
    """Writes down what becomes of each request; a disk that fails ends it, and nothing else."""

    def __init__(
        self,
        fd: int,
        bytes_max: int,
        knobs: dict[str, Setting],
        models: dict[str, dict[str, Setting]],
        workers: dict[int, str],
        ended: Callable[[int, str], None],
    ) -> None:
        """Takes `fd` over. `ended` hears once how many requests were recorded, and what was wrong, or nothing."""
        self._file = os.fdopen(fd, "wb", buffering=0)
        self._ended = ended
        self._recorder: Recorder | None = None
        try:
            self._recorder = Recorder(self._file, time.monotonic_ns(), bytes_max, knobs, models, workers)
        except OSError as error:
            self._end(0, error.strerror or str(error))

    def record(
        self,
        now: int,
        request: Request,
        model: str,
        outcome: int = ANSWERED,
        batch: "Batch[Any] | None" = None,
        compute_ns: int = 0,
    ) -> None:
        """As Recorder.record, of no effect when the recording has ended."""
        if self._recorder is None:
            return
        try:
            self._recorder.record(request, model, now, outcome, batch, compute_ns)
        except OSError as error:
            self._end(self._recorder.records, error.strerror or str(error))
            return
        if self._recorder.full:
            self.stop()

    def stop(self) -> None:
        """It has been long enough, or the file is full. Safe to call again."""
        recorder = self._recorder
        if recorder is None:
            return
        try:
            recorder.close()
        except OSError as error:
            self._end(recorder.records, error.strerror or str(error))
        else:
            self._end(recorder.records, NO_ROOM if recorder.full else "")

    def _end(self, records: int, complaint: str) -> None:
        self._recorder = None
        self._file.close()
        self._ended(records, complaint)
