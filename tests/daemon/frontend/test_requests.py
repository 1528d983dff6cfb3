import itertools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensord.daemon.frontend.models import Model
from tensord.daemon.frontend.requests import InferRequest, batch_message
from tensord.daemon.scheduling import Batch, ModelPolicy, ReleaseReason
from tensord.daemon.scheduling.model import ModelQueue
from tensord.ipc.descriptors import (
    NO_ARENA,
    BatchDescriptor,
    Kind,
    RaggedDescriptor,
    RaggedRequest,
    Run,
    decode_batch,
    decode_ragged,
)

MakeRequest = Callable[..., InferRequest]
Bytes = tuple[int, int]
"""Arena and offset of a row."""


def batch_of(requests: Sequence[InferRequest]) -> Batch[InferRequest]:
    queue = ModelQueue(requests[0].model, "m", ModelPolicy(), idempotent=True)
    rows = sum(request.rows for request in requests)
    return Batch(77, queue, None, 0, list(requests), rows, ReleaseReason.FULL, 0, 0, 1)


def descriptor_of(requests: Sequence[InferRequest], model: Model) -> BatchDescriptor:
    return decode_batch(batch_message(batch_of(requests), model)[1])


def rows_of(runs: Sequence[Run], row_bytes: int) -> list[Bytes]:
    return [(arena, offset + row * row_bytes) for arena, rows, offset in runs for row in range(rows)]


def expected_rows(requests: Sequence[InferRequest], model: Model, *, tensor: int, is_input: bool) -> list[Bytes]:
    """Where every row of a tensor lies, by the requests' leases and places."""
    rows: list[Bytes] = []
    for request in requests:
        form = request.form
        inline = form.inline_inputs if is_input else form.inline_outputs
        row_bytes = (model.inputs if is_input else model.outputs)[tensor].row_bytes
        if tensor in inline:
            assert request.lease is not None
            position = inline.index(tensor) + (0 if is_input else len(form.inline_inputs))
            arena, offset = 0, request.lease.offset(position)
        else:
            places = form.input_places if is_input else form.output_places
            (place,) = [place for place in places if place.tensor == tensor]
            arena, offset = place.arena, place.offset
        rows += [(arena, offset + row * row_bytes) for row in range(request.rows)]
    return rows


def test_a_request_is_the_schedulers_and_the_connections(make_request: MakeRequest) -> None:
    request = make_request(4, request_id=9)
    assert (request.model, request.tenant, request.priority, request.rows) == (3, "0", 1, 4)
    assert (request.request_id, request.received_ns, request.deadline_ns, request.cancelled) == (9, 5, 10**18, False)


def test_requests_leased_one_after_the_other_are_one_run_per_tensor(make_request: MakeRequest, model: Model) -> None:
    requests = [make_request(2) for _ in range(5)]
    descriptor = descriptor_of(requests, model)
    assert (descriptor.batch_id, descriptor.model, descriptor.rows) == (77, 3, 10)
    assert [[run[:2] for run in runs] for runs in descriptor.inputs + descriptor.outputs] == [[(0, 10)]] * 4


def test_rows_of_different_requests_join_whatever_their_counts(make_request: MakeRequest, model: Model) -> None:
    descriptor = descriptor_of([make_request(rows) for rows in (1, 3, 2)], model)
    assert [[run[:2] for run in runs] for runs in descriptor.inputs + descriptor.outputs] == [[(0, 6)]] * 4


def test_another_order_than_that_of_arrival_makes_runs(make_request: MakeRequest, model: Model) -> None:
    first, second, third = (make_request() for _ in range(3))
    descriptor = descriptor_of([second, third, first], model)
    assert [[run[1] for run in runs] for runs in descriptor.inputs] == [[2, 1], [2, 1]]
    assert descriptor.inputs[0][1][2] == 0


def test_a_gap_between_leases_makes_runs(make_request: MakeRequest, model: Model) -> None:
    requests = [make_request() for _ in range(4)]
    descriptor = descriptor_of([requests[0], requests[1], requests[3]], model)
    assert [[run[1] for run in runs] for runs in descriptor.outputs] == [[2, 1], [2, 1]]


def test_neighbours_in_an_arena_join_too(make_request: MakeRequest, model: Model) -> None:
    requests = [make_request(16, inputs_in={0: (1, 192 * index)}) for index in range(3)]
    descriptor = descriptor_of(requests, model)
    assert descriptor.inputs[0] == [(1, 48, 0)]
    assert [run[:2] for run in descriptor.inputs[1]] == [(0, 48)]


def test_neighbours_in_different_arenas_do_not_join(make_request: MakeRequest, model: Model) -> None:
    requests = [make_request(16, inputs_in={0: (arena, 192 * arena)}) for arena in (1, 2)]
    assert descriptor_of(requests, model).inputs[0] == [(1, 16, 192), (2, 16, 384)]


def test_a_request_all_in_arenas_has_no_lease(make_request: MakeRequest, model: Model) -> None:
    request = make_request(2, inputs_in={0: (1, 0), 1: (1, 64)}, outputs_in={0: (2, 0), 1: (1, 128)})
    assert request.lease is None
    descriptor = descriptor_of([request], model)
    assert descriptor.inputs == [[(1, 2, 0)], [(1, 2, 64)]]
    assert descriptor.outputs == [[(2, 2, 0)], [(1, 2, 128)]]


places = st.dictionaries(st.integers(0, 1), st.tuples(st.integers(1, 8), st.integers(0, 100).map(lambda n: 64 * n)))
wishes = st.tuples(st.integers(1, 5), st.none() | places, st.none() | places)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wished=st.lists(wishes, min_size=1, max_size=12), dropped=st.sets(st.integers(0, 11)), order=st.randoms())
def test_the_runs_are_the_rows_of_the_requests_in_their_order(
    make_request: MakeRequest,
    model: Model,
    wished: list[tuple[int, dict[int, Bytes] | None, dict[int, Bytes] | None]],
    dropped: set[int],
    order: Any,
) -> None:
    made = [make_request(rows, inputs_in=inputs, outputs_in=outputs) for rows, inputs, outputs in wished]
    chosen = [request for index, request in enumerate(made) if index not in dropped] or made[:1]
    if order.random() < 0.5:
        order.shuffle(chosen)
    descriptor = descriptor_of(chosen, model)
    assert descriptor.rows == sum(request.rows for request in chosen)
    for is_input, specs, all_runs in (
        (True, model.inputs, descriptor.inputs),
        (False, model.outputs, descriptor.outputs),
    ):
        for tensor, (spec, runs) in enumerate(zip(specs, all_runs, strict=True)):
            assert rows_of(runs, spec.row_bytes) == expected_rows(chosen, model, tensor=tensor, is_input=is_input)
            for (arena, rows, offset), behind in pairwise(runs):
                assert behind[::2] != (arena, offset + rows * spec.row_bytes), "neighbours are joined"
    for request in made:
        if request.lease is not None:
            request.lease.release()


def test_many_requests_are_one_descriptor(make_request: MakeRequest, model: Model) -> None:
    requests = [make_request() for _ in range(1024)]
    assert len(batch_message(batch_of(requests), model)[1]) == 20 + 4 * 20
    assert len(batch_message(batch_of(requests[::-1]), model)[1]) == 20 + 4 * (4 + 1024 * 16)


# ── free dimensions ─────────────────────────────────────────────────────────────────────────────


def ragged_of(requests: Sequence[InferRequest], model: Model) -> RaggedDescriptor:
    kind, body = batch_message(batch_of(requests), model)
    assert kind is Kind.RAGGED
    return decode_ragged(body)


def test_a_model_of_fixed_shapes_gets_batches(make_request: MakeRequest, model: Model) -> None:
    assert batch_message(batch_of([make_request()]), model)[0] is Kind.BATCH


def test_a_ragged_batch_names_the_tensors_of_each_request(make_ragged: MakeRequest, ragged_model: Model) -> None:
    first = make_ragged(2, sizes={"tokens": 5, "beams": 3})
    second = make_ragged(1, sizes={"tokens": 9, "beams": 3}, omitted=[2])
    descriptor = ragged_of([second, first], ragged_model)
    assert (descriptor.batch_id, descriptor.model, descriptor.rows) == (77, 5, 3)
    assert descriptor.sizes == (16, 3)
    assert first.lease is not None
    assert second.lease is not None
    base, other = first.lease.offset(0), second.lease.offset(0)
    assert descriptor.requests == [
        RaggedRequest(
            1,
            (9, 3),
            ((0, other), (0, other + 128), (NO_ARENA, 0)),
            ((0, other + 256, 54), (0, other + 320, 128), (0, other + 448, 4)),
        ),
        RaggedRequest(
            2,
            (5, 3),
            ((0, base), (0, base + 128), (0, base + 256)),
            ((0, base + 320, 60), (0, base + 384, 256), (0, base + 640, 8)),
        ),
    ]


def test_tensors_in_arenas_are_named_where_they_lie(make_ragged: MakeRequest, ragged_model: Model) -> None:
    sizes = {"tokens": 5, "beams": 3}
    request = make_ragged(2, sizes=sizes, inputs_in={1: (4, 640)}, outputs_in={1: (5, 64)}, room=100)
    (only,) = ragged_of([request], ragged_model).requests
    assert request.lease is not None
    base = request.lease.offset(0)
    assert only.inputs == ((0, base), (4, 640), (0, base + 128))
    assert only.outputs == ((0, base + 192, 60), (5, 64, 100), (0, base + 256, 8))


def test_a_ragged_request_all_in_arenas_has_no_lease(make_ragged: MakeRequest, ragged_model: Model) -> None:
    everywhere = {index: (1, 256 * index) for index in range(3)}
    request = make_ragged(
        1, sizes={"tokens": 5, "beams": 3}, inputs_in=everywhere, outputs_in={0: (2, 0), 1: (2, 64), 2: (3, 0)}
    )
    assert request.lease is None
    (only,) = ragged_of([request], ragged_model).requests
    assert only.inputs == ((1, 0), (1, 256), (1, 512))
    assert [place[:2] for place in only.outputs] == [(2, 0), (2, 64), (3, 0)]


def test_only_requests_of_one_bucket_may_share_a_batch(make_ragged: MakeRequest) -> None:
    buckets = [
        make_ragged(1, sizes={"tokens": tokens, "beams": beams}).bucket
        for tokens, beams in ((1, 3), (16, 3), (17, 3), (16, 4))
    ]
    assert buckets == [(16, 3), (16, 3), (32, 3), (16, 4)]


ragged_wishes = st.tuples(
    st.integers(1, 4), st.integers(1, 16), st.booleans(), st.sets(st.integers(0, 2)), st.sets(st.integers(0, 2))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wished=st.lists(ragged_wishes, min_size=1, max_size=8))
def test_no_two_tensors_of_a_ragged_batch_overlap(
    make_ragged: MakeRequest, ragged_model: Model, wished: list[tuple[int, int, bool, set[int], set[int]]]
) -> None:
    made = []
    for number, (rows, tokens, has_mask, inputs, outputs) in enumerate(wished):
        arena = itertools.count(4096 * number, 4096 * len(wished))
        made.append(
            make_ragged(
                rows,
                sizes={"tokens": tokens, "beams": 2},
                omitted=[] if has_mask else [2],
                inputs_in={index: (1, next(arena)) for index in inputs},
                outputs_in={index: (1, next(arena)) for index in outputs},
            )
        )
    descriptor = ragged_of(made, ragged_model)
    taken: list[tuple[int, int, int]] = []
    for request, sent in zip(made, descriptor.requests, strict=True):
        assert (sent.rows, sent.sizes) == (request.rows, request.form.sizes)
        sizes = dict(zip(("tokens", "beams"), sent.sizes, strict=True))
        for spec, (arena_number, offset) in zip(ragged_model.inputs, sent.inputs, strict=True):
            if arena_number != NO_ARENA:
                taken.append((arena_number, offset, spec.nbytes(sent.rows, sizes)))
        for spec, (_, _, room) in zip(ragged_model.outputs, sent.outputs, strict=True):
            assert room == spec.nbytes(sent.rows, sizes)
        taken += sent.outputs
    assert all(offset % 64 == 0 for _, offset, _ in taken)
    for (arena_number, offset, nbytes), behind in pairwise(sorted(taken)):
        assert behind[0] != arena_number or behind[1] >= offset + nbytes
    for request in made:
        if request.lease is not None:
            request.lease.release()


def test_the_offsets_of_a_request_are_where_its_payload_belongs(
    make_request: MakeRequest, make_ragged: MakeRequest
) -> None:
    make_request(3)
    request = make_request(2)
    assert request.lease is not None
    assert [request.inline_offset(position) for position in range(4)] == [request.lease.offset(n) for n in range(4)]
    make_ragged(3, sizes={"tokens": 7, "beams": 2})
    ragged = make_ragged(2, sizes={"tokens": 5, "beams": 3})
    assert ragged.lease is not None
    base = ragged.lease.offset(0)
    assert [ragged.inline_offset(position) - base for position in range(6)] == [0, 128, 256, 320, 384, 640]


@pytest.mark.parametrize("rows", [1, 7])
def test_a_batch_of_one_is_that_request(make_request: MakeRequest, model: Model, rows: int) -> None:
    request = make_request(rows)
    descriptor = descriptor_of([request], model)
    assert request.lease is not None
    expected = [[(0, rows, request.lease.offset(position))] for position in range(4)]
    assert descriptor.inputs + descriptor.outputs == expected


def test_a_session_is_a_flow_of_its_tenant_and_of_no_connection(make_request: MakeRequest) -> None:
    made = make_request()
    connection = made.connection

    def flow(session: int) -> int:
        return InferRequest(connection, 1, made.model_served, made.form, 1, session, 10**18, 5).flow

    plain, mine = flow(0), flow(connection.flow)
    assert mine == flow(connection.flow) != plain
    connection.tenant = "somebody else"
    assert flow(connection.flow) != mine
