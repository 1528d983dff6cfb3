import pytest

from tensord.daemon.frontend.forms import Form, Place
from tensord.daemon.frontend.models import KNOWN_MODELS_SHOWN, RESULT_HEADERS_MAX, Model, Models
from tensord.daemon.messages import ModelServed
from tensord.ipc.errors import UnknownModel
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec
from tensord.ipc.wire import Lane, ModelEntry, TensorHeader, decode_tensors


def inline(rows: int) -> Form:
    return Form(rows, 20 * rows, 13 * rows, (0, 1), (0, 1), (12, 8, 8, 5), (), (), ())


def second_in_arena(rows: int) -> Form:
    place = Place(1, 2, 128, 4096)
    return Form(rows, 20 * rows, 8 * rows, (0, 1), (0,), (12, 8, 8), (), (place,), (place,))


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
    model.apply({"max_batch": 8, "timeout_ms": 250, "window_us": 1})
    assert (model.spec.rows_max, model.timeout_ns) == (8, 250_000_000)


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
    assert models.entries() == [
        ModelEntry("alpha", 1, False),
        ModelEntry("pair", 9, True),
        ModelEntry("pair", 10, False),
    ]


# ── headers of results ──────────────────────────────────────────────────────────────────────────


def test_inline_results_have_rows_and_bytes(model: Model) -> None:
    assert decode_tensors(memoryview(model.result_headers(inline(4))), 2) == [
        TensorHeader(0, DType.FLOAT32, (4, 2), 32),
        TensorHeader(1, DType.UINT8, (4, 5), 20),
    ]


def test_results_in_arenas_say_where(model: Model) -> None:
    assert decode_tensors(memoryview(model.result_headers(second_in_arena(4))), 2) == [
        TensorHeader(0, DType.FLOAT32, (4, 2), 32),
        TensorHeader(1, DType.UINT8, (4, 5), 20, Lane.ARENA, 2, 128),
    ]


def test_results_in_arenas_do_not_spoil_what_is_remembered_of_inline_ones(model: Model) -> None:
    before = model.result_headers(inline(4))
    assert model.result_headers(second_in_arena(4)) != before
    assert model.result_headers(inline(4)) == before


def test_headers_are_remembered_for_a_bounded_number_of_row_counts(model: Model) -> None:
    assert model.result_headers(inline(7)) is model.result_headers(inline(7))
    for rows in range(1, RESULT_HEADERS_MAX + 100):
        headers = model.result_headers(inline(rows))
        assert decode_tensors(memoryview(headers), 2)[0].shape == (rows, 2)
    assert len(model._inline_headers) == RESULT_HEADERS_MAX
