"""Where requests wait: a bucket holds three priority classes, a class its tenants, a tenant its ordered requests.

    ModelQueue (model.py)
    └── BucketQueue     requests that may share a batch; where sessions are bound, one per replica and one for the rest
        └── Level       one per priority class
            └── UserQueue, in a Ring               the names of one user
                └── TenantQueue, in a Ring         sorted by the order policy

Counts are exact at every level; the queues themselves are emptied lazily (see LazyQueue).
"""

from collections.abc import Hashable
from functools import partial
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from tensord.ipc.limits import BATCH_REQUESTS_MAX, PRIORITY_CLASSES

from .lazy_queue import LazyQueue
from .order import OrderPolicy
from .request import Request, RequestState
from .tenants import Account, Ring, Share, Turns

if TYPE_CHECKING:
    from .model import ModelQueue
    from .workers import Worker

TENANTS_KEPT: Final = 16
"""Empty tenant queues that a level keeps for the next request; with more it drops them all."""

_by_seq = attrgetter("seq")
_by_deadline = attrgetter("deadline_ns")
_RUNNING: Final = RequestState.RUNNING
_QUEUED: Final = RequestState.QUEUED


class TenantQueue:
    """One tenant's requests of one bucket and priority class.

    Ageing stands above the order policy: a request that has waited for `ageing_ns` goes before all that have not,
    and of several the oldest. 0 turns it off.
    """

    __slots__ = ("account", "ages", "count", "level", "listed", "name", "order")

    def __init__(self, level: "Level", name: str, account: Account, order: OrderPolicy) -> None:
        self.level = level
        self.name = name
        self.account = account
        self.count = 0
        """Living requests."""
        self.listed = False
        """Whether its user's ring has an entry for it."""
        self._obey(order)

    def _obey(self, order: OrderPolicy) -> None:
        self.order = order
        self.ages: LazyQueue | None = None if order.by_age else LazyQueue(_by_seq)
        """All of them, the oldest first; None where the order is that already."""

    def first(self, now: int, ageing_ns: int) -> Request | None:
        """The request that goes first; None where there is none."""
        if ageing_ns and self.ages is not None:
            oldest = self.ages.peek()
            if oldest is not None and now - oldest.waits_since_ns >= ageing_ns:
                return oldest
        return self.order.peek(now)

    @property
    def oldest(self) -> Request | None:
        """The request that has waited longest; None where there is none."""
        return self.order.peek(0) if self.ages is None else self.ages.peek()

    def key(self, request: Request, now: int, ageing_ns: int) -> float:
        """What its requests are sorted by, lowest first, then by `seq`: comparable between the queues of one model."""
        if ageing_ns and self.ages is not None and now - request.waits_since_ns >= ageing_ns:
            return -inf
        return self.order.key(request, now)

    @property
    def turns(self) -> Turns:
        return self.account

    def is_empty(self) -> bool:
        return not self.count

    def leave(self) -> None:
        """The ring has dropped this empty queue; the next request of the tenant makes a new one."""
        self.listed = False
        self.level.tenants.pop(self.name, None)

    def reorder(self, order: OrderPolicy) -> None:
        """Sort by another policy from now on; it is still empty."""
        waiting = sorted(self.order.living(), key=_by_seq)
        self._obey(order)
        for request in waiting:
            order.push(request)
            if self.ages is not None:
                self.ages.push(request)

    def clear(self) -> None:
        """Nothing is alive any more: let go of what lazy deletion has left."""
        self.order.clear()
        if self.ages is not None:
            self.ages.clear()


class Place(NamedTuple):
    """Where the leader of a class stands among those of its model. The lowest goes first; no two have one `seq`."""

    priority: int
    """The class it counts for, ageing counted."""
    user_round: int
    """With `user_turn`, the user's place in its model's deficit round robin (tenants.py)."""
    user_turn: int
    round: int
    """With `turn`, the tenant's place among its user's."""
    turn: int
    order_key: float
    """The place among the tenant's requests."""
    seq: int
    leader: Request


class UserQueue:
    """The names of one user that have requests of one bucket and priority class."""

    __slots__ = ("level", "listed", "ring", "share")

    def __init__(self, level: "Level", share: Share) -> None:
        self.level = level
        self.share = share
        self.ring: Ring[TenantQueue] = Ring()
        self.listed = False
        """Whether the level's ring has an entry for it."""

    @property
    def turns(self) -> Turns:
        return self.share

    def is_empty(self) -> bool:
        return self.ring.is_empty()

    def leave(self) -> None:
        """The ring has dropped this empty queue; the next request of the user makes a new one."""
        self.listed = False
        self.level.users.pop(self.share.user.name, None)


class Level:
    """The requests of one bucket and priority class."""

    __slots__ = ("ages", "ages_kept", "bucket", "count", "priority", "ring", "tenants", "users")

    def __init__(self, bucket: "BucketQueue", priority: int) -> None:
        self.bucket = bucket
        self.priority = priority
        self.count = 0
        """Living requests."""
        self.ages = LazyQueue(_by_seq)
        """All of them, the oldest first. Empty as long as they are of one tenant, which knows its oldest itself."""
        self.ages_kept = False
        self.tenants: dict[str, TenantQueue] = {}
        self.users: dict[str, UserQueue] = {}
        self.ring: Ring[UserQueue] = Ring()

    def join(self, name: str, tenant: TenantQueue | None) -> TenantQueue:
        """The queue of a tenant that has nothing here yet; in the ring, with its account up to date."""
        model = self.bucket.model
        account = model.joined_account(name)
        if tenant is None:
            tenant = self.tenants[name] = TenantQueue(self, name, account, model.make_order())
        tenant.account = account
        if self.count:
            self.keep_ages()
        user = self.users.get(account.share.user.name)
        if user is None:
            user = self.users[account.share.user.name] = UserQueue(self, account.share)
        if not tenant.listed:
            tenant.listed = True
            user.ring.add(tenant)
        user.share = account.share
        if not user.listed:
            user.listed = True
            self.ring.add(user)
        return tenant

    def keep_ages(self) -> None:
        """From now on several tenants may wait: none of them knows who is the oldest of all."""
        if not self.ages_kept:
            self.ages_kept = True
            for tenant in self.tenants.values():
                if tenant.count:
                    for request in tenant.order.living():
                        self.ages.push(request)

    def living(self) -> list[Request]:
        """All of them, the oldest first."""
        self.keep_ages()
        return list(self.ages.living())

    @property
    def oldest(self) -> Request:
        """The request that has waited longest; at least one is waiting."""
        oldest = self.ages.peek() if self.ages_kept else self.first().oldest
        assert oldest is not None
        return oldest

    def first(self) -> TenantQueue:
        """The tenant whose turn it is; at least one request is waiting."""
        if len(self.tenants) == 1:
            return next(iter(self.tenants.values()))
        return self.ring.first().ring.first()

    def leader(self, now: int, ageing_ns: int, highest: int = 0) -> tuple[int, Request]:
        """The request of this level that goes first, and the class it counts for; at least one is waiting.

        The oldest raises the whole level by its age, up to `highest`, the highest class that anybody waits in: where
        there is no such class to be kept waiting by, age may not disturb the shares of those who have aged together.
        Who goes first in the level is still decided by turns, as they keep nobody waiting for more than his debt.
        """
        leader = self.first().first(now, ageing_ns)
        assert leader is not None
        if self.priority <= highest or not ageing_ns:
            return self.priority, leader
        oldest = self.oldest
        raised = (now - oldest.waits_since_ns) // ageing_ns
        return self.priority - max(0, min(raised, self.priority - highest)), leader

    def clear(self) -> None:
        """Nothing is alive any more: let go of what lazy deletion has left."""
        self.ages.clear()
        self.ages_kept = False
        self.ring.clear()
        self.users.clear()
        if len(self.tenants) > TENANTS_KEPT:
            self.tenants.clear()
        for tenant in self.tenants.values():
            tenant.clear()
            tenant.listed = False


class BucketQueue:
    """The requests of one model that may share a batch."""

    __slots__ = ("class_rows", "count", "deadlines", "key", "levels", "model", "rows", "worker")

    def __init__(self, model: "ModelQueue", key: Hashable, worker: "Worker | None" = None) -> None:
        self.model = model
        self.class_rows = model.class_rows
        self.key = key
        self.worker = worker
        """The replica that alone may take them, as the balance policy has bound their sessions; None: any may."""
        self.count = 0
        """Living requests."""
        self.rows = 0
        """Their rows."""
        self.levels = tuple(Level(self, priority) for priority in range(PRIORITY_CLASSES))
        self.deadlines = LazyQueue(_by_deadline)

    def push(self, request: Request) -> None:
        """Queue a request at its place in the order, new or back from a lost worker."""
        level, rows = self.levels[request.priority], request.rows
        name = request.tenant
        tenant = level.tenants.get(name)
        if tenant is None or not tenant.count:
            tenant = level.join(name, tenant)
        request.home = tenant
        request.state = _QUEUED
        tenant.count += 1
        level.count += 1
        self.count += 1
        self.rows += rows
        self.class_rows[request.priority] += rows
        tenant.order.push(request)
        if tenant.ages is not None:
            tenant.ages.push(request)
        if level.ages_kept:
            level.ages.push(request)
        self.deadlines.push(request)

    def remove(self, request: Request, state: RequestState) -> None:
        """Take one of its requests out; `state` says why."""
        tenant = request.home
        assert tenant is not None
        request.home = None
        request.state = state
        tenant.count -= 1
        tenant.level.count -= 1
        self.class_rows[request.priority] -= request.rows
        self.rows -= request.rows
        self.count -= 1
        if not self.count:
            self.clear()

    def first(self, now: int, ageing_ns: int, highest: int) -> Place:
        """The best of the leaders of its classes, which age up to the class `highest`; at least one request waits."""
        best: Place | None = None
        for level in self.levels:
            if level.count:
                priority, leader = level.leader(now, ageing_ns, highest)
                assert leader.home is not None
                account, key = leader.home.account, leader.home.key(leader, now, ageing_ns)
                share = account.share
                turns = share.round, share.turn, account.round, account.turn
                place = Place(priority, *turns, key, leader.seq, leader)
                if best is None or place < best:
                    best = place
        assert best is not None
        return best

    def take(
        self, leader: Request, rows_max: int, row_ns: float, now: int, ageing_ns: int
    ) -> tuple[list[Request], dict[Account, int]]:
        """Take the requests of a batch: the leader, then class by class whoever has the turn, while they fit.

        A leader that is a suspect, or larger than a batch, goes alone. Where the next request does not fit, the
        batch is closed: skipping over it would reorder. With a price `row_ns` above 0 tenants pay for each row,
        and the accounts come back with their rows; it is 0 where the model has only one tenant.
        """
        assert leader.home is not None
        account, rows = leader.home.account, leader.rows
        taken, shares = [leader], {account: rows}
        self.remove(leader, _RUNNING)
        if row_ns:
            self.model.advance_round(account)
            account.pay(rows * row_ns)
        if self.count and not leader.solo:
            filled = self._fill(taken, rows, rows_max, row_ns, shares, now, ageing_ns)
            self.count -= len(taken) - 1
            self.rows -= filled - rows
            if not self.count:
                self.clear()
        return taken, shares

    def _fill(
        self,
        taken: list[Request],
        rows: int,
        rows_max: int,
        row_ns: float,
        shares: dict[Account, int],
        now: int,
        ageing_ns: int,
    ) -> int:
        """Append to `taken` what fits beside its `rows`; the rows of the whole."""
        for level in self.levels:
            while level.count:
                tenant = level.first()
                account, rows_before = tenant.account, rows
                peek = tenant.order.peek if tenant.ages is None else partial(tenant.first, ageing_ns=ageing_ns)
                if row_ns:
                    self.model.advance_round(account)
                closed = turn_over = False
                while tenant.count and not turn_over:
                    request = peek(now)
                    assert request is not None
                    if rows + request.rows > rows_max or request.solo or len(taken) == BATCH_REQUESTS_MAX:
                        closed = True
                        break
                    request.home = None
                    request.state = _RUNNING
                    rows += request.rows
                    taken.append(request)
                    tenant.count -= 1
                    level.count -= 1
                    if row_ns:
                        turn_over = account.pay(request.rows * row_ns)
                self.class_rows[level.priority] -= rows - rows_before
                shares[account] = shares.get(account, 0) + rows - rows_before
                if closed:
                    return rows
        return rows

    def clear(self) -> None:
        """Nothing is alive any more: hold no reference to what was here."""
        self.deadlines.clear()
        for level in self.levels:
            if level.tenants:
                level.clear()

    @property
    def oldest_arrival_ns(self) -> int:
        """When its oldest request arrived, or what that replaced; at least one is waiting."""
        heads = [level.oldest for level in self.levels if level.count]
        return min([head.waits_since_ns for head in heads])

    @property
    def earliest_deadline_ns(self) -> int:
        """At least one request is waiting."""
        head = self.deadlines.peek()
        assert head is not None
        return head.deadline_ns
