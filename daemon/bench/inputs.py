"""What requests carry: random tensors of the model's form."""

from typing import Final

import numpy as np

from tensord.ipc.client.arrays import Array
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec

INTEGERS_BELOW: Final = 10
"""Small enough to be an index into anything: a token, a class."""


def random_inputs(spec: ModelSpec, rows: int, seed: int) -> dict[str, Array]:
    """The inputs that the model requires, by name; the same seed gives the same numbers."""
    random = np.random.default_rng(seed)
    return {tensor.name: _random_tensor(tensor, rows, random) for tensor in spec.inputs if not tensor.optional}


def _random_tensor(tensor: TensorSpec, rows: int, random: np.random.Generator) -> Array:
    """Floats from 0 to 1, integers from 0 to 9, or truth values; free dimensions have their largest size."""
    shape = tensor.batch_shape(rows)
    if tensor.dtype is DType.BOOL:
        return random.integers(2, size=shape, dtype=np.uint8).astype(np.bool_)
    if np.issubdtype(tensor.dtype.numpy, np.integer):
        return random.integers(INTEGERS_BELOW, size=shape, dtype=np.uint8).astype(tensor.dtype.numpy)
    if tensor.dtype is DType.FLOAT64:
        return random.random(shape)
    return random.random(shape, np.float32).astype(tensor.dtype.numpy)
