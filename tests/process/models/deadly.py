"""Kills its process for a batch that holds a 666."""

import os
import signal

import torch


class Deadly(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 666).any()):
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def build() -> torch.nn.Module:
    return Deadly()
