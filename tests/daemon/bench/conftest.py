"""The sockets that a load is put on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ...ipc.client.fake_daemon import FakeDaemon
from ..cli.fake_control import FakeControl


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[FakeControl]:
    """The control socket of an instance."""
    fake = FakeControl(tmp_path)
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """The data socket of an instance."""
    fake = FakeDaemon(tmp_path / "tensord.sock")
    fake.start()
    yield fake
    fake.stop()
