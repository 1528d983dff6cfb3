"""Tells the main colour of an image whose levels are already normalised, channels first."""

import torch


class Colours(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3)) * 10


def build() -> torch.nn.Module:
    return Colours()
