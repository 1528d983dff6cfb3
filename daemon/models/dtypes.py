"""The data types of the wire as torch has them."""

import torch

from tensord.ipc.tensors import DType, TensorSpec, shape_text

TORCH_DTYPES: dict[DType, torch.dtype] = {dtype: getattr(torch, dtype.label) for dtype in DType}


def form_of(tensor: torch.Tensor) -> str:
    """Data type and shape in words: `float32 (8, 10)`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape_text(tensor.shape)}"


def promised_form(spec: TensorSpec, rows: int) -> str:
    """What `form_of` says of a tensor of `rows` rows that is as promised."""
    return f"{spec.dtype.label} {shape_text(spec.batch_shape(rows))}"


def has_form(tensor: torch.Tensor, spec: TensorSpec, rows: int) -> bool:
    """Whether a tensor is dense and has the data type and shape of `rows` rows."""
    return (
        tensor.dtype is TORCH_DTYPES[spec.dtype]
        and tuple(tensor.shape) == spec.batch_shape(rows)
        and tensor.layout is torch.strided
    )
