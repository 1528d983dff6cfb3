"""A batch between the arenas and the model: its inputs as one tensor each, its outputs back into their slots.

Two kinds of descriptors, one interface. Where a model's shapes are fixed, rows that lie one behind the other are
read in place and others are gathered. Where dimensions are free, requests differ in size: each is copied into its
corner of a batch that is padded on the device, and gets its own corner of the outputs back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tensord.ipc.descriptors import (
    NO_ARENA,
    BatchDescriptor,
    Kind,
    RaggedDescriptor,
    decode_batch,
    decode_ragged,
)
from tensord.ipc.errors import BadModelOutput
from tensord.ipc.ring import RingBroken
from tensord.ipc.tensors import Dimension, DType, TensorSpec

from ..models.manifest import Manifest
from ..models.shapes import Shapes
from .device import Device
from .memory import Memory


@dataclass(slots=True)
class Moved:
    """Bytes of a batch's tensors, by what became of them."""

    viewed: int = 0
    """Inputs that the model reads where they lie."""
    gathered: int = 0
    """Inputs that were copied."""
    padded: int = 0
    """Padding between inputs."""
    written: int = 0
    """Outputs copied into their slots."""


class Batch(Protocol):
    """What the loop needs of a batch."""

    batch_id: int
    model: int
    rows: int
    moved: Moved

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        """Of the free dimensions, as the model sees them."""

    def arenas(self) -> set[int]:
        """Numbers of the arenas that it uses."""

    def stack(self, manifest: Manifest, device: Device, memory: Memory, *, private: bool) -> list[torch.Tensor]:
        """One tensor per input, on the device. With `private`, the model may write to them. Raises UnknownArena."""

    def unstack(self, manifest: Manifest, device: Device, memory: Memory, outputs: Sequence[torch.Tensor]) -> list[int]:
        """Write the outputs into their slots; returns the sizes that came from the data, request by request.

        Raises UnknownArena, and BadModelOutput for counts that make no sense.
        """


def decode(kind: int, body: bytes) -> Batch:
    """The batch of a descriptor. Raises RingBroken and struct.error."""
    if kind == Kind.BATCH:
        return FixedBatch(decode_batch(body))
    if kind == Kind.RAGGED:
        return RaggedBatch(decode_ragged(body))
    raise RingBroken(f"kind {kind} in a work ring")


class FixedBatch:
    """A batch of a model whose shapes are fixed."""

    def __init__(self, descriptor: BatchDescriptor) -> None:
        self.batch_id, self.model, self.rows = descriptor.batch_id, descriptor.model, descriptor.rows
        self.moved = Moved()
        self._descriptor = descriptor

    def sizes(self, manifest: Manifest) -> dict[str, int]:  # noqa: ARG002 - see Batch
        """None are free."""
        return {}

    def arenas(self) -> set[int]:
        """See Batch."""
        return {run[0] for runs in (*self._descriptor.inputs, *self._descriptor.outputs) for run in runs}

    def stack(self, manifest: Manifest, device: Device, memory: Memory, *, private: bool) -> list[torch.Tensor]:
        """See Batch."""
        inputs = []
        moved, rows = self.moved, self.rows
        for spec, runs in zip(manifest.inputs, self._descriptor.inputs, strict=True):
            if device.computes_in_place and len(runs) == 1 and not private and spec.dtype is not DType.BOOL:
                tensor, is_view = memory.view(spec, runs[0]), True
            else:
                tensor, is_view = device.stack(spec, memory.parts(runs, spec.row_bytes), private=private)
            inputs.append(tensor)
            if is_view:
                moved.viewed += rows * spec.row_bytes
            else:
                moved.gathered += rows * spec.row_bytes
        return inputs

    def unstack(self, manifest: Manifest, device: Device, memory: Memory, outputs: Sequence[torch.Tensor]) -> list[int]:
        """See Batch."""
        for spec, output, runs in zip(manifest.outputs, outputs, self._descriptor.outputs, strict=True):
            first = 0
            for run in runs:
                rows = run[1]
                device.copy_out(output if rows == self.rows else output[first : first + rows], memory.view(spec, run))
                first += rows
            self.moved.written += self.rows * spec.row_bytes
        return []


class RaggedBatch:
    """A batch of a model with free dimensions: requests of different sizes, padded to one."""

    def __init__(self, descriptor: RaggedDescriptor) -> None:
        self.batch_id, self.model, self.rows = descriptor.batch_id, descriptor.model, descriptor.rows
        self.moved = Moved()
        self._requests = descriptor.requests
        self._sizes = descriptor.sizes

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        """See Batch."""
        return _by_name(manifest.shapes, self._sizes)

    def arenas(self) -> set[int]:
        """See Batch."""
        used = {place[0] for request in self._requests for place in (*request.inputs, *request.outputs)}
        return used - {NO_ARENA}

    # ── inputs ──────────────────────────────────────────────────────────────────────────────────

    def stack(self, manifest: Manifest, device: Device, memory: Memory, *, private: bool) -> list[torch.Tensor]:
        """See Batch."""
        whole_sizes = self.sizes(manifest)
        own_sizes = [_by_name(manifest.shapes, request.sizes) for request in self._requests]
        tensors = []
        for index, (spec, pad) in enumerate(zip(manifest.inputs, manifest.shapes.pads, strict=True)):
            shapes = [
                spec.batch_shape(request.rows, sizes) for request, sizes in zip(self._requests, own_sizes, strict=True)
            ]
            parts = [
                _input_part(spec, request.inputs[index], shape, memory)
                for request, shape in zip(self._requests, shapes, strict=True)
            ]
            shape = spec.batch_shape(self.rows, whole_sizes)
            made = any(request.inputs[index][0] == NO_ARENA for request in self._requests)  # of memory that all share
            tensor, is_view = device.pad(spec.dtype, parts, shapes, shape, pad, private=private or made)
            tensors.append(tensor)
            self._count(is_view, sum(map(len, parts)), math.prod(shape) * spec.dtype.itemsize)
        return tensors

    def _count(self, is_view: bool, real_bytes: int, whole_bytes: int) -> None:
        moved = self.moved
        moved.padded += whole_bytes - real_bytes
        if is_view:
            moved.viewed += real_bytes
        else:
            moved.gathered += real_bytes

    # ── outputs ─────────────────────────────────────────────────────────────────────────────────

    def unstack(self, manifest: Manifest, device: Device, memory: Memory, outputs: Sequence[torch.Tensor]) -> list[int]:
        """See Batch."""
        shapes = manifest.shapes
        counts = {name: outputs[index].tolist() for name, index in shapes.counts.items()}
        _check_counts(manifest, counts, outputs)
        data_sizes: list[int] = []
        first = 0
        for request in self._requests:
            rows = slice(first, first + request.rows)
            first += request.rows
            own_counts = {name: each[rows] for name, each in counts.items()}
            sizes = _by_name(shapes, request.sizes)
            for each in shapes.data_dimensions:
                sizes[each.name] = max(own_counts[each.name])
                data_sizes.append(sizes[each.name])
            for spec, output, (arena, offset, room) in zip(shapes.outputs, outputs, request.outputs, strict=True):
                source = output[(rows, *map(slice, spec.row_shape(sizes)))]
                nbytes = source.numel() * source.element_size()
                if 0 < nbytes <= room:  # else the front end, which learns the sizes, tells the client what it needs
                    target = memory.part(arena, offset, nbytes).view(source.dtype).view(source.shape)
                    device.copy_out(_without_rest(spec, source, own_counts), target)
                    self.moved.written += nbytes
        return data_sizes


def _by_name(shapes: Shapes, sizes: Sequence[int]) -> dict[str, int]:
    return {each.name: size for each, size in zip(shapes.dimensions, sizes, strict=True)}


def _input_part(spec: TensorSpec, place: tuple[int, int], shape: tuple[int, ...], memory: Memory) -> torch.Tensor:
    """The bytes of one request's input; of a mask that it left out, ones: all of its elements are real."""
    arena, offset = place
    if arena == NO_ARENA:
        return memory.ones(spec.dtype, math.prod(shape))
    return memory.part(arena, offset, math.prod(shape) * spec.dtype.itemsize)


def _check_counts(manifest: Manifest, counts: Mapping[str, list[int]], outputs: Sequence[torch.Tensor]) -> None:
    """No row may count more entries than there are. Raises BadModelOutput."""
    shapes = manifest.shapes
    for spec, output in zip(shapes.outputs, outputs, strict=True):
        for size, each in zip(output.shape[1:], spec.shape, strict=True):
            if isinstance(each, int) or not each.from_data:
                continue
            low, high = min(counts[each.name]), max(counts[each.name])
            if low < 0 or high > size:
                name = shapes.outputs[shapes.counts[each.name]].name
                raise BadModelOutput(manifest.name, name, f"counts from 0 to {size}", f"{low} to {high}")


def _without_rest(spec: TensorSpec, source: torch.Tensor, counts: Mapping[str, list[int]]) -> torch.Tensor:
    """Zeros beyond what a row counts: the rest is whatever the model left there, perhaps of other requests."""
    if len(source) == 1 or not any(each.from_data for each in spec.dimensions):
        return source
    clean = torch.zeros_like(source)
    for row in range(len(source)):
        real = [
            slice(counts[each.name][row]) if isinstance(each, Dimension) and each.from_data else slice(None)
            for each in spec.shape
        ]
        clean[(row, *real)] = source[(row, *real)]
    return clean
