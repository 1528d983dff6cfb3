"""Users: whom quotas and shares are counted for, over all models.

A tenant is a user id, refined by a name that its client gives. Clients may invent names, so a name must never be
worth anything: weight, quota and debt belong to the user, and the names of a user share them.
"""

from collections.abc import Callable
from typing import Final

from .policy import TenantPolicy

TenantLookup = Callable[[str], tuple[str, TenantPolicy]]
"""From a tenant to its user and the user's policy; the user of a tenant never changes."""

USERS_KEPT: Final = 1024
"""Users beyond which those with nothing inside are forgotten, together with their counters."""

TENANTS_KEPT: Final = 4096
"""Tenants whose user is remembered; beyond it all are looked up again."""


def own_user(tenant: str) -> tuple[str, TenantPolicy]:
    """Each tenant is a user of its own, of the default class."""
    return tenant, TenantPolicy()


class User:
    """What one user has inside and has used, over all models."""

    __slots__ = ("device_ns", "name", "policy", "refused", "rows", "rows_max", "running_rows")

    def __init__(self, name: str, policy: TenantPolicy) -> None:
        self.name = name
        self.obey(policy)
        self.rows = 0
        """Rows of its requests that wait or run."""
        self.running_rows = 0
        """Of those, the ones in flight on workers."""
        self.device_ns = 0
        """Its part, by rows, of the device time of all completed batches."""
        self.refused = 0
        """Requests that got an error from the scheduler, accepted before or not."""

    def obey(self, policy: TenantPolicy) -> None:
        """Take over what the user may use from now on."""
        self.policy = policy
        self.rows_max = policy.rows_max


class Users:
    """All users that have something inside, and some that had."""

    __slots__ = ("_lookup", "by_name", "by_tenant")

    def __init__(self, lookup: TenantLookup = own_user) -> None:
        self._lookup = lookup
        self.by_name: dict[str, User] = {}
        self.by_tenant: dict[str, User] = {}

    def of(self, tenant: str) -> User:
        """The user of a tenant."""
        user = self.by_tenant.get(tenant)
        if user is None:
            if len(self.by_tenant) >= TENANTS_KEPT:
                self.by_tenant.clear()
            name, policy = self._lookup(tenant)
            user = self.by_name.get(name)
            if user is None:
                if len(self.by_name) >= USERS_KEPT:
                    self._forget_idle()
                user = self.by_name[name] = User(name, policy)
            user.obey(policy)
            self.by_tenant[tenant] = user
        return user

    def _forget_idle(self) -> None:
        self.by_name = {name: user for name, user in self.by_name.items() if user.rows}
        for tenant in [tenant for tenant, user in self.by_tenant.items() if not user.rows]:
            del self.by_tenant[tenant]

    def ask_again(self, lookup: TenantLookup) -> None:
        """Take over the policies that `lookup` says now, for all who are known."""
        self._lookup = lookup
        for tenant, user in self.by_tenant.items():
            user.obey(lookup(tenant)[1])
