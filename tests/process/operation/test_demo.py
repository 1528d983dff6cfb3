"""`tensord demo`: a dozen digits are read, it serves until Ctrl-C, and nothing of it stays."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tensord import Client
from tensord.daemon.exits import Exit

if TYPE_CHECKING:
    from tests.process.operation.conftest import Instance, Site

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

SERVING = re.compile(r"^serving on (\S+\.sock)$", re.MULTILINE)


def start(site: "Site", *arguments: str) -> "Instance":
    """A demonstration whose sockets lie below the runtime directory."""
    return site.tensord("demo", *arguments, XDG_RUNTIME_DIR=str(site.runtime_dir), NO_COLOR="1")


def wait_shown(instance: "Instance") -> Path:
    """Until it says how to end it; returns its socket."""
    instance.wait_until(lambda: "Ctrl-C ends it" in instance.log.read_text())
    match = SERVING.search(instance.log.read_text())
    assert match is not None
    return Path(match[1])


def test_once_reads_a_dozen_digits_and_ends(site: "Site") -> None:
    instance = start(site, "--once")
    assert instance.wait_end() == Exit.OK
    log = instance.log.read_text()
    shown = re.findall(r"confidence (\d+\.\d)%\n.*answered in \S+ (?:µs|ms)\n.*label-\d\.png\n", log)
    assert len(shown) == 12
    assert all(float(percent) > 50 for percent in shown)
    assert log.count("@@") > 12  # pictures
    assert "all 12 together through shared memory, no copy: " in log
    assert "12 of 12 read as they are labelled" in log
    assert SERVING.search(log) is not None
    assert instance.sockets() == []


def test_killed_demonstration_is_cleared_away_by_the_next_which_serves_until_ctrl_c(site: "Site") -> None:
    first = start(site)
    left = wait_shown(first).parent
    first.signal(signal.SIGKILL)
    first.wait_end()
    assert left.is_dir()

    second = start(site)
    socket = wait_shown(second)
    assert socket.parent != left
    assert not left.exists()
    log = second.log.read_text()
    assert f"TENSORD_SOCKET={socket} tensord status" in log
    with Client(socket) as client:
        assert np.asarray(client.infer("digits", np.zeros((2, 1, 8, 8), np.float32))).shape == (2, 10)
    second.signal(signal.SIGINT)
    assert second.wait_end() == Exit.OK
    assert second.sockets() == []


def test_ctrl_c_while_it_starts_ends_it_quietly(site: "Site") -> None:
    instance = start(site)
    instance.wait_until(lambda: any(site.runtime_dir.glob("*/control.sock")))
    instance.signal(signal.SIGINT)
    assert instance.wait_end() == Exit.OK
    assert instance.log.read_text() == ""
    assert instance.sockets() == []


def test_demonstration_that_nobody_reads_ends(site: "Site") -> None:
    """As `tensord demo --once | head -1` has it: the reader goes, and the pipe is broken."""
    reader, writer = os.pipe()
    os.close(reader)
    errors = site.runtime_dir / "errors"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(site.runtime_dir)}
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tensord", "demo", "--once"], stdout=writer, stderr=stderr, env=environment
        )
    os.close(writer)
    try:
        assert process.wait(60) == Exit.FAILED
    finally:
        process.kill()
        process.wait()
    assert errors.read_text().splitlines()[-1] == "tensord: the demonstration cannot be shown: Broken pipe"
    errors.unlink()
    assert not list(site.runtime_dir.iterdir())


def test_hang_up_of_the_terminal_stops_it_cleanly(site: "Site") -> None:
    instance = start(site)
    wait_shown(instance)
    instance.signal(signal.SIGHUP)
    assert instance.wait_end() == Exit.OK
    assert not list(site.runtime_dir.iterdir())
