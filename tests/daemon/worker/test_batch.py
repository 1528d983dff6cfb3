"""Batches between arenas and model: what is read in place, gathered, padded and written, byte by byte."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensord.daemon.models.dtypes import TORCH_DTYPES
from tensord.daemon.models.manifest import Format, Manifest
from tensord.daemon.models.shapes import Shapes
from tensord.daemon.worker.batch import Batch, Moved, decode
from tensord.daemon.worker.device import CpuDevice
from tensord.daemon.worker.memory import Memory, UnknownArena
from tensord.ipc.arena import create_arena, map_arena
from tensord.ipc.descriptors import NO_ARENA, Kind, RaggedRequest, Run, encode_batch, encode_ragged
from tensord.ipc.errors import BadModelOutput
from tensord.ipc.ring import RingBroken
from tensord.ipc.tensors import Dimension, DType, TensorSpec, align

DEVICE = CpuDevice("cpu:0")

UNTOUCHED = 0xA5
"""What every byte of an arena is until a test or a batch writes it."""


def manifest_of(shapes: Shapes) -> Manifest:
    return Manifest("m", 1, Path(), Format.FACTORY, None, None, None, shapes, (), (), True, True, None, {})


def shapes_of(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    counts: dict[str, int] | None = None,
    pads: Sequence[float] | None = None,
) -> Shapes:
    """What the worker looks at; buckets and masks are the front end's."""
    pads = tuple(pads) if pads is not None else (0,) * len(inputs)
    return Shapes(tuple(inputs), tuple(outputs), {}, counts or {}, pads, (None,) * len(inputs))


class Arena:
    """Memory that a worker maps, and a cursor for what is put there."""

    def __init__(self, memory: Memory, number: int, nbytes: int = 16 * 1024) -> None:
        self.number = number
        fd = create_arena(nbytes)
        self.bytes = torch.frombuffer(map_arena(fd, nbytes), dtype=torch.uint8)
        self.bytes.fill_(UNTOUCHED)
        memory.map_client(number, fd, nbytes)
        os.close(fd)
        self._cursor = 0

    def room(self, nbytes: int) -> int:
        """Offset of the next free range, with a gap behind it."""
        offset = self._cursor
        self._cursor += align(nbytes + 1)
        return offset

    def put(self, tensor: torch.Tensor) -> tuple[int, int]:
        """Arena and offset of a copy of the tensor."""
        data = tensor.contiguous().view(-1).view(torch.uint8)
        offset = self.room(len(data))
        self.bytes[offset : offset + len(data)] = data
        return self.number, offset

    def get(self, offset: int, spec: TensorSpec, shape: Sequence[int]) -> torch.Tensor:
        nbytes = math.prod(shape) * spec.dtype.itemsize
        return self.bytes[offset : offset + nbytes].view(TORCH_DTYPES[spec.dtype]).view(*shape)

    def touched(self) -> int:
        """Bytes that are no longer as they were made."""
        return int((self.bytes != UNTOUCHED).sum())


@pytest.fixture
def memory() -> Memory:
    return Memory(DEVICE)


@pytest.fixture
def arena(memory: Memory) -> Arena:
    return Arena(memory, 1)


def numbers(dtype: DType, *shape: int, start: int = 1) -> torch.Tensor:
    """Other numbers in each place; of bools, both values."""
    counted = torch.arange(start, start + math.prod(shape)).view(*shape)
    return counted.remainder(2 if dtype is DType.BOOL else 120).to(TORCH_DTYPES[dtype])


# ── fixed shapes ────────────────────────────────────────────────────────────────────────────────

A = TensorSpec("a", DType.FLOAT32, (3,))
FLAG = TensorSpec("flag", DType.BOOL, ())
FIXED = manifest_of(shapes_of([A, FLAG], [A, FLAG]))


def fixed(rows: int, inputs: list[list[Run]], outputs: list[list[Run]]) -> Batch:
    return decode(Kind.BATCH, encode_batch(7, 3, rows, inputs, outputs))


def test_a_batch_knows_who_it_is_and_where_its_rows_lie() -> None:
    batch = fixed(3, [[(0, 3, 0)], [(4, 2, 64), (0, 1, 0)]], [[(5, 3, 0)], [(0, 3, 0)]])
    assert (batch.batch_id, batch.model, batch.rows) == (7, 3, 3)
    assert batch.arenas() == {0, 4, 5}
    assert batch.sizes(FIXED) == {}


def test_rows_one_behind_the_other_are_read_in_place(memory: Memory, arena: Arena) -> None:
    a, flag = numbers(DType.FLOAT32, 4, 3), numbers(DType.BOOL, 4)
    place, flags = arena.put(a), arena.put(flag)
    batch = fixed(4, [[(1, 4, place[1])], [(1, 4, flags[1])]], [])
    stacked = batch.stack(FIXED, DEVICE, memory, private=False)
    assert [torch.equal(*pair) for pair in zip(stacked, (a, flag), strict=True)] == [True, True]
    arena.bytes.zero_()
    assert stacked[0].tolist() == [[0.0] * 3] * 4
    assert torch.equal(stacked[1], flag), "bools are looked at one by one"
    assert batch.moved == Moved(viewed=4 * 12, gathered=4)


def test_rows_in_several_places_are_gathered_in_their_order(memory: Memory, arena: Arena) -> None:
    other = Arena(memory, 2)
    parts = [numbers(DType.FLOAT32, rows, 3, start=10 * rows) for rows in (2, 1, 3)]
    places = [home.put(part) for home, part in zip((arena, other, arena), parts, strict=True)]
    runs = [(number, len(part), offset) for (number, offset), part in zip(places, parts, strict=True)]
    flags = arena.put(numbers(DType.BOOL, 6))
    batch = fixed(6, [runs, [(1, 6, flags[1])]], [])
    stacked = batch.stack(FIXED, DEVICE, memory, private=False)
    assert torch.equal(stacked[0], torch.cat(parts))
    assert batch.moved == Moved(gathered=6 * 13)


def test_a_model_that_changes_its_inputs_gets_copies(memory: Memory, arena: Arena) -> None:
    a, flag = arena.put(numbers(DType.FLOAT32, 2, 3)), arena.put(numbers(DType.BOOL, 2))
    before = arena.bytes.clone()
    batch = fixed(2, [[(1, 2, a[1])], [(1, 2, flag[1])]], [])
    for tensor in batch.stack(FIXED, DEVICE, memory, private=True):
        tensor.fill_(0)
    assert torch.equal(arena.bytes, before)
    assert batch.moved == Moved(gathered=2 * 13)


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_output_rows_go_to_their_places_and_nowhere_else(counts: list[int]) -> None:
    memory = Memory(DEVICE)
    arenas = [Arena(memory, number) for number in (1, 2)]
    rows = sum(counts)
    outputs = [numbers(DType.FLOAT32, rows, 3), numbers(DType.BOOL, rows)]
    runs = [
        [
            (home.number, count, home.room(count * spec.row_bytes))
            for home, count in zip(itertools.cycle(arenas), counts, strict=False)
        ]
        for spec in FIXED.outputs
    ]
    batch = fixed(rows, [], runs)
    assert batch.unstack(FIXED, DEVICE, memory, outputs) == []
    for spec, output, places in zip(FIXED.outputs, outputs, runs, strict=True):
        written = [arenas[number - 1].get(offset, spec, (count, *spec.row_shape())) for number, count, offset in places]
        assert torch.equal(torch.cat(written), output)
    assert sum(home.touched() for home in arenas) == rows * 13
    assert batch.moved == Moved(written=rows * 13)


def test_an_arena_that_is_not_mapped_is_unknown(memory: Memory, arena: Arena) -> None:
    batch = fixed(1, [[(9, 1, 0)], [(1, 1, 0)]], [[(9, 1, 0)], [(1, 1, 0)]])
    with pytest.raises(UnknownArena):
        batch.stack(FIXED, DEVICE, memory, private=False)
    with pytest.raises(UnknownArena):
        batch.unstack(FIXED, DEVICE, memory, [numbers(DType.FLOAT32, 1, 3), numbers(DType.BOOL, 1)])


def test_an_output_run_beyond_its_arena_is_an_error(memory: Memory, arena: Arena) -> None:
    end = len(arena.bytes)
    batch = fixed(2, [], [[(1, 2, end - 20)], [(1, 2, 0)]])
    with pytest.raises(RuntimeError):
        batch.unstack(FIXED, DEVICE, memory, [numbers(DType.FLOAT32, 2, 3), numbers(DType.BOOL, 2)])


def test_a_device_with_memory_of_its_own_gets_every_row_as_bytes(memory: Memory, arena: Arena) -> None:
    """Then it is the device that says whether it needed a copy."""
    device = CpuDevice("cpu:0")
    device.computes_in_place = False
    a = arena.put(numbers(DType.FLOAT32, 2, 3))
    flags = arena.put(numbers(DType.BOOL, 2))
    batch = fixed(2, [[(1, 2, a[1])], [(1, 2, flags[1])]], [])
    stacked = batch.stack(FIXED, device, memory, private=False)
    assert torch.equal(stacked[0], numbers(DType.FLOAT32, 2, 3))
    assert memory._views == {}


@pytest.mark.parametrize("kind", [Kind.DONE, Kind.FAILED, 0, 99])
def test_other_kinds_are_no_batches(kind: int) -> None:
    with pytest.raises(RingBroken, match=f"kind {int(kind)}"):
        decode(kind, b"")


# ── free dimensions ─────────────────────────────────────────────────────────────────────────────

H, W = Dimension("h", 8), Dimension("w", 6)
IMAGE = TensorSpec("image", DType.INT16, (2, H, W))
SCALE = TensorSpec("scale", DType.FLOAT64, ())
MASK = TensorSpec("mask", DType.INT64, (H,), optional=True)
IMAGES = manifest_of(shapes_of([IMAGE, SCALE, MASK], [IMAGE, SCALE, MASK], pads=[-7, 0, 0]))


@dataclass
class Sent:
    """One request: its inputs (None: left out), and where its outputs have room."""

    rows: int
    sizes: tuple[int, ...]
    inputs: list[torch.Tensor | None]
    rooms: list[tuple[int, int, int]] = field(default_factory=list)

    def places(self, arena: Arena) -> RaggedRequest:
        inputs = [(NO_ARENA, 0) if tensor is None else arena.put(tensor) for tensor in self.inputs]
        return RaggedRequest(self.rows, self.sizes, tuple(inputs), tuple(self.rooms))


def ragged(sizes: Sequence[int], requests: Sequence[RaggedRequest]) -> Batch:
    rows = sum(request.rows for request in requests)
    return decode(Kind.RAGGED, encode_ragged(7, 3, rows, sizes, requests))


def image_request(rows: int, h: int, w: int, *, mask: torch.Tensor | None = None) -> Sent:
    return Sent(rows, (h, w), [numbers(DType.INT16, rows, 2, h, w), numbers(DType.FLOAT64, rows), mask])


def test_a_ragged_batch_knows_who_it_is_and_where_its_tensors_lie() -> None:
    places = ((4, 0), (0, 0), (NO_ARENA, 0)), ((5, 0, 100), (0, 64, 8), (5, 128, 100))
    batch = ragged([8, 6], [RaggedRequest(2, (3, 4), *places), RaggedRequest(1, (1, 1), *places)])
    assert (batch.batch_id, batch.model, batch.rows) == (7, 3, 3)
    assert batch.arenas() == {0, 4, 5}
    assert batch.sizes(IMAGES) == {"h": 8, "w": 6}


def test_requests_of_different_sizes_are_padded_with_the_inputs_value(memory: Memory, arena: Arena) -> None:
    first, second = numbers(DType.INT16, 1, 2, 2, 3), numbers(DType.INT16, 2, 2, 4, 1, start=50)
    requests = [Sent(len(own), own.shape[2:], [own, numbers(DType.FLOAT64, len(own)), None]) for own in (first, second)]
    batch = ragged([4, 6], [sent.places(arena) for sent in requests])
    image, scale, mask = batch.stack(IMAGES, DEVICE, memory, private=False)
    whole = torch.full((3, 2, 4, 6), -7, dtype=torch.int16)
    whole[:1, :, :2, :3] = first
    whole[1:, :, :4, :1] = second
    assert torch.equal(image, whole)
    assert scale.tolist() == [1.0, 1.0, 2.0]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert mask.dtype is torch.int64


def test_a_mask_that_was_sent_is_taken_and_padded_with_zero(memory: Memory, arena: Arena) -> None:
    own = torch.tensor([[1, 1, 0], [1, 0, 0]])
    requests = [image_request(2, 3, 1, mask=own), image_request(1, 2, 1)]
    batch = ragged([4, 1], [request.places(arena) for request in requests])
    mask = batch.stack(IMAGES, DEVICE, memory, private=False)[2]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("dtype", DType)
def test_a_mask_that_was_left_out_is_one_in_its_own_type(memory: Memory, arena: Arena, dtype: DType) -> None:
    x, mask = TensorSpec("x", DType.UINT8, (H,)), TensorSpec("mask", dtype, (H,), optional=True)
    sent = Sent(1, (2,), [numbers(DType.UINT8, 1, 2), None])
    made = ragged([3], [sent.places(arena)]).stack(manifest_of(shapes_of([x, mask], [])), DEVICE, memory, private=False)
    assert torch.equal(made[1], torch.tensor([[1, 1, 0]]).to(TORCH_DTYPES[dtype]))


def test_a_mask_that_the_daemon_made_is_the_models_own(memory: Memory, arena: Arena) -> None:
    """All requests share the memory of ones: a model that writes to its mask must not reach the others'."""
    for _ in range(2):
        sent = image_request(2, 3, 4)
        mask = ragged([3, 4], [sent.places(arena)]).stack(IMAGES, DEVICE, memory, private=False)[2]
        assert torch.equal(mask, torch.ones(2, 3, dtype=torch.int64))
        mask.fill_(99)


def test_ones_stay_where_they_are_when_more_are_needed(memory: Memory) -> None:
    few = memory.ones(DType.INT64, 3)
    many = memory.ones(DType.INT64, 100_000)
    assert torch.equal(few.view(torch.int64), torch.ones(3, dtype=torch.int64))
    assert torch.equal(many.view(torch.int64), torch.ones(100_000, dtype=torch.int64))
    assert memory.ones(DType.INT64, 2).data_ptr() == many.data_ptr()


def test_one_request_of_the_whole_size_is_read_in_place(memory: Memory, arena: Arena) -> None:
    sent = image_request(2, 3, 4, mask=torch.ones(2, 3, dtype=torch.int64))
    batch = ragged([3, 4], [sent.places(arena)])
    stacked = batch.stack(IMAGES, DEVICE, memory, private=False)
    arena.bytes.zero_()
    assert not any(tensor.any() for tensor in stacked)
    assert batch.moved == Moved(viewed=2 * (2 * 3 * 4 * 2 + 8 + 3 * 8))


def test_a_model_that_changes_its_inputs_gets_copies_of_ragged_ones_too(memory: Memory, arena: Arena) -> None:
    batch = ragged([3, 4], [image_request(2, 3, 4).places(arena)])
    before = arena.bytes.clone()
    for tensor in batch.stack(IMAGES, DEVICE, memory, private=True):
        tensor.fill_(0)
    assert torch.equal(arena.bytes, before)
    assert (batch.moved.viewed, batch.moved.padded) == (0, 0)


def test_padding_is_counted_apart_from_what_was_gathered(memory: Memory, arena: Arena) -> None:
    mask = torch.ones(1, 2, dtype=torch.int64)
    batch = ragged([4, 6], [image_request(1, 2, 3, mask=mask).places(arena)])
    batch.stack(IMAGES, DEVICE, memory, private=False)
    real, whole = 2 * 2 * 3 * 2 + 2 * 8, 2 * 4 * 6 * 2 + 4 * 8
    assert batch.moved == Moved(viewed=8, gathered=real, padded=whole - real)


def test_an_arena_that_is_not_mapped_is_unknown_to_ragged_batches_too(memory: Memory, arena: Arena) -> None:
    x = TensorSpec("x", DType.UINT8, (H,))
    manifest = manifest_of(shapes_of([x], [x]))
    batch = ragged([3], [RaggedRequest(1, (3,), ((9, 0),), ((9, 0, 3),))])
    with pytest.raises(UnknownArena):
        batch.stack(manifest, DEVICE, memory, private=False)
    with pytest.raises(UnknownArena):
        batch.unstack(manifest, DEVICE, memory, [numbers(DType.UINT8, 1, 3)])


def test_an_input_beyond_its_arena_is_an_error(memory: Memory, arena: Arena) -> None:
    x = TensorSpec("x", DType.UINT8, (H,))
    batch = ragged([3], [RaggedRequest(1, (3,), ((1, len(arena.bytes) - 2),), ())])
    with pytest.raises(RuntimeError):
        batch.stack(manifest_of(shapes_of([x], [])), DEVICE, memory, private=False)


sizes = st.tuples(st.integers(1, 8), st.integers(1, 6))
wishes = st.lists(st.tuples(st.integers(1, 3), sizes, st.booleans()), min_size=1, max_size=5)


@settings(deadline=None)
@given(
    wishes=wishes,
    more=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dtype=st.sampled_from(DType),
    private=st.booleans(),
)
def test_each_request_gets_exactly_its_own_bytes_back(
    wishes: list[tuple[int, tuple[int, int], bool]], more: tuple[int, int], dtype: DType, private: bool
) -> None:
    """Whatever the sizes: stacked, through a model that returns what it got, and unstacked."""
    memory = Memory(DEVICE)
    source, target = Arena(memory, 1), Arena(memory, 2)
    specs = [TensorSpec("x", dtype, (H, 2, W)), TensorSpec("n", DType.INT32, (W,)), MASK]
    manifest = manifest_of(shapes_of(specs, specs, pads=[1, -1, 0]))
    requests = []
    for rows, (h, w), has_mask in wishes:
        x, n = numbers(dtype, rows, h, 2, w), numbers(DType.INT32, rows, w, start=rows)
        mask = numbers(DType.INT64, rows, h).remainder(2) if has_mask else None
        sent = Sent(rows, (h, w), [x, n, mask])
        for spec in specs:
            nbytes = spec.nbytes(rows, {"h": h, "w": w})
            sent.rooms.append((2, target.room(nbytes), nbytes))
        requests.append(sent)
    whole = tuple(max(each.sizes[axis] for each in requests) + more[axis] for axis in (0, 1))
    batch = ragged(whole, [sent.places(source) for sent in requests])
    stacked = batch.stack(manifest, DEVICE, memory, private=private)
    rows = sum(sent.rows for sent in requests)
    assert [tuple(tensor.shape) for tensor in stacked] == [
        (rows, whole[0], 2, whole[1]),
        (rows, whole[1]),
        (rows, whole[0]),
    ]
    assert batch.unstack(manifest, DEVICE, memory, stacked) == []
    written = 0
    for sent in requests:
        for spec, tensor, (_, offset, nbytes) in zip(specs, sent.inputs, sent.rooms, strict=True):
            expected = torch.ones(sent.rows, sent.sizes[0], dtype=torch.int64) if tensor is None else tensor
            assert torch.equal(target.get(offset, spec, expected.shape), expected)
            target.bytes[offset : offset + nbytes] = UNTOUCHED
            written += nbytes
    assert target.touched() == 0
    moved = batch.moved
    assert moved.written == written
    assert moved.viewed + moved.gathered + moved.padded == sum(tensor.nbytes for tensor in stacked)
    assert moved.viewed + moved.gathered == written, "what was sent, and the masks that were made"


# ── sizes that come from the data ───────────────────────────────────────────────────────────────

FOUND = Dimension("found", 5, from_data=True)
X = TensorSpec("x", DType.FLOAT32, (3,))
BOXES = TensorSpec("boxes", DType.INT32, (FOUND, 2))
COUNT = TensorSpec("count", DType.INT64, ())
DETECTOR = manifest_of(shapes_of([X], [BOXES, COUNT], counts={"found": 1}))
ROOM = 5 * 2 * 4
"""Bytes of the boxes of one row, at most."""


def detections(arena: Arena, rows: int, room: int | None = None) -> RaggedRequest:
    """A request whose outputs have room in the arena."""
    boxes = (1, arena.room(ROOM * rows), ROOM * rows if room is None else room)
    return RaggedRequest(rows, (), ((1, 0),), (boxes, (1, arena.room(8 * rows), 8 * rows)))


def boxes_of(arena: Arena, request: RaggedRequest, found: int) -> list[list[list[int]]]:
    return arena.get(request.outputs[0][1], BOXES, (request.rows, found, 2)).tolist()


def test_each_request_has_the_highest_count_of_its_own_rows(memory: Memory, arena: Arena) -> None:
    boxes, counts = numbers(DType.INT32, 4, 4, 2), torch.tensor([2, 1, 3, 0])
    requests = [detections(arena, 1), detections(arena, 2), detections(arena, 1)]
    batch = ragged([], requests)
    assert batch.sizes(DETECTOR) == {}
    assert batch.unstack(DETECTOR, DEVICE, memory, [boxes, counts]) == [2, 3, 0]
    assert boxes_of(arena, requests[0], 2) == boxes[:1, :2].tolist()
    assert boxes_of(arena, requests[1], 3) == [[*boxes[1, :1].tolist(), [0, 0], [0, 0]], boxes[2, :3].tolist()]
    assert [arena.get(each.outputs[1][1], COUNT, (each.rows,)).tolist() for each in requests] == [[2], [1, 3], [0]]
    assert batch.moved.written == (2 * 8) + (2 * 3 * 8) + 4 * 8


def test_what_lies_behind_a_rows_count_is_zero_and_never_what_the_model_left_there(
    memory: Memory, arena: Arena
) -> None:
    left = torch.full((2, 5, 2), 99, dtype=torch.int32)
    request = detections(arena, 2)
    ragged([], [request]).unstack(DETECTOR, DEVICE, memory, [left, torch.tensor([0, 4])])
    assert boxes_of(arena, request, 4) == [[[0, 0]] * 4, [[99, 99]] * 4]
    assert bool((left == 99).all()), "the model's own tensor stays as it is"


def test_a_request_whose_rows_count_nothing_has_no_entry(memory: Memory, arena: Arena) -> None:
    requests = [detections(arena, 2), detections(arena, 1)]
    batch = ragged([], requests)
    outputs = [torch.zeros(3, 0, 2, dtype=torch.int32), torch.tensor([0, 0, 0])]
    assert batch.unstack(DETECTOR, DEVICE, memory, outputs) == [0, 0]
    assert batch.moved.written == 3 * 8


@pytest.mark.parametrize(("room", "is_written"), [(3 * 8, True), (3 * 8 - 1, False), (0, False)])
def test_an_output_that_does_not_fit_is_not_written_and_the_others_are(
    memory: Memory, arena: Arena, room: int, is_written: bool
) -> None:
    small, other = detections(arena, 1, room), detections(arena, 1)
    boxes, counts = numbers(DType.INT32, 2, 4, 2), torch.tensor([3, 2])
    batch = ragged([], [small, other])
    assert batch.unstack(DETECTOR, DEVICE, memory, [boxes, counts]) == [3, 2], "for the front end to say what it needs"
    assert boxes_of(arena, other, 2) == boxes[1:, :2].tolist()
    assert arena.get(small.outputs[1][1], COUNT, (1,)).tolist() == [3]
    written = 3 * 8 if is_written else 0
    assert batch.moved.written == written + 2 * 8 + 2 * 8
    assert arena.touched() == batch.moved.written


@pytest.mark.parametrize(("counts", "got"), [([5, 1], "1 to 5"), ([0, -1], "-1 to 0"), ([2**40, -(2**40)], None)])
def test_counts_that_make_no_sense_are_the_models_fault(
    memory: Memory, arena: Arena, counts: list[int], got: str | None
) -> None:
    outputs = [numbers(DType.INT32, 2, 4, 2), torch.tensor(counts)]
    with pytest.raises(BadModelOutput) as caught:
        ragged([], [detections(arena, 1), detections(arena, 1)]).unstack(DETECTOR, DEVICE, memory, outputs)
    assert caught.value.data() == {
        "model": "m",
        "tensor": "count",
        "expected": "counts from 0 to 4",
        "got": got or f"{-(2**40)} to {2**40}",
    }
    assert arena.touched() == 0


def test_every_output_must_have_what_is_counted(memory: Memory, arena: Arena) -> None:
    scores = TensorSpec("scores", DType.FLOAT32, (FOUND,))
    manifest = manifest_of(shapes_of([X], [BOXES, scores, COUNT], counts={"found": 2}))
    outputs = [numbers(DType.INT32, 1, 4, 2), numbers(DType.FLOAT32, 1, 2), torch.tensor([3])]
    request = RaggedRequest(1, (), ((1, 0),), ((1, 0, ROOM), (1, 64, 20), (1, 128, 8)))
    with pytest.raises(BadModelOutput, match="counts from 0 to 2"):
        ragged([], [request]).unstack(manifest, DEVICE, memory, outputs)


def test_several_counts_are_answered_request_by_request(memory: Memory, arena: Arena) -> None:
    lines, words = Dimension("lines", 4, from_data=True), Dimension("words", 4, from_data=True)
    text = TensorSpec("text", DType.UINT8, (W, lines, words))
    counter = TensorSpec("n", DType.INT32, ())
    outputs = [counter, text, counter]
    manifest = manifest_of(shapes_of([TensorSpec("x", DType.UINT8, (W,))], outputs, counts={"lines": 2, "words": 0}))
    assert [each.name for each in manifest.shapes.data_dimensions] == ["lines", "words"]
    whole = numbers(DType.UINT8, 3, 2, 4, 4)
    requests = [
        RaggedRequest(rows, (w,), ((1, 0),), tuple((1, arena.room(200), 200) for _ in range(3)))
        for rows, w in ((1, 1), (2, 2))
    ]
    word_counts, line_counts = torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([4, 1, 2], dtype=torch.int32)
    batch = ragged([2], requests)
    assert batch.unstack(manifest, DEVICE, memory, [word_counts, whole, line_counts]) == [4, 1, 2, 3]
    assert torch.equal(arena.get(requests[0].outputs[1][1], text, (1, 1, 4, 1)), whole[:1, :1, :4, :1])
    expected = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    expected[0, :, :1, :2] = whole[1, :, :1, :2]
    expected[1] = whole[2, :, :2, :3]
    assert torch.equal(arena.get(requests[1].outputs[1][1], text, (2, 2, 2, 3)), expected)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=5))
def test_every_row_gets_its_entries_and_nobody_elses(counts: list[list[int]]) -> None:
    """Counts of the rows of some requests."""
    memory = Memory(DEVICE)
    arena = Arena(memory, 1)
    requests = [detections(arena, len(own)) for own in counts]
    flat = [count for own in counts for count in own]
    boxes = numbers(DType.INT32, len(flat), 4, 2)
    data_sizes = ragged([], requests).unstack(DETECTOR, DEVICE, memory, [boxes, torch.tensor(flat)])
    assert data_sizes == [max(own) for own in counts]
    row = 0
    for request, own, size in zip(requests, counts, data_sizes, strict=True):
        for found, count in zip(boxes_of(arena, request, size), own, strict=True):
            assert found == boxes[row, :count].tolist() + [[0, 0]] * (size - count)
            row += 1
