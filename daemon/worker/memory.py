"""The arenas that a worker maps, as byte tensors."""

import mmap
from collections.abc import Sequence
from typing import Final

import torch

from tensord.ipc.arena import map_arena
from tensord.ipc.descriptors import Run
from tensord.ipc.tensors import DType, TensorSpec, align

from ..models.dtypes import TORCH_DTYPES
from .device import Device


class UnknownArena(Exception):
    """A descriptor names an arena that is not mapped here."""


ONES_BYTES_MIN: Final = 64 * 1024
"""A buffer of ones is made for masks of any usual length at once; a longer mask gets a longer buffer."""

VIEWS_MAX: Final = 4_096
"""Views remembered; then the memory starts anew. One is about half a KiB."""


class Memory:
    """Arena number → its bytes in host memory, known to the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._regions: dict[int, torch.Tensor] = {}
        self._ones: dict[DType, torch.Tensor] = {}
        self._ones_kept: list[torch.Tensor] = []
        self._views: dict[tuple[object, ...], torch.Tensor] = {}
        """By type, row shape, arena, rows and offset: requests keep coming to the same slots; a view costs 4 µs."""

    def map_shared(self, arena: int, fd: int, nbytes: int) -> None:
        """Map a segment of the daemon's own; `fd` stays the caller's."""
        self._regions[arena] = self._device.open_region(mmap.mmap(fd, nbytes))

    def map_client(self, arena: int, fd: int, nbytes: int) -> None:
        """Map a client's arena after checking its seals; `fd` stays the caller's."""
        self._regions[arena] = self._device.open_region(map_arena(fd, nbytes))

    def ones(self, dtype: DType, count: int) -> torch.Tensor:
        """The bytes of so many ones, in memory that the device knows: the mask that a request left out.

        All requests share them: a model may not get them themselves.
        """
        nbytes = count * dtype.itemsize
        ones = self._ones.get(dtype)
        if ones is None or len(ones) < nbytes:
            doubled = 2 * len(ones) if ones is not None else 0
            buffer = mmap.mmap(-1, align(max(nbytes, doubled, ONES_BYTES_MIN), mmap.PAGESIZE))
            ones = self._device.open_region(buffer)
            ones.view(TORCH_DTYPES[dtype]).fill_(1)
            self._ones[dtype] = ones
            self._ones_kept.append(ones)  # a copy from a shorter one may be under way: together less than the longest
        return ones[:nbytes]

    def unmap(self, arena: int) -> None:
        """Forget an arena; the memory goes when the last tensor on it does."""
        region = self._regions.pop(arena, None)
        self._views.clear()
        if region is not None:
            self._device.close_region(region)

    def unmap_all(self) -> None:
        """Forget all arenas: their generation is over."""
        for arena in list(self._regions):
            self.unmap(arena)

    def knows(self, arena: int) -> bool:
        """Whether the arena is mapped."""
        return arena in self._regions

    def parts(self, runs: Sequence[Run], row_bytes: int) -> list[torch.Tensor]:
        """The byte ranges of a tensor's runs. Raises UnknownArena.

        The front end has checked offsets and lengths; a slice beyond the end would only come out shorter,
        and fail when it is given its shape.
        """
        return [self.part(arena, offset, rows * row_bytes) for arena, rows, offset in runs]

    def view(self, spec: TensorSpec, run: Run) -> torch.Tensor:
        """The rows of a run of a tensor whose shape is fixed. Raises UnknownArena."""
        arena, rows, offset = run
        key = (spec.dtype, spec.shape, arena, rows, offset)
        view = self._views.get(key)
        if view is None:
            part = self.part(arena, offset, rows * spec.row_bytes)
            view = part.view(TORCH_DTYPES[spec.dtype]).view(spec.batch_shape(rows))
            if len(self._views) >= VIEWS_MAX:
                self._views.clear()
            self._views[key] = view
        return view

    def part(self, arena: int, offset: int, nbytes: int) -> torch.Tensor:
        """A byte range. Raises UnknownArena."""
        region = self._regions.get(arena)
        if region is None:
            raise UnknownArena(arena)
        return region[offset : offset + nbytes]
