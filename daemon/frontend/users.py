"""Who is connected: users, their classes, and what each of them holds of what its class allows.

A user is a uid. Its clients may give themselves names in HELLO; a name makes a tenant, whose requests have a queue of
their own, but quotas are the user's: nobody gets more by inventing names.
"""

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tensord.ipc.errors import TenantArenaQuotaExceeded, TensordError, TooManyTenantConnections

from ..config import DEFAULT_CLASS
from ..scheduling.policy import TenantPolicy
from ..users import TenantClass

UCRED: Final = struct.Struct("iII")
SO_PEERGROUPS: Final = 59
"""socket(7); Python has no name for it."""

PEER_GROUPS_MAX: Final = 256
"""What Python's getsockopt has room for."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The other end of a connection, as the kernel saw it when it connected."""

    uid: int
    gids: frozenset[int]

    @classmethod
    def of(cls, sock: socket.socket) -> "Credentials":
        """Its user and all of that user's groups; of a user in more than 256 groups the main one only."""
        _, uid, gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        try:
            groups = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * PEER_GROUPS_MAX)
        except OSError:
            groups = b""
        return cls(uid, frozenset((gid, *(group for (group,) in struct.iter_unpack("=I", groups)))))


@dataclass(frozen=True, slots=True)
class Quota:
    """What each user of a class may hold, and what it is for the scheduler."""

    policy: TenantPolicy
    connections_max: int
    arena_bytes_max: int
    priority: int
    """The highest class of its requests: 0 is above 1."""

    @classmethod
    def of(cls, name: str, knobs: Mapping[str, Any]) -> "Quota":
        """From the values of the tenant knobs of the class `name`."""
        policy = TenantPolicy.of(name, knobs)
        bounds = knobs["tenant_connections_max"], knobs["tenant_arena_bytes_max"]
        return cls(policy, *bounds, knobs["tenant_priority"])


@dataclass(eq=False, slots=True)
class User:
    """One user, for as long as it has a connection or an arena."""

    uid: int
    class_name: str
    quota: Quota
    connections: int = 0
    arena_bytes: int = 0
    """Of arenas that it has, or has asked for."""

    @property
    def name(self) -> str:
        """For the scheduler."""
        return str(self.uid)

    def connect(self) -> TensordError | None:
        """Count a connection; an error if it is one too many, which is not counted."""
        if self.connections >= self.quota.connections_max:
            return TooManyTenantConnections(self.quota.connections_max)
        self.connections += 1
        return None

    def take_arena(self, nbytes: int) -> None:
        """Count an arena. Raises TenantArenaQuotaExceeded."""
        if self.arena_bytes + nbytes > self.quota.arena_bytes_max:
            raise TenantArenaQuotaExceeded(self.arena_bytes + nbytes, self.quota.arena_bytes_max)
        self.arena_bytes += nbytes


class Users:
    """All users that hold anything, by uid."""

    def __init__(self) -> None:
        self._users: dict[int, User] = {}
        self._classes: tuple[TenantClass, ...] = ()
        self._quotas: dict[str, Quota] = {}

    def set_classes(self, classes: Sequence[TenantClass]) -> None:
        """The classes of this instance, in the order in which a user is looked for; before the first connection."""
        self._classes = tuple(classes)

    def set_knobs(self, general: Mapping[str, Any], by_class: Mapping[str, Mapping[str, Any]]) -> None:
        """Obey other quotas from now on. Who has more than they allow keeps it, and gets no more."""
        names = (*(each.name for each in self._classes), DEFAULT_CLASS)
        self._quotas = {name: Quota.of(name, {**general, **by_class.get(name, {})}) for name in names}
        for user in self._users.values():
            user.quota = self._quotas[user.class_name]

    def of(self, credentials: Credentials) -> User:
        """The user of a connection. The class is that of its first one: groups may differ between processes."""
        user = self._users.get(credentials.uid)
        if user is None:
            found = (each.name for each in self._classes if each.users.has(credentials.uid, credentials.gids))
            name = next(found, DEFAULT_CLASS)
            user = self._users[credentials.uid] = User(credentials.uid, name, self._quotas[name])
        return user

    def of_tenant(self, tenant: str) -> tuple[str, TenantPolicy]:
        """The user of a tenant, and what it may use: what the scheduler asks."""
        name, _, _ = tenant.partition("/")
        user = self._users.get(int(name))
        quota = self._quotas[DEFAULT_CLASS] if user is None else user.quota
        return name, quota.policy

    def disconnected(self, user: User) -> None:
        """A connection that was counted is gone."""
        user.connections -= 1
        self._forget_if_idle(user)

    def arena_gone(self, user: User, nbytes: int) -> None:
        """An arena that was counted is gone, or was not made."""
        user.arena_bytes -= nbytes
        self._forget_if_idle(user)

    def _forget_if_idle(self, user: User) -> None:
        if not user.connections and not user.arena_bytes:
            self._users.pop(user.uid, None)

    def __iter__(self) -> Iterator[User]:
        return iter(list(self._users.values()))
