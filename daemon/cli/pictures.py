"""Images as tensors, and small tensors as pictures of characters."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tensord.ipc.tensors import Dimension, DType, TensorSpec, shape_text

from .output import Failure

SHADES = " .:-=+*#%@"


def read_image(path: Path, spec: TensorSpec) -> "np.ndarray[Any, Any]":
    """A PNG as one row of the input `spec`.

    Grey or RGB as the shape says: (H, W), (1, H, W), (3, H, W) or (H, W, 3). An input of uint8 gets the levels
    as they are, one of a floating type the levels divided by 255. Raises Failure.
    """
    shape = spec.shape
    colours = 3 if len(shape) == 3 and 3 in (shape[0], shape[-1]) else 1
    try:
        with Image.open(path) as image:
            levels = np.asarray(image.convert("RGB" if colours == 3 else "L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is none, or broken"
        raise Failure(f"{path} cannot be read as an image: {reason}") from error
    if colours == 3 and shape[0] == 3:
        levels = levels.transpose(2, 0, 1)
    row_shape = _row_shape(levels.shape, spec)
    if levels.size != np.prod(row_shape):
        wanted = f"a row of input {spec.name!r} is {shape_text(shape)}"
        raise Failure(f"{path} becomes {levels.shape}, and {wanted}: resize it first")
    row = levels.reshape((1, *row_shape))
    if spec.dtype is DType.UINT8:
        return row
    return (row.astype(np.float32) / 255).astype(spec.dtype.numpy)


def _row_shape(image: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...]:
    """The shape of a row; free dimensions have the image's sizes, counted from the end: (1, height, width)."""
    own = (1, *image)[-len(spec.shape) :] if spec.dimensions else ()
    return spec.row_shape(
        {each.name: size for each, size in zip(spec.shape, own, strict=False) if isinstance(each, Dimension)}
    )


def picture(image: "np.ndarray[Any, Any]") -> list[str]:
    """Lines of characters, two for each pixel so that they look square; ink is bright."""
    plane = image.reshape(image.shape[-2:]).astype(np.float64)
    scaled = plane / max(plane.max(), 1e-9) * (len(SHADES) - 1)
    return ["".join(SHADES[int(level)] * 2 for level in line) for line in scaled.round()]


def probabilities(scores: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Scores of classes, (rows, classes), as probabilities: as they are if they add up to one, else their softmax."""
    scores = scores.astype(np.float64)
    if (scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1, atol=1e-3):
        return scores
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: np.ndarray[Any, Any] = powers / powers.sum(axis=-1, keepdims=True)
    return result
