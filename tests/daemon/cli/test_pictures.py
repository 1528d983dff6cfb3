from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tensord.daemon.cli.output import Failure
from tensord.daemon.cli.pictures import picture, probabilities, read_image
from tensord.ipc.tensors import DType, TensorSpec

COLOURS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(COLOURS).save(path)
    return path


def test_levels_become_shares_of_255_for_floats_and_stay_for_uint8(png: Path) -> None:
    raw = read_image(png, TensorSpec("x", DType.UINT8, (2, 4, 3)))
    assert np.array_equal(raw, COLOURS[None])
    shares = read_image(png, TensorSpec("x", DType.FLOAT32, (2, 4, 3)))
    assert (shares.dtype, shares.shape) == (np.float32, (1, 2, 4, 3))
    assert np.array_equal((shares * 255).round(), COLOURS[None])


def test_colours_come_first_where_the_shape_says_so(png: Path) -> None:
    row = read_image(png, TensorSpec("x", DType.UINT8, (3, 2, 4)))
    assert np.array_equal(row[0], COLOURS.transpose(2, 0, 1))


def test_an_image_of_another_size_is_refused_with_both_shapes(png: Path) -> None:
    with pytest.raises(Failure, match=r"\(2, 4\).*\(1, 8, 8\)"):
        read_image(png, TensorSpec("x", DType.FLOAT32, (1, 8, 8)))


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(Failure, match="cannot be read as an image"):
        read_image(tmp_path / "no.png", TensorSpec("x", DType.FLOAT32, (1, 8, 8)))


def test_a_picture_has_two_characters_for_each_pixel_and_ink_is_bright() -> None:
    assert picture(np.array([[[0.0, 1.0], [0.5, 0.0]]])) == ["  @@", "==  "]
    assert picture(np.zeros((2, 2))) == ["    ", "    "]


def test_scores_become_probabilities_and_probabilities_stay() -> None:
    given = np.array([[0.25, 0.75]])
    assert np.array_equal(probabilities(given), given)
    shares = probabilities(np.array([[0.0, np.log(3.0)], [1000.0, 0.0]]))
    assert shares == pytest.approx(np.array([[0.25, 0.75], [1.0, 0.0]]))
