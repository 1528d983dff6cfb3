"""What a worker needs of a device, and the CPU as one.

A model always gets one stacked tensor per input on its device. How the rows get there and back is the
device's business: a CPU computes on a view of shared memory, a GPU copies asynchronously. Work is ordered
in three stages, each a queue of its own as on CUDA streams: copying in, computing, copying out. A stage of a batch
begins when the stage before it is through with this batch, so the next batch is copied in while this one computes.
`mark` names a point in the present stage, and what lies before a mark is done when it is reached. The slots of
a batch go back only when its last mark is.
"""

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, TypeAlias

import torch

from tensord.ipc.statistics import Phase
from tensord.ipc.tensors import DType, TensorSpec

from ..models.dtypes import TORCH_DTYPES


class DeviceUnusable(Exception):
    """The device does not exist or does not work; the sentence says which and what to do."""


class DeviceLost(Exception):
    """The device does not answer in this process any more; only another process can use it again."""


Runner: TypeAlias = Callable[[], Any]
"""Runs a captured function again, on the very tensors it was captured with; what it returns are each time the same
tensors, and hold the last answer."""

Capture: TypeAlias = Callable[[Callable[..., Any], Sequence[torch.Tensor]], Runner]
"""See Device."""


@dataclass(frozen=True, slots=True)
class DeviceStatistics:
    """Memory, in bytes."""

    memory_bytes: int
    """What this process has taken: of a CPU its resident set, of a GPU what torch keeps for tensors."""
    allocated_bytes: int = 0
    """What tensors on a GPU hold of it."""
    free_bytes: int = 0
    """Of the whole GPU, whoever uses the rest."""
    total_bytes: int = 0
    """0 for a CPU: its memory is the host's."""
    pinned_bytes: int = 0
    """Arenas that the device copies from and to by itself."""
    unpinned_bytes: int = 0
    """Arenas that it could not register: the process waits for each copy."""
    unpinned_reason: str = ""


class Stage(IntEnum):
    """The stages of a batch, in their order."""

    COPY_IN = 0
    COMPUTE = 1
    COPY_OUT = 2


class Device(Protocol):
    """A device of one worker."""

    name: str
    torch_device: torch.device
    in_flight_max: int
    """Batches begun and not answered; with 1, the answer is there when the batch has begun."""
    computes_in_place: bool
    """Whether a model can compute on host memory itself."""
    copy_in_phase: Phase
    """What the time of the stage COPY_IN is counted as."""
    copy_out_phase: Phase

    def stage(self, stage: Stage, uses: Sequence[torch.Tensor] = ()) -> AbstractContextManager[object]:
        """What is begun inside belongs to this stage of the batch whose stages are gone through in order.

        `uses` come from the stages before: their memory is nobody else's before this stage is through with them,
        whoever drops them. The stages of a batch that fails need not all be entered. Raises DeviceLost.
        """

    def open_region(self, buffer: Any) -> torch.Tensor:
        """The bytes of a mapped arena as a tensor in host memory; registers them where the device wants that."""

    def close_region(self, region: torch.Tensor) -> None:
        """Undo `open_region`; nothing in flight uses it any more."""

    def stack(self, spec: TensorSpec, parts: Sequence[torch.Tensor], *, private: bool) -> tuple[torch.Tensor, bool]:
        """One tensor of all rows on the device, from byte ranges in host memory.

        Returns it and whether it is a view of the (only) part. With `private`, never a view: the model
        changes its input, and the client's bytes must stay as they are.
        """

    def pad(
        self,
        dtype: DType,
        parts: Sequence[torch.Tensor],
        shapes: Sequence[tuple[int, ...]],
        shape: tuple[int, ...],
        value: float,
        *,
        private: bool,
    ) -> tuple[torch.Tensor, bool]:
        """One tensor of `shape` on the device; each part, a byte range of one of `shapes`, fills a corner of its rows.

        The rest is `value`. Returns it and whether it is a view of the (only) part, which `private` forbids.
        """

    def copy_out(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy a piece of an output to host memory."""

    @property
    def capture(self) -> Capture | None:
        """Records what a function does with these tensors as one piece of work, after trying it a few times.

        None where a device has no such thing. To be called where computing is: in the stage COMPUTE, or while a model
        is loaded. Raises what the function does, and RuntimeError for what cannot be recorded; the device is then as
        it was before.
        """

    def mark(self) -> Any:
        """A point behind everything that was begun so far in this stage. Raises DeviceLost."""

    def wait(self, mark: Any) -> None:
        """Return when the mark is reached. Raises DeviceLost."""

    def between_ns(self, first: Any, second: Any) -> int:
        """Device time between two marks that are reached."""

    def statistics(self) -> DeviceStatistics:
        """Memory as it is now."""

    def held_bytes(self) -> int:
        """Memory that models and tensors hold now: the difference around a load is the model's."""


def typed(part: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Bytes as elements. A bool whose byte is neither 0 nor 1 is undefined behaviour: any but 0 is read as true."""
    return part.ne(0) if dtype is DType.BOOL else part.view(TORCH_DTYPES[dtype])


def fill_corners(whole: torch.Tensor, parts: Sequence[torch.Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    """Copy the elements of each part into the corner of its rows of `whole`."""
    first = 0
    for part, shape in zip(parts, shapes, strict=True):
        corner = whole[(slice(first, first + shape[0]), *map(slice, shape[1:]))]
        corner.copy_(part.view(shape), non_blocking=True)
        first += shape[0]


class CpuDevice:
    """The cores of this process, whose affinity was set before torch was imported."""

    in_flight_max = 1
    computes_in_place = True
    copy_in_phase = Phase.COPY_IN
    copy_out_phase = Phase.COPY_OUT
    capture = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.torch_device = torch.device("cpu")
        self._stage = nullcontext()

    def stage(self, stage: Stage, uses: Sequence[torch.Tensor] = ()) -> AbstractContextManager[object]:  # noqa: ARG002
        return self._stage  # one queue: everything is synchronous

    def open_region(self, buffer: Any) -> torch.Tensor:
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def close_region(self, region: torch.Tensor) -> None:
        """Nothing is registered."""

    def stack(self, spec: TensorSpec, parts: Sequence[torch.Tensor], *, private: bool) -> tuple[torch.Tensor, bool]:
        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        stacked = typed(whole, spec.dtype)
        if private and len(parts) == 1 and spec.dtype is not DType.BOOL:
            stacked = stacked.clone()
        rows = whole.numel() // spec.row_bytes
        is_view = len(parts) == 1 and not private and spec.dtype is not DType.BOOL
        return stacked.view(spec.batch_shape(rows)), is_view

    def pad(
        self,
        dtype: DType,
        parts: Sequence[torch.Tensor],
        shapes: Sequence[tuple[int, ...]],
        shape: tuple[int, ...],
        value: float,
        *,
        private: bool,
    ) -> tuple[torch.Tensor, bool]:
        if len(parts) == 1 and shapes[0] == shape and not private and dtype is not DType.BOOL:
            return typed(parts[0], dtype).view(shape), True
        whole = torch.full(shape, value, dtype=TORCH_DTYPES[dtype])
        fill_corners(whole, [typed(part, dtype) for part in parts], shapes)
        return whole, False

    def copy_out(self, source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(source)

    def mark(self) -> int:
        return time.monotonic_ns()

    def wait(self, mark: int) -> None:
        """Everything before a mark is done when `mark` returns."""

    def between_ns(self, first: int, second: int) -> int:
        return second - first

    def statistics(self) -> DeviceStatistics:
        return DeviceStatistics(self.held_bytes())

    def held_bytes(self) -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()


def open_device(name: str) -> Device:
    """The device called `cpu:N` or `cuda:N`. Raises DeviceUnusable."""
    if name.startswith("cpu:"):
        return CpuDevice(name)
    from .cuda import CudaDevice

    return CudaDevice(name)
