import copy
import dataclasses
import pickle
import re
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc import errors
from tensord.ipc.errors import ERRORS, Fault, QueueFull, Retry, TensordError, UnknownError, UnknownModel, rebuild
from tensord.ipc.wire import HEADER, decode_error, encode_error

LEAVES = sorted(ERRORS.values(), key=lambda error: error.code)

STRATEGIES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**63 - 1),
    float: st.floats(0, 1e6),
    str: st.text(max_size=40),
    list[str]: st.lists(st.text(max_size=10), max_size=4),
}
SENTINELS: dict[Any, list[Any]] = {
    int: [4711, 815, 1234567],
    float: [12.25, 36.5],
    str: ["alpha", "beta", "gamma", "delta"],
    list[str]: [["epsilon", "zeta"], ["eta", "theta"]],
}


def field_types(error: type[TensordError]) -> dict[str, Any]:
    hints = typing.get_type_hints(error)
    return {field.name: hints[field.name] for field in dataclasses.fields(error)}  # type: ignore[arg-type]


def example(error: type[TensordError]) -> TensordError:
    """One whose fields all differ."""
    values = {kind: iter(sentinels) for kind, sentinels in SENTINELS.items()}
    return error(*(next(values[kind]) for kind in field_types(error).values()))


def through_the_wire(error: TensordError) -> TensordError:
    return decode_error(memoryview(encode_error(7, error))[HEADER.size :])


def subclasses(root: type[TensordError]) -> dict[str, str]:
    """Name to the parent's name, of everything below `root`."""
    found: dict[str, str] = {}
    for child in root.__subclasses__():
        if child is not UnknownError:
            found |= {child.__name__: root.__name__, **subclasses(child)}
    return found


def drawn_tree(docstring: str) -> dict[str, str]:
    """Name to the parent's name, of the tree in a docstring."""
    parents: dict[str, str] = {}
    path = ["TensordError"]
    for line in docstring.splitlines():
        match = re.match(r"((?:│   |    )*)[├└]── (\w+)", line)
        if match:
            depth = len(match[1]) // 4 + 1
            path[depth:] = [match[2]]
            parents[match[2]] = path[depth - 1]
    return parents


# ── the table ───────────────────────────────────────────────────────────────────────────────────


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    assert errors.__doc__ is not None
    assert drawn_tree(errors.__doc__) == subclasses(TensordError)


def test_the_table_holds_exactly_the_leaves() -> None:
    tree = subclasses(TensordError)
    assert sorted(error.__name__ for error in LEAVES) == sorted(set(tree) - set(tree.values()))


def test_groups_and_foreign_errors_have_no_code() -> None:
    groups = {getattr(errors, name) for name in subclasses(TensordError).values()}
    assert {error.code for error in groups | {UnknownError}} == {0}


@pytest.mark.parametrize("error", LEAVES)
def test_the_code_says_the_group(error: type[TensordError]) -> None:
    groups = ["ClientFault", "CapacityFault", "ModelFault", "DaemonFault", "ConnectionFault"]
    assert error.__mro__[1].__name__ == groups[error.code // 100 - 1]


def test_only_the_operator_can_mend_a_lack_of_capacity() -> None:
    assert {error.fault for error in LEAVES if issubclass(error, errors.CapacityFault)} == {Fault.OPERATOR}
    assert {error.retry for error in LEAVES if issubclass(error, errors.CapacityFault)} == {Retry.LATER}


def test_a_stale_handle_is_the_one_reason_to_open_again() -> None:
    assert [error.__name__ for error in LEAVES if error.retry is Retry.REOPEN] == ["UnknownHandle"]


# ── sentences ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", LEAVES)
def test_the_sentence_is_one_line_with_every_field(error: type[TensordError]) -> None:
    sentence = str(example(error))
    assert "\n" not in sentence
    for value in example(error).data().values():
        for part in value if isinstance(value, list) else [value]:
            assert str(part) in sentence


def test_an_empty_list_reads_as_none() -> None:
    assert str(UnknownModel("a", [])) == "no model 'a' is served; served models: none"
    assert str(errors.WrongTensors("a", ["x"], [])) == "model 'a' takes the inputs x; got none"


def test_braces_in_a_field_stay_braces() -> None:
    assert str(errors.ModelFailed("m", "{0} {reason}")) == "model 'm' failed: {0} {reason}"


# ── copies ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", LEAVES)
@given(data=st.data())
def test_an_error_comes_through_the_wire_as_it_was(error: type[TensordError], data: st.DataObject) -> None:
    sent = error(*(data.draw(STRATEGIES[kind]) for kind in field_types(error).values()))
    sent.retry_after_ms = data.draw(st.none() | st.integers(0, 2**32 - 2))
    received = through_the_wire(sent)
    assert type(received) is error
    assert (received.data(), received.retry_after_ms, str(received)) == (sent.data(), sent.retry_after_ms, str(sent))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("error", LEAVES)
def test_an_error_is_pickled_and_copied_whole(error: type[TensordError], duplicate: Any) -> None:
    original = example(error)
    original.retry_after_ms = 50
    twin = duplicate(original)
    assert type(twin) is error
    assert (twin.data(), twin.retry_after_ms, str(twin)) == (original.data(), 50, str(original))


def test_a_foreign_error_is_pickled_too() -> None:
    twin = pickle.loads(pickle.dumps(UnknownError(999, "what")))
    assert (type(twin), twin.number, str(twin)) == (UnknownError, 999, "what")


def test_a_retry_further_away_than_the_wire_can_say_is_cut() -> None:
    error = QueueFull("m", 1)
    error.retry_after_ms = 2**40
    assert through_the_wire(error).retry_after_ms == 2**32 - 2


def test_an_error_too_long_for_its_frame_arrives_as_code_and_the_beginning_of_its_sentence() -> None:
    received = through_the_wire(UnknownModel("a" * 20_000, []))
    assert isinstance(received, UnknownError)
    assert received.number == UnknownModel.code
    assert str(received) == str(UnknownModel("a" * 20_000, []))[:8192]


# ── what no version of us sent ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "data"),
    [
        pytest.param(999, b"{}", id="unknown code"),
        pytest.param(0, b"", id="code 0"),
        pytest.param(200, b"", id="no data"),
        pytest.param(200, b'{"model": "m"}', id="field missing"),
        pytest.param(200, b'{"model": "m", "limit": "many"}', id="field of another type"),
        pytest.param(200, b"[1, 2]", id="no object"),
        pytest.param(200, b'{"model": "m", "limit": 1', id="cut off"),
        pytest.param(117, b'{"a": "\xff"}', id="no UTF-8"),
        pytest.param(117, b"[" * 100_000, id="nested deeply"),
        pytest.param(200, b'{"model": "m", "limit": 1e999}', id="infinite"),
    ],
)
def test_foreign_errors_keep_number_and_sentence(code: int, data: bytes) -> None:
    error = rebuild(code, "the sentence", data, 5)
    assert isinstance(error, UnknownError)
    assert (error.number, str(error), error.retry_after_ms) == (code, "the sentence", 5)


def test_a_field_that_a_later_version_added_is_ignored() -> None:
    error = rebuild(200, "", b'{"model": "m", "limit": 3, "since": 12}', None)
    assert isinstance(error, QueueFull)
    assert error.data() == {"model": "m", "limit": 3}
