"""One model version as the scheduler sees it: its policy, what waits for it, where it is loaded, what it counted."""

from collections import Counter
from collections.abc import Hashable
from typing import Any, Final

from tensord.ipc.errors import TensordError

from .balance import BALANCE_POLICIES, BalancePolicy
from .cost import CostTable
from .order import BY_SERVICE_TIME, ORDER_POLICIES, OrderPolicy
from .order_mlfq import Flows
from .policy import ModelPolicy
from .queues import BucketQueue
from .request import Batch, ReleaseReason, Request, RequestState
from .tenants import Account
from .workers import Worker

BUCKETS_KEPT: Final = 64
"""Empty buckets that a model keeps for the next request; with more it drops those that become empty."""

ACCOUNTS_SWEPT_MIN: Final = 256
"""Tenant accounts below which idle ones are not looked for."""


class ModelQueue:
    """The queue of one model, and all that belongs to the model."""

    __slots__ = (
        "_waiting_models",
        "accounts",
        "balance",
        "buckets",
        "cancelled",
        "completed",
        "costs",
        "device_ns",
        "expected",
        "expired",
        "flows",
        "idempotent",
        "key",
        "name",
        "policy",
        "predicts",
        "queued",
        "reason",
        "refused",
        "refused_accepted",
        "released",
        "removed",
        "replicas",
        "requeued",
        "round",
        "running",
        "submitted",
        "sweep_at",
        "waiting",
    )

    def __init__(
        self,
        key: int,
        name: str,
        policy: ModelPolicy,
        waiting_models: "dict[ModelQueue, None] | None" = None,
        *,
        idempotent: bool,
    ) -> None:
        """`waiting_models` is the scheduler's: this model is in it whenever something waits here."""
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
        self.replicas: dict[int, Worker] = {}
        """The workers that have it loaded, by id."""
        self.expected = False
        """A replica is being loaded, so requests may wait although there is none."""
        self.reason = "no worker has loaded it"
        """Why there is no replica, for those who ask in vain."""
        self.removed = False
        """remove_model() was called; what is in flight of it still ends."""
        self.buckets: dict[Hashable, BucketQueue] = {}
        self.waiting: dict[BucketQueue, None] = {}
        """The buckets with requests, in the order in which they got their first."""
        self._waiting_models = {} if waiting_models is None else waiting_models
        self.queued = 0
        """Requests that wait."""
        self.accounts: dict[str, Account] = {}
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

    def set_policy(self, policy: ModelPolicy) -> None:
        """Obey another policy from now on. What waits keeps waiting, sorted by the new order."""
        if policy.balance != self.policy.balance:
            self.balance = BALANCE_POLICIES[policy.balance]()
        changed = policy.order != self.policy.order
        self.policy = policy
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
                    for request in level.ages.living():
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

    def push(self, request: Request) -> None:
        """Queue a request, new or back from a lost worker."""
        bucket = self.buckets.get(request.bucket)
        if bucket is None:
            bucket = self.buckets[request.bucket] = BucketQueue(self, request.bucket)
        if not bucket.count:
            if not self.waiting:
                self._waiting_models[self] = None
            self.waiting[bucket] = None
        if self.predicts:
            self._predict(request)
        bucket.push(request)
        self.queued += 1

    def remove(self, request: Request, state: RequestState) -> None:
        """Take a queued request out; `state` says why."""
        assert request.home is not None
        bucket = request.home.level.bucket
        bucket.remove(request, state)
        self._left(bucket, 1)

    def take(self, leader: Request, device: str, now: int, ageing_ns: int) -> list[Request]:
        """Take the requests of a batch that `leader` leads on `device`."""
        assert leader.home is not None
        bucket = leader.home.level.bucket
        rows_max = self.policy.max_batch
        if len(self.accounts) > 1:
            cost = self.costs.of(bucket.key, device)
            row_ns = cost.predicted_ns(rows_max) / rows_max
            taken, shares = bucket.take(leader, rows_max, row_ns, now, ageing_ns)
            rows = sum(shares.values())
            # The price was that of a full batch; what this one costs is known only now.
            excess_ns = cost.predicted_ns(rows) / rows - row_ns
            for account, share in shares.items():
                account.charge(share * excess_ns)
        else:
            taken, _ = bucket.take(leader, rows_max, 0.0, now, ageing_ns)
        self._left(bucket, len(taken))
        return taken

    def take_all(self, state: RequestState) -> list[Request]:
        """Empty the queue."""
        taken = [request for bucket in self.waiting for level in bucket.levels for request in level.ages.living()]
        for request in taken:
            self.remove(request, state)
        return taken

    def take_overdue(self, now: int) -> list[Request]:
        """Take the requests whose deadline has passed."""
        taken: list[Request] = []
        for bucket in list(self.waiting):
            while bucket.count and bucket.earliest_deadline_ns <= now:
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
                del self.buckets[bucket.key]
            if not self.waiting:
                del self._waiting_models[self]
                self.accounts.clear()

    def joined_account(self, tenant: str) -> Account:
        """The account of a tenant that begins to wait. When nobody waits, all begin anew."""
        account = self.accounts.get(tenant)
        if account is None:
            if len(self.accounts) >= self.sweep_at:
                self._sweep_accounts()
            account = self.accounts[tenant] = Account(self.round)
        else:
            account.join(self.round)
        return account

    def _sweep_accounts(self) -> None:
        """Forget the tenants that neither wait nor owe: coming back, they would start from here anyway."""
        waiting = {
            tenant.account
            for bucket in self.waiting
            for level in bucket.levels
            for tenant in level.tenants.values()
            if tenant.count
        }
        self.accounts = {
            name: account for name, account in self.accounts.items() if account in waiting or account.round > self.round
        }
        self.sweep_at = 2 * len(self.accounts) + ACCOUNTS_SWEPT_MIN

    def advance_round(self, account: Account) -> None:
        """A tenant is being served: newcomers join in its round."""
        if account.round > self.round:
            self.round = account.round

    def learn(self, now: int, batch: Batch[Any], device: str, compute_ns: int) -> None:
        """A batch took `compute_ns` (above 0) of device time: remember what it cost, and on whose account."""
        self.device_ns += compute_ns
        self.costs.learn(batch.bucket, device, batch.rows, compute_ns)
        if self.policy.order == "mlfq":
            self.flows.charge(now, batch.requests, compute_ns)

    def refuse(self, request: Request, error: TensordError) -> TensordError:
        """Count a refusal at submission."""
        request.state = RequestState.REFUSED
        self.refused[error.code] += 1
        return error

    def refuse_accepted(self, request: Request, error: TensordError) -> TensordError:
        """Count a refusal of a request that had been accepted."""
        self.refused_accepted += 1
        return self.refuse(request, error)
