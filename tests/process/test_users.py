"""Who may use a model, and what a user may hold, on a real daemon."""

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tensord.ipc.errors import (
    BadRequest,
    NotPermitted,
    TenantArenaQuotaExceeded,
    TooManyTenantConnections,
    UnknownModel,
)
from tensord.ipc.wire import FrameType, decode_models, encode_arena, encode_open, frame

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon, StartBystander, StartDaemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
LISTS = f"""
[models.picky]
deny = ["uid:{os.getuid()}"]
[models.wrong]
allow = ["uid:{os.getuid() + 1}"]
[models.inplace]
allow = ["gid:{os.getgid()}"]
[tenants.mine]
users = ["gid:{os.getgid()}"]
tenant_connections_max = 3
tenant_arena_bytes_max = "8KiB"
[tenants.default]
tenant_connections_max = 1
"""


def test_a_model_is_for_those_who_are_listed(
    own_daemon: "StartDaemon", start_bystander: "StartBystander", connect: "Connect"
) -> None:
    daemon = own_daemon(LISTS)
    start_bystander(daemon)
    client = connect(daemon)
    for name in ("picky", "wrong", "picky:1", "picky:stable"):
        error = client.ask(encode_open(9, name)).error()
        assert isinstance(error, NotPermitted)
        assert error.data() == {"model": name.partition(":")[0], "uid": os.getuid()}
    assert isinstance(client.ask(encode_open(9, "pickle")).error(), UnknownModel)
    listed = {entry.name for entry in decode_models(memoryview(client.ask(frame(FrameType.LIST, 9)).meta))}
    assert {"picky", "wrong"} & listed == set()
    assert {"inplace", "echo"} <= listed
    np.testing.assert_array_equal(client.call("echo", X)[0], X)
    daemon.wait_status(lambda now: [m.counters["refused_permission"] for m in now.models if m.name == "picky"] == [3])


def test_a_class_bounds_each_of_its_users(
    own_daemon: "StartDaemon", start_bystander: "StartBystander", connect: "Connect"
) -> None:
    daemon = own_daemon(LISTS)
    start_bystander(daemon)  # the first connection
    client, other = connect(daemon, tenant="a"), connect(daemon, tenant="b")
    for tenant in ("", "c"):
        refused = connect(daemon, hello=False)
        (answer,) = refused.expect_end()
        error = answer.error()
        assert (answer.request_id, type(error), error.data()) == (0, TooManyTenantConnections, {"limit": 3}), tenant
    client.attach(4096)
    other.attach(1)  # a page
    error = client.ask(encode_arena(FrameType.ATTACH, 9, 0, 1)).error()
    assert isinstance(error, TenantArenaQuotaExceeded)
    assert error.data() == {"asked_bytes": 12288, "limit_bytes": 8192}
    other.close()
    daemon.wait_status(lambda now: now.arena_bytes == 4096)
    client.attach(4096)
    with daemon.knobs(mine__tenant_connections_max=4):
        for _ in range(2):
            np.testing.assert_array_equal(connect(daemon).call("echo", X)[0], X)


def test_the_latest_of_a_session_needs_one(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    error = client.ask(client.request("echo", X, latest=True)).error()
    assert isinstance(error, BadRequest)
    assert error.field == "session"
    np.testing.assert_array_equal(client.call("echo", X)[0], X)
