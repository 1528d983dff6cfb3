"""Small model directories, written as an operator would write them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

DOUBLE_TOML = """
format = "factory"
factory = "model.py:build"

[[inputs]]
name = "x"
dtype = "float32"
shape = [3]

[[outputs]]
name = "y"
dtype = "float32"
shape = [3]
"""

DOUBLE_CODE = """
import torch

class Double(torch.nn.Module):
    def forward(self, x):
        return x * 2

def build():
    return Double()
"""

WriteModel = Callable[..., Path]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty repository root."""
    root = tmp_path / "models"
    root.mkdir()
    return root


@pytest.fixture
def write_model(repository: Path) -> WriteModel:
    """Writes a model and gives its version directory; by default one that doubles three float32 per row."""

    def write(
        toml: str = DOUBLE_TOML,
        code: str | None = DOUBLE_CODE,
        *,
        name: str = "double",
        version: str = "1",
        sample: dict[str, torch.Tensor] | None = None,
        weights: dict[str, torch.Tensor] | None = None,
    ) -> Path:
        directory = repository / name / version
        directory.mkdir(parents=True)
        if weights is not None:
            save_file(weights, directory / "weights.safetensors")
            toml = 'weights = "weights.safetensors"\n' + toml
        if sample is not None:
            save_file({key: tensor.clone() for key, tensor in sample.items()}, directory / "warmup.safetensors")
            toml += '\n[warmup]\nsample = "warmup.safetensors"\n'
        (directory / "model.toml").write_text(toml)
        if code is not None:
            (directory / "model.py").write_text(code)
        return directory

    return write
