from collections.abc import Callable

import pytest

from tensord.daemon.frontend.ingest import Ingest
from tensord.daemon.frontend.replies import result_frame, too_small
from tensord.daemon.frontend.requests import InferRequest
from tensord.ipc.tensors import DType
from tensord.ipc.wire import HEADER, MAGIC, FrameType, Lane, ResultHead, TensorHeader

MakeRequest = Callable[..., InferRequest]


@pytest.fixture
def memory(ingest: Ingest) -> memoryview:
    """The ingest arena; every byte tells where it is."""
    return memoryview(bytearray(index % 251 for index in range(65_536)) + bytes(ingest.nbytes - 65_536))


def received(parts: list[bytes | memoryview]) -> tuple[ResultHead, list[TensorHeader], bytes]:
    """What a client makes of it."""
    data = b"".join(parts)
    magic, frame_type, flags, meta_bytes, request_id, payload_bytes = HEADER.unpack_from(data)
    assert (magic, frame_type, flags, request_id) == (MAGIC, FrameType.RESULT, 0, 41)
    assert len(data) == HEADER.size + meta_bytes + payload_bytes
    head, tensors = ResultHead.decode(memoryview(data)[HEADER.size : HEADER.size + meta_bytes])
    return head, tensors, data[HEADER.size + meta_bytes :]


def output(request: InferRequest, memory: memoryview, position: int, nbytes: int) -> bytes:
    assert request.lease is not None
    offset = request.lease.offset(position)
    return bytes(memory[offset : offset + nbytes])


def test_inline_outputs_follow_in_the_models_order(make_request: MakeRequest, memory: memoryview) -> None:
    make_request(5)
    request = make_request(3, request_id=41)
    head, tensors, payload = received(result_frame(request, memory, 8, 12_345_678, 5_999))
    assert head == ResultHead(version=2, batch_rows=8, queue_us=12_345, compute_us=5, output_count=2)
    assert tensors == [TensorHeader(0, DType.FLOAT32, (3, 2), 24), TensorHeader(1, DType.UINT8, (3, 5), 15)]
    assert payload == output(request, memory, 2, 24) + output(request, memory, 3, 15)


def test_outputs_in_arenas_are_only_named(make_request: MakeRequest, memory: memoryview) -> None:
    request = make_request(3, request_id=41, outputs_in={0: (4, 640)})
    _, tensors, payload = received(result_frame(request, memory, 3, 0, 0))
    assert tensors[0] == TensorHeader(0, DType.FLOAT32, (3, 2), 24, Lane.ARENA, 4, 640)
    assert payload == output(request, memory, 2, 15)


def test_a_result_all_in_arenas_has_no_payload(make_request: MakeRequest, memory: memoryview) -> None:
    everywhere = {0: (1, 0), 1: (1, 64)}
    request = make_request(2, request_id=41, inputs_in=everywhere, outputs_in=everywhere)
    _, tensors, payload = received(result_frame(request, memory, 2, 0, 0))
    assert [tensor.lane for tensor in tensors] == [Lane.ARENA, Lane.ARENA]
    assert payload == b""


def test_inputs_in_arenas_do_not_move_inline_outputs(make_request: MakeRequest, memory: memoryview) -> None:
    request = make_request(2, request_id=41, inputs_in={1: (1, 0)})
    _, _, payload = received(result_frame(request, memory, 2, 0, 0))
    assert payload == output(request, memory, 1, 16) + output(request, memory, 2, 10)


# ── free dimensions ─────────────────────────────────────────────────────────────────────────────

SIZES = {"tokens": 5, "beams": 3}


def bytes_at(request: InferRequest, memory: memoryview, position: int, nbytes: int) -> bytes:
    offset = request.inline_offset(position)
    return bytes(memory[offset : offset + nbytes])


def test_outputs_have_the_sizes_of_the_request_and_of_the_data(make_ragged: MakeRequest, memory: memoryview) -> None:
    make_ragged(1, sizes=SIZES)
    request = make_ragged(2, request_id=41, sizes=SIZES)
    request.data_sizes = (3,)
    _, tensors, payload = received(result_frame(request, memory, 2, 0, 0))
    assert tensors == [
        TensorHeader(0, DType.FLOAT16, (2, 5, 3), 60),
        TensorHeader(1, DType.FLOAT32, (2, 3, 4), 96),
        TensorHeader(2, DType.INT32, (2,), 8),
    ]
    assert payload == b"".join(bytes_at(request, memory, *span) for span in ((3, 60), (4, 96), (5, 8)))


def test_an_output_without_entries_has_no_bytes(make_ragged: MakeRequest, memory: memoryview) -> None:
    request = make_ragged(2, request_id=41, sizes=SIZES, omitted=[2])
    request.data_sizes = (0,)
    _, tensors, payload = received(result_frame(request, memory, 2, 0, 0))
    assert (tensors[1].shape, tensors[1].nbytes) == ((2, 0, 4), 0)
    assert payload == bytes_at(request, memory, 2, 60) + bytes_at(request, memory, 4, 8)


def test_outputs_whose_sizes_come_from_the_data_may_lie_in_arenas(make_ragged: MakeRequest, memory: memoryview) -> None:
    request = make_ragged(2, request_id=41, sizes=SIZES, outputs_in={1: (4, 640)}, room=96)
    request.data_sizes = (3,)
    _, tensors, payload = received(result_frame(request, memory, 2, 0, 0))
    assert tensors[1] == TensorHeader(1, DType.FLOAT32, (2, 3, 4), 96, Lane.ARENA, 4, 640)
    assert payload == bytes_at(request, memory, 3, 60) + bytes_at(request, memory, 4, 8)


@pytest.mark.parametrize(("found", "needed_bytes"), [(0, None), (3, None), (4, 128), (8, 256)])
def test_an_output_that_does_not_fit_its_range_is_an_error_that_says_how_much_it_needs(
    make_ragged: MakeRequest, found: int, needed_bytes: int | None
) -> None:
    request = make_ragged(2, sizes=SIZES, outputs_in={1: (4, 640)}, room=96)
    request.data_sizes = (found,)
    error = too_small(request)
    if needed_bytes is None:
        assert error is None
    else:
        assert error is not None
        assert error.data() == {"tensor": "spans", "needed_bytes": needed_bytes, "given_bytes": 96}


def test_inline_outputs_always_fit(make_ragged: MakeRequest) -> None:
    request = make_ragged(2, sizes=SIZES)
    request.data_sizes = (8,)
    assert too_small(request) is None


# ── limits ──────────────────────────────────────────────────────────────────────────────────────


def test_times_beyond_the_field_are_cut(make_request: MakeRequest, memory: memoryview) -> None:
    head, _, _ = received(result_frame(make_request(request_id=41), memory, 1, 2**62, 2**62))
    assert (head.queue_us, head.compute_us) == (2**32 - 1, 2**32 - 1)


def test_the_parts_are_views_of_the_arena(make_request: MakeRequest, memory: memoryview) -> None:
    request = make_request(1, request_id=41)
    parts = result_frame(request, memory, 1, 0, 0)
    assert request.lease is not None
    memory[request.lease.offset(3)] = 250
    assert b"".join(parts)[-5] == 250
