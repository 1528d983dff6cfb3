"""CUDA graphs of one model: what it does on the GPU is recorded once, and launched as one piece from then on.

A model of many small kernels keeps the GPU waiting for the host, which launches them one by one. A graph has fixed
shapes and fixed addresses, so there is one for each form of a batch: its rows rounded up, and the sizes of its free
dimensions. A batch is copied into the graph's own inputs, the graph runs, and the first rows of its own outputs are
copied away before it can run again, all on the stream on which models compute. The rows beyond are whatever was there:
no row depends on another, which the warm-up has looked at.

When a capture fails, nothing more is captured: batches without a graph run as they would anyway.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from tensord.ipc.statistics import Counter

from ..models.errors import reason_of
from .device import Capture, Runner

GRAPHS_MAX: Final = 64
"""Of one model on one device: 8 numbers of rows (1 to 128) for 8 combinations of buckets. Each keeps its inputs and
outputs in device memory. Batches of further forms run without; none is dropped, since a capture takes as long as many
batches."""


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: tuple[torch.Tensor, ...]
    run: Runner


class Graphs:
    """Stands in the place of a model's call: the same tensors in, the same answer out."""

    def __init__(
        self,
        capture: Capture,
        function: Callable[..., Any],
        *,
        rows_max: Callable[[], int],
        count: Callable[[Counter], None],
        note: Callable[[str], None],
    ) -> None:
        """`rows_max`: rows of the largest batch now. `note` is told why nothing more is captured, once."""
        self._capture: Capture | None = capture
        """None when it has failed."""
        self._function = function
        self._rows_max = rows_max
        self._count = count
        self._note = note
        self._graphs: dict[tuple[object, ...], _Graph] = {}
        """By rows and shapes of the inputs' rows."""

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """To be called in inference mode. Raises what the model does."""
        rows = len(tensors[0])
        graph = self._graph(rows_captured(rows, self._rows_max()), tensors)
        if graph is None:
            return self._function(*tensors)
        for place, tensor in zip(graph.inputs, tensors, strict=True):
            place[:rows].copy_(tensor)
        answer = _each(graph.run(), lambda output: output[:rows].clone())
        self._count(Counter.GRAPH_REPLAYS)
        return answer

    def give_up(self, reason: str) -> None:
        """Run without any from now on; none is under way."""
        self._graphs.clear()
        self._stop(reason)

    def _stop(self, reason: str) -> None:
        self._capture = None
        self._note(reason)

    def _graph(self, rows: int, tensors: Sequence[torch.Tensor]) -> _Graph | None:
        """That of this form, captured when it comes first."""
        form = (rows, *(tensor.shape[1:] for tensor in tensors))
        graph = self._graphs.get(form)
        if graph is None and self._capture is not None and len(self._graphs) < GRAPHS_MAX:
            try:
                graph = self._graphs[form] = self._captured(self._capture, rows, tensors)
            except (Exception, SystemExit) as error:  # the model's code; without a graph it fails as it always does
                self._stop(reason_of(error))
                return None
            self._count(Counter.GRAPHS_CAPTURED)
        return graph

    def _captured(self, capture: Capture, rows: int, tensors: Sequence[torch.Tensor]) -> _Graph:
        inputs = tuple(tensor.new_zeros((rows, *tensor.shape[1:])) for tensor in tensors)
        for place, tensor in zip(inputs, tensors, strict=True):
            place[: len(tensor)].copy_(tensor)  # it is tried on real rows

        def function(*inputs: torch.Tensor) -> Any:
            answer = self._function(*inputs)
            _each(answer, partial(_check_rows, rows))
            return answer

        return _Graph(inputs, capture(function, inputs))


def rows_captured(rows: int, rows_max: int) -> int:
    """Rows of the graph for so many: 1, 2, 4, 8, …, and those of the largest batch."""
    return max(rows, min(1 << (rows - 1).bit_length(), rows_max))


def _each(answer: Any, change: Callable[[Any], Any]) -> Any:
    """What a model returned (a tensor, a tuple or list, a dict by output name) with each tensor changed."""
    if isinstance(answer, Mapping):
        return {name: change(output) for name, output in answer.items()}
    if isinstance(answer, tuple | list):
        return tuple(map(change, answer))
    return change(answer)


def _check_rows(rows: int, output: Any) -> None:
    if not isinstance(output, torch.Tensor) or not output.ndim or len(output) != rows:
        raise ValueError("it returns something that has not one row for each of its inputs")
