"""The child of offline.py, asked one question at a time; it sleeps in between."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tensord.ipc.tensors import DType

from .generator import Failed, prepare
from .request import Array, Request, Tensor, from_arrays

SCRIPT: Final = Path(__file__).parent / "offline.py"


class InProcess:
    """Models called without a daemon."""

    def __init__(self, child: "subprocess.Popen[str]", models: Path, directory: Path) -> None:
        self._child = child
        self._models = models
        self._directory = directory

    def copy_us(self, floats: int, seconds: float) -> float:
        """Median time that a copy of so many float32 takes."""
        return float(self._ask({"copy": floats, "seconds": seconds})["p50_us"])

    def rows_per_s(self, request: Request, seconds: float) -> float:
        """Rows that the model takes in a loop over the same batch: the request's inputs."""
        return float(self._ask({**self._batch(request), "seconds": seconds})["rows_per_s"])

    def request(self, model: str, inputs: Sequence[Array]) -> Request:
        """A request with these inputs and, as what is expected of the daemon, the answer that the model gives here."""
        unanswered = from_arrays(model, inputs, [], self._directory)
        outputs = self._ask({**self._batch(unanswered), "output": str(unanswered.expected_file)})["outputs"]
        tensors = tuple(Tensor(DType[label.upper()], tuple(shape)) for label, shape in outputs)
        return Request(model, unanswered.inputs, tensors, unanswered.input_file, unanswered.expected_file)

    def _batch(self, request: Request) -> dict[str, Any]:
        shapes = [[each.dtype.label, list(each.shape)] for each in request.inputs]
        directory = str(self._models / request.model / "1")
        return {"model": directory, "input": str(request.input_file), "shapes": shapes}

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        except (OSError, ValueError) as error:
            raise Failed(f"the in-process loop broke at {question}") from error
        return answer


@contextlib.contextmanager
def offline(models: Path, directory: Path, cores: Sequence[int]) -> Iterator[InProcess]:
    """A process that computes with the models below `models` on these cores, a thread on each."""
    command = [sys.executable, str(SCRIPT), ",".join(map(str, cores)), str(len(cores))]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: prepare((), signal.SIGKILL),
    )
    try:
        yield InProcess(child, models, directory)
    finally:
        child.kill()
        child.communicate()
