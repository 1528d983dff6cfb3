"""all-MiniLM-L6-v2 as examples/minilm installs it, and as another implementation computes it."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.minilm.encoding import Encoder
from examples.minilm.install import HERE, install
from examples.minilm.reference import Reference
from numpy.typing import NDArray

STRANGE = ("naïve", "東京タワー", "№42", "🙂", "x" * 120, "don't", "123,456.78", "[MASK]", "ÆØÅ", "...", "e\u0301")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another at every step wait long where other programs have the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with minilm."""
    directory = tmp_path_factory.mktemp("models")
    install(directory)
    return directory


@pytest.fixture(scope="package")
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture(scope="package")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="package")
def texts() -> list[str]:
    """200 texts of 1 to 200 words, by rising length."""
    random_words = random.Random(20_24)
    words = [*(HERE / "sentences.txt").read_text().split(), *STRANGE * 10]
    return [" ".join(random_words.choices(words, k=round(count))) for count in np.geomspace(1, 200, 200)]


@pytest.fixture(scope="package")
def expected(texts: list[str], reference: Reference) -> NDArray[np.float32]:
    """Their embeddings."""
    return np.concatenate([reference.embed(texts[first : first + 8]) for first in range(0, len(texts), 8)])
