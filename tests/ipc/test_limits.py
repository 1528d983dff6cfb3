"""What the derivations in limits.py promise of one another."""

import struct
from collections.abc import Callable

import pytest

from tensord.daemon.knobs import KNOBS
from tensord.ipc import limits
from tensord.ipc.descriptors import CODE, DONE, RaggedRequest, encode_batch, encode_done, encode_ragged
from tensord.ipc.ring import CELL_BYTES, Consumer, Producer, cells_for
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec
from tensord.ipc.wire import HEADER, encode_opened


def largest_batch() -> bytes:
    runs = [[(1, 1, 64)] * limits.BATCH_REQUESTS_MAX] * limits.TENSORS_MAX
    return encode_batch(2**64 - 1, 0, limits.BATCH_REQUESTS_MAX, runs, runs)


def largest_ragged_batch() -> bytes:
    """Every dimension of every input is free, and has a name of its own."""
    sizes = (1,) * limits.TENSORS_MAX * (limits.TENSOR_DIMENSIONS_MAX - 1)
    places, ranges = ((1, 64),) * limits.TENSORS_MAX, ((1, 64, 64),) * limits.TENSORS_MAX
    requests = [RaggedRequest(1, sizes, places, ranges)] * limits.BATCH_REQUESTS_MAX
    return encode_ragged(2**64 - 1, 0, limits.BATCH_REQUESTS_MAX, sizes, requests)


LARGEST = pytest.mark.parametrize("batch", [largest_batch, largest_ragged_batch])


@LARGEST
def test_three_of_the_largest_batches_fit_into_a_work_ring(batch: Callable[[], bytes]) -> None:
    assert 3 * cells_for(len(batch())) <= limits.RING_BYTES // CELL_BYTES


@LARGEST
def test_the_largest_batch_fits_into_an_empty_work_ring_wherever_it_stands(batch: Callable[[], bytes]) -> None:
    cells = cells_for(len(batch()))
    assert 2 * cells - 1 <= limits.RING_BYTES // CELL_BYTES, "with the most padding that can come before it"


def longest_answer() -> bytes:
    return encode_done(2**64 - 1, 0, [1] * limits.BATCH_REQUESTS_MAX * limits.DATA_DIMENSIONS_MAX)


def test_an_answer_takes_at_most_257_cells() -> None:
    assert cells_for(len(longest_answer())) == 257
    assert cells_for(DONE.size + CODE.size + limits.ERROR_BYTES_MAX) == 33


def test_a_done_ring_holds_all_answers_that_can_be_outstanding() -> None:
    view = memoryview(bytearray(limits.DONE_RING_BYTES))
    producer, consumer = Producer(view, 1), Consumer(view, 1)
    longest = longest_answer()
    taken: list[int] = []
    for _ in range(200):  # several times around
        while len(taken) < limits.PIPELINE_DEPTH_MAX:
            taken.append(producer.publish(3, longest))
        consumer.announce(producer.take_unannounced())
        while consumer.take():
            producer.reclaim(taken.pop(0))


def test_a_thousand_classes_and_the_most_labels_fit_into_one_frame() -> None:
    labels = tuple(f"{index:040}" for index in range(limits.LABELS_MAX))
    spec = TensorSpec("y", DType.FLOAT32, (limits.LABELS_MAX,), labels)
    meta_bytes = len(encode_opened(1, 1, ModelSpec("m", 1, (spec,), (spec,)[:0], 1, True))) - HEADER.size
    assert meta_bytes <= limits.META_BYTES_MAX


def test_a_socket_path_and_its_terminator_fill_sun_path() -> None:
    assert struct.calcsize("108s") == limits.SOCKET_PATH_BYTES_MAX + 1


@pytest.mark.parametrize(
    ("knob", "ceiling"),
    [
        ("inline_bytes_max", limits.PAYLOAD_BYTES_MAX),
        ("arena_bytes_max", limits.ARENA_BYTES_MAX),
        ("pipeline_depth", limits.PIPELINE_DEPTH_MAX),
        ("max_batch", 2**32 - 1),
    ],
)
def test_no_knob_goes_beyond_its_ceiling(knob: str, ceiling: int) -> None:
    maximum = KNOBS[knob].maximum
    assert maximum is not None
    assert maximum <= ceiling
