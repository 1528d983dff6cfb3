"""What a request of the load generator is: its tensors, and where their bytes come from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensord.ipc.tensors import DType, dtype_of

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a request, its rows first."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def argument(self) -> str:
        """As the load generator takes it: `9:1x1024`."""
        return f"{int(self.dtype)}:{'x'.join(map(str, self.shape))}"


@dataclass(frozen=True, slots=True)
class Request:
    """What every request of a run carries and gets. Without files it is made up, and comes back as it went."""

    model: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    input_file: Path | None = None
    expected_file: Path | None = None

    @property
    def arguments(self) -> list[str]:
        """The load generator's options."""
        options = ["--model", self.model]
        options += [text for each in self.inputs for text in ("--input", each.argument)]
        options += [text for each in self.outputs for text in ("--output", each.argument)]
        if self.input_file is not None:
            options += ["--input-file", str(self.input_file), "--expected-file", str(self.expected_file)]
        return options

    def named(self, model: str) -> "Request":
        """The same to another model."""
        return replace(self, model=model)


def identity(model: str, floats: int) -> Request:
    """One row of the model that returns its input."""
    tensor = Tensor(DType.FLOAT32, (1, floats))
    return Request(model, (tensor,), (tensor,))


def from_arrays(model: str, inputs: Sequence[Array], expected: Sequence[Array], directory: Path) -> Request:
    """A request with these inputs, whose answer must be near what is expected. Its bytes go into `directory`."""
    files = []
    for name, arrays in (("input", inputs), ("expected", expected)):
        path = directory / f"{model}-{len(inputs[0])}.{name}"
        path.write_bytes(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
        files.append(path)
    return Request(model, _tensors(inputs), _tensors(expected), *files)


def _tensors(arrays: Sequence[Array]) -> tuple[Tensor, ...]:
    dtypes = [dtype_of(array) for array in arrays]
    assert None not in dtypes
    return tuple(Tensor(dtype, array.shape) for dtype, array in zip(dtypes, arrays, strict=True) if dtype is not None)
