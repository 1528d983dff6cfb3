import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon.models.errors import ManifestError, reason_of, shown

ERROR = ManifestError(Path("m/1/model.toml"), "inputs[0].dtype", "'float31'", "use float32")


def test_the_error_is_one_sentence() -> None:
    assert str(ERROR) == "m/1/model.toml: inputs[0].dtype is 'float31': use float32"


def test_the_sentence_shows_what_cannot_be_printed() -> None:
    error = ManifestError(Path("a\nb\x1b[31m"), "k\udc80", "v", "r")
    assert str(error) == "a\\nb\\x1b[31m: k\\udc80 is v: r"
    str(error).encode()


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_the_error_survives_being_copied(again: object) -> None:
    assert callable(again)
    copied = again(ERROR)
    assert (type(copied), str(copied), copied.path) == (ManifestError, str(ERROR), ERROR.path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb", r"'a\nb'"),
        ("x" * 78, repr("x" * 78)),
        ("x" * 79, "'" + "x" * 78 + "…"),
        ([1, 10**5000], "a number of thousands of digits"),
    ],
)
def test_a_value_is_shown_on_one_line_of_80_characters(value: object, text: str) -> None:
    assert shown(value) == text


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no\nand more"), "ValueError: no"),
        (ValueError("\n  late\n"), "ValueError: late"),
        (ValueError(), "ValueError"),
        (SystemExit(3), "SystemExit: 3"),
        (OSError(2, "No such file or directory", "/etc/secret"), "FileNotFoundError: No such file or directory"),
        (OSError("a message only"), "OSError: a message only"),
        (Unprintable(), "Unprintable"),
        (ValueError("at /srv/a/b.py:3, in f"), "ValueError: at <path>:3, in f"),
        (ValueError("'/srv/with space/x' and \"~/y z\""), "ValueError: <path> and <path>"),
        (ValueError("./a or ../b/c/"), "ValueError: <path> or <path>"),
        (ValueError("1/2 and a/b stay"), "ValueError: 1/2 and a/b stay"),
        (ValueError("\t\x00"), r"ValueError: \x00"),
        (ValueError("x" * 188), "ValueError: " + "x" * 188),
        (ValueError("x" * 189), "ValueError: " + "x" * 187 + "…"),
    ],
)
def test_a_reason_is_its_class_and_first_line_without_paths(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason


@given(st.text(max_size=400))
def test_a_reason_is_always_one_printable_line_of_200_characters(message: str) -> None:
    reason = reason_of(ValueError(message))
    assert reason.startswith("ValueError")
    assert reason.isprintable()
    assert len(reason) <= 200
