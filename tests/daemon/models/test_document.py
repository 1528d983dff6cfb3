from pathlib import Path

import pytest

from tensord.daemon.models.document import (
    MANIFEST_BYTES_MAX,
    Classify,
    DimensionTable,
    Document,
    InputTable,
    Normalize,
    OutputTable,
    PythonStep,
    Softmax,
    WarmupTable,
    read_document,
)
from tensord.daemon.models.errors import ManifestError

SMALL = """
format = "any"

[[inputs]]
name = "x"
dtype = "any"
shape = []

[[outputs]]
name = "y"
dtype = "any"
shape = []
"""


def read(directory: Path, text: str | bytes) -> Document:
    path = directory / "model.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_document(path)


def refusal(directory: Path, text: str | bytes) -> tuple[str, str, str]:
    """Key, value and remedy of the error that this text gets."""
    with pytest.raises(ManifestError) as caught:
        read(directory, text)
    assert caught.value.path == directory / "model.toml"
    return caught.value.key, caught.value.value, caught.value.remedy


def test_the_smallest_document_has_defaults(tmp_path: Path) -> None:
    document = read(tmp_path, SMALL)
    assert document == Document("any", (InputTable("x", "any", ()),), (OutputTable("y", "any", ()),))
    assert (document.idempotent, document.required, document.knobs, document.warmup) == (True, True, {}, None)


def test_every_table_is_read_and_nothing_of_its_meaning(tmp_path: Path) -> None:
    document = read(
        tmp_path,
        """
format = "no format"
inputs = [{name = "", dtype = "no type", shape = [-1, "n"], pad = true, mask = "n"}]
outputs = [{name = "y", dtype = "", shape = ["m", 2], labels = ["a", "b"]}]
preprocess = [{op = "normalize", input = "z", scale = 2, channels = "last"}, {op = "python", function = "f"}]
postprocess = [{op = "softmax", output = "z"}, {op = "classify", top = -1}, {op = "python", function = ""}]

[dimensions.n]
max = -5
buckets = [3, 2]
count = "z"

[warmup]
sample = "../s"
rtol = 1

[knobs]
nonsense = 0.5
order = "x"
""",
    )
    assert document.inputs == (InputTable("", "no type", (-1, "n"), True, "n"),)
    assert document.outputs == (OutputTable("y", "", ("m", 2), ("a", "b")),)
    assert document.preprocess == (Normalize("z", scale=2.0, channels="last"), PythonStep("f"))
    assert document.postprocess == (Softmax("z"), Classify(-1), PythonStep(""))
    assert document.dimensions == {"n": DimensionTable(-5, (3, 2), "z")}
    assert document.warmup == WarmupTable("../s", 1.0, 1e-5)
    assert document.knobs == {"nonsense": 0.5, "order": "x"}


@pytest.mark.parametrize(
    ("more", "key", "value", "remedy"),
    [
        ("required = 1", "required", "of type int", "it must be of type bool"),
        ("fromat = 7", "fromat", "an unknown key", "did you mean format?"),
        ("warmup = {smaple = 1}", "warmup.smaple", "an unknown key", "did you mean sample?"),
        ("warmup = {x = 1}", "warmup.x", "an unknown key", "the keys here are sample, rtol, atol"),
        ("dimensions = {n = {max = 1.5}}", "dimensions.n.max", "of type float", "it must be of type int"),
        ("dimensions = {n = {maxi = 1}}", "dimensions.n.maxi", "an unknown key", "did you mean max?"),
        ("preprocess = [{op = 'softmax'}]", "preprocess[0].op", "'softmax'", "use one of normalize, python"),
        ('preprocess = [{op = "it\'s"}]', "preprocess[0].op", '"it\'s"', "use one of normalize, python"),
        (
            "postprocess = [{op = 'python', function = 'f'}, {op = 'max'}]",
            "postprocess[1].op",
            "'max'",
            "use one of softmax, classify, python",
        ),
        (
            "preprocess = [{op = 'normalize', input = 'x', channels = 'both'}]",
            "preprocess[0].channels",
            "'both'",
            "use one of first, last",
        ),
        (
            "preprocess = [{op = 'python', functoin = 'f'}]",
            "preprocess[0].functoin",
            "an unknown key",
            "the keys of each op are in docs/models.md",
        ),
    ],
)
def test_a_key_or_type_that_is_wrong_is_named_with_its_place(
    tmp_path: Path, more: str, key: str, value: str, remedy: str
) -> None:
    assert refusal(tmp_path, more + SMALL) == (key, value, remedy)


def test_a_key_that_is_missing_is_named_with_its_place(tmp_path: Path) -> None:
    assert refusal(tmp_path, SMALL.replace('format = "any"', "")) == ("format", "missing", "add it")
    assert refusal(tmp_path, SMALL.replace('name = "y"', "")) == ("outputs[0].name", "missing", "add it")


@pytest.mark.parametrize(("value", "kind"), [("[1]", "list"), ("{a = 1}", "dict"), ("1979-05-27", "date")])
def test_a_knob_is_a_number_a_text_or_a_boolean(tmp_path: Path, value: str, kind: str) -> None:
    text = SMALL + f"[knobs]\ngood = false\nbad = {value}\n"
    assert refusal(tmp_path, text) == ("knobs.bad", f"of type {kind}", "use a number, text or boolean")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a = 1\nb = ?\n", "not TOML at line 2, column 5"),
        ('a = 1\nb = """', "not TOML at line 2, column 8"),
        ("a = [1,\n", "not TOML at line 2, column 1"),
        (b"a = 1\nb = \xff\n", "not UTF-8 at line 2, column 5"),
    ],
)
def test_broken_text_is_told_with_line_and_column(tmp_path: Path, text: str | bytes, value: str) -> None:
    key, told, _ = refusal(tmp_path, text)
    assert (key, told.partition(" (")[0]) == ("the text", value)


@pytest.mark.parametrize("text", [f"a = {'9' * 5000}", f"a = {'[' * 5000}"])
def test_text_that_python_gives_up_on_is_to_be_shortened(tmp_path: Path, text: str) -> None:
    key, value, remedy = refusal(tmp_path, text)
    assert (key, value.partition(" (")[0], remedy) == ("the text", "beyond what is read", "shorten it")


def test_a_file_of_just_the_allowed_size_is_read(tmp_path: Path) -> None:
    fill = MANIFEST_BYTES_MAX - len(SMALL)
    assert read(tmp_path, SMALL + "#" * fill).format == "any"
    assert refusal(tmp_path, SMALL + "#" * (fill + 1))[:2] == ("the file", f"longer than {MANIFEST_BYTES_MAX} bytes")


def test_a_file_that_cannot_be_read_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        read_document(tmp_path)
    assert (caught.value.key, caught.value.value) == ("the file", "not readable")
    assert caught.value.remedy == "put a readable file there (Is a directory)"
