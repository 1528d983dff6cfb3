"""What a worker needs of a device, and the CPU as one.

A model always gets one stacked tensor per input on its device. How the rows get there and back is the
device's business: a CPU computes on a view of shared memory, a GPU copies asynchronously. Work is ordered
as on a CUDA stream: `mark` names a point in it, and what lies before a mark is done when it is reached.
The slots of a batch go back only then.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from tensord.ipc.tensors import DType, TensorSpec

from ..models.dtypes import TORCH_DTYPES


class DeviceUnusable(Exception):
    """The device does not exist or does not work; the sentence says which and what to do."""


class Device(Protocol):
    """A device of one worker."""

    name: str
    torch_device: torch.device

    def open_region(self, buffer: Any) -> torch.Tensor:
        """The bytes of a mapped arena as a tensor in host memory; registers them where the device wants that."""

    def close_region(self, region: torch.Tensor) -> None:
        """Undo `open_region`; nothing in flight uses it any more."""

    def stack(self, spec: TensorSpec, parts: Sequence[torch.Tensor], *, private: bool) -> tuple[torch.Tensor, bool]:
        """One tensor of all rows on the device, from byte ranges in host memory.

        Returns it and whether it is a view of the (only) part. With `private`, never a view: the model
        changes its input, and the client's bytes must stay as they are.
        """

    def unstack(self, output: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        """Copy the rows of an output, one after the other, into byte ranges in host memory."""

    def mark(self) -> Any:
        """A point behind everything that was begun so far."""

    def wait(self, mark: Any) -> None:
        """Return when the mark is reached."""

    def between_ns(self, first: Any, second: Any) -> int:
        """Device time between two marks that are reached."""

    def memory_bytes(self) -> int:
        """Memory that this process uses on the device, in bytes."""


class CpuDevice:
    """The cores of this process, whose affinity was set before torch was imported."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.torch_device = torch.device("cpu")

    def open_region(self, buffer: Any) -> torch.Tensor:
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def close_region(self, region: torch.Tensor) -> None:
        """Nothing is registered."""

    def stack(self, spec: TensorSpec, parts: Sequence[torch.Tensor], *, private: bool) -> tuple[torch.Tensor, bool]:
        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        if spec.dtype is DType.BOOL:
            stacked = whole.ne(0)  # a bool whose byte is neither 0 nor 1 is undefined behaviour: read any as true
        else:
            stacked = whole.view(TORCH_DTYPES[spec.dtype])
            if private and len(parts) == 1:
                stacked = stacked.clone()
        rows = whole.numel() // spec.row_bytes
        is_view = len(parts) == 1 and not private and spec.dtype is not DType.BOOL
        return stacked.view(spec.batch_shape(rows)), is_view

    def unstack(self, output: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        row_shape = output.shape[1:]
        row_bytes = math.prod(row_shape) * output.element_size()
        first = 0
        for part in parts:
            rows = part.numel() // row_bytes
            part.view(output.dtype).view((rows, *row_shape)).copy_(output[first : first + rows])
            first += rows

    def mark(self) -> int:
        return time.monotonic_ns()

    def wait(self, mark: int) -> None:
        """Everything before a mark is done when `mark` returns."""

    def between_ns(self, first: int, second: int) -> int:
        return second - first

    def memory_bytes(self) -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096


def open_device(name: str) -> Device:
    """The device called `cpu:N` or `cuda:N`. Raises DeviceUnusable."""
    if name.startswith("cpu:"):
        return CpuDevice(name)
    from .cuda import CudaDevice

    return CudaDevice(name)
