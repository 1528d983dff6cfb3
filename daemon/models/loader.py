"""A model version in this process: loaded, run on batches, and warmed up."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tensord.ipc.errors import BadModelOutput, ModelFailed

from .building import build_module
from .dtypes import form_of, has_form, promised_form
from .errors import reason_of
from .manifest import Manifest
from .processing import Tensors, completion, preparation
from .warmup import warm_up


def load(manifest: Manifest, device: torch.device) -> "LoadedModel":
    """Build the module on `device` with its weights, in evaluation mode, and its steps. Nothing is run yet.

    Raises ManifestError for whatever is wrong with the model's files or raised by its factory; MemoryError passes.
    """
    return LoadedModel(manifest, device, build_module(manifest, device))


class LoadedModel:
    """One version of a model, ready to run on one device. Not thread-safe: one batch at a time.

    A batch goes through `prepare`, `compute` and `complete`, which a worker times apart; `run` is all three.
    """

    def __init__(self, manifest: Manifest, device: torch.device, module: torch.nn.Module) -> None:
        self.manifest = manifest
        self.device = device
        self.changes_input = True
        """Whether the model writes to its input tensors; believed to be so until `warm_up` has looked."""
        self.forward: Callable[..., Any] = module.__call__
        """The model itself; a worker may put captured graphs of it in its place."""
        self._before = [preparation(step, manifest.inputs, device) for step in manifest.preprocess]
        self._after = [completion(step, manifest.outputs) for step in manifest.postprocess]

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The outputs in the manifest's order, each of shape `(rows, *shape)`.

        `inputs` are in the manifest's order too, on `self.device`, all with the same number of rows and equal sizes
        of free dimensions. An output may share memory with an input. Raises ModelFailed with what the model's code
        raised as its cause, and BadModelOutput where the answer is not what the manifest promises; MemoryError and
        torch.OutOfMemoryError pass.
        """
        rows, sizes = inputs[0].shape[0], self._sizes(inputs)  # read first: the model may reshape its input in place
        with torch.inference_mode():
            return self.complete(self.compute(self.prepare(inputs)), rows, sizes)

    def prepare(self, inputs: Sequence[torch.Tensor]) -> Tensors:
        """The steps before the model; like the next two, to be called in inference mode. Raises ModelFailed."""
        tensors = tuple(inputs)
        for step in self._before:
            tensors = _as_tuple(self._run_code(step, tensors))
        return tensors

    def compute(self, tensors: Tensors) -> Any:
        """The model itself. Raises ModelFailed."""
        return self._run_code(self.forward, *tensors)

    def complete(self, answer: Any, rows: int, sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """The steps after the model, and the check of its answer. Raises ModelFailed, BadModelOutput."""
        for step in self._after:
            answer = self._run_code(step, _as_tuple(answer, [spec.name for spec in self.manifest.outputs]))
        return self._checked(answer, rows, sizes)

    def warm_up(self) -> None:
        """Run the manifest's sample, or zeros, alone, batched and padded, and learn `changes_input`.

        Raises ManifestError when the model fails, when an answer is not the expected one, or when it depends on
        how many rows are in the batch or how far it is padded.
        """
        self.changes_input = warm_up(self.manifest, self.device, self.run)

    @property
    def has_steps(self) -> bool:
        """Whether anything runs before or after the model."""
        return bool(self._before or self._after)

    def _run_code(self, code: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return code(*arguments)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise ModelFailed(self.manifest.name, reason_of(error)) from error

    def _sizes(self, inputs: Sequence[torch.Tensor]) -> dict[str, int]:
        """The sizes of the free dimensions in a batch."""
        return {
            each.name: size
            for spec, tensor in zip(self.manifest.inputs, inputs, strict=True)
            for each, size in zip(spec.shape, tensor.shape[1:], strict=True)
            if not isinstance(each, int)
        }

    def _checked(self, answer: Any, rows: int, sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        outputs = self._in_order(answer)
        for spec, output in zip(self.manifest.outputs, outputs, strict=True):
            if not isinstance(output, torch.Tensor):
                raise self._bad(spec.name, promised_form(spec, rows, sizes), f"of type {type(output).__name__}")
            if output.is_nested or output.is_meta:
                got = "nested" if output.is_nested else "without data"
                raise self._bad(spec.name, promised_form(spec, rows, sizes), got)
            if not has_form(output, spec, rows, sizes):
                dense = "" if output.layout is torch.strided else "not dense, "
                raise self._bad(spec.name, promised_form(spec, rows, sizes), dense + form_of(output))
        return outputs

    def _in_order(self, answer: Any) -> tuple[Any, ...]:
        """A tensor, a tuple or list, or a mapping by output name, as one tuple of the promised length."""
        names = [spec.name for spec in self.manifest.outputs]
        if isinstance(answer, Mapping):
            for name in [*names, *answer]:
                if name not in answer or name not in names:
                    got = "missing" if name in names else "one too many"
                    raise self._bad(str(name), f"the outputs {', '.join(names)}", got)
            return tuple(answer[name] for name in names)
        outputs = _as_tuple(answer)
        if len(outputs) != len(names):
            got = f"one of {len(outputs)}"
            raise self._bad(names[0], f"the {len(names)} outputs {', '.join(names)}", got)
        return outputs

    def _bad(self, tensor: str, expected: str, got: str) -> BadModelOutput:
        return BadModelOutput(self.manifest.name, tensor, expected, got)


def _as_tuple(answer: Any, names: Sequence[str] = ()) -> Tensors:
    """What a module or step returned as a tuple; a dict by just these names in their order, another one in its own."""
    if isinstance(answer, Mapping):
        return tuple(answer[name] for name in (names if set(names) == set(answer) else answer))
    return tuple(answer) if isinstance(answer, tuple | list) else (answer,)
