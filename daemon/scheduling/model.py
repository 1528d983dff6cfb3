"""One model version as the scheduler sees it: its policy, what waits for it, where it is loaded, what it counted."""

from collections import Counter
from collections.abc import Hashable
from operator import attrgetter
from typing import Any, Final

from tensord.ipc.errors import TensordError
from tensord.ipc.limits import PRIORITY_CLASSES

from .balance import BALANCE_POLICIES, BalancePolicy
from .batching import BATCHINGS, FixedBatching, rows_released
from .concurrency import GradientLimit
from .cost import CostTable
from .feasibility import Forecast
from .order import BY_SERVICE_TIME, ORDER_POLICIES, OrderPolicy
from .order_mlfq import Flows
from .policy import ModelPolicy
from .queues import BucketQueue
from .request import Batch, ReleaseReason, Request, RequestState
from .tenants import Account, Share
from .users import User, Users
from .workers import Worker

BUCKETS_KEPT: Final = 64
"""Empty buckets that a model keeps for the next request; with more it drops those that become empty."""

ACCOUNTS_SWEPT_MIN: Final = 256
"""Tenant accounts below which idle ones are not looked for."""

LATEST_SWEPT_MIN: Final = 64
"""Entries of `latest` below which those of requests that have left are not looked for."""


class ModelQueue:
    """The queue of one model, and all that belongs to the model."""

    __slots__ = (
        "_waiting_models",
        "accounts",
        "balance",
        "batching",
        "binds",
        "buckets",
        "cancelled",
        "class_rows",
        "completed",
        "concurrency",
        "costs",
        "crowded",
        "device_ns",
        "ease_bytes",
        "ease_ns",
        "ease_rows",
        "expected",
        "expired",
        "flows",
        "forecast",
        "idempotent",
        "key",
        "latest",
        "name",
        "nbytes",
        "policy",
        "predicts",
        "queued",
        "reason",
        "refused",
        "refused_accepted",
        "released",
        "released_rows",
        "removed",
        "replicas",
        "requeued",
        "round",
        "running",
        "shares",
        "standing",
        "submitted",
        "sweep_at",
        "users",
        "waiting",
        "weights",
    )

    def __init__(
        self,
        key: int,
        name: str,
        policy: ModelPolicy,
        waiting_models: "dict[ModelQueue, None] | None" = None,
        users: Users | None = None,
        *,
        idempotent: bool,
    ) -> None:
        """Two are the scheduler's: `users`, and `waiting_models`, with this one whenever something waits here."""
        self.key = key
        self.name = name
        self.idempotent = idempotent
        self.policy = policy
        self.balance: BalancePolicy = BALANCE_POLICIES[policy.balance]()
        self.flows = Flows(policy)
        """What the order `mlfq` knows of the connections and sessions."""
        self.predicts = policy.order in BY_SERVICE_TIME
        """What waits has its `predicted_ns`."""
        self.costs = CostTable()
        self.batching: FixedBatching = BATCHINGS[policy.batching](policy, self.costs)
        self.replicas: dict[int, Worker] = {}
        """The workers that have it loaded, by id; changed by add_replica() and remove_replica()."""
        self.binds = False
        """Sessions may be bound: there is more than one replica, and the balance policy has them stick."""
        self.expected = False
        """A replica is being loaded, so requests may wait although there is none."""
        self.reason = "no worker has loaded it"
        """Why there is no replica, for those who ask in vain."""
        self.removed = False
        """remove_model() was called; what is in flight of it still ends."""
        self.buckets: dict[Hashable, BucketQueue] = {}
        """By bucket, and those of bound sessions by (bucket, worker)."""
        self.waiting: dict[BucketQueue, None] = {}
        """The buckets with requests, in the order in which they got their first."""
        self._waiting_models = {} if waiting_models is None else waiting_models
        self.queued = 0
        """Requests that wait."""
        self.class_rows = [0] * PRIORITY_CLASSES
        """Their rows, by priority class."""
        self.nbytes = 0
        """Bytes of their tensors."""
        self.latest: dict[tuple[str, int], Request] = {}
        """By tenant and session the last request that asked to be the only one; it may have left."""
        self.users = users or Users()
        self.shares: dict[str, Share] = {}
        """Of the users that wait, and of some that did."""
        self.accounts: dict[str, Account] = {}
        """Of the tenants that wait, and of some that did."""
        self.crowded = False
        """Several tenants wait, or did since the queue was empty; else the counts of the one are the model's."""
        self.weights = 0.0
        """Sum of the weights of the users that wait, while crowded."""
        self.standing: dict[Account, None] = {}
        """The tenants whose queue stands, as CoDel sees it."""
        self.forecast = Forecast()
        self.concurrency: GradientLimit | None = None
        self.ease_rows = self.ease_bytes = self.ease_ns = 0
        """While no more rows and bytes wait, a deadline that leaves more time is met: no closer look is needed."""
        self.round = 0
        """The latest round of deficit round robin in which a tenant was served."""
        self.sweep_at = ACCOUNTS_SWEPT_MIN
        self.running = 0
        """Requests in flight on workers."""
        self.submitted = 0
        self.completed = 0
        self.expired = 0
        self.cancelled = 0
        self.requeued = 0
        self.device_ns = 0
        self.refused_accepted = 0
        self.refused: Counter[int] = Counter()
        self.released: Counter[ReleaseReason] = Counter()
        self.released_rows = 0

    def set_policy(self, policy: ModelPolicy) -> None:
        """Obey another policy from now on. What waits keeps waiting, sorted by the new order."""
        if policy.balance != self.policy.balance:
            self.balance = BALANCE_POLICIES[policy.balance]()
            self._rebind()
        changed = policy.order != self.policy.order
        if policy.batching == self.policy.batching:
            self.batching.obey(policy)
        else:
            self.batching = BATCHINGS[policy.batching](policy, self.costs)
        if not policy.codel_target_ns:
            self.standing.clear()
        if not policy.adaptive_concurrency:
            self.concurrency = None
        self.policy = policy
        self.ease_rows = 0
        if changed:
            self._reorder()
        else:
            self.flows.obey(policy)

    def _reorder(self) -> None:
        self.flows = Flows(self.policy)
        self.predicts = self.policy.order in BY_SERVICE_TIME
        for bucket in self.buckets.values():
            for level in bucket.levels:
                if self.predicts:
                    for request in level.living():
                        self._predict(request)
                for tenant in level.tenants.values():
                    tenant.reorder(self.make_order())

    def make_order(self) -> OrderPolicy:
        """An empty queue for one tenant, bucket and class."""
        return ORDER_POLICIES[self.policy.order](self.flows)

    def _predict(self, request: Request) -> None:
        """Fix what the request would take alone, on average over the replicas, unless that is done already."""
        if not request.predicted_ns:
            devices = [worker.device for worker in self.replicas.values()] or [""]
            costs = [self.costs.of(request.bucket, device).predicted_ns(request.rows) for device in devices]
            request.predicted_ns = sum(costs) // len(costs)

    def add_replica(self, worker: Worker) -> None:
        """The worker has it loaded and may take its batches."""
        self.replicas[worker.id] = worker
        self._rebind()

    def remove_replica(self, worker_id: int) -> None:
        """The worker gets no more batches. What is bound to it finds another."""
        del self.replicas[worker_id]
        self.ease_rows = 0
        self._rebind()

    def _rebind(self) -> None:
        """Balance policy or replicas have changed: let what waits find its worker again.

        Between two calls a request has one queue only. That matters because queues are emptied lazily: one that moved
        would come to life again in the queue that it left. So all queues are made anew: O(n log n) for n requests.
        """
        replicas = tuple(self.replicas.values())
        self.balance.set_replicas(replicas)
        bound_before = self.binds
        self.binds = self.balance.binds and len(replicas) > 1
        if not bound_before and not self.binds:
            return
        waiting = [request for bucket in self.waiting for level in bucket.levels for request in level.living()]
        waiting.sort(key=attrgetter("seq"))
        for request in waiting:
            assert request.home is not None
            if self.crowded:
                self._count(request.home.account, -1, -request.rows, -request.nbytes)
            self.class_rows[request.priority] -= request.rows
        self.buckets.clear()
        self.waiting.clear()
        self.queued = self.nbytes = 0
        for request in waiting:
            self.push(request)

    def push(self, request: Request) -> None:
        """Queue a request, new or back from a lost worker."""
        key, worker = request.bucket, None
        if self.binds and request.session:
            worker = self.balance.bound(request.session)
            key = (key, worker)
        try:
            bucket = self.buckets[key]
        except KeyError:
            bucket = self.buckets[key] = BucketQueue(self, request.bucket, worker)
        if not bucket.count:
            if not self.waiting:
                self._waiting_models[self] = None
            self.waiting[bucket] = None
        if self.predicts:
            self._predict(request)
        bucket.push(request)
        self.queued += 1
        self.nbytes += request.nbytes
        if self.crowded:
            assert request.home is not None
            self._count(request.home.account, 1, request.rows, request.nbytes)

    def _count(self, account: Account, requests: int, rows: int, nbytes: int) -> None:
        """More (or less) of a tenant waits. A request has one row at least."""
        share, rows_before = account.share, account.rows
        requests_before = share.requests
        account.rows += rows
        share.requests += requests
        share.rows += rows
        share.nbytes += nbytes
        if not rows_before or not account.rows:
            share.names += 1 if account.rows else -1
            if not requests_before or not share.requests:
                self.weights += share.weight if share.requests else -share.weight

    def load(self, user: User) -> tuple[int, int, int]:
        """Requests, rows and bytes of a user that wait."""
        share = self.shares.get(user.name)
        if share is None or not self.queued:
            return 0, 0, 0
        if self.crowded:
            return share.requests, share.rows, share.nbytes
        return self.queued, sum(self.class_rows), self.nbytes

    def remove(self, request: Request, state: RequestState) -> None:
        """Take a queued request out; `state` says why."""
        assert request.home is not None
        bucket, account = request.home.level.bucket, request.home.account
        bucket.remove(request, state)
        account.share.user.rows -= request.rows
        self.nbytes -= request.nbytes
        if self.crowded:
            self._count(account, -1, -request.rows, -request.nbytes)
        self._left(bucket, 1)

    def take(
        self, leader: Request, device: str, now: int, ageing_ns: int, reason: ReleaseReason
    ) -> tuple[list[Request], dict[User, int]]:
        """Take the requests of a batch that `leader` leads on `device`; they come with the rows of each user."""
        assert leader.home is not None
        bucket = leader.home.level.bucket
        rows_max = rows_released(bucket, self.batching, reason)
        if self.crowded:
            cost = self.costs.of(bucket.key, device)
            row_ns = cost.predicted_ns(rows_max) / rows_max
            taken, shares = bucket.take(leader, rows_max, row_ns, now, ageing_ns)
            rows = sum(shares.values())
            # The price was that of a full batch; what this one costs is known only now.
            excess_ns = cost.predicted_ns(rows) / rows - row_ns
            for account, share in shares.items():
                account.pay(share * excess_ns)
            for request in taken:
                self._count(self.accounts[request.tenant], -1, -request.rows, -request.nbytes)
        else:
            taken, shares = bucket.take(leader, rows_max, 0.0, now, ageing_ns)
        users: dict[User, int] = {}
        for account, rows in shares.items():
            users[account.share.user] = users.get(account.share.user, 0) + rows
        self.nbytes -= sum([request.nbytes for request in taken])
        self._left(bucket, len(taken))
        return taken, users

    def take_all(self, state: RequestState) -> list[Request]:
        """Empty the queue."""
        taken = [request for bucket in self.waiting for level in bucket.levels for request in level.living()]
        for request in taken:
            self.remove(request, state)
        return taken

    def take_late(self, bucket: BucketQueue, by_ns: int) -> list[Request]:
        """Take the requests of a bucket whose deadline is at `by_ns` or before."""
        taken: list[Request] = []
        while bucket.count and bucket.earliest_deadline_ns <= by_ns:
            request = bucket.deadlines.peek()
            assert request is not None
            self.remove(request, RequestState.EXPIRED)
            taken.append(request)
        self.expired += len(taken)
        return taken

    def _left(self, bucket: BucketQueue, requests: int) -> None:
        self.queued -= requests
        if not bucket.count:
            del self.waiting[bucket]
            if len(self.buckets) > BUCKETS_KEPT:
                del self.buckets[bucket.key if bucket.worker is None else (bucket.key, bucket.worker)]
            if not self.waiting:
                del self._waiting_models[self]
                self.accounts.clear()
                self.shares.clear()
                self.standing.clear()
                self.latest.clear()
                self.crowded = False
                self.weights = 0.0

    def joined_account(self, tenant: str) -> Account:
        """The account of a tenant that begins to wait. When nobody waits, all begin anew."""
        account = self.accounts.get(tenant)
        if account is None:
            if len(self.accounts) >= self.sweep_at:
                self._sweep_accounts()
            account = self.accounts[tenant] = Account(tenant, self._joined_share(self.users.of(tenant)))
            if len(self.accounts) > 1 and not self.crowded:
                self._become_crowded()
        else:
            account.share.user = self.users.of(tenant)  # forgotten and made anew, it may be, since it waited last
            account.share.join(self.round)
            account.join(account.share.names_round)
        if self.crowded and not account.rows:
            account.codel.emptied()
            self.standing.pop(account, None)
        return account

    def _joined_share(self, user: User) -> Share:
        share = self.shares.get(user.name)
        if share is None:
            share = self.shares[user.name] = Share(user, self.round)
        else:
            share.join(self.round)
        return share

    def _become_crowded(self) -> None:
        """A second tenant comes: count from now on who has what of that which waits. It was all the first's."""
        self.crowded = True
        if self.queued:
            first = next(iter(self.accounts.values()))
            self._count(first, self.queued, sum(self.class_rows), self.nbytes)

    def _sweep_accounts(self) -> None:
        """Forget who neither waits nor owes: coming back, they would start from here anyway."""
        self.accounts = {
            name: account
            for name, account in self.accounts.items()
            if account.rows or account.round > account.share.names_round
        }
        used = {account.share.user.name for account in self.accounts.values()}
        self.shares = {name: share for name, share in self.shares.items() if name in used or share.round > self.round}
        self.sweep_at = 2 * len(self.accounts) + ACCOUNTS_SWEPT_MIN

    def advance_round(self, account: Account) -> None:
        """A tenant is being served: newcomers join in its round, and new names of its user in its own."""
        share = account.share
        if share.round > self.round:
            self.round = share.round
        if account.round > share.names_round:
            share.names_round = account.round

    def reweigh(self) -> None:
        """The policies of users have changed."""
        self.weights = 0.0
        for share in self.shares.values():
            share.weight = share.user.policy.weight
            if share.requests:
                self.weights += share.weight

    def others_waiting(self) -> "list[ModelQueue]":
        """The other models for which something waits."""
        models = self._waiting_models
        if len(models) - (self in models) <= 0:
            return []
        return [model for model in models if model is not self]

    @property
    def highest_class(self) -> int:
        """The highest priority class in which somebody waits, ageing apart; something is waiting."""
        high, normal, _ = self.class_rows
        return 0 if high else 1 if normal else 2

    def predecessor(self, request: Request) -> Request | None:
        """The request that still waits and that this one takes the place of."""
        if not request.latest or not request.session:
            return None
        replaced = self.latest.get((request.tenant, request.session))
        return replaced if replaced is not None and replaced.home is not None else None

    def remember_latest(self, request: Request) -> None:
        """A request was queued that the next of its session may replace."""
        if len(self.latest) > 2 * self.queued + LATEST_SWEPT_MIN:
            self.latest = {key: one for key, one in self.latest.items() if one.home is not None}
        self.latest[request.tenant, request.session] = request

    def charge(self, now: int, batch: Batch[Any], compute_ns: int) -> None:
        """A batch used `compute_ns` (above 0) of device time, whatever came of it."""
        self.device_ns += compute_ns
        if self.policy.order == "mlfq":
            self.flows.charge(now, batch.requests, compute_ns)

    def learn(self, now: int, batch: Batch[Any], device: str, compute_ns: int, *, alone: bool) -> None:
        """A batch took so long, as others of its kind will; `alone`: its worker had nothing else when it came."""
        self.costs.learn(batch.bucket, device, batch.rows, compute_ns)
        self.batching.learn(now, batch, now - batch.released_ns - compute_ns if alone else None)

    def refuse(self, request: Request, error: TensordError) -> TensordError:
        """Count a refusal at submission."""
        request.state = RequestState.REFUSED
        self.refused[error.code] += 1
        self.users.of(request.tenant).refused += 1
        return error

    def refuse_accepted(self, request: Request, error: TensordError) -> TensordError:
        """Count a refusal of a request that had been accepted."""
        self.refused_accepted += 1
        return self.refuse(request, error)
