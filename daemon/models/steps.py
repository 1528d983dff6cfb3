"""The steps before and after a model, as its manifest names them. Checked without torch; `processing.py` runs them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from tensord.ipc.tensors import DTYPES_BY_LABEL, Dimension, DType, TensorSpec

from .document import Classify, Document, Normalize, PythonStep, Softmax
from .errors import ManifestError, shown
from .files import file_inside
from .shapes import FLOATS, Shapes

PYTHON_FORM: Final = "name a Python file and its function, as in 'model.py:build'"


@dataclass(frozen=True, slots=True)
class PythonFunction:
    """A function in a file of the version directory."""

    file: Path
    function: str


Step: TypeAlias = Normalize | Softmax | Classify | PythonFunction
"""One step: tensors of a batch in, tensors out, on the model's device."""


def python_function(text: str, directory: Path, path: Path, key: str) -> PythonFunction:
    """`file.py:function`, which stands at `key` of the manifest. Raises ManifestError."""
    file, _, function = text.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise ManifestError(path, key, shown(text), PYTHON_FORM)
    return PythonFunction(file_inside(directory, file, path, key), function)


def read_steps(
    document: Document, shapes: Shapes, directory: Path, path: Path
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """The steps before and after the model. Raises ManifestError."""
    before = tuple(
        _python(step, directory, path, f"preprocess[{index}]")
        if isinstance(step, PythonStep)
        else _normalize(step, shapes.inputs, path, f"preprocess[{index}]")
        for index, step in enumerate(document.preprocess)
    )
    after: list[Step] = []
    for index, step in enumerate(document.postprocess):
        key = f"postprocess[{index}]"
        if isinstance(step, PythonStep):
            after.append(_python(step, directory, path, key))
        elif isinstance(step, Softmax):
            after.append(_softmax(step, shapes.outputs, path, key))
        else:
            after.append(_classify(step, shapes.outputs, path, key))
    return before, tuple(after)


def _python(step: PythonStep, directory: Path, path: Path, key: str) -> PythonFunction:
    return python_function(step.function, directory, path, f"{key}.function")


def _normalize(step: Normalize, inputs: Sequence[TensorSpec], path: Path, key: str) -> Normalize:
    spec = _named(step.input, inputs, path, f"{key}.input")
    if DTYPES_BY_LABEL.get(step.dtype) not in FLOATS:
        labels = ", ".join(dtype.label for dtype in FLOATS)
        raise ManifestError(path, f"{key}.dtype", shown(step.dtype), f"use one of {labels}")
    channels = (spec.shape or (1,))[0 if step.channels == "first" else -1]
    for name, values in (("mean", step.mean), ("std", step.std)):
        if len(values) != 1 and len(values) != channels:
            remedy = f"give one number, or one for each of the {channels} channels"
            raise ManifestError(path, f"{key}.{name}", f"a list of {len(values)}", remedy)
    if not all(map(math.isfinite, (step.scale, *step.mean, *step.std))) or 0.0 in step.std:
        remedy = "use finite numbers, and none that is 0 in std"
        raise ManifestError(path, key, shown((step.scale, step.mean, step.std)), remedy)
    return step


def _softmax(step: Softmax, outputs: Sequence[TensorSpec], path: Path, key: str) -> Softmax:
    spec = _named(step.output, outputs, path, f"{key}.output")
    if spec.dtype not in FLOATS or not spec.shape:
        raise ManifestError(
            path, f"{key}.output", str(spec), "softmax needs scores of a floating type along a dimension"
        )
    if isinstance(spec.shape[-1], Dimension):
        remedy = "along a free dimension it would depend on padding; let the model do it, with the mask"
        raise ManifestError(path, f"{key}.output", str(spec), remedy)
    return step


def _classify(step: Classify, outputs: Sequence[TensorSpec], path: Path, key: str) -> Classify:
    if step.top < 1:
        raise ManifestError(path, f"{key}.top", shown(step.top), "use 1 or more")
    wanted = f"an int64 and a floating output of shape [{step.top}]: the classes and their probabilities"
    fits = (
        len(outputs) == 2
        and outputs[0].dtype is DType.INT64
        and outputs[1].dtype in FLOATS
        and all(spec.shape == (step.top,) for spec in outputs)
    )
    if not fits:
        raise ManifestError(path, "outputs", "; ".join(map(str, outputs)), f"classify gives {wanted}")
    return step


def _named(name: str, specs: Sequence[TensorSpec], path: Path, key: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise ManifestError(path, key, shown(name), f"name one of {', '.join(spec.name for spec in specs)}")
