"""A model version in this process: loaded, run on batches, and warmed up."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tensord.ipc.errors import BadModelOutput, ModelFailed

from .building import build_module
from .dtypes import form_of, has_form, promised_form
from .errors import reason_of
from .manifest import Manifest
from .warmup import warm_up


def load(manifest: Manifest, device: torch.device) -> "LoadedModel":
    """Build the module on `device` with its weights, in evaluation mode. Nothing is run yet.

    Raises ManifestError for whatever is wrong with the model's files or raised by its factory; MemoryError passes.
    """
    return LoadedModel(manifest, device, build_module(manifest, device))


class LoadedModel:
    """One version of a model, ready to run on one device. Not thread-safe: one batch at a time."""

    def __init__(self, manifest: Manifest, device: torch.device, module: torch.nn.Module) -> None:
        self.manifest = manifest
        self.device = device
        self.changes_input = True
        """Whether the model writes to its input tensors; believed to be so until `warm_up` has looked."""
        self._module = module

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The outputs in the manifest's order, each of shape `(rows, *shape)`.

        `inputs` are in the manifest's order too, on `self.device`, all with the same number of rows. An output may
        share memory with an input. Raises ModelFailed with what the model's code raised as its cause, and
        BadModelOutput where the answer is not what the manifest promises; MemoryError passes.
        """
        rows = inputs[0].shape[0]  # read first: the model may reshape its input in place
        try:
            with torch.inference_mode():
                answer = self._module(*inputs)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelFailed(self.manifest.name, reason_of(error)) from error
        return self._checked(answer, rows)

    def warm_up(self) -> None:
        """Run the manifest's sample, or zeros, alone and batched, and learn `changes_input`.

        Raises ManifestError when the model fails, when an answer is not the expected one, or when it depends on
        how many rows are in the batch.
        """
        self.changes_input = warm_up(self.manifest, self.device, self.run)

    def _checked(self, answer: Any, rows: int) -> tuple[torch.Tensor, ...]:
        outputs = self._in_order(answer)
        for spec, output in zip(self.manifest.outputs, outputs, strict=True):
            if not isinstance(output, torch.Tensor):
                raise self._bad(spec.name, promised_form(spec, rows), f"of type {type(output).__name__}")
            if not has_form(output, spec, rows):
                dense = "" if output.layout is torch.strided else "not dense, "
                raise self._bad(spec.name, promised_form(spec, rows), dense + form_of(output))
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
        outputs = tuple(answer) if isinstance(answer, tuple | list) else (answer,)
        if len(outputs) != len(names):
            got = f"one of {len(outputs)}"
            raise self._bad(names[0], f"the {len(names)} outputs {', '.join(names)}", got)
        return outputs

    def _bad(self, tensor: str, expected: str, got: str) -> BadModelOutput:
        return BadModelOutput(self.manifest.name, tensor, expected, got)
