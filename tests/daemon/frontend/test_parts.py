"""Parts of large requests: their rows are the rows of the whole, in whichever lane and of whatever sizes."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensord.daemon.frontend.models import Model
from tensord.daemon.frontend.parts import Parts, cut_request
from tensord.daemon.frontend.requests import InferRequest, batch_message
from tensord.daemon.messages import ModelServed, TensorInfo
from tensord.daemon.scheduling import ModelPolicy
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.scheduling.request import Batch, ReleaseReason
from tensord.ipc.descriptors import INGEST_ARENA, NO_ARENA, Kind, RaggedDescriptor, Run, decode_batch, decode_ragged
from tensord.ipc.errors import Cancelled, WorkerLost
from tensord.ipc.tensors import DType

from .conftest import MakeRequest, maker_of_requests
from .fake_host import DEFAULTS

ROWS = (44, 43, 43)

parts_of_rows = st.lists(st.integers(1, 9), min_size=2, max_size=5)
lanes = st.fixed_dictionaries({"input": st.booleans(), "output": st.booleans()})


def batch_of(requests: list[InferRequest]) -> Batch[InferRequest]:
    queue = ModelQueue(requests[0].model, "m", ModelPolicy(), idempotent=True)
    rows = sum(request.rows for request in requests)
    return Batch(7, queue, None, 0, requests, rows, ReleaseReason.FULL, 0, 0, 1)


def runs_of(requests: list[InferRequest], model: Model) -> tuple[list[list[Run]], list[list[Run]]]:
    """Of a batch of these requests, input by input, and output by output; what lies together is one run."""
    kind, body = batch_message(batch_of(requests), model)
    assert kind is Kind.BATCH
    descriptor = decode_batch(body)
    return list(descriptor.inputs), list(descriptor.outputs)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=parts_of_rows, placed=lanes)
def test_the_parts_are_the_rows_of_the_whole_one_behind_the_other(
    model: Model, make_request: MakeRequest, rows: list[int], placed: dict[str, bool]
) -> None:
    where = {
        "inputs_in": {0: (1, 4096)} if placed["input"] else None,
        "outputs_in": {1: (2, 8192)} if placed["output"] else None,
    }
    whole = make_request(sum(rows), **where)
    parts = cut_request(whole, rows).parts
    assert [part.rows for part in parts] == rows
    assert runs_of(list(parts), model) == runs_of([whole], model)
    assert sum(part.nbytes for part in parts) == whole.nbytes
    assert all(part.whole is whole and part.ranges == [] and not part.latest for part in parts)


def ragged_and_exact() -> Model:
    """Sizes that come with the request, and none that comes from the data."""
    tokens = ("tokens", 100, False)
    made = Model(
        ModelServed(
            index=5,
            name="states",
            version=1,
            labels=("stable",),
            inputs=(
                TensorInfo("ids", DType.INT64, (tokens,)),
                TensorInfo("mask", DType.UINT8, (tokens,), optional=True),
            ),
            outputs=(TensorInfo("states", DType.FLOAT16, (tokens, 3)), TensorInfo("score", DType.INT8, ())),
            idempotent=True,
            buckets={"tokens": (16, 100)},
        )
    )
    made.apply({**DEFAULTS, "max_batch": 4, "rows_max": 4096, "timeout_ms": 1000})
    return made


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=parts_of_rows, tokens=st.integers(1, 20), placed=lanes, masked=st.booleans())
def test_the_parts_of_free_dimensions_are_the_rows_of_the_whole(
    ingest: object, rows: list[int], tokens: int, placed: dict[str, bool], masked: bool
) -> None:
    model = ragged_and_exact()
    make = maker_of_requests(model, ingest)  # type: ignore[arg-type]
    whole = make(
        sum(rows),
        sizes={"tokens": tokens},
        inputs_in={0: (1, 4096)} if placed["input"] else None,
        outputs_in={0: (2, 8192)} if placed["output"] else None,
        omitted=() if masked else (1,),
    )
    (one,) = described([whole], model).requests
    requests = described(list(cut_request(whole, rows).parts), model).requests
    assert [request.rows for request in requests] == rows
    assert {request.sizes for request in requests} == {one.sizes}
    row_bytes = [8 * tokens, tokens]
    for index, (arena, offset) in enumerate(one.inputs):
        expected = offset
        for request in requests:
            assert request.inputs[index] == ((arena, expected) if arena != NO_ARENA else (NO_ARENA, 0))
            expected += request.rows * row_bytes[index]
    row_bytes = [6 * tokens, 1]
    for index, (arena, offset, room) in enumerate(one.outputs):
        expected = offset
        for request in requests:
            assert request.outputs[index] == (arena, expected, request.rows * row_bytes[index])
            expected += request.rows * row_bytes[index]
        assert expected - offset == math.prod((whole.rows, row_bytes[index])) <= room


def described(requests: list[InferRequest], model: Model) -> RaggedDescriptor:
    kind, body = batch_message(batch_of(requests), model)
    assert kind is Kind.RAGGED
    return decode_ragged(body)


def test_parts_of_one_size_share_their_form(make_request: MakeRequest) -> None:
    first, second, third = cut_request(make_request(130), ROWS).parts
    assert first.form is not second.form
    assert second.form is third.form


def test_parts_run_beside_other_requests(model: Model, make_request: MakeRequest) -> None:
    whole = make_request(4)
    _, second = cut_request(whole, [2, 2]).parts
    small = make_request(1)
    (input_runs, *_), _ = runs_of([small, second], model)
    assert whole.lease is not None
    assert small.lease is not None
    assert input_runs == [
        (INGEST_ARENA, 1, small.lease.offset(0)),
        (INGEST_ARENA, 2, whole.lease.offset(0) + 2 * 12),
    ]


def test_a_part_gives_nothing_back(make_request: MakeRequest) -> None:
    whole = make_request(4)
    assert whole.lease is not None
    cut_request(whole, [2, 2])
    assert whole.lease.chunk.leases == 1


def test_what_is_said_of_the_whole_comes_from_all_parts(make_request: MakeRequest) -> None:
    parts = cut_request(make_request(4), [2, 1, 1])
    assert isinstance(parts, Parts)
    for batch_rows, queue_ns, compute_ns in ((8, 5, 100), (30, 3, 200), (2, 9, 50)):
        parts.ran(batch_rows, queue_ns, compute_ns)
    assert (parts.batch_rows, parts.queue_ns, parts.compute_ns) == (30, 9, 350)


@pytest.mark.parametrize("first_error", [WorkerLost("m"), Cancelled()], ids=["lost", "cancelled"])
def test_the_first_error_is_that_of_the_whole(make_request: MakeRequest, first_error: WorkerLost | Cancelled) -> None:
    parts = cut_request(make_request(3), [1, 1, 1])
    first, second, third = parts.parts
    assert [parts.end(second, first_error), parts.end(first), parts.end(third, WorkerLost("other"))] == [
        False,
        False,
        True,
    ]
    assert parts.error is first_error
