"""Doubles its input where it lies."""

import torch


class InPlace(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


def build() -> torch.nn.Module:
    return InPlace()
