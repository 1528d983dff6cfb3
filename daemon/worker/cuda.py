"""A CUDA GPU as a device: arenas registered as pinned memory, copies and compute on one stream of its own.

The process sees one GPU only (CUDA_VISIBLE_DEVICES is set before it starts), which is `cuda:0` to torch
whatever its name in the configuration.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from tensord.ipc.tensors import DType, TensorSpec

from ..models.dtypes import TORCH_DTYPES
from .device import DeviceUnusable


class CudaDevice:
    """The one visible GPU."""

    def __init__(self, name: str) -> None:
        if not torch.cuda.is_available():
            raise DeviceUnusable(f"device {name!r}: torch finds no usable CUDA device; check the driver, or use cpu:0")
        self.name = name
        self.torch_device = torch.device("cuda", 0)
        torch.cuda.set_device(self.torch_device)
        torch.cuda.set_stream(torch.cuda.Stream())
        self._pinned: set[int] = set()

    def open_region(self, buffer: Any) -> torch.Tensor:
        region = torch.frombuffer(buffer, dtype=torch.uint8)
        # Copies from memory that is not registered still work, at a third of the bandwidth and synchronously.
        if int(torch.cuda.cudart().cudaHostRegister(region.data_ptr(), region.numel(), 0)) == 0:
            self._pinned.add(region.data_ptr())
        return region

    def close_region(self, region: torch.Tensor) -> None:
        if region.data_ptr() in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(region.data_ptr())
            self._pinned.remove(region.data_ptr())

    def stack(self, spec: TensorSpec, parts: Sequence[torch.Tensor], *, private: bool) -> tuple[torch.Tensor, bool]:
        del private  # a copy on the device is always private
        nbytes = sum(part.numel() for part in parts)
        whole = torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)
        first = 0
        for part in parts:
            whole[first : first + part.numel()].copy_(part, non_blocking=True)
            first += part.numel()
        stacked = whole.ne(0) if spec.dtype is DType.BOOL else whole.view(TORCH_DTYPES[spec.dtype])
        return stacked.view(spec.batch_shape(nbytes // spec.row_bytes)), False

    def unstack(self, output: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        row_shape = output.shape[1:]
        row_bytes = math.prod(row_shape) * output.element_size()
        first = 0
        for part in parts:
            rows = part.numel() // row_bytes
            target = part.view(output.dtype).view((rows, *row_shape))
            target.copy_(output[first : first + rows], non_blocking=True)
            first += rows

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()

    def between_ns(self, first: torch.cuda.Event, second: torch.cuda.Event) -> int:
        return int(first.elapsed_time(second) * 1e6)

    def memory_bytes(self) -> int:
        return int(torch.cuda.memory_reserved())
