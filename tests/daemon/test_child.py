"""What ties a child to its parent, with real processes: a grandchild of the test, whose parent is killed."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]

WATCHDOG_MS = 30_000

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=1, stderr=subprocess.STDOUT)
child.wait()
sys.stdout.flush()
"""

CHILD = """
import os, signal, sys
from tensord.daemon.child import tie_to_parent
tie_to_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""


class Family:
    """A parent and its tied child."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE)
        assert self.parent.stdout is not None
        line = self.parent.stdout.readline()
        self.child_pid = int(line)
        self.child_pidfd = os.pidfd_open(self.child_pid)

    def child_ends(self, timeout_ms: int) -> bool:
        poller = select.poll()
        poller.register(self.child_pidfd, select.POLLIN)
        return bool(poller.poll(timeout_ms))

    def close(self) -> None:
        for end in (self.parent.kill, lambda: signal.pidfd_send_signal(self.child_pidfd, signal.SIGKILL)):
            try:
                end()
            except ProcessLookupError:
                continue
        self.parent.wait()
        assert self.parent.stdout is not None
        self.parent.stdout.close()
        os.close(self.child_pidfd)


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.close()


def test_a_child_ends_with_its_parent_even_if_that_is_killed(family: Family) -> None:
    family.parent.send_signal(signal.SIGKILL)
    assert family.child_ends(WATCHDOG_MS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_terminal_or_operator_sends_is_left_to_the_parent(family: Family, number: signal.Signals) -> None:
    lines = Path(f"/proc/{family.child_pid}/status").read_text().splitlines()
    (ignored,) = [line.split()[1] for line in lines if line.startswith("SigIgn:")]
    assert int(ignored, 16) >> (number - 1) & 1
    os.kill(family.child_pid, number)
    assert not family.child_ends(0)
    family.parent.send_signal(signal.SIGKILL)
    assert family.child_ends(WATCHDOG_MS)


def test_a_child_whose_parent_is_gone_already_does_not_start() -> None:
    code = "from tensord.daemon.child import tie_to_parent; tie_to_parent(1234567); print('started')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tensord: the supervisor ended while this process started\n"
