"""Sleeps 1 ms and half a millisecond per row; answers with its input and the number of its device.

So the device time is exact, and the processor is left to those who send. As the model `lame` it takes four times as
long on every device but the first.
"""

import sys
import time
from pathlib import Path

import torch

FIXED_S = 0.001
ROW_S = 0.0005
DEVICE = int(sys.argv[3].rpartition(":")[2])
LAME = Path(__file__).parents[1].name == "lame" and DEVICE > 0


class Nap(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep((FIXED_S + ROW_S * len(x)) * (4 if LAME else 1))
        return torch.nn.functional.pad(x, (0, 1), value=DEVICE)


def build() -> torch.nn.Module:
    return Nap()
