"""Every refusal of a real daemon: its error, its counter, and whether it keeps what its retry-after promises."""

import os
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest

from tensord.daemon import control
from tensord.ipc.errors import (
    ConcurrencyLimit,
    DeadlineInfeasible,
    QueueBytesFull,
    QueueDelay,
    QueueFull,
    QueueRowsFull,
    TenantQueueFull,
    TensordError,
    TooManyTenantRows,
)
from tensord.ipc.wire import FrameType

from .load import Ask, Flow, run

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

REQUESTS: Final = 40
"""Whole batches: a fifth of a second of work."""
ALL: Final = {"nap__tenant_queue_percent": 100}
"""The only tenant may have the whole queue."""
TOLERANCE_S: Final = 0.05
"""A loaded machine is later than it was when predictions were learned."""


@pytest.fixture(scope="module")
def classes() -> str:
    """The tests' user is in a class."""
    return f'[tenants.mine]\nusers = ["uid:{os.getuid()}"]\n'


@pytest.mark.parametrize(
    ("error", "counter", "knobs", "deadline_s"),
    [
        (QueueFull, "refused_queue", {"nap__queue_max": 10, **ALL}, 0.0),
        (QueueRowsFull, "refused_queue_rows", {"nap__queue_rows_max": 80, **ALL}, 0.0),
        (QueueBytesFull, "refused_queue_bytes", {"nap__queue_bytes_max": 4096, **ALL}, 0.0),
        (TenantQueueFull, "refused_tenant_queue", {"nap__queue_max": 20}, 0.0),
        (TooManyTenantRows, "refused_tenant_rows", {"mine__tenant_rows_max": 80}, 0.0),
        (DeadlineInfeasible, "refused_deadline", {"nap__deadline_check": True}, 0.08),
        (ConcurrencyLimit, "refused_concurrency", {"nap__adaptive_concurrency": True}, 0.0),
        (QueueDelay, "refused_delay", {"nap__codel_target_ms": 5, "nap__codel_interval_ms": 20}, 0.0),
    ],
)
def test_a_refusal_says_when_the_same_request_will_be_accepted(
    idle: "Daemon", join: "Connect", error: type[TensordError], counter: str, knobs: dict[str, Any], deadline_s: float
) -> None:
    run(Flow(join(), [Ask(rows=8)] * 6, depth=2))  # how long a batch takes is known
    before = idle.counter("nap", counter)
    client, x = join(), np.zeros((8, 2), np.float32)

    def request(request_id: int) -> bytes:
        deadline_ns = time.monotonic_ns() + int(deadline_s * 1e9) if deadline_s else 0
        return client.request("nap", x, request_id=request_id, deadline_ns=deadline_ns)

    with idle.knobs(**knobs):
        client.open("nap")
        client.send(*[request(request_id) for request_id in range(1, REQUESTS + 1)])
        refused: list[TensordError] = []
        refused_s = again_s = answered_s = 0.0
        again = None
        left = REQUESTS + 1
        while left:
            if again_s and again is None and time.monotonic() >= again_s:
                again = REQUESTS + 1
                client.send(request(again))
            if not client.ready(again_s - time.monotonic() if again_s and again is None else 30.0):
                continue
            answer = client.receive()
            left -= 1
            if answer.request_id == again:
                assert answer.frame_type == FrameType.RESULT, answer.error()
            elif answer.frame_type == FrameType.RESULT:
                answered_s = time.monotonic()
            else:
                refused.append(answer.error())
                if not again_s:
                    refused_s = time.monotonic()
                    assert refused[0].retry_after_ms, refused[0]
                    again_s = refused_s + refused[0].retry_after_ms / 1000 + TOLERANCE_S
    assert {type(each) for each in refused} == {error}
    assert all(each.retry_after_ms for each in refused)
    print(error.__name__, len(refused), refused[0].retry_after_ms, answered_s - refused_s)
    assert again_s - refused_s < 3 * (answered_s - refused_s) + 2 * TOLERANCE_S
    idle.wait_status(
        lambda now: [model.counters[counter] for model in now.models if model.name == "nap"] == [before + len(refused)]
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nap.window_us": 2_000_000, "nap.timeout_ms": 1_000}, "longer than timeout_ms (1000 ms)"),
        ({"nap.weight": 0}, "0.01"),
        ({"nap.order": "lifo"}, "fcfs"),
        ({"nap.balance": "best"}, "least_work"),
        ({"nap.batching": "dynamic"}, "deferred"),
        ({"nap.preferred_batches": "8,4"}, "ascending"),
        ({"nap.preferred_batches": "4,64"}, "max_batch"),
        ({"mine.tenant_weight": 0}, "0.01"),
    ],
)
def test_bad_values_are_refused_with_the_reason_and_nothing_changes(
    idle: "Daemon", join: "Connect", settings: "dict[str, control.Setting | None]", reason: str
) -> None:
    def values() -> "tuple[int, dict[str, control.Setting]]":
        answer = idle.ask(control.Get())
        assert isinstance(answer, control.Values)
        return answer.epoch, {knob.address: knob.value for knob in answer.knobs}

    before = values()
    refused = idle.ask(control.Set({"nap.max_batch": 16, **settings}))
    assert isinstance(refused, control.Refused)
    print(refused.sentence)
    assert next(reversed(settings.keys())) in refused.sentence or next(iter(settings)) in refused.sentence
    assert reason in refused.sentence
    assert values() == before
    (ended,) = run(Flow(join(), [Ask(rows=8)]))
    assert ended.error is None
