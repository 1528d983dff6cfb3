"""What every child of the supervisor does before anything else: tie its life to its parent's."""

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that this process gets when the thread that made it ends."""


def tie_to_parent(parent_pid: int) -> None:
    """End with the supervisor, even if it is killed; leave Ctrl-C and SIGTERM to it.

    Children also see the end of their socket pair; the signal is for one that is stuck in a kernel or library.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("tensord: the supervisor ended while this process started")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
