from dataclasses import dataclass
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
from tensord.ipc.tensors import DType, TensorSpec
from tensord.ipc.wire import Lane, TensorHeader


@dataclass
class Pair:
    """Input rows of 12 and 8 bytes, output rows of 8 and 5."""

    name: str = "pair"
    inputs: tuple[TensorSpec, ...] = (TensorSpec("a", DType.FLOAT32, (3,)), TensorSpec("b", DType.INT64, ()))
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", DType.FLOAT32, (2,)), TensorSpec("z", DType.UINT8, (5,)))


PAIR = Pair()
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
        payload_bytes=4 * 20,
        reply_bytes=4 * 13,
        inline_inputs=(0, 1),
        inline_outputs=(0, 1),
        inline_row_bytes=(12, 8, 8, 5),
        input_places=(),
        output_places=(),
        places=(),
    )


def test_each_tensor_chooses_its_lane() -> None:
    put_in, put_out = Place(0, 2, 64, 48), Place(1, 2, 128, 20)
    assert form(a(lane=Lane.ARENA, arena=2, offset=64), b(), outputs=(place_for(1, 4 * 5, 128),)) == Form(
        rows=4,
        payload_bytes=4 * 8,
        reply_bytes=4 * 8,
        inline_inputs=(1,),
        inline_outputs=(0,),
        inline_row_bytes=(8, 8),
        input_places=(put_in,),
        output_places=(put_out,),
        places=(put_in, put_out),
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
    assert got.inline_row_bytes == tuple(spec.row_bytes for spec in inline)
    assert sorted(got.inline_inputs + tuple(place.tensor for place in got.input_places)) == [0, 1]
    assert sorted(got.inline_outputs + tuple(place.tensor for place in got.output_places)) == [0, 1]


# ── what is remembered ──────────────────────────────────────────────────────────────────────────


def headers(*tensors: TensorHeader) -> memoryview:
    return memoryview(b"".join(tensor.encode() for tensor in tensors))


def test_the_same_headers_give_the_same_form() -> None:
    cache = FormCache()
    first = cache.form(PAIR, 2, 0, headers(a(), b()), ARENAS)
    assert first == form(a(), b())
    assert cache.form(PAIR, 2, 0, headers(a(), b()), {}) is first
    assert cache.form(PAIR, 2, 0, headers(a(5), b(5)), ARENAS).rows == 5


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
