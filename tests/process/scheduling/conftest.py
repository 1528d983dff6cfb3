"""A daemon whose models take exactly known times, for tests that leave it as it was."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ..conftest import Daemon, ModelFiles, RawClient

if TYPE_CHECKING:
    from tests.process.conftest import Connect

_TENSORS: Final = ((("x", "float32", (2,)),), (("y", "float32", (3,)),))
NAPS: Final = {name: ModelFiles("nap", *_TENSORS, {"max_batch": 8, "window_us": 0}) for name in ("nap", "lame")}
KNOBS: Final = f"""
spin_us = 0
in_flight_max = 65_536
log_level = "warning"
[tenants.mine]
users = ["uid:{os.getuid()}"]
"""
"""Workers that wait leave the processor to those who send; a connection may have an open loop's queue in flight; the
tests' user is in a class."""


def start(directory: Path, *devices: str) -> Iterator[Daemon]:
    """For a fixture: a daemon on these devices, stopped at its end."""
    with contextlib.ExitStack() as stack:
        running = Daemon(directory, KNOBS, models=NAPS, devices=devices)
        stack.callback(running.stop)
        yield running.wait_ready()


@pytest.fixture(scope="session")
def napping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all modules that need no more than one device."""
    yield from start(tmp_path_factory.mktemp("napping"), "cpu:0")


@pytest.fixture
def idle(napping: Daemon) -> Iterator[Daemon]:
    """The daemon, which nobody else uses; its processes are the same afterwards."""
    pids = napping.pids
    napping.wait_idle()
    yield napping
    assert napping.pids == pids


@pytest.fixture
def join(napping: Daemon) -> "Iterator[Connect]":
    """Connects raw clients to it; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(tenant: str = "") -> RawClient:
            client = RawClient(napping.socket)
            stack.callback(client.close)
            client.hello(tenant)
            return client

        yield make
