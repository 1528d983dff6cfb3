"""Models as a client sees them, and what a request of some extent looks like on the wire and in an arena."""

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc.client.arrays import Extent
from tensord.ipc.client.model import PLANS_MAX, Model, OpenedModel, RequestPlan
from tensord.ipc.errors import BadRequest, TooManyRows
from tensord.ipc.limits import TENSOR_ALIGNMENT_BYTES
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec
from tensord.ipc.wire import Lane, TensorHeader, decode_tensors

PAIR = ModelSpec(
    "pair",
    4,
    (TensorSpec("b", DType.FLOAT32, (3,)), TensorSpec("a", DType.INT64, ())),
    (TensorSpec("y", DType.BFLOAT16, (2, 5)), TensorSpec("z", DType.UINT8, (5,))),
    8,
    idempotent=False,
)
TOKENS = Dimension("tokens", 512)
FOUND = Dimension("found", 10, from_data=True)
TEXT = ModelSpec(
    "text",
    1,
    (
        TensorSpec("ids", DType.INT64, (TOKENS,)),
        TensorSpec("mask", DType.UINT8, (TOKENS,), optional=True),
        TensorSpec("image", DType.UINT8, (Dimension("height", 64), 2)),
    ),
    (TensorSpec("states", DType.FLOAT32, (TOKENS, 4)), TensorSpec("boxes", DType.FLOAT32, (FOUND, 4))),
    8,
    idempotent=True,
)
FREE = {"tokens": 7, "height": 3}


def plan_of(spec: ModelSpec, rows: int = 3, sizes: Mapping[str, int] | None = None, optional: Any = ()) -> RequestPlan:
    opened = OpenedModel(5, spec)
    return opened.plan(opened.extent(rows, sizes or {}, optional))


def headers(encoded: bytes, count: int) -> list[TensorHeader]:
    return decode_tensors(memoryview(encoded), count)


# ── Model ───────────────────────────────────────────────────────────────────────────────────────


def test_a_model_has_its_tensors_by_name_in_the_models_order() -> None:
    model = Model.of(PAIR)
    assert (model.name, model.version, model.rows_max, model.idempotent) == ("pair", 4, 8, False)
    assert list(model.inputs.items()) == [("b", PAIR.inputs[0]), ("a", PAIR.inputs[1])]
    assert list(model.outputs.items()) == [("y", PAIR.outputs[0]), ("z", PAIR.outputs[1])]


def test_a_model_cannot_be_changed_by_who_looks_at_it() -> None:
    inputs: Any = Model.of(PAIR).inputs
    with pytest.raises(TypeError):
        inputs["b"] = PAIR.inputs[1]


def test_a_model_in_words_is_a_signature() -> None:
    inputs, outputs = "b: float32 (rows, 3), a: int64 (rows)", "y: bfloat16 (rows, 2, 5), z: uint8 (rows, 5)"
    assert str(Model.of(PAIR)) == f"pair:4({inputs}) -> ({outputs}), at most 8 rows"


# ── OpenedModel ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("rows", "error"), [(-1, BadRequest), (0, BadRequest), (9, TooManyRows)])
def test_rows_are_one_to_the_models_maximum(rows: int, error: type[Exception]) -> None:
    opened = OpenedModel(5, PAIR)
    assert [opened.check_rows(1), opened.check_rows(8)] == [1, 8]
    with pytest.raises(error):
        opened.check_rows(rows)
    with pytest.raises(error):
        opened.extent(rows, {}, ())


def test_an_extent_has_sizes_in_the_models_order_and_leaves_out_what_was_not_named() -> None:
    opened = OpenedModel(5, TEXT)
    assert opened.extent(2, {"height": 3, "tokens": 7}, ()) == Extent(2, (7, 3), (1,))
    assert opened.extent(2, {"height": 64, "tokens": 512}, ["mask"]) == Extent(2, (512, 64), ())
    assert OpenedModel(5, PAIR).extent(8, {}, ()) == Extent(8)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"tokens": 7},
        {**FREE, "found": 3},
        {**FREE, "tokens": 0},
        {**FREE, "tokens": 2.5},
        {**FREE, "tokens": 513},
    ],
)
def test_sizes_are_those_of_all_free_dimensions_of_the_inputs_within_bounds(sizes: dict[str, int]) -> None:
    with pytest.raises(BadRequest, match="tokens: 1 to 512, height: 1 to 64"):
        OpenedModel(5, TEXT).extent(1, sizes, ())


def test_a_model_without_free_dimensions_takes_no_sizes() -> None:
    with pytest.raises(BadRequest, match="this model has no free dimension"):
        OpenedModel(5, PAIR).extent(1, {"tokens": 7}, ())


@pytest.mark.parametrize("optional", [["ids"], ["mask", "nothing"]])
def test_only_optional_inputs_can_be_named_as_such(optional: Collection[str]) -> None:
    with pytest.raises(BadRequest, match=r"the optional inputs are \['mask'\]"):
        OpenedModel(5, TEXT).extent(1, FREE, optional)


def test_a_plan_is_made_once_per_extent_and_not_kept_without_bound() -> None:
    opened = OpenedModel(5, TEXT)
    first = opened.plan(Extent(1, (7, 3)))
    assert opened.plan(Extent(1, (7, 3))) is first
    assert opened.plan(Extent(1, (3, 7))) is not first
    assert opened.plan(Extent(1, (7, 3), (1,))) is not first
    for size in range(PLANS_MAX):
        opened.plan(Extent(2, (1 + size, 1)))
    assert opened.plan(Extent(1, (7, 3))) is not first


# ── RequestPlan, inline ─────────────────────────────────────────────────────────────────────────


def test_inline_headers_are_those_of_the_rows() -> None:
    plan = plan_of(PAIR, 3)
    assert (plan.handle, plan.rows, plan.input_bytes, plan.output_bytes) == (5, 3, 36 + 24, 60 + 15)
    assert headers(plan.input_headers, 2) == [
        TensorHeader(0, DType.FLOAT32, (3, 3), 36),
        TensorHeader(1, DType.INT64, (3,), 24),
    ]
    assert headers(plan.output_headers, 2) == [
        TensorHeader(0, DType.BFLOAT16, (3, 2, 5), 60),
        TensorHeader(1, DType.UINT8, (3, 5), 15),
    ]
    assert plan.output_forms == [((3, 2, 5), DType.BFLOAT16.numpy), ((3, 5), DType.UINT8.numpy)]


def test_free_dimensions_have_the_requests_sizes_and_those_from_the_data_their_largest() -> None:
    plan = plan_of(TEXT, 2, FREE, ["mask"])
    assert [header.shape for header in headers(plan.input_headers, 3)] == [(2, 7), (2, 7), (2, 3, 2)]
    assert [shape for shape, _ in plan.output_forms] == [(2, 7, 4), (2, 10, 4)]
    assert (plan.input_bytes, plan.output_bytes) == (112 + 14 + 12, 224 + 320)


def test_an_input_that_is_left_out_has_no_header_and_no_bytes() -> None:
    plan = plan_of(TEXT, 2, FREE)
    assert [header.index for header in headers(plan.input_headers, 2)] == [0, 2]
    assert plan.input_bytes == 112 + 12


def test_only_the_result_knows_sizes_that_come_from_the_data() -> None:
    assert plan_of(TEXT, 1, FREE).has_data_sizes
    assert not plan_of(PAIR).has_data_sizes


# ── RequestPlan, in an arena ────────────────────────────────────────────────────────────────────

PLANS = st.one_of(
    st.builds(plan_of, st.just(PAIR), st.integers(1, 8)),
    st.builds(
        plan_of,
        st.just(TEXT),
        st.integers(1, 8),
        st.fixed_dictionaries({"tokens": st.integers(1, 512), "height": st.integers(1, 64)}),
        st.sampled_from([(), ("mask",)]),
    ),
)


@given(plan=PLANS, arena=st.integers(0, 2**32 - 1), base=st.integers(0, 2**20).map(lambda n: n * 64))
def test_headers_of_a_slot_are_aligned_ranges_inside_it_that_do_not_meet(
    plan: RequestPlan, arena: int, base: int
) -> None:
    count = len(plan.inputs) + 2
    found = headers(plan.arena_headers(arena, base), count)
    assert all((header.lane, header.arena) == (Lane.ARENA, arena) for header in found)
    assert all(header.offset % TENSOR_ALIGNMENT_BYTES == 0 for header in found)
    assert [header.shape for header in found[-2:]] == [(), ()], "the model decides an output's shape"
    ends = [base, *(header.offset + header.nbytes for header in found), base + plan.slot_bytes]
    starts = [*(header.offset for header in found), base + plan.slot_bytes]
    assert all(end <= start for end, start in zip(ends, starts, strict=False))
    assert sum(header.nbytes for header in found) == plan.input_bytes + plan.output_bytes


@given(plan=PLANS, base=st.integers(0, 2**20).map(lambda n: n * 64))
def test_the_expected_result_names_the_ranges_that_were_asked_for(plan: RequestPlan, base: int) -> None:
    asked = headers(plan.arena_headers(9, base), len(plan.inputs) + 2)[-2:]
    answered = headers(plan.arena_result_headers(9, base), 2)
    assert [(each.index, each.offset, each.nbytes) for each in answered] == [
        (each.index, each.offset, each.nbytes) for each in asked
    ]
    assert [each.shape for each in answered] == [shape for shape, _ in plan.output_forms]


@given(plan=PLANS)
def test_views_of_a_slot_lie_where_its_headers_say(plan: RequestPlan) -> None:
    base = 128
    memory = np.zeros(base + plan.slot_bytes, np.uint8)
    views = {**plan.input_views(memory, base), **plan.output_views(memory, base)}
    found = headers(plan.arena_headers(1, base), len(plan.inputs) + 2)
    assert list(views) == [spec.name for _, spec in plan.inputs] + [spec.name for spec in plan.spec.outputs]
    for header, view in zip(found, views.values(), strict=True):
        assert (view.dtype, view.nbytes) == (header.dtype.numpy, header.nbytes)
        view.reshape(-1).view(np.uint8)[:] = 255
        stop = header.offset + header.nbytes
        assert (int(memory.sum()), int(memory[header.offset : stop].sum())) == (255 * header.nbytes,) * 2
        memory[:] = 0


def test_outputs_can_be_seen_as_large_as_they_are() -> None:
    plan = plan_of(TEXT, 2, FREE)
    memory = np.arange(plan.slot_bytes).astype(np.uint8)
    planned, found = plan.output_views(memory, 0), plan.output_views(memory, 0, [(2, 7, 4), (2, 3, 4)])
    assert {name: view.shape for name, view in found.items()} == {"states": (2, 7, 4), "boxes": (2, 3, 4)}
    packed = planned["boxes"].reshape(-1)[:24]  # rows lie one behind the other, without what is not there
    assert found["boxes"].reshape(-1).tobytes() == packed.tobytes()
    assert plan.output_views(memory, 0, [(2, 7, 4), (2, 0, 4)])["boxes"].shape == (2, 0, 4)


def test_even_the_smallest_request_takes_a_range() -> None:
    empty = ModelSpec("empty", 1, (), (), 8, idempotent=True)
    assert plan_of(empty, 1).slot_bytes == TENSOR_ALIGNMENT_BYTES


def test_a_slot_ends_where_its_last_tensor_does() -> None:
    plan = plan_of(PAIR, 8)
    assert [later - earlier for earlier, later in pairwise(plan.offsets)] == [128, 64, 192, 64]
    assert plan.slot_bytes == 128 + 64 + 192 + 64
