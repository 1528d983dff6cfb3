import math
from typing import Any

import pytest

from tensord.daemon.bench.plan import Arrivals, BadOption, Form, Lane, Plan, form
from tensord.ipc.client.arrays import Extent
from tensord.ipc.client.model import RequestPlan
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec
from tensord.ipc.wire import Welcome

KIB = 1024
WELCOME = Welcome(1, 42, in_flight_max=1_024, inline_bytes_max=1 << 20, arena_bytes_max=1 << 26)
SPEC = ModelSpec(
    "image", 1, (TensorSpec("x", DType.UINT8, (KIB,)),), (TensorSpec("y", DType.UINT8, (KIB,)),), 4_096, idempotent=True
)


def request(rows: int) -> RequestPlan:
    return RequestPlan(1, SPEC, Extent(rows))


# ── by itself ───────────────────────────────────────────────────────────────────────────────────


def test_what_nobody_has_changed_makes_sense() -> None:
    Plan("digits").check()
    Plan("digits", rate_per_s=1_000_000, arrivals=Arrivals.CONSTANT, depth=1, warmup_s=0, seed=2**63 - 1).check()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"clients": 0}, "--clients is 0: use 1 to 10,000 connections"),
        ({"clients": 10_001}, "--clients is 10,001: use 1 to 10,000 connections"),
        ({"depth": 0}, "--depth is 0: use 1 to 65,536 requests in flight on each connection"),
        ({"seconds": 0.0}, "--seconds is 0.0: use 0.1 to 3,600 seconds"),
        ({"seconds": math.nan}, "--seconds is nan: use 0.1 to 3,600 seconds"),
        ({"seconds": math.inf}, "--seconds is inf: use 0.1 to 3,600 seconds"),
        ({"warmup_s": -1.0}, "--warmup is -1.0: use 0 to 3,600 seconds"),
        ({"rate_per_s": -2.0}, "--rate is -2.0: use 0.1 to 1,000,000 requests per second"),
        ({"rate_per_s": 2e6}, "--rate is 2,000,000.0: use 0.1 to 1,000,000 requests per second"),
        ({"rows": 0}, "--rows is 0: use 1 to 65,536 rows"),
        ({"timeout_ms": 0}, "--timeout is 0: use 1 to 3,600,000 milliseconds"),
        ({"seed": -1}, "--seed is -1: use 0 to 9,223,372,036,854,775,807 as seed"),
        ({"arrivals": Arrivals.CONSTANT}, "--arrivals is constant: only an open loop has arrivals: give --rate, too"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_what_does(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadOption) as caught:
        Plan("digits", **options).check()
    assert str(caught.value) == sentence


# ── with a model and a daemon ───────────────────────────────────────────────────────────────────


def test_more_rows_than_the_model_takes_are_refused() -> None:
    Plan("image", rows=4_096).check_rows(SPEC)
    with pytest.raises(BadOption, match=r"^--rows is 4,097: model 'image' takes 1 to 4,096 in one request$"):
        Plan("image", rows=4_097).check_rows(SPEC)


@pytest.mark.parametrize(
    ("lane", "rows", "expected"),
    [
        (Lane.AUTO, 256, Form(Lane.INLINE, 1, 256 * KIB, 256 * KIB, 0)),
        (Lane.AUTO, 257, Form(Lane.ARENA, 1, 257 * KIB, 257 * KIB, 514 * KIB)),
        (Lane.INLINE, 1_024, Form(Lane.INLINE, 1, 1_024 * KIB, 1_024 * KIB, 0)),
        (Lane.ARENA, 1, Form(Lane.ARENA, 1, KIB, KIB, 2 * KIB)),
    ],
)
def test_a_lane_is_as_clients_choose_unless_one_is_asked_for(lane: Lane, rows: int, expected: Form) -> None:
    assert form(Plan("image", rows=rows, lane=lane), request(rows), WELCOME) == expected


def test_a_request_that_does_not_fit_inline_is_refused_with_a_remedy() -> None:
    with pytest.raises(BadOption, match=r"^--lane is inline: 1025 rows .* use --lane arena or fewer --rows, or raise"):
        form(Plan("image", rows=1_025, lane=Lane.INLINE), request(1_025), WELCOME)


def test_the_depth_is_one_in_a_closed_loop_and_what_the_daemon_takes_in_an_open_one() -> None:
    assert form(Plan("image"), request(1), WELCOME).depth == 1
    assert form(Plan("image", rate_per_s=5), request(1), WELCOME).depth == 1_024
    assert form(Plan("image", rate_per_s=5, depth=3), request(1), WELCOME).depth == 3


def test_the_usual_depth_of_an_open_loop_holds_no_more_than_an_arena() -> None:
    made = form(Plan("image", rows=4_096, rate_per_s=5), request(4_096), WELCOME)
    assert (made.depth, made.arena_bytes) == (8, 1 << 26)


def test_more_in_flight_than_the_daemon_takes_is_refused() -> None:
    with pytest.raises(BadOption, match=r"^--depth is 1,025: the daemon takes 1,024 in flight .* knob in_flight_max$"):
        form(Plan("image", depth=1_025), request(1), WELCOME)


def test_places_that_do_not_fit_into_an_arena_are_refused() -> None:
    with pytest.raises(BadOption, match=r"^--depth is 9: 9 in flight × 8,388,608 bytes .* at most 67,108,864"):
        form(Plan("image", rows=4_096, depth=9), request(4_096), WELCOME)
