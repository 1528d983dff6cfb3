"""The warm-up: is the answer to a known sample the expected one, however its rows are batched?

A worker batches rows of different clients, so a model may serve only if a row's answer does not depend on
the rows beside it. The sample is therefore run as one batch and row by row, and both must give the expected
outputs. Without a sample, zeros are run, and only the form of the answer is checked.
"""

from collections.abc import Callable, Sequence
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
                self._answer(slice(0, rows))
            except (ModelFailed, BadModelOutput) as error:
                failed[rows] = error
        for rows, failure in failed.items():
            other = sum(counts) - rows if len(failed) == 1 else None
            raise self._failed(rows, failure, other) from failure

    def check_values(self) -> None:
        """All rows in one batch, and then each row alone, give the expected outputs."""
        rows = self._sample.rows
        self._compare(slice(0, rows), f"with {rows} rows in one batch")
        for row in range(rows):
            self._compare(slice(row, row + 1), f"with row {row} alone")

    def _answer(self, rows: slice) -> tuple[torch.Tensor, ...]:
        before = [tensor[rows].to(self._device) for tensor in self._sample.inputs]
        inputs = [tensor.clone() for tensor in before]
        versions = [tensor._version for tensor in inputs]
        outputs = self._run(inputs)
        # The version counter sees an in-place relu of positive numbers, which changes no bit of this sample but
        # may of the next; the bits see what was written past torch, as by numpy.
        written = versions != [tensor._version for tensor in inputs]
        self.changes_input |= written or not all(map(_same_bits, before, inputs))
        return outputs

    def _compare(self, rows: slice, when: str) -> None:
        warmup = self._manifest.warmup
        assert warmup is not None
        answer = self._answer(rows)
        for spec, output, expected in zip(self._manifest.outputs, answer, self._sample.outputs, strict=True):
            difference = _difference(output.cpu(), expected[rows], warmup.rtol, warmup.atol)
            if difference is not None:
                value = f"not what the model answers {when}: {difference}"
                remedy = (
                    "a row's answer must not depend on other rows; check the weights, or write the sample again "
                    "if the model is right"
                )
                raise ManifestError(warmup.sample, f"outputs/{spec.name}", value, remedy)

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
        zeros = [torch.zeros(spec.batch_shape(2), dtype=TORCH_DTYPES[spec.dtype]) for spec in manifest.inputs]
        return _Sample(tuple(zeros), (), 2)
    path = manifest.warmup.sample
    tensors = read_tensors(path, _REMEDY)
    wanted = [(f"inputs/{spec.name}", spec) for spec in manifest.inputs]
    wanted += [(f"outputs/{spec.name}", spec) for spec in manifest.outputs]
    if unknown := sorted(tensors.keys() - {key for key, _ in wanted}):
        raise ManifestError(path, unknown[0], "not a tensor of this model", _REMEDY)
    first = tensors.get(wanted[0][0])
    rows = first.shape[0] if first is not None and first.ndim > 0 else 1
    checked = [_sample_tensor(path, tensors, key, spec, max(rows, 1)) for key, spec in wanted]
    if rows == 1:
        checked = [torch.cat((tensor, tensor)) for tensor in checked]
    inputs = len(manifest.inputs)
    return _Sample(tuple(checked[:inputs]), tuple(checked[inputs:]), max(rows, 2))


def _sample_tensor(path: Path, tensors: dict[str, torch.Tensor], key: str, spec: TensorSpec, rows: int) -> torch.Tensor:
    tensor = tensors.get(key)
    if tensor is None:
        raise ManifestError(path, key, "missing", _REMEDY)
    if not has_form(tensor, spec, rows):
        raise ManifestError(path, key, form_of(tensor), f"the manifest promises {promised_form(spec, rows)}")
    return tensor
