"""Answers with its input, itself."""

import torch


def build() -> torch.nn.Module:
    return torch.nn.Identity()
