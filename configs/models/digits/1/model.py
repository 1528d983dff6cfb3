"""A small convolutional network for scikit-learn's handwritten digits."""

import torch
from torch import nn


class Digits(nn.Module):
    """Images (rows, 1, 8, 8) of grey levels divided by 255 → logits (rows, 10). 30,986 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(image * 2.125 - 1)  # ink of the training images ends at 240/255
        return logits


def build() -> nn.Module:
    return Digits()
