"""What the daemon says of itself meanwhile, and what its processes compute. Without it, there are fewer figures."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import psutil

from .. import control


class Usage(NamedTuple):
    """CPU time of one process of the daemon."""

    pid: int
    cpu_s: float


class Watch:
    """Looks at one instance through its control socket; a daemon that does not show itself is asked once."""

    def __init__(self, control_socket: Path) -> None:
        self.silence = ""
        """Why nothing is known of the daemon."""
        self._control_socket = control_socket

    def status(self) -> control.InstanceStatus | None:
        """What the supervisor says, if it does."""
        if self.silence:
            return None
        try:
            answer = control.ask(self._control_socket, control.Status())
        except control.Unreachable as error:
            self.silence = str(error)
            return None
        if isinstance(answer, control.InstanceStatus):
            return answer
        self.silence = answer.sentence if isinstance(answer, control.Refused) else "it gave another answer"
        return None


def usages(status: control.InstanceStatus | None) -> dict[str, Usage]:
    """CPU time of the processes that a status names, so far; of those that still run and may be looked at."""
    found = {}
    for name, pid in _pids(status).items():
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            found[name] = Usage(pid, times.user + times.system)
    return found


def _pids(status: control.InstanceStatus | None) -> dict[str, int]:
    if status is None:
        return {}
    workers = {f"worker {worker.device}": worker.pid for worker in status.workers}
    pids = {"supervisor": status.pid, "front end": status.frontend.pid, **workers}
    return {name: pid for name, pid in pids.items() if pid is not None}
