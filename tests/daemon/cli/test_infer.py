import time
from collections.abc import Sequence
from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tensord.daemon.exits import Exit
from tensord.ipc.client.arrays import Array
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec

from ...ipc.client.fake_daemon import FakeDaemon, FakeModel, ignore
from .conftest import Command, Ended

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def brightness() -> FakeModel:
    """Is an image of 2 × 2 grey levels dark or bright? The names of the classes look like markup."""
    outputs = (TensorSpec("class", DType.FLOAT32, (2,), ("[dim]", "[/]")),)
    spec = ModelSpec("brightness", 1, (TensorSpec("image", DType.FLOAT32, (2, 2)),), outputs, 64, idempotent=True)

    def compute(inputs: Sequence[Array]) -> list[Array]:
        bright = inputs[0].mean(axis=(1, 2))
        return [np.stack([1 - bright, bright], axis=1).astype(np.float32)]

    return FakeModel(spec, compute)


@pytest.fixture(autouse=True)
def workplace(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of requests lie here, and the daemon serves one more model."""
    monkeypatch.chdir(tmp_path)
    daemon.models["brightness"] = brightness()
    np.save("x.npy", X)
    np.savez("pair.npz", a=np.array([[5, 6]], np.int32), b=np.array([[1, 2]], np.int32))


@pytest.fixture
def infer(tensord: Command, daemon: FakeDaemon) -> Command:
    """Runs `tensord infer` against the daemon."""

    def run(*arguments: str) -> Ended:
        return tensord("infer", *arguments, "--socket", daemon.path)

    return run


# ── outputs ─────────────────────────────────────────────────────────────────────────────────────


def test_an_output_is_printed_with_its_form_and_the_time(infer: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter_ns", count(10**9, 1_500_000).__next__)
    ended = infer("double", "-i", "x.npy")
    assert (ended.code, ended.err) == (Exit.OK, "")
    form, *numbers, duration = ended.out.splitlines()
    assert form == "y float32 (2, 4)"
    assert numbers == str(X * 2).splitlines()
    assert duration == "answered in 1.5 ms"


def test_several_outputs_are_printed_by_name(infer: Command) -> None:
    assert infer("pair", "-i", "pair.npz").out.splitlines()[:4] == [
        "sum int32 (1, 2)",
        "[[6 8]]",
        "difference int32 (1, 2)",
        "[[4 4]]",
    ]


@pytest.mark.parametrize("name", ["y.npy", "y.npz"])
def test_an_output_is_written_instead_of_printed(infer: Command, name: str) -> None:
    assert infer("double", "-i", "x.npy", "-o", name) == Ended(Exit.OK, "", "")
    written = np.load(name)
    assert np.array_equal(written if name.endswith(".npy") else written["y"], X * 2)


def test_outputs_are_written_by_name(infer: Command) -> None:
    infer("pair", "-i", "pair.npz", "-o", "y.npz")
    written = np.load("y.npz")
    assert {name: written[name].tolist() for name in written.files} == {"sum": [[6, 8]], "difference": [[4, 4]]}


def test_classes_are_named_with_their_probability_for_twenty_rows(infer: Command) -> None:
    images = np.linspace(0, 1, 23, dtype=np.float32)[:, None, None] * np.ones((2, 2), np.float32)
    np.save("more.npy", images)
    lines = infer("brightness", "-i", "more.npy").out.splitlines()
    assert lines[0] == "class row 0: [dim]  100.0%"
    assert lines[19] == "class row 19: [/]  86.4%"
    assert lines[20] == "… and 3 more rows: write them with --output"
    np.save("twenty.npy", images[:20])
    assert infer("brightness", "-i", "twenty.npy").out.splitlines()[:-1] == lines[:20]


def test_an_image_is_one_row(infer: Command, daemon: FakeDaemon) -> None:
    Image.fromarray(np.array([[255, 255], [255, 51]], np.uint8)).save("image.png")
    assert infer("brightness", "-i", "image.png").out.splitlines()[0] == "class row 0: [/]  80.0%"
    assert daemon.requests[0].inputs()[0].tolist() == [[[1.0, 1.0], [1.0, np.float32(0.2)]]]


# ── what is wrong ───────────────────────────────────────────────────────────────────────────────


def packed(x: Array) -> bytes:
    """The bytes of a good .npz file."""
    file = BytesIO()
    np.savez(file, x=x)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.npy", None, "a.npy cannot be read: No such file or directory"),
        ("a.npy", b"", "a.npy cannot be read as .npy: write it again with numpy ("),
        ("a.npz", packed(X)[:-1], "a.npz cannot be read as .npz: write it again with numpy ("),
        ("a.npy", packed(X), "a.npy holds what its name does not say: rename it"),
        ("a.npz", Path("x.npy"), "a.npz holds what its name does not say: rename it"),
        ("a.txt", b"1 2 3 4", "a.txt is not .npy, .npz or .png: convert it first"),
        ("a.png", b"no image", "a.png cannot be read as an image: it is none, or broken"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(
    infer: Command, daemon: FakeDaemon, name: str, content: bytes | Path | None, complaint: str
) -> None:
    if content is not None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    ended = infer("double", "-i", name)
    assert ended.code == Exit.FAILED
    assert ended.complaint.startswith(complaint)
    assert daemon.requests == []


def test_a_file_that_would_run_code_is_not_read(infer: Command) -> None:
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    assert infer("double", "-i", "objects.npy").complaint.startswith("objects.npy cannot be read as .npy")


@pytest.mark.parametrize("name", ["x.npy", "a.png"])
def test_several_inputs_need_names(infer: Command, name: str) -> None:
    ended = infer("pair", "-i", name)
    assert (ended.code, ended.complaint) == (
        Exit.FAILED,
        "the model takes a, b: give them by name in an .npz file",
    )


@pytest.mark.parametrize(
    ("model", "name", "complaint"),
    [
        ("double", "y.txt", "y.txt: outputs y go into an .npz file, a single one also into .npy"),
        ("pair", "y.npy", "y.npy: outputs sum, difference go into an .npz file, a single one also into .npy"),
        ("double", "no/y.npz", "no/y.npz cannot be written: No such file or directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_told(infer: Command, model: str, name: str, complaint: str) -> None:
    ended = infer(model, "-i", "pair.npz" if model == "pair" else "x.npy", "-o", name)
    assert (ended.code, ended.complaint) == (Exit.FAILED, complaint)


def test_an_answer_is_waited_for_as_long_as_was_said(infer: Command, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    ended = infer("double", "-i", "x.npy", "--timeout", "0.01")
    assert ended.code == Exit.FAILED
    assert "deadline" in ended.complaint


def test_the_daemons_refusal_is_quoted(infer: Command) -> None:
    ended = infer("triple", "-i", "x.npy")
    assert ended.code == Exit.FAILED
    assert "no model 'triple' is served" in ended.complaint
