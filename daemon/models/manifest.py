"""The manifest `model.toml` of one model version: strict parsing, and every check that needs no torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from tensord.ipc.limits import META_BYTES_MAX
from tensord.ipc.tensors import ModelSpec, TensorSpec
from tensord.ipc.wire import HEADER, encode_opened

from .document import Document, Knob, WarmupTable, read_document
from .errors import ManifestError, shown
from .files import file_inside, refuse_writable_by_all
from .names import check_name
from .shapes import Shapes, read_shapes
from .steps import PYTHON_FORM, PythonFunction, Step, python_function, read_steps

MANIFEST_NAME: Final = "model.toml"

VERSION_MAX: Final = 2**32 - 1
"""A version travels as u32."""


class Format(StrEnum):
    """How a model is stored."""

    FACTORY = "factory"
    """Python code that builds a module, and its weights as safetensors (data only)."""
    EXPORT = "export"
    """A program of torch.export (`.pt2`); torch unpickles parts of it, so it is as trusted as code."""


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
    factory: PythonFunction | None
    """Set exactly when the format is FACTORY."""
    weights: Path | None
    """None where the module has no parameters, and with the format EXPORT."""
    program: Path | None
    """Set exactly when the format is EXPORT."""
    shapes: Shapes
    """Its inputs and outputs, and what becomes of their free dimensions."""
    preprocess: tuple[Step, ...]
    postprocess: tuple[Step, ...]
    idempotent: bool
    required: bool
    warmup: Warmup | None
    knobs: dict[str, Knob]
    """Defaults of model-scope knobs, as they stand in the file: whoever owns the knobs validates them."""
    cuda_graphs: bool = False
    """Whether a GPU may record what the model does, and replay it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What requests carry."""
        return self.shapes.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What they get."""
        return self.shapes.outputs

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
    check_name(directory.parent, "its name", name, f"rename the directory {directory.parent.name!r}")
    if not is_version(version):
        remedy = f"name a version directory by a whole number from 1 to {VERSION_MAX}"
        raise ManifestError(directory, "its name", shown(version), remedy)
    refuse_writable_by_all(directory)
    document = read_document(file_inside(directory, MANIFEST_NAME, path, "the file"))
    code = _code_of(document, directory, path)
    shapes = read_shapes(document, path)
    preprocess, postprocess = read_steps(document, shapes, directory, path)
    warmup = _warmup(document.warmup, directory, path)
    if document.cuda_graphs:
        _check_graphs(shapes, (*preprocess, *postprocess), path)
    manifest = Manifest(
        name,
        int(version),
        directory,
        *code,
        shapes,
        preprocess,
        postprocess,
        document.idempotent,
        document.required,
        warmup,
        document.knobs,
        document.cuda_graphs,
    )
    _check_fits_one_frame(manifest)
    return manifest


def is_version(name: str) -> bool:
    """Whether a directory of this name is a version: a positive decimal integer without leading zeros."""
    return re.fullmatch(r"[1-9][0-9]{0,9}", name) is not None and int(name) <= VERSION_MAX


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def _code_of(
    document: Document, directory: Path, path: Path
) -> tuple[Format, PythonFunction | None, Path | None, Path | None]:
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


def _factory(text: str | None, directory: Path, path: Path) -> PythonFunction:
    if text is None:
        raise ManifestError(path, "factory", "missing", PYTHON_FORM)
    return python_function(text, directory, path, "factory")


def _warmup(warmup: WarmupTable | None, directory: Path, path: Path) -> Warmup | None:
    if warmup is None:
        return None
    for key in ("rtol", "atol"):
        tolerance = getattr(warmup, key)
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ManifestError(path, f"warmup.{key}", shown(tolerance), "use a finite number, 0 or greater")
    return Warmup(file_inside(directory, warmup.sample, path, "warmup.sample"), warmup.rtol, warmup.atol)


def _check_graphs(shapes: Shapes, steps: Sequence[Step], path: Path) -> None:
    """A graph has fixed shapes, and is run on more rows than there are: what goes in and out must be rows."""
    if shapes.data_dimensions:
        remedy = f"the size of {shapes.data_dimensions[0]} comes from the data, and a graph's are fixed; remove it"
        raise ManifestError(path, "cuda_graphs", "true", remedy)
    if endless := [each.name for each in shapes.dimensions if each.name not in shapes.buckets]:
        remedy = f"there is a graph for each size; give buckets to the dimension {endless[0]}"
        raise ManifestError(path, "cuda_graphs", "true", remedy)
    if any(isinstance(step, PythonFunction) for step in steps):
        remedy = "a step in Python need not keep rows apart; put its code into the module, or remove cuda_graphs"
        raise ManifestError(path, "cuda_graphs", "true", remedy)


def _check_fits_one_frame(manifest: Manifest) -> None:
    """A client receives the whole specification in the meta of one OPENED frame."""
    meta_bytes = len(encode_opened(0, 0, manifest.spec(1))) - HEADER.size
    if meta_bytes > META_BYTES_MAX:
        remedy = f"names and labels may have {META_BYTES_MAX} bytes together; shorten or drop labels"
        raise ManifestError(manifest.path, "outputs", f"a specification of {meta_bytes} bytes", remedy)
