import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tensord.daemon.cli.demonstration import demonstrate
from tensord.daemon.cli.output import Failure
from tensord.ipc.client.arrays import Array
from tensord.ipc.errors import UnknownModel
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec

from ...ipc.client.fake_daemon import FakeDaemon, FakeModel

LIGHT, DARK = 255, 0


def tells_light_from_dark() -> FakeModel:
    """Stands in for the model of digits: 1 for a light image, 0 for a dark one."""
    outputs = (TensorSpec("logits", DType.FLOAT32, (2,), ("0", "1")),)
    spec = ModelSpec("digits", 1, (TensorSpec("image", DType.FLOAT32, (1, 8, 8)),), outputs, 64, idempotent=True)

    def compute(inputs: Sequence[Array]) -> list[Array]:
        light = inputs[0].mean(axis=(1, 2, 3))
        return [np.stack([5 - 10 * light, 10 * light - 5], axis=1).astype(np.float32)]

    return FakeModel(spec, compute)


@pytest.fixture
def digits(daemon: FakeDaemon) -> FakeDaemon:
    """The daemon, which serves this one model."""
    daemon.models = {"digits": tells_light_from_dark()}
    return daemon


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images, the third labelled wrongly and the last not at all."""
    folder = tmp_path / "images"
    folder.mkdir()
    named = {"0_label-1": LIGHT, "1_label-0": DARK, "2_label-0": LIGHT, "unknown": DARK}
    for name, level in named.items():
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(folder / f"{name}.png")
    return folder


def test_every_image_is_shown_with_its_reading(
    digits: FakeDaemon, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter_ns", count(10**9, 1_500_000).__next__)
    assert demonstrate(digits.path, images) == 1
    out = capsys.readouterr().out
    shown = [block.splitlines() for block in out.split("\n\n")[:4]]
    assert [len(lines) for lines in shown] == [8] * 4
    readings = [[line[18:].strip() for line in lines[1:4]] for lines in shown]
    assert readings == [[digit, "confidence 100.0%", "answered in 1.5 ms"] for digit in ("1", "0", "1", "0")]
    assert [lines[4].split()[-1] for lines in shown] == [path.name for path in sorted(images.iterdir())]
    assert shown[0][0].strip() == "@" * 16
    assert "all 4 together through shared memory, no copy: 1.5 ms\n3 of 4 read as they are labelled\n" in out


def test_the_last_request_carries_all_images_through_shared_memory(digits: FakeDaemon, images: Path) -> None:
    demonstrate(digits.path, images)
    assert [request.in_arena for request in digits.requests] == [False] * 5 + [True]
    assert [int(level) for level in digits.requests[-1].inputs()[0].mean(axis=(1, 2, 3))] == [1, 0, 1, 0]


def test_it_ends_with_what_to_type_next(digits: FakeDaemon, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demonstrate(digits.path, images)
    *_, address, line = capsys.readouterr().out.splitlines()
    assert address == f"serving on {digits.path}"
    assert f"Client({str(digits.path)!r}).infer('digits', image)" in line
    assert "# image: float32 (1, 1, 8, 8)" in line


def test_without_images_there_is_nothing_to_show(digits: FakeDaemon, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=f"no images in {tmp_path}"):
        demonstrate(digits.path, tmp_path)
    assert digits.requests == []


def test_without_its_model_it_fails(daemon: FakeDaemon, images: Path) -> None:
    with pytest.raises(UnknownModel, match="no model 'digits'"):
        demonstrate(daemon.path, images)
