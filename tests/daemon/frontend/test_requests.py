from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensord.daemon.frontend.models import Model
from tensord.daemon.frontend.requests import InferRequest, batch_body
from tensord.daemon.scheduling import Batch, ReleaseReason
from tensord.ipc.descriptors import BatchDescriptor, Run, decode_batch

MakeRequest = Callable[..., InferRequest]
Bytes = tuple[int, int]
"""Arena and offset of a row."""


def batch_of(requests: Sequence[InferRequest]) -> Batch[InferRequest]:
    queue: Any = SimpleNamespace(key=requests[0].model)
    rows = sum(request.rows for request in requests)
    return Batch(77, queue, None, 0, list(requests), rows, ReleaseReason.FULL, 0, 0, 1)


def descriptor_of(requests: Sequence[InferRequest], model: Model) -> BatchDescriptor:
    return decode_batch(batch_body(batch_of(requests), model))


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
    assert len(batch_body(batch_of(requests), model)) == 20 + 4 * 20
    assert len(batch_body(batch_of(requests[::-1]), model)) == 20 + 4 * (4 + 1024 * 16)


@pytest.mark.parametrize("rows", [1, 7])
def test_a_batch_of_one_is_that_request(make_request: MakeRequest, model: Model, rows: int) -> None:
    request = make_request(rows)
    descriptor = descriptor_of([request], model)
    assert request.lease is not None
    expected = [[(0, rows, request.lease.offset(position))] for position in range(4)]
    assert descriptor.inputs + descriptor.outputs == expected
