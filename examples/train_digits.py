"""Train the demo model on scikit-learn's handwritten digits, and write all that serving it needs.

    python examples/train_digits.py --output configs/models/digits/1 --images configs/images/digits

A fifth of the images, stratified by digit, is held out: never trained on and never used to choose anything.
The script prints the accuracy on it and writes to `--output` (where `model.py` must lie already)

* `weights.safetensors`, the weights averaged over the last epochs;
* `warmup.safetensors`, eight held-out images with their logits;

and to `--images` twelve held-out images as 8-bit grey PNG, named `NN_label-D.png`. A dataset value v from 0 to 16
is the grey level 15 * v, and the model's input is what image code hands on everywhere: the grey level divided by
255, `np.asarray(Image.open(path), dtype=np.float32) / 255`.
"""

import argparse
import importlib.util
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

SEED = 20_24
HELD_OUT = 0.2
GREY_PER_LEVEL = 15
WARMUP_ROWS = 8
IMAGES = 12

EPOCHS = 80
AVERAGED_EPOCHS = 20
"""The weights after each of the last epochs are averaged."""
BATCH = 64
LEARNING_RATE = 4e-3
LABEL_SMOOTHING = 0.05
SHIFT_PIXELS = 1.0
ROTATION_DEGREES = 10.0


@dataclass(frozen=True)
class Split:
    """Images of shape (n, 1, 8, 8), grey levels divided by 255, and their digits."""

    train_images: NDArray[np.float32]
    train_digits: NDArray[np.int64]
    held_out_images: NDArray[np.float32]
    held_out_digits: NDArray[np.int64]


def split_digits() -> Split:
    """The one split of the data set: the same on every machine and in every run."""
    data = load_digits()
    images = (data.images * GREY_PER_LEVEL).astype(np.float32)[:, None] / np.float32(255)
    digits = data.target.astype(np.int64)
    parts = train_test_split(images, digits, test_size=HELD_OUT, stratify=digits, random_state=SEED)
    train_images, held_out_images, train_digits, held_out_digits = parts
    return Split(train_images, train_digits, held_out_images, held_out_digits)


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    split = split_digits()
    started = time.perf_counter()
    module = train(build_module(options.output / "model.py"), split.train_images, split.train_digits)
    print(f"trained on {len(split.train_digits)} images in {time.perf_counter() - started:.0f} s")
    images, digits = torch.from_numpy(split.held_out_images), torch.from_numpy(split.held_out_digits)
    with torch.inference_mode():
        logits = module(images)
    correct = int((logits.argmax(1) == digits).sum())
    low, high = wilson_interval(correct, len(digits))
    print(f"held out: {correct} of {len(digits)} right, {correct / len(digits):.4f} (95 %: {low:.4f} to {high:.4f})")
    (options.output / "weights.safetensors").write_bytes(save(module.state_dict()))
    sample = {"inputs/image": images[:WARMUP_ROWS].clone(), "outputs/logits": logits[:WARMUP_ROWS].clone()}
    (options.output / "warmup.safetensors").write_bytes(save(sample))
    write_images(split, options.images)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model on scikit-learn's handwritten digits.")
    parser.add_argument("--output", type=Path, required=True, help="version directory with model.py")
    parser.add_argument("--images", type=Path, required=True, help="directory for held-out images")
    options: argparse.Namespace = parser.parse_args()
    return options


def build_module(path: Path) -> nn.Module:
    """The module that the served factory builds, so that training and serving cannot differ."""
    spec = importlib.util.spec_from_file_location("digits_model", path)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    torch.manual_seed(SEED)
    module = code.build()
    assert isinstance(module, nn.Module)
    return module


def train(module: nn.Module, images: NDArray[np.float32], digits: NDArray[np.int64]) -> nn.Module:
    """The module with averaged weights, trained on augmented images with a one-cycle learning rate."""
    inputs, targets = torch.from_numpy(images), torch.from_numpy(digits)
    generator = torch.Generator().manual_seed(SEED)
    steps = EPOCHS * math.ceil(len(targets) / BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(targets), generator=generator).split(BATCH):
            answers = module(augment(inputs[batch], generator))
            loss = functional.cross_entropy(answers, targets[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch >= EPOCHS - AVERAGED_EPOCHS:
            averaged.update_parameters(module)
    module.load_state_dict(averaged.module.state_dict())
    return module.eval()


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image turned by up to 10 degrees and shifted by up to one pixel, with paper coming in at the edges."""
    rows, size = len(images), images.shape[-1]
    angle = torch.deg2rad((torch.rand(rows, generator=generator) * 2 - 1) * ROTATION_DEGREES)
    # affine_grid counts the image as 2 wide and high
    shift = (torch.rand(rows, 2, generator=generator) * 2 - 1) * SHIFT_PIXELS * 2 / size
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(rows, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson, 1927)."""
    z = 1.959964
    share = correct / count
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - half) / scale, (centre + half) / scale


def write_images(split: Split, directory: Path) -> None:
    """The first held-out image of each digit, and then the first ones left, as PNG."""
    digits = split.held_out_digits
    firsts = [int(np.flatnonzero(digits == digit)[0]) for digit in range(10)]
    others = [index for index in range(len(digits)) if index not in firsts]
    directory.mkdir(parents=True, exist_ok=True)
    for number, index in enumerate([*firsts, *others][:IMAGES]):
        grey = (split.held_out_images[index, 0] * 255).round().astype(np.uint8)
        Image.fromarray(grey).save(directory / f"{number:02}_label-{digits[index]}.png")


if __name__ == "__main__":
    main()
