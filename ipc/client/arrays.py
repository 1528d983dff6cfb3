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
from ..tensors import Dimension, DType, ModelSpec, TensorSpec, free_dimensions, shape_text

Array: TypeAlias = "np.ndarray[Any, Any]"
Tensor: TypeAlias = Any
"""A numpy array, a torch tensor, or (as an input) a nested list."""
Inputs: TypeAlias = "Tensor | Mapping[str, Tensor]"
"""One tensor for a model with one input, or every input by its name."""
Outputs: TypeAlias = Any
"""One tensor from a model with one output, otherwise every output by its name."""


class Extent(NamedTuple):
    """What tells one request's form from another's of the same model."""

    rows: int
    sizes: tuple[int, ...] = ()
    """Of the free dimensions of the inputs, in the model's order."""
    omitted: tuple[int, ...] = ()
    """Indices of optional inputs that it leaves out."""


class Prepared(NamedTuple):
    """Inputs that agree with the model."""

    arrays: list[Array]
    """Those that are not left out, in the model's order, C-contiguous, native byte order."""
    extent: Extent
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
            return Prepared([inputs], Extent(shape[0]), False)
    given = _in_order(spec, inputs)
    arrays = []
    rows = -1
    sizes: dict[str, int] = {}
    is_torch = False
    for index, tensor in given.items():
        tensor_spec = spec.inputs[index]
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
        if rows < 1 or shape[:1] != (rows,) or not _takes_sizes(tensor_spec, shape[1:], sizes):
            expected = _expected(tensor_spec, rows, sizes, len(given))
            raise WrongShape(spec.name, tensor_spec.name, expected, shape_text(shape))
        arrays.append(array if array.flags.c_contiguous else np.ascontiguousarray(array))
    if rows > spec.rows_max:
        raise TooManyRows(spec.name, rows, spec.rows_max)
    omitted = tuple(index for index in range(len(spec.inputs)) if index not in given)
    extent = Extent(rows, tuple(sizes[each.name] for each in free_dimensions(spec.inputs)), omitted)
    return Prepared(arrays, extent, is_torch)


def _takes_sizes(spec: TensorSpec, row_shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether a row's shape is the model's; the first input that has a free dimension says its size for all."""
    if not spec.dimensions:
        return row_shape == spec.shape
    if len(row_shape) != len(spec.shape):
        return False
    for size, each in zip(row_shape, spec.shape, strict=True):
        if not isinstance(each, Dimension):
            if size != each:
                return False
        elif not 1 <= size <= each.max or sizes.setdefault(each.name, size) != size:
            return False
    return True


def _in_order(spec: ModelSpec, inputs: Inputs) -> dict[int, Tensor]:
    """The tensors by index, in the model's order. Optional ones may be missing."""
    names = [tensor.name for tensor in spec.inputs]
    required = [index for index, tensor in enumerate(spec.inputs) if not tensor.optional]
    if isinstance(inputs, Mapping):
        found = {index: inputs[name] for index, name in enumerate(names) if name in inputs}
        if len(found) != len(inputs) or any(index not in found for index in required):
            raise WrongTensors(spec.name, names, [str(name) for name in inputs])
        return found
    if len(required) != 1:
        raise WrongTensors(spec.name, names, ["one tensor without a name"])
    return {required[0]: inputs}


def _expected(spec: TensorSpec, rows: int, sizes: Mapping[str, int], given: int) -> str:
    """The shape to ask for: with several inputs, the first one says how many rows and which sizes the others have."""
    first = rows if given > 1 and rows > 0 else "rows"
    shape = [
        sizes.get(each.name, f"{each} ≤ {each.max}") if isinstance(each, Dimension) else each for each in spec.shape
    ]
    return shape_text((first, *shape))


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
