"""What a client counts, over all of its connections."""

import dataclasses
import mmap
from typing import Any

import pytest

from tensord.ipc.arena import create_arena
from tensord.ipc.client.arrays import Extent
from tensord.ipc.client.call import Call
from tensord.ipc.client.model import RequestPlan
from tensord.ipc.client.session import ClientSession
from tensord.ipc.client.statistics import ClientCounters, ClientStatistics
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec
from tensord.ipc.wire import FrameType

SPEC = ModelSpec(
    "m", 1, (TensorSpec("x", DType.UINT8, (100,)),), (TensorSpec("y", DType.UINT8, (10,)),), 64, idempotent=True
)


def plan_of(rows: int) -> RequestPlan:
    return RequestPlan(1, SPEC, Extent(rows))


def answered(rows: int, *, in_arena: bool) -> Call:
    call = Call(1, FrameType.RESULT)
    call.plan = plan_of(rows)
    call.returned = (lambda: None) if in_arena else None
    return call


def nonzero(statistics: ClientStatistics) -> dict[str, Any]:
    return {name: count for name, count in dataclasses.asdict(statistics).items() if count}


def test_a_new_client_has_counted_nothing() -> None:
    assert ClientCounters().statistics(None) == ClientStatistics()


def test_the_first_connection_is_no_reconnect() -> None:
    counters = ClientCounters()
    counters.add("reconnects")
    assert counters.statistics(None).reconnects == 0
    assert counters.statistics(ClientSession()).reconnects == 0
    counters.add("reconnects")
    assert counters.statistics(ClientSession()).reconnects == 1


def test_answers_are_counted_by_lane_with_inputs_and_outputs() -> None:
    counters = ClientCounters()
    for rows in (1, 2):
        counters.add_answer(answered(rows, in_arena=False))
    counters.add_answer(answered(10, in_arena=True))
    assert nonzero(counters.statistics(None)) == {
        "answers": 3,
        "inline_requests": 2,
        "inline_bytes": 330,
        "arena_requests": 1,
        "arena_bytes": 1_100,
    }


def test_the_present_connection_is_counted_as_it_is_now() -> None:
    counters, session = ClientCounters(), ClientSession()
    session.ping()
    session.pool.add(1, mmap.PAGESIZE, create_arena(mmap.PAGESIZE))
    slot = session.pool.lease(plan_of(1))
    assert slot is not None
    present = {"in_flight": 1, "slots_leased": 1, "attached_bytes": mmap.PAGESIZE}
    assert nonzero(counters.statistics(session)) == present
    slot.release()
    assert counters.statistics(session).slots_leased == 0
    assert counters.statistics(None) == ClientStatistics()


def test_unknown_replies_of_earlier_connections_are_added_to_those_of_the_present_one() -> None:
    counters, session = ClientCounters(), ClientSession()
    counters.add("unknown_replies", 2)
    session.unknown_replies = 3
    assert counters.statistics(session).unknown_replies == 5
    assert counters.statistics(None).unknown_replies == 2


def test_only_what_is_a_field_can_be_counted() -> None:
    with pytest.raises(KeyError):
        ClientCounters().add("request")
