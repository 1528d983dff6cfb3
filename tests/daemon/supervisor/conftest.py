"""A repository of models that are described and never loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest

MODEL_TOML = """
format = "factory"
factory = "model.py:build"

[[inputs]]
name = "x"
dtype = "float32"
shape = [3]

[[outputs]]
name = "y"
dtype = "uint8"
shape = [2]
labels = ["no", "yes"]
"""

AddModel = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty repository."""
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def add_model(root: Path) -> AddModel:
    """Describe a model version; `head` goes before its tensors, `tail` behind."""

    def add(name: str = "one", version: int = 1, *, head: str = "", tail: str = "") -> Path:
        directory = root / name / str(version)
        directory.mkdir(parents=True)
        (directory / "model.toml").write_text(head + MODEL_TOML + tail)
        (directory / "model.py").write_text("")
        return directory

    return add
