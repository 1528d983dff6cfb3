"""Users and groups as a configuration names them: who may use a model, and who is of which class of tenants."""

import grp
import pwd
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

ID_MAX: Final = 2**32 - 2
"""uid_t and gid_t have 32 bits, and all ones mean nobody."""

FORM: Final = 'give "user:NAME", "uid:NUMBER", "group:NAME" or "gid:NUMBER"'


class UnknownUser(ValueError):
    """The text names nobody on this host; `str()` says what to write."""


class Users(msgspec.Struct, frozen=True, array_like=True):
    """A set of users, listed themselves or by a group of theirs."""

    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()

    def has(self, uid: int, gids: Collection[int]) -> bool:
        """Whether the user is listed, or one of its groups is."""
        return uid in self.uids or any(gid in gids for gid in self.gids)


class Access(msgspec.Struct, frozen=True, array_like=True):
    """Who may use a model: everybody, or who is on the list; and never who is on the other."""

    allow: Users | None = None
    deny: Users = Users()

    def permits(self, uid: int, gids: Collection[int]) -> bool:
        """Whether this user may."""
        return not self.deny.has(uid, gids) and (self.allow is None or self.allow.has(uid, gids))


class TenantClass(msgspec.Struct, frozen=True, array_like=True):
    """A class of tenants: its knobs hold for each of its users."""

    name: str
    users: Users


def parse_users(texts: Sequence[str]) -> Users:
    """Users from texts such as `user:www-data`, `uid:1000`, `group:video` or `gid:44`. Raises UnknownUser."""
    uids, gids = [], []
    for text in texts:
        kind, _, name = text.partition(":")
        try:
            match kind:
                case "user":
                    uids.append(pwd.getpwnam(name).pw_uid)
                case "group":
                    gids.append(grp.getgrnam(name).gr_gid)
                case "uid":
                    uids.append(_number(text, name))
                case "gid":
                    gids.append(_number(text, name))
                case _:
                    raise UnknownUser(FORM)
        except (KeyError, ValueError) as error:
            if isinstance(error, UnknownUser):
                raise
            raise UnknownUser(f"this host has no such {kind}: {FORM}") from None
    return Users(tuple(uids), tuple(gids))


def _number(text: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(ID_MAX)) and int(digits) <= ID_MAX):
        raise UnknownUser(f"{text.partition(':')[0]} takes a number from 0 to {ID_MAX}")
    return int(digits)
