"""A slot as its user holds it: arrays in memory that others map too."""

import mmap

import numpy as np
import pytest

from tensord.ipc.arena import create_arena
from tensord.ipc.client.arena import ArenaPool, ArenaSlot
from tensord.ipc.client.arrays import Extent
from tensord.ipc.client.model import Model, RequestPlan
from tensord.ipc.client.slot import LeasedSlot
from tensord.ipc.errors import BadRequest
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec

DOUBLE = ModelSpec(
    "double", 3, (TensorSpec("x", DType.FLOAT32, (4,)),), (TensorSpec("y", DType.FLOAT32, (4,)),), 8, idempotent=True
)
PAIR = ModelSpec(
    "pair",
    1,
    (TensorSpec("b", DType.INT32, (2,)), TensorSpec("a", DType.UINT8, ())),
    (TensorSpec("sum", DType.INT32, (2,)), TensorSpec("difference", DType.INT32, (2,))),
    8,
    idempotent=True,
)


def plan_of(spec: ModelSpec, rows: int) -> RequestPlan:
    return RequestPlan(1, spec, Extent(rows))


class Leased:
    """A slot, and all of its arena as another process maps it."""

    def __init__(self, spec: ModelSpec, rows: int) -> None:
        fd = create_arena(mmap.PAGESIZE)
        self.memory = np.frombuffer(mmap.mmap(fd, mmap.PAGESIZE), np.uint8)
        self.pool = ArenaPool(mmap.PAGESIZE, lambda: None)
        self.pool.add(1, mmap.PAGESIZE, fd)
        leased = self.pool.lease(plan_of(spec, rows))
        assert leased is not None
        self.arena_slot: ArenaSlot = leased
        self.slot = LeasedSlot("asked for", leased)


def test_it_says_what_it_holds() -> None:
    slot = Leased(PAIR, 3).slot
    assert (slot.model, slot.rows) == (Model.of(PAIR), 3)
    assert [(name, array.dtype, array.shape) for name, array in slot.inputs.items()] == [
        ("b", np.int32, (3, 2)),
        ("a", np.uint8, (3,)),
    ]
    assert [(name, array.dtype, array.shape) for name, array in slot.outputs.items()] == [
        ("sum", np.int32, (3, 2)),
        ("difference", np.int32, (3, 2)),
    ]


def test_what_is_written_is_in_the_arena_and_what_is_there_is_read() -> None:
    leased = Leased(DOUBLE, 2)
    leased.slot.input[:] = 1.5
    assert leased.memory[:32].view(np.float32).tolist() == [1.5] * 8
    leased.memory[64:96].view(np.float32)[:] = 3
    assert leased.slot.outputs["y"].tolist() == [[3.0] * 4] * 2


def test_an_input_has_a_name_and_needs_none_where_it_is_the_only_one() -> None:
    slot = Leased(DOUBLE, 1).slot
    assert slot["x"] is slot.inputs["x"]
    assert slot.input is slot.inputs["x"]
    with pytest.raises(KeyError):
        slot["y"]


def test_one_of_several_inputs_must_be_named() -> None:
    slot = Leased(PAIR, 1).slot
    assert slot["a"] is slot.inputs["a"]
    with pytest.raises(AttributeError, match="model 'asked for' has the inputs b, a"):
        _ = slot.input


def test_its_request_is_for_what_lies_in_it() -> None:
    leased = Leased(DOUBLE, 1)
    request = leased.slot._request(1.0, "high", 7, latest=True)
    assert (request.model, request.inputs, request.priority) == ("asked for", None, 0)
    assert (request.session, request.latest) == (7, True)
    assert request.user_slot is leased.arena_slot
    with pytest.raises(BadRequest, match="timeout"):
        leased.slot._request(0, "high", 7, latest=False)


def test_it_comes_back_once() -> None:
    leased = Leased(DOUBLE, 1)
    assert leased.pool.leased == 1
    leased.slot.release()
    leased.slot.release()
    assert leased.pool.leased == 0


def test_while_a_request_is_in_flight_it_comes_back_with_the_answer() -> None:
    leased = Leased(DOUBLE, 1)
    leased.arena_slot.begin()
    leased.slot.release()
    assert leased.pool.leased == 1
    leased.arena_slot.answered()
    assert leased.pool.leased == 0
