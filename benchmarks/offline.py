"""The other limit: models in this very process, with the cores, the threads and the heap of the daemon's worker.

python benchmarks/offline.py CORES THREADS      answers one JSON object per line of standard input, until its end
    {"copy": FLOATS, "seconds": S}              → {"p50_us": …}: the model's work on a row is a copy of its bytes
    {"model": DIRECTORY, "input": FILE, "shapes": [[DTYPE, SHAPE], …], "seconds": S}
                                                → {"rows_per_s": …}: the same batch again and again
    … and "output": FILE                        → {"outputs": [[DTYPE, SHAPE], …]}: what it answers, into the file
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tensord.daemon.worker.heap import keep_freed


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    cores, threads = arguments
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    keep_freed()
    import torch  # sizes its thread pools when it is imported: not before the affinity is set

    torch.set_num_threads(int(threads))
    answer = Answers(torch)
    for line in sys.stdin:
        print(json.dumps(answer.to(json.loads(line))), flush=True)


class Answers:
    """Models stay loaded between questions."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._models: dict[str, Any] = {}

    def to(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question."""
        if "copy" in question:
            return {"p50_us": self._copy(question["copy"], question["seconds"])}
        model = self._model(question["model"])
        batch = self._batch(Path(question["input"]), question["shapes"])
        if "output" not in question:
            return {"rows_per_s": rows_per_s(model, batch, question["seconds"])}
        outputs = [output.contiguous() for output in model.run(batch)]
        Path(question["output"]).write_bytes(b"".join(output.numpy().tobytes() for output in outputs))
        return {"outputs": [[str(output.dtype).removeprefix("torch."), list(output.shape)] for output in outputs]}

    def _copy(self, floats: int, seconds: float) -> float:
        """Median time of the copy from one row into another that is there already: the fastest way there is."""
        source, target = self._torch.rand(1, floats), self._torch.zeros(1, floats)
        times: list[int] = []
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop or len(times) < 10:
            started = time.perf_counter_ns()
            target.copy_(source)
            times.append(time.perf_counter_ns() - started)
        return statistics.median(times) / 1000

    def _model(self, directory: str) -> Any:
        from tensord.daemon.models.loader import load
        from tensord.daemon.models.manifest import read_manifest

        if directory not in self._models:
            self._models[directory] = load(read_manifest(Path(directory)), self._torch.device("cpu"))
        return self._models[directory]

    def _batch(self, path: Path, shapes: list[tuple[str, list[int]]]) -> list[Any]:
        data, offset, tensors = bytearray(path.read_bytes()), 0, []
        for label, shape in shapes:
            empty = self._torch.empty(shape, dtype=getattr(self._torch, label))
            count = empty.numel()
            tensors.append(self._torch.frombuffer(data, dtype=empty.dtype, count=count, offset=offset).view(shape))
            offset += empty.nbytes
        return tensors


def rows_per_s(model: Any, batch: list[Any], seconds: float) -> float:
    """How many rows the model takes in a loop that does nothing else, after a tenth of the time to warm up."""
    _loop(model, batch, seconds / 10)
    return _loop(model, batch, seconds)


def _loop(model: Any, batch: list[Any], seconds: float) -> float:
    count, started = 0, time.perf_counter()
    while (now := time.perf_counter()) < started + seconds or not count:
        model.run(batch)
        count += len(batch[0])
    return count / (now - started)


if __name__ == "__main__":
    main(sys.argv[1:])
