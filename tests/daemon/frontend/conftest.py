"""A model of two inputs and two outputs, and requests for it as a connection makes them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tensord.daemon.frontend.forms import check
from tensord.daemon.frontend.ingest import Ingest
from tensord.daemon.frontend.models import Model
from tensord.daemon.frontend.requests import InferRequest
from tensord.daemon.messages import ModelServed, TensorInfo
from tensord.ipc.tensors import DType
from tensord.ipc.wire import Lane, TensorHeader

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
    made.apply({"max_batch": 32, "timeout_ms": 1000})
    return made


@pytest.fixture
def ingest() -> Ingest:
    return Ingest(16 * 1024 * 1024)


def headers(
    model: Model, rows: int, inputs_in: Placed, outputs_in: Placed
) -> tuple[list[TensorHeader], list[TensorHeader]]:
    inputs = []
    for index, spec in enumerate(model.inputs):
        arena, offset = inputs_in.get(index, (0, 0))
        lane = Lane.ARENA if arena else Lane.INLINE
        shape = spec.batch_shape(rows)
        inputs.append(TensorHeader(index, spec.dtype, shape, rows * spec.row_bytes, lane, arena, offset))
    outputs = []
    for index, (arena, offset) in outputs_in.items():
        spec = model.outputs[index]
        outputs.append(TensorHeader(index, spec.dtype, (), rows * spec.row_bytes, Lane.ARENA, arena, offset))
    return inputs, outputs


MakeRequest = Callable[..., InferRequest]


@pytest.fixture
def make_request(model: Model, ingest: Ingest) -> MakeRequest:
    """A request whose inline tensors are leased, as `Connection` leases them; arenas are a gigabyte each."""
    arenas = {number: SimpleNamespace(nbytes=2**30) for number in range(1, 9)}
    forms: dict[Any, Any] = {}

    def make(
        rows: int = 1,
        *,
        inputs_in: Placed | None = None,
        outputs_in: Placed | None = None,
        request_id: int = 1,
    ) -> InferRequest:
        inputs, outputs = headers(model, rows, inputs_in or {}, outputs_in or {})
        form = forms.setdefault((*inputs, *outputs), check(model, inputs, outputs, arenas))
        connection: Any = SimpleNamespace(tenant="0")
        request = InferRequest(connection, request_id, model, form, 1, 0, 10**18, 5)
        if form.inline_row_bytes:
            key = (model.index, form.inline_inputs, form.inline_outputs)
            request.lease = ingest.slab(key, form.inline_row_bytes).lease(rows)
            assert request.lease is not None
        return request

    return make
