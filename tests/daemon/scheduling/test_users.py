from tensord.daemon.scheduling import TenantPolicy
from tensord.daemon.scheduling.users import TENANTS_KEPT, USERS_KEPT, Users
from tensord.ipc.errors import TooManyTenantRows

from .rig import Rig, make
from .virtual import BATCH_NS, poisson, serve


def by_uid(policies: dict[str, TenantPolicy]) -> Rig:
    """A rig in which a tenant is "uid" or "uid/name"."""
    rig = Rig()
    users = lambda tenant: (uid := tenant.partition("/")[0], policies.get(uid, TenantPolicy()))  # noqa: E731
    rig.scheduler.set_tenants(users)
    return rig


def test_names_of_a_user_share_its_quota_over_all_models() -> None:
    rig = by_uid({"1": TenantPolicy(rows_max=5)})
    rig.model(0)
    rig.model(1)
    rig.submit(make(tenant="1/a", rows=2), make(tenant="1/b", model=1, rows=3))
    error = rig.scheduler.submit(rig.now, make(tenant="1/c"))
    assert isinstance(error, TooManyTenantRows)
    assert error.data() == {"rows": 1, "limit": 5}
    rig.submit(make(tenant="2", rows=100))


def test_rows_count_until_they_are_answered() -> None:
    rig = by_uid({"1": TenantPolicy(rows_max=2)})
    rig.model()
    rig.submit(make(tenant="1", rows=2))
    batch = rig.only()
    assert isinstance(rig.scheduler.submit(rig.now, make(tenant="1")), TooManyTenantRows)
    rig.complete(batch)
    rig.submit(cancelled := make(tenant="1", rows=2))
    rig.scheduler.cancel(rig.now, cancelled)
    rig.submit(make(tenant="1", rows=2))


def test_a_changed_quota_holds_at_once() -> None:
    rig = by_uid({"1": TenantPolicy(rows_max=5)})
    rig.model()
    rig.submit(make(tenant="1", rows=5))
    rig.scheduler.set_tenants(lambda tenant: (tenant, TenantPolicy(rows_max=6)))
    rig.submit(make(tenant="1"))
    rig.scheduler.set_tenants(lambda tenant: (tenant, TenantPolicy(rows_max=1)))
    assert isinstance(rig.scheduler.submit(rig.now, make(tenant="1")), TooManyTenantRows)


def test_idle_users_and_invented_names_are_forgotten() -> None:
    users = Users(lambda tenant: (tenant.partition("/")[0], TenantPolicy()))
    users.of("busy").rows = 1
    for number in range(2 * TENANTS_KEPT):
        users.of(f"{number}/name")
    assert len(users.by_name) <= USERS_KEPT
    assert len(users.by_tenant) <= TENANTS_KEPT
    assert users.of("busy").rows == 1


def test_a_user_who_was_forgotten_and_comes_back_owes_nothing() -> None:
    rig = Rig()
    rig.model(queue_max=10_000)
    rig.submit(make(tenant="always"))
    for number in range(USERS_KEPT - 3):
        rig.submit(idle := make(tenant=f"user {number}"))
        rig.scheduler.cancel(rig.now, idle)
    for tenant in ("back", "one more", "too many", "back"):
        rig.submit(request := make(tenant=tenant))
        rig.scheduler.cancel(rig.now, request)
    assert {user.user: user.queued_rows for user in rig.scheduler.statistics().users} == {
        "always": 1,
        "too many": 0,
        "back": 0,
    }


def test_statistics_tell_what_a_user_has_and_used() -> None:
    rig = by_uid({"1": TenantPolicy(name="vip", rows_max=6)})
    rig.model(max_batch=4)
    rig.submit(make(tenant="1/a", rows=3), make(tenant="2", rows=1))
    rig.complete(rig.only(), 4_000)
    rig.submit(make(tenant="1/b", rows=4), make(tenant="1/c", rows=2))
    rig.dispatch()
    rig.scheduler.submit(rig.now, make(tenant="1"))
    first, second = rig.scheduler.statistics().users
    assert (first.user, first.tenant_class, first.refused) == ("1", "vip", 1)
    assert (first.queued_rows, first.running_rows, first.device_ns) == (2, 4, 3_000)
    assert (second.user, second.device_ns, second.queued_rows) == ("2", 1_000, 0)


def shares(policies: dict[str, TenantPolicy], tenants: dict[str, float], names: int = 0) -> dict[str, float]:
    """Shares of the rows of each user; the value of a tenant is what it sends, in units of the capacity."""
    rig = by_uid(policies)
    rig.model(max_batch=16, queue_max=2_000, tenant_queue_percent=50)
    span_ns = 200 * BATCH_NS
    arrivals = []
    for number, (tenant, load) in enumerate(tenants.items()):
        every_ns = BATCH_NS / 16 / load
        requests = poisson(number, every_ns, int(span_ns / every_ns), tenant=tenant)
        if tenant == "inventor":
            for serial, request in enumerate(requests):
                request.tenant = f"inventor/{serial % names}"
        arrivals += requests
    outcome = serve(rig.scheduler, arrivals, lambda _: BATCH_NS, span_ns)
    total = sum(request.rows for request, _ in outcome.done)
    return {user: outcome.rows(user) / total for user in tenants}


def test_who_sends_fifty_times_more_gets_half() -> None:
    share = shares({}, {"modest": 0.7, "greedy": 35})
    assert abs(share["modest"] - 0.5) < 0.025


def test_weights_divide_the_device() -> None:
    share = shares({"heavy": TenantPolicy(weight=3.0)}, {"light": 3, "heavy": 3})
    assert abs(share["heavy"] - 0.75) < 0.02


def test_invented_names_give_no_larger_share() -> None:
    for names in (50, 1_000_000):
        share = shares({}, {"plain": 3, "inventor": 3}, names)
        assert abs(share["inventor"] - 0.5) < 0.025


def test_a_flood_leaves_a_modest_tenants_latency_alone() -> None:
    def p99_ns(load: float) -> int:
        rig = Rig()
        rig.model(max_batch=16, queue_max=2_000, tenant_queue_percent=50)
        arrivals = poisson(1, BATCH_NS / 16 / 0.4, 2_000, tenant="modest")
        if load:
            span_ns = arrivals[-1].arrival_ns
            arrivals += poisson(2, BATCH_NS / 16 / load, int(span_ns * load * 16 / BATCH_NS), tenant="greedy")
        return serve(rig.scheduler, arrivals, lambda _: BATCH_NS).p99_ns("modest")

    assert p99_ns(20 * 0.4) <= 1.5 * p99_ns(0)


def test_models_of_equal_weight_get_equal_device_time_whatever_their_batches_take() -> None:
    rig = Rig()
    rig.model(0, max_batch=16)
    rig.model(1, max_batch=16)
    span_ns = 1_000 * BATCH_NS
    arrivals = poisson(1, BATCH_NS / 16, 16_000, model=0) + poisson(2, BATCH_NS / 16 * 10, 1_600, model=1)
    serve(rig.scheduler, arrivals, lambda batch: BATCH_NS * (20 if batch.model else 1), span_ns)
    short, long = (model.device_ns for model in rig.scheduler.statistics().models)
    assert 0.9 <= short / long <= 1.1
