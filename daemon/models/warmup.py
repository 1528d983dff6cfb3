"""The warm-up: is the answer to a known sample the expected one, however its rows are batched and padded?

A worker batches rows of different clients, so a model may serve only if a row's answer does not depend on
the rows beside it. The sample is therefore run as one batch, row by row, and, where free dimensions have
buckets, padded to larger ones; all must give the expected outputs. Without a sample, zeros are run, and only the form
of the answer is checked.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tensord.ipc.errors import BadModelOutput, ModelFailed
from tensord.ipc.tensors import TensorSpec

from .building import read_tensors
from .dtypes import TORCH_DTYPES, form_of, has_form, promised_form
from .errors import ManifestError
from .manifest import Format, Manifest

Run = Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]

_REMEDY = (
    "write it with safetensors.torch.save_file: inputs/<name> and outputs/<name>, each with a leading row dimension"
)


def warm_up(manifest: Manifest, device: torch.device, run: Run) -> bool:
    """Whether the model changes its inputs. Raises ManifestError when it fails or answers wrongly."""
    trial = _Trial(manifest, device, run, _read_sample(manifest))
    trial.check_row_counts()
    if manifest.warmup is not None:
        trial.check_values()
    return trial.changes_input


@dataclass(frozen=True, slots=True)
class _Sample:
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    rows: int
    sizes: dict[str, int]
    """Of the free dimensions that inputs have."""


class _Trial:
    """Runs parts of one sample, and remembers whether any run changed its inputs."""

    def __init__(self, manifest: Manifest, device: torch.device, run: Run, sample: _Sample) -> None:
        self.changes_input = False
        self._manifest = manifest
        self._device = device
        self._run = run
        self._sample = sample

    def check_row_counts(self) -> None:
        """The model runs with one row and with several, and its answers have the promised form."""
        counts = (1, self._sample.rows)
        failed: dict[int, ModelFailed | BadModelOutput] = {}
        for rows in counts:
            try:
                self._answer(self._rows(slice(0, rows)))
            except (ModelFailed, BadModelOutput) as error:
                failed[rows] = error
        for rows, failure in failed.items():
            other = sum(counts) - rows if len(failed) == 1 else None
            raise self._failed(rows, failure, other) from failure

    def check_values(self) -> None:
        """All rows in one batch, then each row alone, then all of them padded, give the expected outputs."""
        rows = self._sample.rows
        self._compare(self._rows(slice(0, rows)), 0, f"with {rows} rows in one batch")
        for row in range(rows):
            self._compare(self._rows(slice(row, row + 1)), row, f"with row {row} alone")
        sizes = self._next_buckets()
        if sizes != self._sample.sizes:
            text = ", ".join(f"{name} to {size}" for name, size in sizes.items())
            self._compare(self._padded(sizes), 0, f"padded ({text})")

    def _rows(self, rows: slice) -> list[torch.Tensor]:
        return [tensor[rows].to(self._device) for tensor in self._sample.inputs]

    def _next_buckets(self) -> dict[str, int]:
        """The sample's sizes, each raised to the next larger bucket where there is one."""
        raised = dict(self._sample.sizes)
        for name, buckets in self._manifest.shapes.buckets.items():
            larger = bisect_right(buckets, raised[name])
            raised[name] = buckets[min(larger, len(buckets) - 1)]
        return raised

    def _padded(self, sizes: Mapping[str, int]) -> list[torch.Tensor]:
        padded = []
        shapes = self._manifest.shapes
        for spec, pad, tensor in zip(shapes.inputs, shapes.pads, self._sample.inputs, strict=True):
            whole = torch.full(spec.batch_shape(self._sample.rows, sizes), pad, dtype=tensor.dtype)
            whole[tuple(map(slice, tensor.shape))] = tensor
            padded.append(whole.to(self._device))
        return padded

    def _answer(self, before: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        inputs = [tensor.clone() for tensor in before]
        versions = [tensor._version for tensor in inputs]
        outputs = self._run(inputs)
        # The version counter sees an in-place relu of positive numbers, which changes no bit of this sample but
        # may of the next; the bits see what was written past torch, as by numpy.
        written = versions != [tensor._version for tensor in inputs]
        self.changes_input |= written or not all(map(_same_bits, before, inputs))
        return outputs

    def _compare(self, inputs: Sequence[torch.Tensor], first: int, when: str) -> None:
        """Run `inputs`, whose rows are the sample's from `first` on."""
        warmup = self._manifest.warmup
        assert warmup is not None
        answer = [output.cpu() for output in self._answer(inputs)]
        rows = slice(first, first + len(inputs[0]))
        expected = [output[rows] for output in self._sample.outputs]
        for spec, output, wanted in zip(self._manifest.outputs, answer, expected, strict=True):
            difference = self._difference(spec, output, wanted, answer, expected)
            if difference is not None:
                value = f"not what the model answers {when}: {difference}"
                remedy = (
                    "a row's answer must not depend on other rows or on padding; check the weights, or write the "
                    "sample again if the model is right"
                )
                raise ManifestError(warmup.sample, f"outputs/{spec.name}", value, remedy)

    def _difference(
        self,
        spec: TensorSpec,
        output: torch.Tensor,
        wanted: torch.Tensor,
        answer: Sequence[torch.Tensor],
        expected: Sequence[torch.Tensor],
    ) -> str | None:
        """How far an output is off. Padding is not looked at, nor entries beyond those that a row counts."""
        warmup = self._manifest.warmup
        assert warmup is not None
        if not spec.dimensions:
            return _difference(output, wanted, warmup.rtol, warmup.atol)
        counts = self._manifest.shapes.counts
        for row in range(len(wanted)):
            sizes = dict(self._sample.sizes)
            for name, index in counts.items():
                sizes[name] = int(expected[index][row])
                if sizes[name] != int(answer[index][row]):
                    return f"row {row} counts {int(answer[index][row])} {name} instead of {sizes[name]}"
            shape = spec.row_shape(sizes)
            real = tuple(map(slice, shape))
            got, right = output[row][real], wanted[row][real]
            if not got.shape == right.shape == shape:
                return f"row {row} counts entries that are not there"
            difference = _difference(got, right, warmup.rtol, warmup.atol)
            if difference is not None:
                return f"in row {row} {difference}"
        return None

    def _failed(self, rows: int, error: ModelFailed | BadModelOutput, other: int | None) -> ManifestError:
        path = self._manifest.path
        if other is None:
            return ManifestError(path, "the model", f"failing its warm-up ({error})", "mend it, or the warm-up sample")
        value = f"failing with a batch of {rows} and not with one of {other} ({error})"
        remedy = "make it take any number of rows"
        if self._manifest.format is Format.EXPORT:
            remedy = 'its row count is static; export it with a dynamic first dimension, torch.export.Dim("rows")'
        return ManifestError(self._manifest.program or path, "the model", value, remedy)


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equality that a NaN does not disturb, of tensors of equal form."""
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def _difference(output: torch.Tensor, expected: torch.Tensor, rtol: float, atol: float) -> str | None:
    """How far `output` is off, or None. Integers and bools must be equal; NaN equals NaN."""
    left, right = output.double(), expected.double()
    if output.dtype.is_floating_point:
        wrong = ~torch.isclose(left, right, rtol=rtol, atol=atol, equal_nan=True)
    else:
        wrong = output != expected
    if not wrong.any():
        return None
    largest = (left - right)[wrong].abs().max().item()
    tolerance = f" (rtol {rtol:g}, atol {atol:g})" if output.dtype.is_floating_point else ""
    return f"{int(wrong.sum())} of {wrong.numel()} elements are off, by up to {largest:.6g}{tolerance}"


# ── the sample ──────────────────────────────────────────────────────────────────────────────────


def _read_sample(manifest: Manifest) -> _Sample:
    """The sample with at least two rows (a single one is repeated), or two rows of zeros without answers."""
    if manifest.warmup is None:
        return _zeros(manifest)
    path = manifest.warmup.sample
    tensors = read_tensors(path, _REMEDY)
    wanted = [(f"inputs/{spec.name}", spec) for spec in manifest.inputs]
    wanted += [(f"outputs/{spec.name}", spec) for spec in manifest.outputs]
    if unknown := sorted(tensors.keys() - {key for key, _ in wanted}):
        raise ManifestError(path, unknown[0], "not a tensor of this model", _REMEDY)
    rows = _rows_of(manifest, tensors)
    sizes: dict[str, int] = {}
    by_key = {
        key: _sample_tensor(path, tensors, key, spec, rows, sizes)
        for key, spec in sorted(wanted, key=lambda each: each[1].optional)  # masks last: the others say the sizes
    }
    checked = [by_key[key] for key, _ in wanted]
    if rows == 1:
        checked = [torch.cat((tensor, tensor)) for tensor in checked]
    inputs = len(manifest.inputs)
    carried = {each.name: sizes[each.name] for each in manifest.shapes.dimensions}
    return _Sample(tuple(checked[:inputs]), tuple(checked[inputs:]), max(rows, 2), carried)


def _zeros(manifest: Manifest) -> _Sample:
    """Free dimensions get their smallest bucket, or, where they are never padded, the size that costs most."""
    shapes = manifest.shapes
    sizes = {each.name: shapes.buckets.get(each.name, (each.max,))[0] for each in shapes.dimensions}
    zeros = [torch.zeros(spec.batch_shape(2, sizes), dtype=TORCH_DTYPES[spec.dtype]) for spec in manifest.inputs]
    return _Sample(tuple(zeros), (), 2, sizes)


def _rows_of(manifest: Manifest, tensors: dict[str, torch.Tensor]) -> int:
    first = tensors.get(f"inputs/{next(spec.name for spec in manifest.inputs if not spec.optional)}")
    return max(1, first.shape[0] if first is not None and first.ndim > 0 else 1)


def _sample_tensor(
    path: Path, tensors: dict[str, torch.Tensor], key: str, spec: TensorSpec, rows: int, sizes: dict[str, int]
) -> torch.Tensor:
    """A tensor of the sample; the first that has a free dimension says its size for all."""
    tensor = tensors.get(key)
    if tensor is None and spec.optional:
        return torch.ones(spec.batch_shape(rows, sizes), dtype=TORCH_DTYPES[spec.dtype])
    if tensor is None:
        raise ManifestError(path, key, "missing", _REMEDY)
    if not has_form(tensor, spec, rows, sizes):
        raise ManifestError(path, key, form_of(tensor), f"the manifest promises {promised_form(spec, rows, sizes)}")
    for size, each in zip(tensor.shape[1:], spec.shape, strict=True):
        if not isinstance(each, int):
            sizes[each.name] = size
    return tensor
