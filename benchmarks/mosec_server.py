"""The peer: mosec with the same model, run by the Python of its own environment.

    BENCHMARK_BATCH=64 [BENCHMARK_MODEL=DIRECTORY BENCHMARK_INPUTS=JSON BENCHMARK_THREADS=N] mosec_server.py --port N …

Bodies are the raw bytes of the tensors, so that nothing is spent on a serialisation. Without a model the answer is the
request, and not even torch touches it. With one (the directory of a version), a batch is stacked by one join per input
and computed as a worker of the daemon would, by the same loader. The batching window is mosec's own option --wait.
"""

import json
import os
from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]

MODEL = os.environ.get("BENCHMARK_MODEL", "")


class Raw(Worker):  # type: ignore[misc]
    """Bytes in, bytes out. With a batch size of 1 mosec passes one body, else a list of them."""

    resp_mime_type = "application/octet-stream"

    def deserialize(self, data: Any) -> Any:
        return data

    def serialize(self, data: Any) -> Any:
        return data


class Identity(Raw):
    """The answer is the request."""

    def forward(self, data: Any) -> Any:
        return data


class Model(Raw):
    """Runs the model on all rows of a batch at once, on as many threads as a worker of the daemon has."""

    def __init__(self) -> None:
        super().__init__()
        from pathlib import Path

        import torch

        from tensord.daemon.models.loader import load
        from tensord.daemon.models.manifest import read_manifest

        torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
        self._model = load(read_manifest(Path(MODEL)), torch.device("cpu"))
        inputs = [(getattr(torch, label), shape) for label, shape in json.loads(os.environ["BENCHMARK_INPUTS"])]
        self._inputs = [(dtype, shape, torch.empty(shape, dtype=dtype).nbytes) for dtype, shape in inputs]
        self._row_bytes = sum(row_bytes for _, _, row_bytes in self._inputs)
        self._frombuffer = torch.frombuffer

    def forward(self, data: Any) -> Any:
        return self._run(data) if self.max_batch_size > 1 else self._run([data])[0]

    def _run(self, data: list[bytearray]) -> list[bytes]:
        counts = [len(body) // self._row_bytes for body in data]
        tensors, before = [], 0  # `before`: bytes of a row that lie before this input
        for dtype, shape, row_bytes in self._inputs:
            parts = [
                memoryview(body)[count * before : count * (before + row_bytes)]
                for body, count in zip(data, counts, strict=True)
            ]
            tensors.append(self._frombuffer(bytearray().join(parts), dtype=dtype).view(-1, *shape))
            before += row_bytes
        outputs = [output.contiguous().numpy() for output in self._model.run(tensors)]
        answers, first = [], 0
        for count in counts:
            answers.append(b"".join(output[first : first + count].data for output in outputs))
            first += count
        return answers


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model if MODEL else Identity, num=1, max_batch_size=int(os.environ["BENCHMARK_BATCH"]))
    server.run()
