"""The arena lane: which requests take it, leased slots, and what happens when there is no room."""

import fcntl
import gc
import itertools
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tensord import Client
from tensord.ipc.arena import create_arena
from tensord.ipc.client.arena import ArenaPool, ArenaSlot, ClientArena
from tensord.ipc.client.arrays import Extent
from tensord.ipc.client.model import RequestPlan
from tensord.ipc.errors import (
    ArenaQuotaExceeded,
    BadRequest,
    ConnectionLost,
    DeadlineExceeded,
    InternalError,
    ModelFailed,
    SlotInUse,
    TooManyArenas,
    TooManyRows,
    UnknownHandle,
)
from tensord.ipc.limits import ARENAS_PER_CONNECTION_MAX
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec
from tensord.ipc.wire import FrameType, Lane, Welcome, encode_arena

from .fake_daemon import FakeConnection, FakeDaemon, Infer, Script, ignore

MIB = 1 << 20
ROW_BYTES = 3 * 64 * 64 * 4


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "s")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.path, arena_bytes=4 * MIB) as made:
        yield made


def images(rows: int, value: float = 1.0) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.full((rows, 3, 64, 64), value, dtype=np.float32)


# ── lanes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("rows", "in_arena"), [(1, False), (5, False), (6, True), (40, True)])
def test_the_size_of_the_inputs_chooses_the_lane(client: Client, daemon: FakeDaemon, rows: int, in_arena: bool) -> None:
    assert (rows * ROW_BYTES > 256 * 1024) == in_arena
    assert np.array_equal(client.infer("image", images(rows)), images(rows, 2.0))
    assert daemon.requests[0].in_arena == in_arena
    lane = Lane.ARENA if in_arena else Lane.INLINE
    assert daemon.requests[0].tensors[0].lane is lane


def test_outputs_too_large_for_the_socket_take_the_arena(client: Client, daemon: FakeDaemon) -> None:
    x = np.array([1, 2, 3], dtype=np.uint8)
    y = client.infer("wide", x)
    assert y.shape == (3, MIB)
    assert (y == x[:, None]).all()
    assert daemon.requests[0].in_arena


def test_a_daemon_that_takes_little_inline_gets_little(client: Client, daemon: FakeDaemon) -> None:
    daemon.welcome = Welcome(1, 42, 8, 100, 1 << 26)
    client.infer("double", np.zeros((7, 4), np.float32))
    client.infer("double", np.zeros((6, 4), np.float32))
    assert [infer.in_arena for infer in daemon.requests] == [True, False]


def test_the_result_is_a_copy_that_later_requests_do_not_change(client: Client) -> None:
    first = client.infer("image", images(8, 1.0))
    client.infer("image", images(8, 5.0))
    assert (first == 2.0).all()
    assert client.statistics().slots_leased == 0


def test_one_arena_of_the_usual_size_is_attached_on_demand(client: Client, daemon: FakeDaemon) -> None:
    assert client.statistics().attached_bytes == 0
    for _ in range(3):
        client.infer("image", images(8))
    assert len(daemon.seen(FrameType.ATTACH)) == 1
    assert client.statistics().attached_bytes == 4 * MIB


def test_a_request_larger_than_the_usual_arena_gets_one_of_its_size(client: Client, daemon: FakeDaemon) -> None:
    client.infer("image", images(64))
    assert client.statistics().attached_bytes == 2 * 64 * ROW_BYTES


def test_a_daemon_that_refuses_the_usual_size_is_asked_for_less(client: Client, daemon: FakeDaemon) -> None:
    daemon.welcome = Welcome(1, 42, 8, MIB, 64 * MIB)
    asked: list[int] = []

    def refuse_more_than_a_mebibyte(connection: FakeConnection, request_id: int, meta: bytes) -> None:
        nbytes = int.from_bytes(meta[8:16], "little")
        asked.append(nbytes)
        daemon.arenas_max = 0 if nbytes > MIB else 8
        connection.answer_control(FrameType.ATTACH, request_id, meta)

    daemon.on_frame[FrameType.ATTACH] = refuse_more_than_a_mebibyte
    client.infer("image", images(8))
    assert asked == [4 * MIB, 2 * 8 * ROW_BYTES]


def test_without_any_arena_what_fits_goes_inline(client: Client, daemon: FakeDaemon) -> None:
    daemon.arenas_max = 0
    assert np.array_equal(client.infer("image", images(10)), images(10, 2.0))
    assert not daemon.requests[0].in_arena


def test_without_any_arena_what_does_not_fit_is_refused(client: Client, daemon: FakeDaemon) -> None:
    daemon.arenas_max = 0
    with pytest.raises(ArenaQuotaExceeded):
        client.infer("image", images(40))
    assert daemon.requests == []


def test_more_than_an_arena_may_hold_is_refused_here(client: Client, daemon: FakeDaemon) -> None:
    daemon.welcome = Welcome(1, 42, 8, MIB, 2 * MIB)
    with pytest.raises(ArenaQuotaExceeded, match="arena_bytes_max"):
        client.infer("image", images(40))
    assert daemon.seen(FrameType.ATTACH) == []


def test_infer_waits_for_a_slot_where_no_arena_can_be_added(client: Client, daemon: FakeDaemon) -> None:
    daemon.arenas_max = 1
    held = client.lease("image", rows=40)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(bool((client.infer("image", images(40)) == 2).all())))
    waiting.start()
    daemon.wait_seen(FrameType.ATTACH, 2)
    held.release()
    waiting.join()
    assert answers == [True]


def test_infer_waits_no_longer_than_its_deadline(client: Client, daemon: FakeDaemon) -> None:
    daemon.arenas_max = 1
    with client.lease("image", rows=40), pytest.raises(DeadlineExceeded):
        client.infer("image", images(40), timeout=0.05)


def test_threads_that_all_need_an_arena_attach_one(client: Client, daemon: FakeDaemon) -> None:
    threads = [threading.Thread(target=client.infer, args=("image", images(6))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(daemon.seen(FrameType.ATTACH)) == 1


# ── leases ──────────────────────────────────────────────────────────────────────────────────────


def test_a_leased_slot_is_written_and_read_in_place(client: Client, daemon: FakeDaemon) -> None:
    with client.lease("image", rows=2) as slot:
        slot.inputs["x"][:] = images(2, 3.0)
        outputs = slot.infer()
        infer = daemon.requests[0]
        assert np.shares_memory(outputs, slot.outputs["y"])
        assert not np.shares_memory(outputs, slot.input)
        infer.inputs()[0][0, 0, 0, 0] = 99.0  # the daemon's end of the same memory
        assert slot.input[0, 0, 0, 0] == 99.0
        infer.connection.range_of(infer.tensors[1]).view(np.float32)[0] = 77.0
        assert outputs[0, 0, 0, 0] == 77.0


def test_even_a_small_leased_request_carries_no_payload(client: Client, daemon: FakeDaemon) -> None:
    with client.lease("double") as slot:
        slot["x"][:] = 4
        assert slot.infer().tolist() == [[8, 8, 8, 8]]
        slot.input[:] = 5
        assert slot.infer().tolist() == [[10, 10, 10, 10]]
    assert all(infer.in_arena and not infer.payload for infer in daemon.requests)


def test_a_slot_of_several_inputs_names_them(client: Client) -> None:
    with client.lease("pair", rows=3) as slot:
        slot["a"][:] = 5
        slot["b"][:] = 3
        outputs = slot.infer()
        assert outputs["sum"].tolist() == [[8, 8]] * 3
        assert outputs["difference"].tolist() == [[2, 2]] * 3
        with pytest.raises(AttributeError, match="inputs a, b"):
            _ = slot.input


def test_tensors_in_a_slot_are_aligned_and_apart(client: Client, daemon: FakeDaemon) -> None:
    with client.lease("pair", rows=3) as slot:
        slot.infer()
    offsets = sorted(tensor.offset for tensor in daemon.requests[0].tensors)
    assert all(offset % 64 == 0 for offset in offsets)
    assert all(later - earlier >= 24 for earlier, later in itertools.pairwise(offsets))


def test_a_lease_without_room_is_refused_at_once(client: Client, daemon: FakeDaemon) -> None:
    daemon.arenas_max = 1
    with client.lease("image", rows=40), pytest.raises(ArenaQuotaExceeded):
        client.lease("image", rows=40)


def test_a_lease_of_more_rows_than_the_model_takes_is_refused(client: Client) -> None:
    with pytest.raises(TooManyRows):
        client.lease("image", rows=65)
    with pytest.raises(BadRequest, match="rows is 0: a request has 1 to 64"):
        client.lease("image", rows=0)


def test_a_slot_comes_back_at_the_end_of_its_block(client: Client) -> None:
    with client.lease("image", rows=2) as slot:
        assert client.statistics().slots_leased == 1
        slot.infer()
    assert client.statistics().slots_leased == 0
    with pytest.raises(BadRequest, match="slot is released: lease another one"):
        slot.infer()


def test_a_slot_in_flight_comes_back_only_with_its_answer(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(ignore, Infer.answer)
    with client.lease("image", rows=2) as slot:
        with pytest.raises(DeadlineExceeded):
            slot.infer(timeout=0.01)
        with pytest.raises(SlotInUse):
            slot.infer()
    assert client.statistics().slots_leased == 1
    daemon.requests[0].answer()
    client.ping()
    assert client.statistics().slots_leased == 0


def test_the_copy_of_a_request_out_of_time_comes_back_only_with_its_answer(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    with pytest.raises(DeadlineExceeded):
        client.infer("image", images(8), timeout=0.01)
    assert client.statistics().slots_leased == 1
    daemon.requests[0].answer()
    client.ping()
    assert client.statistics().slots_leased == 0


def test_an_error_gives_the_slot_back(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = lambda infer: infer.refuse(ModelFailed("image", "boom"))
    with pytest.raises(ModelFailed):
        client.infer("image", images(8))
    assert client.statistics().slots_leased == 0


def test_a_slots_future_gives_views(client: Client) -> None:
    with client.lease("double", rows=2) as slot:
        slot.input[:] = 1
        outputs = slot.submit().result()
        assert outputs.tolist() == [[2] * 4] * 2
        assert np.shares_memory(outputs, slot.outputs["y"])


def test_a_slot_ends_with_its_connection(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(Infer.drop, Infer.answer)
    with client.lease("double") as slot:
        with pytest.raises(ConnectionLost, match="lease again"):
            slot.infer()
        client.ping()
        with pytest.raises(ConnectionLost, match="lease again"):
            slot.infer()
    with client.lease("double") as slot:
        slot.input[:] = 2
        assert slot.infer().tolist() == [[4, 4, 4, 4]]


def test_copies_are_sent_again_into_a_new_arena(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(Infer.drop, Infer.answer)
    assert np.array_equal(client.infer("image", images(8)), images(8, 2.0))
    assert len(daemon.seen(FrameType.ATTACH)) == 2
    assert client.statistics().slots_leased == 0


def test_views_outlive_the_connection_as_memory(client: Client, daemon: FakeDaemon) -> None:
    slot = client.lease("double")
    slot.input[:] = 3
    y = slot.infer()
    client.close()
    assert y.tolist() == [[6, 6, 6, 6]]


def test_a_slot_is_opened_again_with_its_model(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(lambda infer: infer.refuse(UnknownHandle(1)), Infer.answer)
    with client.lease("double") as slot:
        slot.input[:] = 1
        assert slot.infer().tolist() == [[2, 2, 2, 2]]
    assert len(daemon.seen(FrameType.OPEN)) == 2


def test_a_slot_of_a_model_that_changed_is_of_no_use(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = lambda infer: infer.refuse(UnknownHandle(1))
    with client.lease("double") as slot:
        daemon.models["double"] = daemon.models["scalar"]
        with pytest.raises(UnknownHandle):
            slot.infer()
    assert len(daemon.requests) == 1


# ── free dimensions ─────────────────────────────────────────────────────────────────────────────

LARGE_N = 1 << 16
"""A row of so many integers takes the arena lane; it is the largest size of `ragged`, too."""


def integers(rows: int, n: int, positive: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
    """Rows of -1 with some positive numbers at the front: 1, 2, 3, …; one less in each further row."""
    x = np.full((rows, n), -1, np.int32)
    for row in range(rows):
        x[row, : max(0, positive - row)] = np.arange(1, max(0, positive - row) + 1)
    return x


@pytest.mark.parametrize(("rows", "n", "in_arena"), [(3, 8, False), (2, LARGE_N, True)])
@pytest.mark.parametrize("positive", [0, 1, 5, 8])
def test_outputs_have_the_sizes_of_the_inputs_and_of_the_data_in_both_lanes(
    client: Client, daemon: FakeDaemon, rows: int, n: int, in_arena: bool, positive: int
) -> None:
    x = integers(rows, n, positive)
    outputs = client.infer("ragged", x)
    assert daemon.requests[0].in_arena == in_arena
    assert np.array_equal(outputs["same"], x)
    assert outputs["positive"].shape == (rows, positive)
    assert outputs["positive"][0].tolist() == list(range(1, positive + 1))
    assert outputs["count"].tolist() == [max(0, positive - row) for row in range(rows)]
    assert client.statistics().slots_leased == 0


@pytest.mark.parametrize("n", [8, LARGE_N])
def test_an_optional_input_travels_only_when_it_is_given(client: Client, daemon: FakeDaemon, n: int) -> None:
    x = integers(2, n, 4)
    mask = np.ones_like(x)
    mask[:, 0] = 0
    assert client.infer("ragged", x)["positive"][0].tolist() == [1, 2, 3, 4]
    assert client.infer("ragged", {"x": x, "mask": mask})["positive"][0].tolist() == [2, 3, 4]
    assert [infer.head.input_count for infer in daemon.requests] == [1, 2]
    assert [[array.shape for array in infer.inputs()] for infer in daemon.requests] == [[(2, n)], [(2, n)] * 2]


def test_requests_of_different_sizes_do_not_disturb_one_another(client: Client) -> None:
    for n in (8, LARGE_N, 3, 100, 8, LARGE_N - 1):
        x = integers(2, n, 3)
        assert np.array_equal(client.infer("ragged", x)["same"], x)


def test_a_slot_is_leased_for_sizes_and_holds_the_inputs_that_are_named(client: Client, daemon: FakeDaemon) -> None:
    with client.lease("ragged", rows=2, sizes={"n": 10}) as slot:
        assert {name: view.shape for name, view in slot.inputs.items()} == {"x": (2, 10)}
        slot.input[:] = integers(2, 10, 4)
        outputs = slot.infer()
    assert daemon.requests[0].head.input_count == 1
    assert outputs["positive"].tolist() == [[1, 2, 3, 4], [1, 2, 3, 0]]
    with client.lease("ragged", rows=1, sizes={"n": 3}, optional=["mask"]) as slot:
        assert {name: view.shape for name, view in slot.inputs.items()} == {"x": (1, 3), "mask": (1, 3)}
        slot["x"][:] = [[5, 6, 7]]
        slot["mask"][:] = [[0, 1, 0]]
        assert slot.infer()["positive"].tolist() == [[6]]


def test_outputs_of_a_slot_are_views_that_shrink_to_what_there_is(client: Client) -> None:
    with client.lease("ragged", rows=2, sizes={"n": 10}) as slot:
        assert slot.outputs["positive"].shape == (2, 8)
        for positive in (3, 8, 0, 5):
            slot.input[:] = integers(2, 10, positive)
            outputs = slot.infer()
            assert outputs["positive"].shape == (2, positive)
            assert outputs["same"].tolist() == slot.input.tolist()
            assert np.shares_memory(outputs["count"], slot.outputs["count"])
            assert positive == 0 or np.shares_memory(outputs["positive"], slot.outputs["positive"])


@pytest.mark.parametrize(
    ("sizes", "optional", "told"),
    [
        ({}, [], "n: 1 to 65536"),
        ({"n": 0}, [], "n: 1 to 65536"),
        ({"n": LARGE_N + 1}, [], "n: 1 to 65536"),
        ({"n": 5, "found": 3}, [], "n: 1 to 65536"),
        ({"n": 5}, ["x"], r"the optional inputs are \['mask'\]"),
    ],
)
def test_a_lease_of_sizes_that_make_no_sense_is_refused(
    client: Client, daemon: FakeDaemon, sizes: dict[str, int], optional: list[str], told: str
) -> None:
    with pytest.raises(BadRequest, match=told):
        client.lease("ragged", sizes=sizes, optional=optional)
    assert daemon.seen(FrameType.ATTACH) == []


# ── descriptors ─────────────────────────────────────────────────────────────────────────────────


def plain_file(nbytes: int) -> int:
    fd = os.memfd_create("plain")
    os.ftruncate(fd, nbytes)
    return fd


@pytest.mark.parametrize("kind", ["unsealed", "too small", "no memfd"])
def test_an_arena_that_could_shrink_is_not_mapped(client: Client, daemon: FakeDaemon, kind: str) -> None:
    def attach(connection: FakeConnection, request_id: int, meta: bytes) -> None:
        nbytes = int.from_bytes(meta[8:16], "little")
        match kind:
            case "unsealed":
                fd = plain_file(nbytes)
            case "too small":
                fd = create_arena(nbytes // 2)
            case _:
                fd = os.open("/dev/null", os.O_RDWR)
        connection.send(encode_arena(FrameType.ATTACHED, request_id, 1, nbytes), [fd])
        os.close(fd)

    daemon.on_frame[FrameType.ATTACH] = attach
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InternalError, match="cannot be used"):
        client.lease("double")
    daemon.wait_seen(FrameType.ATTACH)
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # both ends of the connection


def test_attached_without_a_descriptor_ends_the_connection(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_frame[FrameType.ATTACH] = lambda connection, request_id, meta: connection.send(
        encode_arena(FrameType.ATTACHED, request_id, 1, MIB)
    )
    with pytest.raises(ConnectionLost, match="without a file descriptor"):
        client.lease("double")


def test_descriptors_nobody_asked_for_are_closed(client: Client, daemon: FakeDaemon) -> None:
    def pong(connection: FakeConnection, request_id: int, meta: bytes) -> None:
        fd = plain_file(1)
        connection.send(encode_arena(FrameType.PONG, request_id, 0, 0), [fd, fd])
        os.close(fd)

    daemon.on_frame[FrameType.PING] = pong
    client.models()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    client.ping()
    daemon.wait_seen(FrameType.PING)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_received_descriptors_are_not_inherited(client: Client, daemon: FakeDaemon) -> None:
    client.lease("double")
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if "memfd:tensord" in name:
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


# ── the pool, alone ─────────────────────────────────────────────────────────────────────────────

SPEC = ModelSpec(
    "m", 1, (TensorSpec("x", DType.UINT8, (100,)),), (TensorSpec("y", DType.UINT8, (10,)),), 64, idempotent=True
)


def pool_of(nbytes: int) -> tuple[ArenaPool, list[int]]:
    released: list[int] = []
    pool = ArenaPool(MIB, lambda: released.append(1))
    pool.add(1, nbytes, create_arena(nbytes))
    return pool, released


def test_slots_do_not_overlap_and_come_back() -> None:
    pool, released = pool_of(mmap.PAGESIZE)
    plan = RequestPlan(1, SPEC, Extent(10))
    assert plan.slot_bytes == 1_024 + 128
    slots = [slot for slot in (pool.lease(plan) for _ in range(4)) if slot is not None]
    assert len(slots) == 3
    assert len({slot.base for slot in slots}) == 3
    slots[1].release()
    slots[1].release()
    again = pool.lease(plan)
    assert isinstance(again, ArenaSlot)
    assert again.base == slots[1].base
    assert len(released) == 1


def test_a_slot_of_free_sizes_takes_what_its_sizes_need() -> None:
    pool, _ = pool_of(mmap.PAGESIZE)
    n, found = Dimension("n", 100), Dimension("found", 10, from_data=True)
    tensors = (TensorSpec("x", DType.UINT8, (n,)), TensorSpec("mask", DType.UINT8, (n,), optional=True))
    spec = ModelSpec("m", 1, tensors, (TensorSpec("y", DType.UINT8, (found,)),), 64, idempotent=True)
    with_mask, without = RequestPlan(1, spec, Extent(2, (60,))), RequestPlan(1, spec, Extent(2, (60,), (1,)))
    assert (with_mask.slot_bytes, without.slot_bytes) == (128 + 128 + 64, 128 + 64)
    slot = pool.lease(without)
    assert slot is not None
    assert {name: view.shape for name, view in slot.inputs.items()} == {"x": (2, 60)}
    slot.outputs["y"][:] = np.arange(20).reshape(2, 10)
    assert [view.tolist() for view in slot.results([(2, 3)])] == [[[0, 1, 2], [3, 4, 5]]]
    assert [view.shape for view in slot.results([])] == [(2, 10)]


def test_a_pool_allows_so_many_arenas() -> None:
    pool, _ = pool_of(mmap.PAGESIZE)
    for number in range(2, ARENAS_PER_CONNECTION_MAX + 1):
        assert pool.sizes_to_attach(100, MIB) == [MIB, mmap.PAGESIZE]
        pool.add(number, mmap.PAGESIZE, create_arena(mmap.PAGESIZE))
    with pytest.raises(TooManyArenas):
        pool.sizes_to_attach(100, MIB)


def test_sizes_to_attach_are_whole_pages_within_the_limit() -> None:
    pool, _ = pool_of(mmap.PAGESIZE)
    assert pool.sizes_to_attach(2 * MIB + 1, 64 * MIB) == [2 * MIB + mmap.PAGESIZE]
    assert pool.sizes_to_attach(1, 2 * mmap.PAGESIZE) == [2 * mmap.PAGESIZE, mmap.PAGESIZE]


def test_a_mapped_arena_is_zero_and_shared() -> None:
    fd = create_arena(mmap.PAGESIZE)
    other = mmap.mmap(fd, mmap.PAGESIZE)
    arena = ClientArena(1, mmap.PAGESIZE, fd)
    arena.memory[5] = 7
    assert other[5] == 7
    assert other[6] == 0
