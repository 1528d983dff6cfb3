"""The steps before and after a model at work: batches of tensors in, batches of tensors out, on the model's device."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from tensord.ipc.tensors import DTYPES_BY_LABEL, TensorSpec

from .building import import_function
from .document import Classify, Normalize, Softmax
from .dtypes import TORCH_DTYPES
from .steps import PythonFunction, Step

Tensors: TypeAlias = tuple[Any, ...]
"""Tensors, as far as the code of a model can be believed."""
Function: TypeAlias = Callable[[Tensors], Any]
"""What comes out is again a tensor, a tuple or list of them, or a dict by output name."""


def preparation(step: Step, inputs: Sequence[TensorSpec], device: torch.device) -> Function:
    """A step before the model as a function. Raises ManifestError for Python that cannot be imported."""
    if isinstance(step, PythonFunction):
        return _spread(import_function(step))
    assert isinstance(step, Normalize)
    index = [spec.name for spec in inputs].index(step.input)
    normalize = _normalize(step, len(inputs[index].shape), device)
    return lambda tensors: (*tensors[:index], normalize(tensors[index]), *tensors[index + 1 :])


def completion(step: Step, outputs: Sequence[TensorSpec]) -> Function:
    """A step after the model as a function. Raises ManifestError for Python that cannot be imported."""
    match step:
        case Softmax():
            index = [spec.name for spec in outputs].index(step.output)
            return lambda tensors: (*tensors[:index], tensors[index].softmax(-1), *tensors[index + 1 :])
        case Classify():
            return lambda tensors: _classify(tensors[0], step.top, TORCH_DTYPES[outputs[1].dtype])
        case PythonFunction():
            return _spread(import_function(step))
        case _:
            raise AssertionError(step)


def _spread(function: Callable[..., Any]) -> Function:
    return lambda tensors: function(*tensors)


def _normalize(step: Normalize, dimensions: int, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """(x · scale − mean) / std as x · a + b, with a and b per channel."""
    dtype = TORCH_DTYPES[DTYPES_BY_LABEL[step.dtype]]
    mean, std = torch.tensor(step.mean, dtype=torch.float64), torch.tensor(step.std, dtype=torch.float64)
    form = (-1, *[1] * (dimensions - 1)) if dimensions else ()
    factor = (step.scale / std).to(device, dtype).reshape(form)
    offset = (-mean / std).to(device, dtype).reshape(form)
    last = step.channels == "last" and dimensions > 1

    def normalize(tensor: torch.Tensor) -> torch.Tensor:
        if last:
            tensor = tensor.movedim(-1, 1)
        return torch.addcmul(offset, tensor.to(dtype), factor)

    return normalize


def _classify(logits: torch.Tensor, top: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes of the highest probabilities, best first, and these."""
    scores, classes = logits.softmax(-1).topk(top, dim=-1)
    return classes, scores.to(dtype)
