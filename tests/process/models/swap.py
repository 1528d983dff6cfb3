"""Two inputs, and both as outputs in the other order."""

import torch


class Swap(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return b, a


def build() -> torch.nn.Module:
    return Swap()
