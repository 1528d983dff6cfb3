"""The data types of the wire as torch has them."""

from collections.abc import Mapping

import torch

from tensord.ipc.tensors import NO_SIZES, Dimension, DType, TensorSpec, shape_text

TORCH_DTYPES: dict[DType, torch.dtype] = {dtype: getattr(torch, dtype.label) for dtype in DType}


def form_of(tensor: torch.Tensor) -> str:
    """Data type and shape in words: `float32 (8, 10)`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape_text(tensor.shape)}"


def promised_form(spec: TensorSpec, rows: int, sizes: Mapping[str, int] = NO_SIZES) -> str:
    """What `form_of` says of a tensor of `rows` rows that is as promised."""
    shape = [each if isinstance(each, int) else sizes.get(each.name, f"{each} ≤ {each.max}") for each in spec.shape]
    return f"{spec.dtype.label} {shape_text((rows, *shape))}"


def has_form(tensor: torch.Tensor, spec: TensorSpec, rows: int, sizes: Mapping[str, int] = NO_SIZES) -> bool:
    """Whether a tensor is dense and has the data type and shape of `rows` rows; unknown sizes may be any up to max."""
    if tensor.dtype is not TORCH_DTYPES[spec.dtype] or tensor.layout is not torch.strided:
        return False
    if not spec.dimensions:
        return tensor.shape == (rows, *spec.shape)
    return (
        tensor.ndim == 1 + len(spec.shape)
        and tensor.shape[0] == rows
        and all(_is_size(size, each, sizes) for size, each in zip(tensor.shape[1:], spec.shape, strict=True))
    )


def _is_size(size: int, promised: int | Dimension, sizes: Mapping[str, int]) -> bool:
    if isinstance(promised, int):
        return size == promised
    known = sizes.get(promised.name)
    return size <= promised.max if known is None else size == known
