"""A row that is not 0 is the number of a gate: the batch says that it is there, and waits until the test opens it."""

import time
from pathlib import Path

import torch

GATES = Path(__file__).parents[3] / "gates"
LIMIT_S = 30.0


class Gate(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in x[x != 0].tolist():
            (GATES / f"{number}.entered").touch()
            deadline = time.monotonic() + LIMIT_S
            while not (GATES / f"{number}.open").exists():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nobody opened gate {number}")
                time.sleep(0.002)
        return x


def build() -> torch.nn.Module:
    return Gate()
