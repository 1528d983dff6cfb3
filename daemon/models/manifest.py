"""The manifest `model.toml` of one model version: strict parsing, and every check that needs no torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from tensord.ipc.limits import LABELS_MAX, META_BYTES_MAX, NAME_BYTES_MAX, TENSOR_DIMENSIONS_MAX, TENSORS_MAX
from tensord.ipc.tensors import DTYPES_BY_LABEL, ModelSpec, TensorSpec
from tensord.ipc.wire import HEADER, encode_opened

from .document import Document, InputTable, Knob, OutputTable, WarmupTable, read_document
from .errors import ManifestError, shown
from .files import file_inside, refuse_writable_by_all

MANIFEST_NAME: Final = "model.toml"

ROW_BYTES_MAX: Final = 1024**3
"""Bytes of one row of one tensor, 1 GiB: an arena must hold some. A larger row is a ManifestError."""

VERSION_MAX: Final = 2**32 - 1
"""A version travels as u32."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Format(StrEnum):
    """How a model is stored."""

    FACTORY = "factory"
    """Python code that builds a module, and its weights as safetensors (data only)."""
    EXPORT = "export"
    """A program of torch.export (`.pt2`); torch unpickles parts of it, so it is as trusted as code."""


@dataclass(frozen=True, slots=True)
class Factory:
    """The function without arguments that builds the module."""

    file: Path
    function: str


@dataclass(frozen=True, slots=True)
class Warmup:
    """A sample with its expected answer: outputs may differ by `atol + rtol * |expected|`."""

    sample: Path
    rtol: float
    atol: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one model version promises. All files named here exist and lie inside `directory`."""

    name: str
    version: int
    directory: Path
    """The version directory, absolute."""
    format: Format
    factory: Factory | None
    """Set exactly when the format is FACTORY."""
    weights: Path | None
    """None where the module has no parameters, and with the format EXPORT."""
    program: Path | None
    """Set exactly when the format is EXPORT."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    idempotent: bool
    required: bool
    warmup: Warmup | None
    knobs: dict[str, Knob]
    """Defaults of model-scope knobs, as they stand in the file: whoever owns the knobs validates them."""

    @property
    def path(self) -> Path:
        """The manifest's own file."""
        return self.directory / MANIFEST_NAME

    def spec(self, rows_max: int) -> ModelSpec:
        """What a client learns of this version when a request may carry up to `rows_max` rows."""
        return ModelSpec(self.name, self.version, self.inputs, self.outputs, rows_max, self.idempotent)


def read_manifest(directory: Path) -> Manifest:
    """Read and check `<name>/<version>/model.toml`; `directory` is the version directory.

    Nothing of the model is run or loaded. Raises ManifestError at the first thing that is wrong.
    """
    directory = directory.absolute()
    path = directory / MANIFEST_NAME
    name, version = directory.parent.name, directory.name
    _check_name(directory.parent, "its name", name, f"rename the directory {directory.parent.name!r}")
    if not is_version(version):
        remedy = f"name a version directory by a whole number from 1 to {VERSION_MAX}"
        raise ManifestError(directory, "its name", shown(version), remedy)
    refuse_writable_by_all(directory)
    document = read_document(file_inside(directory, MANIFEST_NAME, path, "the file"))
    code = _code_of(document, directory, path)
    inputs = _tensors("inputs", document.inputs, path)
    outputs = _tensors("outputs", document.outputs, path)
    warmup = _warmup(document.warmup, directory, path)
    manifest = Manifest(
        name,
        int(version),
        directory,
        *code,
        inputs,
        outputs,
        document.idempotent,
        document.required,
        warmup,
        document.knobs,
    )
    _check_fits_one_frame(manifest)
    return manifest


def is_version(name: str) -> bool:
    """Whether a directory of this name is a version: a positive decimal integer without leading zeros."""
    return re.fullmatch(r"[1-9][0-9]{0,9}", name) is not None and int(name) <= VERSION_MAX


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def _code_of(
    document: Document, directory: Path, path: Path
) -> tuple[Format, Factory | None, Path | None, Path | None]:
    """Format, factory, weights and program: the keys of the one format, and none of the other's."""
    if document.format not in set(Format):
        raise ManifestError(path, "format", shown(document.format), f"use {' or '.join(map(repr, map(str, Format)))}")
    wanted = Format(document.format)
    foreign = ("program",) if wanted is Format.FACTORY else ("factory", "weights")
    for key in foreign:
        if (value := getattr(document, key)) is not None:
            raise ManifestError(path, key, shown(value), f"format {wanted.value!r} has no such key; remove it")
    if wanted is Format.EXPORT:
        if document.program is None:
            raise ManifestError(path, "program", "missing", "format 'export' needs the name of a .pt2 file")
        return wanted, None, None, file_inside(directory, document.program, path, "program")
    factory = _factory(document.factory, directory, path)
    weights = None
    if document.weights is not None:
        weights = file_inside(directory, document.weights, path, "weights")
    return wanted, factory, weights, None


def _factory(text: str | None, directory: Path, path: Path) -> Factory:
    form = "name a Python file and its function, as in 'model.py:build'"
    if text is None:
        raise ManifestError(path, "factory", "missing", form)
    file, _, function = text.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise ManifestError(path, "factory", shown(text), form)
    return Factory(file_inside(directory, file, path, "factory"), function)


def _tensors(key: str, tensors: Sequence[InputTable], path: Path) -> tuple[TensorSpec, ...]:
    if not 1 <= len(tensors) <= TENSORS_MAX:
        raise ManifestError(path, key, f"a list of {len(tensors)}", f"a model has 1 to {TENSORS_MAX} {key}")
    specs = tuple(_tensor(f"{key}[{index}]", tensor, path) for index, tensor in enumerate(tensors))
    names = [spec.name for spec in specs]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ManifestError(path, f"{key}[{index}].name", shown(name), f"{key} must have different names")
    return specs


def _tensor(key: str, tensor: InputTable, path: Path) -> TensorSpec:
    _check_name(path, f"{key}.name", tensor.name, "rename the tensor")
    dtype = DTYPES_BY_LABEL.get(tensor.dtype)
    if dtype is None:
        raise ManifestError(path, f"{key}.dtype", shown(tensor.dtype), f"use one of {', '.join(DTYPES_BY_LABEL)}")
    if len(tensor.shape) >= TENSOR_DIMENSIONS_MAX or min(tensor.shape, default=1) < 1:
        remedy = f"the shape of one row has up to {TENSOR_DIMENSIONS_MAX - 1} dimensions of at least 1"
        raise ManifestError(path, f"{key}.shape", shown(list(tensor.shape)), remedy)
    spec = TensorSpec(tensor.name, dtype, tensor.shape, _labels(key, tensor, path))
    if spec.row_bytes > ROW_BYTES_MAX:
        remedy = f"one row may have up to {ROW_BYTES_MAX} bytes"
        raise ManifestError(path, f"{key}.shape", shown(list(tensor.shape)), remedy)
    return spec


def _labels(key: str, tensor: InputTable, path: Path) -> tuple[str, ...]:
    labels = tensor.labels if isinstance(tensor, OutputTable) else ()
    if not labels:
        return ()
    classes = tensor.shape[-1] if tensor.shape else 0
    if len(labels) != classes or len(labels) > LABELS_MAX:
        remedy = f"give one label for each of the {classes} elements of the last dimension, at most {LABELS_MAX}"
        raise ManifestError(path, f"{key}.labels", f"a list of {len(labels)}", remedy)
    for index, label in enumerate(labels):
        if len(label.encode()) > NAME_BYTES_MAX:
            remedy = f"a label has up to {NAME_BYTES_MAX} bytes"
            raise ManifestError(path, f"{key}.labels[{index}]", shown(label), remedy)
    return labels


def _warmup(warmup: WarmupTable | None, directory: Path, path: Path) -> Warmup | None:
    if warmup is None:
        return None
    for key in ("rtol", "atol"):
        tolerance = getattr(warmup, key)
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ManifestError(path, f"warmup.{key}", shown(tolerance), "use a finite number, 0 or greater")
    return Warmup(file_inside(directory, warmup.sample, path, "warmup.sample"), warmup.rtol, warmup.atol)


def _check_name(path: Path, key: str, name: str, remedy: str) -> None:
    if not NAME.fullmatch(name) or len(name) > NAME_BYTES_MAX:
        allowed = f"a name is up to {NAME_BYTES_MAX} of A-Z a-z 0-9 _ . -, and starts with a letter or digit"
        raise ManifestError(path, key, shown(name), f"{allowed}; {remedy}")


def _check_fits_one_frame(manifest: Manifest) -> None:
    """A client receives the whole specification in the meta of one OPENED frame."""
    meta_bytes = len(encode_opened(0, 0, manifest.spec(1))) - HEADER.size
    if meta_bytes > META_BYTES_MAX:
        remedy = f"names and labels may have {META_BYTES_MAX} bytes together; shorten or drop labels"
        raise ManifestError(manifest.path, "outputs", f"a specification of {meta_bytes} bytes", remedy)
