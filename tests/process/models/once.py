"""Writes down each row and the process that runs it, and waits until the test opens the row's gate; 0 does neither."""

import os
import time
from pathlib import Path

import torch

GATES = Path(__file__).parents[3] / "gates"
LIMIT_S = 30.0


class Once(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in x[x != 0].tolist():
            with (GATES / "runs").open("a") as runs:
                runs.write(f"{number} {os.getpid()}\n")
            deadline = time.monotonic() + LIMIT_S
            while not (GATES / f"{number}.open").exists():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nobody opened gate {number}")
                time.sleep(0.002)
        return x


def build() -> torch.nn.Module:
    return Once()
