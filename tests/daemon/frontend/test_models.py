from types import SimpleNamespace

import msgspec
import pytest

from tensord.daemon.frontend.forms import Form, check
from tensord.daemon.frontend.models import KNOWN_MODELS_SHOWN, RESULT_HEADERS_MAX, Model, Models
from tensord.daemon.frontend.users import Credentials
from tensord.daemon.messages import ModelServed, TensorInfo
from tensord.daemon.users import Access, Users
from tensord.ipc.errors import UnknownModel
from tensord.ipc.limits import PARTS_MAX
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec
from tensord.ipc.wire import Lane, ModelEntry, TensorHeader, decode_tensors

from .conftest import headers
from .fake_host import DEFAULTS

ARENAS = {2: SimpleNamespace(nbytes=2**30)}


def inline(model: Model, rows: int, **sizes: int) -> Form:
    return check(model, *headers(model, rows, {}, {}, sizes), ARENAS)


def second_in_arena(model: Model, rows: int, **sizes: int) -> Form:
    return check(model, *headers(model, rows, {}, {1: (2, 128)}, sizes, room=4096), ARENAS)


ANYBODY = Credentials(1000, frozenset({1000}))


def version(served: ModelServed, index: int, number: int, *labels: str, name: str = "pair") -> ModelServed:
    return ModelServed(index, name, number, labels, served.inputs, served.outputs, served.idempotent)


def test_clients_are_told_what_the_supervisor_said(model: Model) -> None:
    assert model.spec == ModelSpec(
        "pair",
        2,
        (TensorSpec("a", DType.FLOAT32, (3,)), TensorSpec("b", DType.INT64, ())),
        (TensorSpec("y", DType.FLOAT32, (2,), ("no", "yes")), TensorSpec("z", DType.UINT8, (5,))),
        rows_max=32,
        idempotent=True,
    )


def test_knobs_of_the_model_take_effect(model: Model) -> None:
    model.apply({**DEFAULTS, "max_batch": 8, "rows_max": 20, "timeout_ms": 250, "window_us": 1})
    assert (model.spec.rows_max, model.batch_rows, model.timeout_ns) == (20, 8, 250_000_000)
    model.apply({**DEFAULTS, "max_batch": 2, "rows_max": 65_536, "timeout_ms": 250})
    assert model.spec.rows_max == 2 * PARTS_MAX


def test_what_would_never_find_room_in_the_queue_is_too_large(model: Model) -> None:
    for knobs, rows_max in (({"queue_max": 100}, 50 * 8), ({"queue_rows_max": 300}, 150), ({"queue_max": 1}, 8)):
        model.apply({**DEFAULTS, "max_batch": 8, **knobs})
        assert model.spec.rows_max == rows_max


def test_a_model_is_found_by_name_version_and_label(served: ModelServed) -> None:
    models = Models()
    old = models.add(version(served, 0, 1, "canary"))
    new = models.add(version(served, 1, 2, "stable"))
    assert [models.find(name) for name in ("pair", "pair:stable", "pair:2")] == [new] * 3
    assert [models.find(name) for name in ("pair:1", "pair:canary")] == [old] * 2


def test_a_label_moves_to_the_version_that_came_last(served: ModelServed) -> None:
    models = Models()
    models.add(version(served, 0, 1, "stable"))
    promoted = models.add(version(served, 1, 2, "stable"))
    assert models.find("pair") is models.find("pair:stable") is promoted
    assert models.find("pair:1") is models.by_index[0]


@pytest.mark.parametrize("name", ["", "pair", "pair:9", "pair:", ":stable", "pair:beta", "PAIR:1", "other", "pair:1:1"])
def test_an_unknown_name_says_what_is_known(served: ModelServed, name: str) -> None:
    models = Models()
    models.add(version(served, 0, 1))
    models.add(version(served, 1, 2, name="alpha"))
    with pytest.raises(UnknownModel) as caught:
        models.find(name)
    assert caught.value.data() == {"model": name, "known": ["alpha", "pair"]}


def test_not_all_of_very_many_models_are_named(served: ModelServed) -> None:
    models = Models()
    for index in range(100):
        models.add(version(served, index, 1, name=f"m{index:03}"))
    with pytest.raises(UnknownModel) as caught:
        models.find("x")
    assert caught.value.known == [f"m{index:03}" for index in range(KNOWN_MODELS_SHOWN)]


def test_the_list_is_in_order_and_says_what_is_ready(served: ModelServed) -> None:
    models = Models()
    models.add(version(served, 0, 10, "stable"))
    models.add(version(served, 1, 9))
    models.add(version(served, 2, 1, name="alpha"))
    models.by_index[1].replicas.add(0)
    assert models.entries(ANYBODY) == [
        ModelEntry("alpha", 1, False),
        ModelEntry("pair", 9, True),
        ModelEntry("pair", 10, False),
    ]


def test_the_list_has_no_model_that_the_user_may_not_use(served: ModelServed) -> None:
    models = Models()
    models.add(msgspec.structs.replace(version(served, 0, 1, name="closed"), access=Access(Users((7,)))))
    models.add(version(served, 1, 1, name="open"))
    assert [entry.name for entry in models.entries(ANYBODY)] == ["open"]
    assert [entry.name for entry in models.entries(Credentials(7, frozenset()))] == ["closed", "open"]


# ── headers of results ──────────────────────────────────────────────────────────────────────────


def test_inline_results_have_rows_and_bytes(model: Model) -> None:
    assert decode_tensors(memoryview(model.result_headers(inline(model, 4))), 2) == [
        TensorHeader(0, DType.FLOAT32, (4, 2), 32),
        TensorHeader(1, DType.UINT8, (4, 5), 20),
    ]


def test_results_in_arenas_say_where(model: Model) -> None:
    assert decode_tensors(memoryview(model.result_headers(second_in_arena(model, 4))), 2) == [
        TensorHeader(0, DType.FLOAT32, (4, 2), 32),
        TensorHeader(1, DType.UINT8, (4, 5), 20, Lane.ARENA, 2, 128),
    ]


def test_results_in_arenas_do_not_spoil_what_is_remembered_of_inline_ones(model: Model) -> None:
    before = model.result_headers(inline(model, 4))
    assert model.result_headers(second_in_arena(model, 4)) != before
    assert model.result_headers(inline(model, 4)) == before


def test_headers_are_remembered_for_a_bounded_number_of_row_counts(model: Model) -> None:
    assert model.result_headers(inline(model, 7)) is model.result_headers(inline(model, 7))
    for rows in range(1, RESULT_HEADERS_MAX + 100):
        encoded = model.result_headers(inline(model, rows))
        assert decode_tensors(memoryview(encoded), 2)[0].shape == (rows, 2)
    assert len(model._inline_headers) == RESULT_HEADERS_MAX


# ── free dimensions ─────────────────────────────────────────────────────────────────────────────


def test_a_model_knows_whose_sizes_come_with_the_request_and_whose_from_the_data(
    model: Model, ragged_model: Model
) -> None:
    assert (model.dimensions, model.data_dimensions, model.is_ragged) == ((), (), False)
    assert ragged_model.dimensions == (Dimension("tokens", 100), Dimension("beams", 5))
    assert ragged_model.data_dimensions == (Dimension("found", 8, from_data=True),)
    assert (ragged_model.is_ragged, ragged_model.buckets) == (True, {"tokens": (16, 32, 100)})
    assert ragged_model.spec.inputs[2] == TensorSpec("mask", DType.UINT8, (Dimension("tokens", 100),), optional=True)


def test_a_model_whose_sizes_all_come_from_the_data_is_ragged_too(served: ModelServed) -> None:
    outputs = (TensorInfo("y", DType.INT8, (("found", 8, True),)), TensorInfo("n", DType.INT64, ()))
    made = Model(ModelServed(0, "m", 1, (), served.inputs, outputs, True, counts={"found": 1}))
    assert (made.dimensions, made.is_ragged) == ((), True)


def test_results_have_the_sizes_of_the_request_and_of_the_data(ragged_model: Model) -> None:
    form = inline(ragged_model, 2, tokens=5, beams=3)
    assert ragged_model.sizes(form, (4,)) == {"tokens": 5, "beams": 3, "found": 4}
    assert decode_tensors(memoryview(ragged_model.result_headers(form, (4,))), 3) == [
        TensorHeader(0, DType.FLOAT16, (2, 5, 3), 60),
        TensorHeader(1, DType.FLOAT32, (2, 4, 4), 128),
        TensorHeader(2, DType.INT32, (2,), 8),
    ]


def test_a_result_in_an_arena_says_how_much_of_its_range_it_takes(ragged_model: Model) -> None:
    form = second_in_arena(ragged_model, 2, tokens=5, beams=3)
    _, spans, _ = decode_tensors(memoryview(ragged_model.result_headers(form, (0,))), 3)
    assert spans == TensorHeader(1, DType.FLOAT32, (2, 0, 4), 0, Lane.ARENA, 2, 128)


def test_headers_of_other_sizes_are_not_mixed_up(ragged_model: Model) -> None:
    sizes = [(tokens, beams, found) for tokens in (1, 5) for beams in (1, 2) for found in (0, 8)]
    for _ in range(2):
        for tokens, beams, found in sizes:
            form = inline(ragged_model, 1, tokens=tokens, beams=beams)
            tensors = decode_tensors(memoryview(ragged_model.result_headers(form, (found,))), 3)
            assert [tensor.shape for tensor in tensors] == [(1, tokens, 3), (1, found, 4), (1,)]


def test_headers_are_remembered_by_sizes_where_none_comes_from_the_data(served: ModelServed) -> None:
    tokens = ("tokens", 9, False)
    info = (TensorInfo("x", DType.INT8, (tokens,)),)
    made = Model(ModelServed(0, "m", 1, (), info, info, True))
    first = made.result_headers(inline(made, 2, tokens=3))
    assert made.result_headers(inline(made, 2, tokens=3)) is first
    assert decode_tensors(memoryview(made.result_headers(inline(made, 2, tokens=4))), 1)[0].shape == (2, 4)
    assert decode_tensors(memoryview(first), 1)[0].shape == (2, 3)
