"""The models that come with tensord: they load, they warm up, and they are as good as the script said."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from tensord.daemon.models.loader import LoadedModel, load
from tensord.daemon.models.repository import Repository, scan

ROOT = Path(__file__).parents[3]
IMAGES = sorted((ROOT / "configs" / "images" / "digits").glob("*.png"))


@pytest.fixture(scope="module")
def shipped() -> Repository:
    return scan(ROOT / "configs" / "models")


@pytest.fixture(scope="module")
def digits(shipped: Repository) -> LoadedModel:
    manifest = shipped.latest("digits")
    assert manifest is not None
    return load(manifest, torch.device("cpu"))


@pytest.fixture(scope="module")
def training() -> ModuleType:
    """The training script as a module."""
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "examples" / "train_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def answers(model: LoadedModel, images: NDArray[np.float32]) -> list[int]:
    """The most likely digit of each image."""
    (logits,) = model.run([torch.from_numpy(images)])
    return logits.argmax(1).tolist()


def read_image(path: Path) -> NDArray[np.float32]:
    """As any user would read it: grey levels divided by 255."""
    return np.asarray(Image.open(path), dtype=np.float32)[None] / np.float32(255)


def test_all_shipped_models_are_good(shipped: Repository) -> None:
    assert shipped.broken == ()
    assert {manifest.name for manifest in shipped.manifests} == {"digits", "identity"}


def test_all_shipped_models_warm_up_and_leave_their_input(shipped: Repository) -> None:
    for manifest in shipped.manifests:
        model = load(manifest, torch.device("cpu"))
        model.warm_up()
        assert not model.changes_input


def test_identity_returns_its_input_without_a_copy(shipped: Repository) -> None:
    manifest = shipped.latest("identity")
    assert manifest is not None
    x = torch.zeros(2, 1024)
    (y,) = load(manifest, torch.device("cpu")).run([x])
    assert y.data_ptr() == x.data_ptr()


def test_digits_labels_its_ten_logits(digits: LoadedModel) -> None:
    (logits,) = digits.manifest.outputs
    assert (logits.name, logits.shape, logits.labels) == ("logits", (10,), tuple("0123456789"))


def test_the_weights_are_small() -> None:
    assert (ROOT / "configs" / "models" / "digits" / "1" / "weights.safetensors").stat().st_size < 200_000


def test_digits_is_right_on_at_least_98_percent_of_the_held_out_fifth(
    digits: LoadedModel, training: ModuleType
) -> None:
    split = training.split_digits()
    right = answers(digits, split.held_out_images) == split.held_out_digits
    assert right.shape == (360,)
    assert right.mean() >= 0.98


def test_the_split_is_the_same_every_time_and_leaves_nothing_out(training: ModuleType) -> None:
    first, second = training.split_digits(), training.split_digits()
    assert np.array_equal(first.held_out_images, second.held_out_images)
    assert np.array_equal(first.train_digits, second.train_digits)
    everything = np.concatenate([first.train_images, first.held_out_images]).reshape(1797, 64)
    data = training.load_digits().data.astype(np.float32)
    levels = (everything * 17).round().astype(np.float32)  # grey / 255 is a dataset value / 17
    assert np.array_equal(np.unique(levels, axis=0), np.unique(data, axis=0))


def test_each_digit_is_held_out_in_the_same_share(training: ModuleType) -> None:
    split = training.split_digits()
    shares = np.bincount(split.held_out_digits) / (np.bincount(split.held_out_digits) + np.bincount(split.train_digits))
    assert np.allclose(shares, 0.2, atol=0.005)


def test_no_image_is_both_trained_on_and_held_out(training: ModuleType) -> None:
    split = training.split_digits()
    trained = {image.tobytes() for image in split.train_images}
    assert not any(image.tobytes() in trained for image in split.held_out_images)


def test_twelve_images_show_every_digit() -> None:
    assert len(IMAGES) == 12
    assert {path.stem[-1] for path in IMAGES} == set("0123456789")


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_is_exactly_a_held_out_one_and_recognised(
    path: Path, digits: LoadedModel, training: ModuleType
) -> None:
    split = training.split_digits()
    image = read_image(path)
    matches = np.flatnonzero((split.held_out_images == image).all(axis=(1, 2, 3)))
    assert [str(split.held_out_digits[match]) for match in matches] == [path.stem[-1]]
    assert answers(digits, image[None]) == [int(path.stem[-1])]


def test_the_warm_up_sample_is_held_out(digits: LoadedModel, training: ModuleType) -> None:
    warmup = digits.manifest.warmup
    assert warmup is not None
    sample = load_file(warmup.sample)
    assert np.array_equal(sample["inputs/image"], training.split_digits().held_out_images[:8])


def test_the_confidence_interval_is_wilsons(training: ModuleType) -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263
    assert training.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_augmentation_keeps_the_form_and_the_range(training: ModuleType) -> None:
    images = torch.from_numpy(training.split_digits().train_images[:50])
    augmented = training.augment(images, torch.Generator().manual_seed(0))
    assert augmented.shape == images.shape
    assert not torch.equal(augmented, images)
    assert (augmented.min() >= 0, augmented.max() <= 1) == (True, True)
