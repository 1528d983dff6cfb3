"""The text of `model.toml` as typed values: TOML, known keys and types, and nothing of their meaning."""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from .errors import ManifestError, shown

MANIFEST_BYTES_MAX: Final = 1024 * 1024
"""Bytes of one manifest: four times what a client's frame can carry of it. A larger file is a ManifestError."""

Knob = bool | int | float | str
"""A knob's value as TOML has it."""


class DimensionTable(msgspec.Struct, forbid_unknown_fields=True):
    """One `[dimensions.NAME]`."""

    max: int
    buckets: tuple[int, ...] = ()
    count: str | None = None


class TensorTable(msgspec.Struct, forbid_unknown_fields=True):
    """What `[[inputs]]` and `[[outputs]]` have in common."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Shape of one row; a text is the name of a free dimension."""


class InputTable(TensorTable, forbid_unknown_fields=True):
    """One `[[inputs]]`."""

    pad: bool | int | float = 0
    mask: str | None = None


class OutputTable(TensorTable, forbid_unknown_fields=True):
    """One `[[outputs]]`."""

    labels: tuple[str, ...] = ()


class Normalize(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="normalize"):
    """Before the model: levels to numbers, (x · scale − mean) / std per channel, channels first."""

    input: str
    dtype: str = "float32"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: Literal["first", "last"] = "first"


class Softmax(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="softmax"):
    """After the model: scores of the last dimension to probabilities."""

    output: str


class Classify(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="classify"):
    """After the model: its one tensor of logits (rows, classes) to the `top` classes and their probabilities."""

    top: int = 1


class PythonStep(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="python"):
    """Before or after the model: a function of the tensors, in order, that returns a tensor or a tuple of them."""

    function: str


class WarmupTable(msgspec.Struct, forbid_unknown_fields=True):
    """`[warmup]`."""

    sample: str
    rtol: float = 1e-4
    atol: float = 1e-5


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """A whole `model.toml`."""

    format: str
    inputs: tuple[InputTable, ...]
    outputs: tuple[OutputTable, ...]
    factory: str | None = None
    weights: str | None = None
    program: str | None = None
    dimensions: dict[str, DimensionTable] = {}
    preprocess: tuple[Normalize | PythonStep, ...] = ()
    postprocess: tuple[Softmax | Classify | PythonStep, ...] = ()
    idempotent: bool = True
    required: bool = True
    cuda_graphs: bool = False
    warmup: WarmupTable | None = None
    knobs: dict[str, Any] = {}
    """Values are Knobs once `read_document` returns; msgspec would not name the key at fault."""


_TABLES: dict[str, type[msgspec.Struct]] = {
    "inputs": InputTable,
    "outputs": OutputTable,
    "warmup": WarmupTable,
    "dimensions": DimensionTable,
}
_CHOICES = {
    "preprocess": "normalize, python",
    "postprocess": "softmax, classify, python",
    "channels": "first, last",
}
"""What may stand in a key of few values, or in the `op` of a list of steps."""


def read_document(path: Path) -> Document:
    """Read `path`. Raises ManifestError naming line and column of broken TOML, or the key of a wrong type."""
    tables = _read_toml(path)
    dimensions = tables.get("dimensions")
    if isinstance(dimensions, dict):
        for name, table in dimensions.items():  # one by one: msgspec would not say which of them is wrong
            _convert(table, DimensionTable, path, f"dimensions.{name}")
    document = _convert(tables, Document, path)
    for key, value in document.knobs.items():
        if not isinstance(value, Knob):
            raise ManifestError(
                path, f"knobs.{key}", f"of type {type(value).__name__}", "use a number, text or boolean"
            )
    return document


T = TypeVar("T")


def _convert(value: object, to: type[T], path: Path, place: str = "") -> T:
    """The value, which stands at `place`, in the right form. Raises ManifestError naming the key at fault."""
    try:
        return msgspec.convert(value, to)
    except msgspec.ValidationError as error:
        raise _wrong_form(path, str(error), place) from None


def _read_toml(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).removesuffix(")").rpartition(" (at ")
        where = _position(text) if where == "end of document" else where
        raise ManifestError(path, "the text", f"not TOML at {where} ({what})", "correct it there") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise ManifestError(path, "the text", f"beyond what is read ({error})", "shorten it") from None


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        remedy = f"put a readable file there ({error.strerror})"
        raise ManifestError(path, "the file", "not readable", remedy) from error
    if len(data) > MANIFEST_BYTES_MAX:
        remedy = "shorten it; weights and samples have files of their own"
        raise ManifestError(path, "the file", f"longer than {MANIFEST_BYTES_MAX} bytes", remedy)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        value = f"not UTF-8 at {_position(data[: error.start].decode())}"
        raise ManifestError(path, "the text", value, "save the file as UTF-8") from None


def _position(text: str) -> str:
    """Where the text ends, as people count."""
    lines = text.split("\n")
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"


def _wrong_form(path: Path, message: str, within: str) -> ManifestError:
    """msgspec's message as ours; it reads like ``Object contains unknown field `x` - at `$.inputs[0]` ``."""
    if found := re.fullmatch(r"(.*) - at `\$(.*)`", message, re.DOTALL):
        message, place = found[1], f"{within}{found[2]}".removeprefix(".")
    else:
        place = within
    if found := re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", message, re.DOTALL):
        problem, key = found.groups()
        full_key = f"{place}.{key}" if place else key
        if problem == "missing required":
            return ManifestError(path, full_key, "missing", "add it")
        return ManifestError(path, full_key, "an unknown key", _suggestion(place, key))
    if found := re.fullmatch(r"Expected `(.*)`, got `(.*)`", message):
        expected, got = found.groups()
        return ManifestError(path, place or "the document", f"of type {got}", f"it must be of type {expected}")
    if found := re.fullmatch(r"Invalid (?:enum )?value (?:'(.*)'|\"(.*)\")", message, re.DOTALL):
        table, _, key = re.sub(r"\[.*\]", "", place).partition(".")
        return ManifestError(
            path, place, shown(found[1] or found[2]), f"use one of {_CHOICES[key if key != 'op' else table]}"
        )
    return ManifestError(path, place or "the document", "malformed", message)


def _suggestion(place: str, key: str) -> str:
    table = re.split(r"[.\[]", place)[0]
    if table in ("preprocess", "postprocess"):
        return "the keys of each op are in docs/models.md"
    known = _TABLES.get(table, Document).__struct_fields__
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(known)}"
