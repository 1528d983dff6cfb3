"""Sentences of numbers: the mean and mean square of the real ones, and each doubled."""

import torch


class Means(torch.nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        real = mask.unsqueeze(-1).float()
        powers = torch.stack((ids.float(), ids.float() ** 2), -1)
        return (powers * real).sum(1) / real.sum(1), ids * 2 * mask


def build() -> torch.nn.Module:
    return Means()
