"""Users, their classes and quotas; credentials of a real socket are in test_connection.py."""

import os
import socket

import pytest

from tensord.daemon.frontend.users import Credentials, User, Users
from tensord.daemon.knobs import KNOBS
from tensord.daemon.scheduling.policy import TenantPolicy
from tensord.daemon.users import TenantClass
from tensord.daemon.users import Users as Listed
from tensord.ipc.errors import TenantArenaQuotaExceeded, TooManyTenantConnections

GENERAL = {name: knob.default for name, knob in KNOBS.items()}
NIGHTLY = TenantClass("nightly", Listed((1,), (50,)))
WEB = TenantClass("web", Listed((), (50, 60)))


def credentials(uid: int, *gids: int) -> Credentials:
    return Credentials(uid, frozenset(gids))


@pytest.fixture
def users() -> Users:
    made = Users()
    made.set_classes([NIGHTLY, WEB])
    made.set_knobs(GENERAL, {"nightly": {"tenant_connections_max": 2, "tenant_arena_bytes_max": 100}})
    return made


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert Credentials.of(ours) == credentials(os.getuid(), os.getgid(), *os.getgroups())


@pytest.mark.parametrize(
    ("who", "name"),
    [
        (credentials(1), "nightly"),
        (credentials(2, 50), "nightly"),
        (credentials(2, 60, 70), "web"),
        (credentials(2, 70), "default"),
    ],
)
def test_a_user_is_of_the_first_class_that_lists_it(users: Users, who: Credentials, name: str) -> None:
    assert users.of(who).class_name == name


def test_connections_beyond_the_quota_are_refused_and_not_counted(users: Users) -> None:
    user = users.of(credentials(1))
    assert [user.connect(), user.connect()] == [None, None]
    for _ in range(2):
        error = user.connect()
        assert isinstance(error, TooManyTenantConnections)
        assert error.limit == 2
    users.disconnected(user)
    assert user.connect() is None


def test_arenas_beyond_the_quota_are_refused_and_not_counted(users: Users) -> None:
    user = users.of(credentials(1))
    user.take_arena(60)
    with pytest.raises(TenantArenaQuotaExceeded) as caught:
        user.take_arena(41)
    assert caught.value.data() == {"asked_bytes": 101, "limit_bytes": 100}
    user.take_arena(40)
    users.arena_gone(user, 60)
    assert user.arena_bytes == 40


def test_the_names_of_a_user_have_its_policy(users: Users) -> None:
    users.of(credentials(1))
    assert users.of_tenant("1") == users.of_tenant("1/camera") == ("1", TenantPolicy("nightly"))
    assert users.of_tenant("7/x") == ("7", TenantPolicy("default"))


def test_users_that_hold_nothing_are_forgotten(users: Users) -> None:
    user = users.of(credentials(1))
    assert user.connect() is None
    user.take_arena(1)
    users.disconnected(user)
    assert list(users) == [user]
    users.arena_gone(user, 1)
    assert list(users) == []


def test_new_quotas_hold_at_once_and_take_nothing_away(users: Users) -> None:
    user: User = users.of(credentials(1))
    assert user.connect() is None
    assert user.quota.policy == TenantPolicy("nightly")
    users.set_knobs(GENERAL, {"nightly": {"tenant_connections_max": 1, "tenant_weight": 0.5}})
    assert isinstance(user.connect(), TooManyTenantConnections)
    assert (user.connections, user.quota.policy.weight) == (1, 0.5)
