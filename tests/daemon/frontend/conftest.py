"""A model of two inputs and two outputs, one with free dimensions, requests for them, and a host that serves it."""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tensord.daemon.frontend.connection import Connection
from tensord.daemon.frontend.forms import check
from tensord.daemon.frontend.ingest import RAGGED_SLAB, Ingest
from tensord.daemon.frontend.models import Model
from tensord.daemon.frontend.requests import InferRequest
from tensord.daemon.messages import ModelServed, TensorInfo
from tensord.ipc.tensors import NO_SIZES, DType
from tensord.ipc.wire import Lane, TensorHeader

from .fake_host import DEFAULTS, FakeHost, Meeting

Placed = dict[int, tuple[int, int]]
"""Tensor to arena and offset."""


@pytest.fixture
def served() -> ModelServed:
    """Input rows of 12 and 8 bytes, output rows of 8 and 5."""
    return ModelServed(
        index=3,
        name="pair",
        version=2,
        labels=("stable",),
        inputs=(TensorInfo("a", DType.FLOAT32, (3,), ()), TensorInfo("b", DType.INT64, (), ())),
        outputs=(TensorInfo("y", DType.FLOAT32, (2,), ("no", "yes")), TensorInfo("z", DType.UINT8, (5,), ())),
        idempotent=True,
    )


@pytest.fixture
def model(served: ModelServed) -> Model:
    made = Model(served)
    made.apply({**DEFAULTS, "max_batch": 32, "rows_max": 32, "timeout_ms": 1000})
    return made


@pytest.fixture
def ragged_model() -> Model:
    """Sizes with the request (`tokens` in buckets, `beams` exact) and from the data (`found`); a mask; 6 tensors."""
    tokens, beams, found = ("tokens", 100, False), ("beams", 5, False), ("found", 8, True)
    made = Model(
        ModelServed(
            index=5,
            name="text",
            version=1,
            labels=("stable",),
            inputs=(
                TensorInfo("ids", DType.INT64, (tokens,)),
                TensorInfo("scores", DType.FLOAT32, (beams, tokens)),
                TensorInfo("mask", DType.UINT8, (tokens,), optional=True),
            ),
            outputs=(
                TensorInfo("states", DType.FLOAT16, (tokens, 3)),
                TensorInfo("spans", DType.FLOAT32, (found, 4)),
                TensorInfo("count", DType.INT32, ()),
            ),
            idempotent=True,
            buckets={"tokens": (16, 32, 100)},
            counts={"found": 2},
        )
    )
    made.apply({**DEFAULTS, "max_batch": 32, "rows_max": 32, "timeout_ms": 1000})
    return made


@pytest.fixture
def ingest() -> Ingest:
    return Ingest(16 * 1024 * 1024)


@pytest.fixture
def host(ingest: Ingest, served: ModelServed) -> FakeHost:
    """Serves `pair`; a file that needs more models has a `host` of its own."""
    return FakeHost(ingest, [served])


@pytest.fixture
def meeting(host: FakeHost) -> Iterator[Meeting]:
    made = Meeting(host)
    yield made
    made.close()


def headers(
    model: Model,
    rows: int,
    inputs_in: Placed,
    outputs_in: Placed,
    sizes: Mapping[str, int] = NO_SIZES,
    omitted: Collection[int] = (),
    room: int | None = None,
) -> tuple[list[TensorHeader], list[TensorHeader]]:
    """As a client sends them; output ranges of `room` bytes, or as much as the outputs may need."""
    inputs = []
    for index, spec in enumerate(model.inputs):
        if index not in omitted:
            arena, offset = inputs_in.get(index, (0, 0))
            lane = Lane.ARENA if arena else Lane.INLINE
            nbytes = spec.nbytes(rows, sizes)
            inputs.append(TensorHeader(index, spec.dtype, spec.batch_shape(rows, sizes), nbytes, lane, arena, offset))
    outputs = []
    for index, (arena, offset) in outputs_in.items():
        spec = model.outputs[index]
        nbytes = spec.nbytes(rows, sizes) if room is None else room
        outputs.append(TensorHeader(index, spec.dtype, (), nbytes, Lane.ARENA, arena, offset))
    return inputs, outputs


MakeRequest = Callable[..., InferRequest]


@pytest.fixture
def make_request(model: Model, ingest: Ingest) -> MakeRequest:
    """Makes requests for the model."""
    return maker_of_requests(model, ingest)


@pytest.fixture
def make_ragged(ragged_model: Model, ingest: Ingest) -> MakeRequest:
    """Makes requests for the model with free dimensions: they take `sizes`, and inputs to be `omitted`."""
    return maker_of_requests(ragged_model, ingest)


def maker_of_requests(model: Model, ingest: Ingest) -> MakeRequest:
    """A request whose inline tensors are leased, as `Connection` leases them; arenas are a gigabyte each."""
    arenas = {number: SimpleNamespace(nbytes=2**30) for number in range(1, 9)}
    forms: dict[Any, Any] = {}
    connection = Connection(FakeHost(ingest, ()))
    connection.tenant = "0"

    def make(
        rows: int = 1,
        *,
        inputs_in: Placed | None = None,
        outputs_in: Placed | None = None,
        request_id: int = 1,
        sizes: Mapping[str, int] = NO_SIZES,
        omitted: Collection[int] = (),
        room: int | None = None,
    ) -> InferRequest:
        inputs, outputs = headers(model, rows, inputs_in or {}, outputs_in or {}, sizes, omitted, room)
        form = forms.setdefault((*inputs, *outputs), check(model, inputs, outputs, arenas))
        request = InferRequest(connection, request_id, model, form, 1, 0, 10**18, 5)
        if form.inline_inputs or form.inline_outputs:
            key = RAGGED_SLAB if form.inline_offsets else (model.index, form.inline_inputs, form.inline_outputs)
            request.lease = ingest.slab(key, form.slab_row_bytes).lease(form.slab_rows)
            assert request.lease is not None
        return request

    return make
