"""The model that returns its input, without a copy."""

import torch


def build() -> torch.nn.Module:
    return torch.nn.Identity()
