import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon.frontend.forms import FORMS_MAX, Form, FormCache, Place, check
from tensord.ipc.errors import (
    BadRequest,
    ClientFault,
    OutputTooSmall,
    OutsideArena,
    UnknownArena,
    WrongDType,
    WrongShape,
    WrongTensors,
)
from tensord.ipc.tensors import Dimension, DType, TensorSpec
from tensord.ipc.wire import Lane, TensorHeader


@dataclass
class Specified:
    """A model as its tensors are checked."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dimensions: tuple[Dimension, ...] = ()
    buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    is_ragged: bool = False


PAIR = Specified(
    "pair",
    (TensorSpec("a", DType.FLOAT32, (3,)), TensorSpec("b", DType.INT64, ())),
    (TensorSpec("y", DType.FLOAT32, (2,)), TensorSpec("z", DType.UINT8, (5,))),
)
"""Input rows of 12 and 8 bytes, output rows of 8 and 5."""
ARENAS = {2: SimpleNamespace(nbytes=4096)}


def a(rows: int = 4, **changed: Any) -> TensorHeader:
    fields = {"index": 0, "dtype": DType.FLOAT32, "shape": (rows, 3), "nbytes": 12 * rows, **changed}
    return TensorHeader(**fields)


def b(rows: int = 4, **changed: Any) -> TensorHeader:
    return TensorHeader(**{"index": 1, "dtype": DType.INT64, "shape": (rows,), "nbytes": 8 * rows, **changed})


def place_for(output: int, nbytes: int, offset: int = 0, **changed: Any) -> TensorHeader:
    fields: dict[str, Any] = {"lane": Lane.ARENA, "arena": 2, "offset": offset, **changed}
    return TensorHeader(output, DType.FLOAT32, (), nbytes, **fields)


def form(*inputs: TensorHeader, outputs: tuple[TensorHeader, ...] = ()) -> Form:
    return check(PAIR, inputs, outputs, ARENAS)


# ── what is accepted ────────────────────────────────────────────────────────────────────────────


def test_all_inline_is_the_usual_form() -> None:
    assert form(a(), b()) == Form(
        rows=4,
        sizes=(),
        bucket=None,
        payload_bytes=4 * 20,
        reply_bytes=4 * 13,
        inline_inputs=(0, 1),
        inline_outputs=(0, 1),
        inline_bytes=(48, 32, 32, 20),
        output_spans=((2, 32), (3, 20)),
        slab_row_bytes=(12, 8, 8, 5),
        slab_rows=4,
        inline_offsets=(),
        input_places=(),
        output_places=(),
        places=(),
        nbytes=4 * 33,
    )


def test_each_tensor_chooses_its_lane() -> None:
    put_in, put_out = Place(0, 2, 64, 48), Place(1, 2, 128, 20)
    assert form(a(lane=Lane.ARENA, arena=2, offset=64), b(), outputs=(place_for(1, 4 * 5, 128),)) == Form(
        rows=4,
        sizes=(),
        bucket=None,
        payload_bytes=4 * 8,
        reply_bytes=4 * 8,
        inline_inputs=(1,),
        inline_outputs=(0,),
        inline_bytes=(32, 32),
        output_spans=((1, 32),),
        slab_row_bytes=(8, 8),
        slab_rows=4,
        inline_offsets=(),
        input_places=(put_in,),
        output_places=(put_out,),
        places=(put_in, put_out),
        nbytes=4 * 33,
    )


def test_an_output_range_may_be_larger_than_the_output() -> None:
    assert form(a(1), b(1), outputs=(place_for(0, 4096),)).output_places == (Place(0, 2, 0, 4096),)


def test_a_tensor_may_end_where_its_arena_ends() -> None:
    rows = 4096 // 8
    assert form(a(rows), b(rows, lane=Lane.ARENA, arena=2)).input_places == (Place(1, 2, 0, 4096),)


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        ([], []),
        ([a()], ["a"]),
        ([a(), a()], ["a", "a"]),
        ([a(), b(), b()], ["a", "b", "b"]),
        ([a(), b(index=7)], ["a", "number 7"]),
        ([b(), a()], ["b", "a"]),
    ],
)
def test_exactly_the_models_inputs_are_taken_in_their_order(inputs: list[TensorHeader], got: list[str]) -> None:
    with pytest.raises(WrongTensors) as caught:
        form(*inputs)
    assert caught.value.data() == {"model": "pair", "expected": ["a", "b"], "got": got}


def test_a_data_type_is_not_converted() -> None:
    with pytest.raises(WrongDType) as caught:
        form(a(dtype=DType.FLOAT64, nbytes=96), b())
    assert caught.value.data() == {"model": "pair", "tensor": "a", "expected": "float32", "got": "float64"}


@pytest.mark.parametrize(
    ("inputs", "tensor", "expected", "got"),
    [
        ([a(shape=(4, 4), nbytes=64), b()], "a", "(rows, 3)", "(4, 4)"),
        ([a(shape=(4, 3, 1)), b()], "a", "(rows, 3)", "(4, 3, 1)"),
        ([a(shape=(12,)), b()], "a", "(rows, 3)", "(12)"),
        ([a(shape=()), b()], "a", "(rows, 3)", "()"),
        ([a(0), b(0)], "a", "(rows, 3)", "(0, 3)"),
        ([a(4), b(5)], "b", "(4)", "(5)"),
    ],
)
def test_all_inputs_have_the_models_shape_and_as_many_rows(
    inputs: list[TensorHeader], tensor: str, expected: str, got: str
) -> None:
    with pytest.raises(WrongShape) as caught:
        form(*inputs)
    assert caught.value.data() == {"model": "pair", "tensor": tensor, "expected": expected, "got": got}


@pytest.mark.parametrize("nbytes", [0, 47, 49, 2**64 - 1])
def test_bytes_must_agree_with_the_shape(nbytes: int) -> None:
    with pytest.raises(BadRequest, match=f"nbytes is {nbytes}: input 'a' of this shape has 48"):
        form(a(nbytes=nbytes), b())


def test_an_arena_must_be_attached() -> None:
    with pytest.raises(UnknownArena, match="arena 3"):
        form(a(lane=Lane.ARENA, arena=3), b())
    with pytest.raises(UnknownArena, match="arena 0"):
        form(a(), b(), outputs=(place_for(0, 64, arena=0),))


@pytest.mark.parametrize("offset", [1, 32, 63, 4096, 4096 - 47, 4096 + 64, 2**64 - 64])
def test_an_input_must_lie_aligned_inside_its_arena(offset: int) -> None:
    with pytest.raises(OutsideArena) as caught:
        form(a(lane=Lane.ARENA, arena=2, offset=offset), b())
    assert caught.value.data() == {"tensor": "a", "offset": offset, "nbytes": 48, "arena_bytes": 4096}


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 4097), (64, 4096), (2**64 - 64, 64), (0, 2**64 - 1)])
def test_an_output_range_must_lie_inside_its_arena(offset: int, nbytes: int) -> None:
    with pytest.raises(OutsideArena):
        form(a(), b(), outputs=(place_for(1, nbytes, offset),))


def test_an_output_range_must_hold_the_output() -> None:
    with pytest.raises(OutputTooSmall) as caught:
        form(a(), b(), outputs=(place_for(1, 19),))
    assert caught.value.data() == {"tensor": "z", "needed_bytes": 20, "given_bytes": 19}


@pytest.mark.parametrize(
    ("outputs", "named"),
    [
        ((place_for(2, 64),), "output index is 2: name each of 0 to 1 once"),
        ((place_for(0, 64), place_for(0, 64, 64)), "output index is 0"),
        ((place_for(0, 64, lane=Lane.INLINE),), "output lane is inline"),
    ],
)
def test_an_output_range_names_one_output(outputs: tuple[TensorHeader, ...], named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        form(a(), b(), outputs=outputs)


numbers = st.sampled_from([0, 1, 2, 3, 4, 20, 48, 64, 4095, 4096, 2**40, 2**63, 2**64 - 1])
any_header = st.builds(
    TensorHeader,
    st.integers(0, 3),
    st.sampled_from([DType.FLOAT32, DType.INT64]),
    st.sampled_from([(4, 3), (4,), (2**40, 3), (2**40,), (), (0, 3), (0,)]),
    numbers,
    st.sampled_from(Lane),
    st.integers(0, 3),
    numbers,
)
good_or_any = st.sampled_from([a(), b(), a(lane=Lane.ARENA, arena=2), b(lane=Lane.ARENA, arena=2)]) | any_header


@given(st.lists(good_or_any, max_size=3), st.lists(any_header, max_size=2))
def test_whatever_comes_is_refused_or_lies_inside(inputs: list[TensorHeader], outputs: list[TensorHeader]) -> None:
    try:
        got = check(PAIR, inputs, outputs, ARENAS)
    except ClientFault:
        return
    assert got.rows >= 1
    for place in got.places:
        assert place.offset % 64 == 0
        assert 0 <= place.offset <= place.offset + place.nbytes <= ARENAS[place.arena].nbytes
    assert got.payload_bytes == sum(got.rows * PAIR.inputs[index].row_bytes for index in got.inline_inputs)
    assert got.reply_bytes == sum(got.rows * PAIR.outputs[index].row_bytes for index in got.inline_outputs)
    inline = [PAIR.inputs[index] for index in got.inline_inputs] + [PAIR.outputs[index] for index in got.inline_outputs]
    assert got.slab_row_bytes == tuple(spec.row_bytes for spec in inline)
    assert got.slab_rows == got.rows
    assert got.inline_bytes == tuple(got.rows * spec.row_bytes for spec in inline)
    assert (got.sizes, got.bucket, got.inline_offsets) == ((), None, ())
    assert sorted(got.inline_inputs + tuple(place.tensor for place in got.input_places)) == [0, 1]
    assert sorted(got.inline_outputs + tuple(place.tensor for place in got.output_places)) == [0, 1]


# ── free dimensions ─────────────────────────────────────────────────────────────────────────────

TOKENS, BEAMS, FOUND = Dimension("tokens", 100), Dimension("beams", 5), Dimension("found", 8, from_data=True)

TEXT = Specified(
    "text",
    (
        TensorSpec("ids", DType.INT64, (TOKENS,)),
        TensorSpec("scores", DType.FLOAT32, (BEAMS, TOKENS)),
        TensorSpec("mask", DType.UINT8, (TOKENS,), optional=True),
    ),
    (
        TensorSpec("states", DType.FLOAT16, (TOKENS, 3)),
        TensorSpec("spans", DType.FLOAT32, (FOUND, 4)),
        TensorSpec("count", DType.INT32, ()),
    ),
    (TOKENS, BEAMS),
    {"tokens": (16, 32, 100)},
    is_ragged=True,
)


def sent(*shapes: tuple[int, ...] | None) -> list[TensorHeader]:
    """Inputs of these shapes; None: left out."""
    return [
        TensorHeader(index, spec.dtype, shape, math.prod(shape) * spec.dtype.itemsize)
        for index, (spec, shape) in enumerate(zip(TEXT.inputs, shapes, strict=True))
        if shape is not None
    ]


def text(
    rows: int = 2, tokens: int = 5, beams: int = 3, *, outputs: Sequence[TensorHeader] = (), mask: bool = True
) -> Form:
    shapes = ((rows, tokens), (rows, beams, tokens), (rows, tokens) if mask else None)
    return check(TEXT, sent(*shapes), outputs, ARENAS)


def test_tensors_of_free_dimensions_lie_one_behind_the_other_in_cache_lines() -> None:
    assert text() == Form(
        rows=2,
        sizes=(5, 3),
        bucket=(16, 3),
        payload_bytes=80 + 120 + 10,
        reply_bytes=60 + 256 + 8,
        inline_inputs=(0, 1, 2),
        inline_outputs=(0, 1, 2),
        inline_bytes=(80, 120, 10, 60, 256, 8),
        output_spans=((3, 60), (4, 256), (5, 8)),
        slab_row_bytes=(64,),
        slab_rows=(128 + 128 + 64 + 64 + 256 + 64) // 64,
        inline_offsets=(0, 128, 256, 320, 384, 640),
        input_places=(),
        output_places=(),
        places=(),
        nbytes=210 + 324,
    )


@pytest.mark.parametrize(("size", "bucket"), [(1, 16), (15, 16), (16, 16), (17, 32), (32, 32), (33, 100), (100, 100)])
def test_a_size_is_padded_to_the_next_bucket(size: int, bucket: int) -> None:
    assert text(tokens=size).bucket == (bucket, 3)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_size_without_buckets_is_never_padded(size: int) -> None:
    assert text(beams=size).bucket == (16, size)


def test_an_optional_input_may_be_left_out() -> None:
    without = text(mask=False)
    assert (without.inline_inputs, without.payload_bytes) == ((0, 1), 200)
    assert without.bucket == text().bucket, "it may share a batch with those that send it"


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (sent((2, 5), None, None), ["ids"]),
        (sent((2, 5), None, (2, 5)), ["ids", "mask"]),
        (sent(None, None, (2, 5)), ["mask"]),
        (sent((2, 5), (2, 3, 5), (2, 5))[::-1], ["mask", "scores", "ids"]),
        ([*sent((2, 5), (2, 3, 5), (2, 5)), *sent(None, None, (2, 5))], ["ids", "scores", "mask", "mask"]),
    ],
)
def test_all_other_inputs_are_required_and_in_order(inputs: list[TensorHeader], got: list[str]) -> None:
    with pytest.raises(WrongTensors) as caught:
        check(TEXT, inputs, (), ARENAS)
    assert caught.value.data() == {"model": "text", "expected": ["ids", "scores", "mask"], "got": got}


@pytest.mark.parametrize(
    ("shapes", "tensor", "expected", "got"),
    [
        (((2, 101), (2, 3, 101), None), "ids", "(rows, tokens ≤ 100)", "(2, 101)"),
        (((2, 0), (2, 3, 0), None), "ids", "(rows, tokens ≤ 100)", "(2, 0)"),
        (((2, 2**40), (2, 3, 5), None), "ids", "(rows, tokens ≤ 100)", f"(2, {2**40})"),
        (((2,), (2, 3, 5), None), "ids", "(rows, tokens ≤ 100)", "(2)"),
        (((2, 5, 1), (2, 3, 5), None), "ids", "(rows, 5)", "(2, 5, 1)"),
        (((0, 5), (0, 3, 5), None), "ids", "(rows, 5)", "(0, 5)"),
        (((2, 5), (2, 6, 5), None), "scores", "(2, beams ≤ 5, 5)", "(2, 6, 5)"),
        (((2, 5), (2, 0, 5), None), "scores", "(2, beams ≤ 5, 5)", "(2, 0, 5)"),
        (((2, 5), (2, 3, 6), None), "scores", "(2, 3, 5)", "(2, 3, 6)"),
        (((2, 5), (2, 3), None), "scores", "(2, 3, 5)", "(2, 3)"),
        (((2, 5), (3, 3, 5), None), "scores", "(2, 3, 5)", "(3, 3, 5)"),
        (((2, 5), (2, 3, 5), (2, 4)), "mask", "(2, 5)", "(2, 4)"),
    ],
)
def test_sizes_are_one_to_the_maximum_and_the_same_in_all_inputs(
    shapes: tuple[tuple[int, ...], ...], tensor: str, expected: str, got: str
) -> None:
    with pytest.raises(WrongShape) as caught:
        check(TEXT, sent(*shapes), (), ARENAS)
    assert caught.value.data() == {"model": "text", "tensor": tensor, "expected": expected, "got": got}


def test_an_output_range_must_hold_an_output_whose_size_the_request_says() -> None:
    assert text(outputs=[place_for(0, 60)]).output_places == (Place(0, 2, 0, 60),)
    with pytest.raises(OutputTooSmall) as caught:
        text(outputs=[place_for(0, 59)])
    assert caught.value.data() == {"tensor": "states", "needed_bytes": 60, "given_bytes": 59}


@pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 4096])
def test_an_output_range_may_be_small_where_the_size_comes_from_the_data(nbytes: int) -> None:
    assert text(outputs=[place_for(1, nbytes)]).output_places == (Place(1, 2, 0, nbytes),)


def test_the_counts_themselves_have_a_size_that_is_known() -> None:
    with pytest.raises(OutputTooSmall):
        text(outputs=[place_for(2, 7)])


def test_a_request_all_in_arenas_needs_no_slab() -> None:
    inputs = [replace(each, lane=Lane.ARENA, arena=2) for each in sent((2, 5), (2, 3, 5), (2, 5))]
    got = check(TEXT, inputs, [place_for(index, 256) for index in range(3)], ARENAS)
    assert (got.inline_bytes, got.inline_offsets, got.slab_rows) == ((), (), 0)
    assert [place.nbytes for place in got.places] == [80, 120, 10, 256, 256, 256]
    assert (got.sizes, got.bucket) == ((5, 3), (16, 3))


def test_a_model_whose_sizes_all_come_from_the_data_has_one_bucket() -> None:
    model = Specified("detector", PAIR.inputs, (TensorSpec("spans", DType.INT8, (FOUND,)),), is_ragged=True)
    got = check(model, [a(), b()], (), ARENAS)
    assert (got.sizes, got.bucket, got.inline_offsets) == ((), (), (0, 64, 128))


any_size = st.sampled_from([0, 1, 2, 5, 16, 17, 100, 101, 2**40])
any_text_header = st.builds(
    TensorHeader,
    st.integers(0, 3),
    st.sampled_from([DType.INT64, DType.FLOAT32, DType.UINT8]),
    st.lists(any_size, max_size=4).map(tuple),
    numbers,
    st.sampled_from(Lane),
    st.integers(0, 3),
    numbers,
)
consistent = st.builds(
    lambda rows, tokens, beams, mask: sent((rows, tokens), (rows, beams, tokens), (rows, tokens) if mask else None),
    st.integers(1, 3),
    any_size,
    st.integers(0, 6),
    st.booleans(),
)


@given(consistent | st.lists(any_text_header, max_size=4), st.lists(any_text_header, max_size=2))
def test_whatever_comes_is_refused_or_has_sizes_within_bounds(
    inputs: list[TensorHeader], outputs: list[TensorHeader]
) -> None:
    try:
        got = check(TEXT, inputs, outputs, ARENAS)
    except ClientFault:
        return
    assert got.bucket is not None
    for size, padded, dimension in zip(got.sizes, got.bucket, TEXT.dimensions, strict=True):
        assert 1 <= size <= padded <= dimension.max
    sizes = dict(zip(("tokens", "beams"), got.sizes, strict=True))
    inline = [TEXT.inputs[index] for index in got.inline_inputs] + [TEXT.outputs[index] for index in got.inline_outputs]
    assert got.inline_bytes == tuple(spec.nbytes(got.rows, sizes) for spec in inline)
    assert got.payload_bytes == sum(tensor.nbytes for tensor in inputs if tensor.lane is Lane.INLINE)
    assert got.payload_bytes + got.reply_bytes == sum(got.inline_bytes)
    assert got.output_spans == tuple(enumerate(got.inline_bytes))[len(got.inline_inputs) :]
    ends = [offset + nbytes for offset, nbytes in zip(got.inline_offsets, got.inline_bytes, strict=True)]
    assert all(offset % 64 == 0 for offset in got.inline_offsets)
    assert all(end <= offset for end, offset in zip(ends, [*got.inline_offsets[1:], 64 * got.slab_rows], strict=True))


# ── what is remembered ──────────────────────────────────────────────────────────────────────────


def headers(*tensors: TensorHeader) -> bytes:
    return b"".join(tensor.encode() for tensor in tensors)


def test_the_same_headers_give_the_same_form() -> None:
    cache = FormCache()
    first = cache.form(PAIR, 2, 0, headers(a(), b()), ARENAS)
    assert first == form(a(), b())
    assert cache.form(PAIR, 2, 0, headers(a(), b()), {}) is first
    assert cache.form(PAIR, 2, 0, headers(a(5), b(5)), ARENAS).rows == 5


def test_other_sizes_are_another_form() -> None:
    cache = FormCache()
    forms = [cache.form(TEXT, 2, 0, headers(*sent((2, tokens), (2, 3, tokens), None)), ARENAS) for tokens in (5, 6, 5)]
    assert [form.sizes for form in forms] == [(5, 3), (6, 3), (5, 3)]
    assert forms[2] is forms[0]


def test_the_same_bytes_with_other_counts_are_another_form() -> None:
    cache = FormCache()
    cache.form(PAIR, 2, 0, headers(a(), b()), ARENAS)
    with pytest.raises(WrongTensors):
        cache.form(PAIR, 1, 1, headers(a(), b()), ARENAS)


def test_a_form_with_an_arena_is_checked_every_time() -> None:
    cache = FormCache()
    sent = headers(a(lane=Lane.ARENA, arena=2), b())
    assert cache.form(PAIR, 2, 0, sent, ARENAS).input_places == (Place(0, 2, 0, 48),)
    with pytest.raises(UnknownArena):
        cache.form(PAIR, 2, 0, sent, {})
    with pytest.raises(OutsideArena):
        cache.form(PAIR, 2, 0, sent, {2: SimpleNamespace(nbytes=47)})


def test_what_is_wrong_is_not_remembered() -> None:
    cache = FormCache()
    for _ in range(3):
        with pytest.raises(WrongShape):
            cache.form(PAIR, 2, 0, headers(a(4), b(5)), ARENAS)
    assert cache._forms == {}


def test_forms_beyond_the_limit_start_anew() -> None:
    cache = FormCache()
    for rows in range(1, 3 * FORMS_MAX):
        assert cache.form(PAIR, 2, 0, headers(a(rows), b(rows)), ARENAS).rows == rows
        assert len(cache._forms) <= FORMS_MAX


def test_headers_that_are_cut_off_are_refused() -> None:
    with pytest.raises(BadRequest):
        FormCache().form(PAIR, 2, 0, headers(a(), b())[:-1], ARENAS)
