"""What users hand in as tensors and what they get back: numpy arrays, lists, and torch tensors if torch is loaded.

A request's inputs become C-contiguous arrays in native byte order, exactly of the type and shape that
the model asks for; no value is converted silently, except those of lists, which have no type of their
own. This module never imports torch: a caller who holds a tensor has done so already.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..errors import BadRequest, TooManyRows, WrongDType, WrongShape, WrongTensors
from ..tensors import DType, ModelSpec, TensorSpec, shape_text

Array: TypeAlias = "np.ndarray[Any, Any]"
Tensor: TypeAlias = Any
"""A numpy array, a torch tensor, or (as an input) a nested list."""
Inputs: TypeAlias = "Tensor | Mapping[str, Tensor]"
"""One tensor for a model with one input, or every input by its name."""
Outputs: TypeAlias = Any
"""One tensor from a model with one output, otherwise every output by its name."""


class Prepared(NamedTuple):
    """Inputs that agree with the model."""

    arrays: list[Array]
    """In the model's order, C-contiguous, native byte order."""
    rows: int
    is_torch: bool
    """Whether one of them was given as a torch tensor: the outputs are then returned as such."""


def prepare_inputs(spec: ModelSpec, inputs: Inputs) -> Prepared:
    """Check and arrange a request's inputs; arrays that fit already are passed on without a copy.

    Raises WrongTensors, WrongDType, WrongShape, TooManyRows, BadRequest.
    """
    if type(inputs) is np.ndarray and len(spec.inputs) == 1 and inputs.flags.c_contiguous:
        form = spec.inputs[0]
        shape = inputs.shape
        if inputs.dtype == form.dtype.numpy and shape[1:] == form.shape and shape and 1 <= shape[0] <= spec.rows_max:
            return Prepared([inputs], shape[0], False)
    given = _in_order(spec, inputs)
    arrays = []
    rows = -1
    is_torch = False
    for tensor_spec, tensor in zip(spec.inputs, given, strict=True):
        if type(tensor) is np.ndarray:
            array = tensor
        elif is_torch_tensor(tensor):
            is_torch = True
            array = _from_torch(tensor_spec.name, tensor)
        else:
            array = _from_other(tensor_spec, tensor)
        if array.dtype != tensor_spec.dtype.numpy:
            array = _native(spec, tensor_spec, array)
        shape = array.shape
        if rows < 0 and shape:
            rows = shape[0]
        if shape[:1] != (rows,) or shape[1:] != tensor_spec.shape:
            raise WrongShape(spec.name, tensor_spec.name, _expected(tensor_spec, rows, given), shape_text(shape))
        arrays.append(array if array.flags.c_contiguous else np.ascontiguousarray(array))
    if not 1 <= rows <= spec.rows_max:
        raise TooManyRows(spec.name, rows, spec.rows_max)
    return Prepared(arrays, rows, is_torch)


def _in_order(spec: ModelSpec, inputs: Inputs) -> Sequence[Tensor]:
    """The tensors in the model's order."""
    names = [tensor.name for tensor in spec.inputs]
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise WrongTensors(spec.name, names, [str(name) for name in inputs])
        return [inputs[name] for name in names]
    if len(names) != 1:
        raise WrongTensors(spec.name, names, ["one tensor without a name"])
    return (inputs,)


def _expected(tensor_spec: TensorSpec, rows: int, given: Sequence[Tensor]) -> str:
    """The shape to ask for: with several inputs, the first one says how many rows the others have."""
    first = rows if len(given) > 1 and rows >= 0 else "rows"
    return shape_text((first, *tensor_spec.shape))


def _native(spec: ModelSpec, tensor_spec: TensorSpec, array: Array) -> Array:
    """The array in native byte order, if that is all that is wrong with its type."""
    expected = tensor_spec.dtype.numpy
    if array.dtype.newbyteorder("=") != expected:
        raise WrongDType(spec.name, tensor_spec.name, tensor_spec.dtype.label, str(array.dtype))
    return array.astype(expected)


def _from_other(tensor_spec: TensorSpec, tensor: object) -> Array:
    """Subclasses of arrays, and lists in the input's type."""
    if isinstance(tensor, np.ndarray):
        return np.asarray(tensor)
    field = f"input {tensor_spec.name!r}"
    if not isinstance(tensor, list):
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise BadRequest(field, f"of type {kind}", "pass a numpy array, a torch tensor or a list of rows")
    try:
        with np.errstate(over="raise"):
            return np.asarray(tensor, dtype=tensor_spec.dtype.numpy)
    except (TypeError, ValueError, ArithmeticError) as error:
        remedy = (
            f"every element must be a {tensor_spec.dtype.label}, every row of shape {shape_text(tensor_spec.shape)}"
        )
        raise BadRequest(field, f"a list that makes no array ({error})", remedy) from None


# ── outputs ─────────────────────────────────────────────────────────────────────────────────────


def arrange_outputs(spec: ModelSpec, arrays: Sequence[Array], *, as_torch: bool) -> Outputs:
    """The one output, or a dict of them by name, as the user gets them."""
    tensors = [_to_torch(array) for array in arrays] if as_torch else arrays
    if len(tensors) == 1:
        return tensors[0]
    return {output.name: tensor for output, tensor in zip(spec.outputs, tensors, strict=True)}


def as_bytes(array: Array) -> Array:
    """A C-contiguous array's bytes, shared, one-dimensional: also of types that have no buffer protocol (bfloat16)."""
    return array.reshape(-1).view(np.uint8)


# ── torch ───────────────────────────────────────────────────────────────────────────────────────


def is_torch_tensor(tensor: object) -> bool:
    """Whether this is a torch tensor; False, without importing torch, in a process that has not."""
    tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor_type is not None and isinstance(tensor, tensor_type)


def _from_torch(name: str, tensor: Any) -> Array:
    """A torch tensor's memory as an array, without a copy if it is on the CPU and dense."""
    torch = sys.modules["torch"]
    tensor = tensor.detach()
    try:
        if tensor.dtype is torch.bfloat16:  # numpy's own types have no bfloat16: carry the bits in int16
            bits: Array = tensor.cpu().view(torch.int16).numpy()
            return bits.view(DType.BFLOAT16.numpy)
        array: Array = tensor.cpu().numpy()
    except (TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise BadRequest(f"input {name!r}", f"a tensor that makes no array ({reason})", "make it dense") from None
    return array


def _to_torch(array: Array) -> Any:
    """A writable array's memory as a torch tensor."""
    torch: Any = sys.modules["torch"]
    if array.dtype == DType.BFLOAT16.numpy:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
