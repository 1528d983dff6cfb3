"""One daemon per module whose models take exactly known times, with no more devices than the module asks for."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest

from ..conftest import Daemon, ModelFiles, RawClient

if TYPE_CHECKING:
    from tests.process.conftest import Connect

_TENSORS: Final = ((("x", "float32", (2,)),), (("y", "float32", (3,)),))
NAPS: Final = {name: ModelFiles("nap", *_TENSORS, {"max_batch": 8, "window_us": 0}) for name in ("nap", "lame")}
KNOBS: Final = 'spin_us = 0\nin_flight_max = 65_536\nlog_level = "warning"\n'
"""Workers that wait leave the processor to those who send; a connection may have an open loop's queue in flight."""


@pytest.fixture(scope="module")
def devices() -> tuple[str, ...]:
    """Of the module's daemon."""
    return ("cpu:0",)


@pytest.fixture(scope="module")
def classes() -> str:
    """Of the users of the module's daemon, as TOML."""
    return ""


@pytest.fixture(scope="module")
def napping(devices: tuple[str, ...], classes: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The module's daemon."""
    with contextlib.ExitStack() as stack:
        running = Daemon(tmp_path_factory.mktemp("napping"), KNOBS + classes, models=NAPS, devices=devices)
        stack.callback(running.stop)
        yield running.wait_ready()


@pytest.fixture
def idle(napping: Daemon) -> Iterator[Daemon]:
    """The module's daemon: nobody else uses it, and its processes are the same afterwards."""
    pids = napping.pids
    napping.wait_idle()
    yield napping
    assert napping.pids == pids


@pytest.fixture
def join(napping: Daemon) -> "Iterator[Connect]":
    """Connects raw clients to the module's daemon; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(tenant: str = "") -> RawClient:
            client = RawClient(napping.socket)
            stack.callback(client.close)
            client.hello(tenant)
            return client

        yield make
