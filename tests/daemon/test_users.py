import grp
import os
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon.users import ID_MAX, Access, UnknownUser, Users, parse_users

ids = st.integers(0, 5)
users = st.builds(Users, st.lists(ids, max_size=3).map(tuple), st.lists(ids, max_size=3).map(tuple))


def test_users_come_by_name_and_by_number() -> None:
    me, mine = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(0).gr_name
    assert parse_users([f"user:{me}", "uid:7", f"group:{mine}", "gid:8"]) == Users((os.getuid(), 7), (0, 8))


@pytest.mark.parametrize("text", ["", "root", "uid:", "uid:-1", "uid:٣", f"uid:{ID_MAX + 1}", "uid:" + "9" * 5000])
def test_what_names_nobody_is_refused(text: str) -> None:
    with pytest.raises(UnknownUser):
        parse_users([text])


def test_the_largest_number_is_somebody() -> None:
    assert parse_users([f"uid:{ID_MAX}"]).has(ID_MAX, ())


@given(allow=st.none() | users, deny=users, uid=ids, gids=st.sets(ids, max_size=3))
def test_denial_beats_permission_and_no_list_permits_everybody(
    allow: Users | None, deny: Users, uid: int, gids: set[int]
) -> None:
    def listed(who: Users) -> bool:
        return uid in who.uids or bool(gids & set(who.gids))

    assert Access(allow, deny).permits(uid, gids) == ((allow is None or listed(allow)) and not listed(deny))
