"""The client in C, which was written from the protocol's page, on a daemon that serves the demo's models."""

import contextlib
import ctypes
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ROOT / "examples" / "c"
IMAGES: Final = sorted((ROOT / "configs" / "images" / "digits").glob("*.png"))
STRICT: Final = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic")
SANITIZERS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")

WATCHDOG_S: Final = 30.0
"""Longest wait for something that must happen; a limit against hanging, not a measurement."""

PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""

_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Said:
    """What the program prints."""

    labels: dict[str, str]
    confidences: dict[str, float]
    scores: dict[str, list[float]]
    refusal: str
    matched: str


@pytest.fixture(scope="module")
def socket() -> Iterator[Path]:
    """The socket of a daemon that serves configs/models. It answers as soon as the model is loaded."""
    directory = Path(tempfile.mkdtemp(prefix="td", dir="/tmp"))
    command = ["serve", "--models", str(ROOT / "configs" / "models"), "--runtime-dir", str(directory / "run")]
    log = directory / "log"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        output = stack.enter_context(log.open("wb"))
        daemon = subprocess.Popen(
            [sys.executable, "-m", "tensord", *command, "--device", "cpu:0"],
            stdout=output,
            stderr=output,
            preexec_fn=_end_with_the_tests,
        )
        stack.callback(_stop, daemon, log)
        path = directory / "run" / "tensord.sock"
        deadline = time.monotonic() + WATCHDOG_S
        while not path.exists():
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        yield path


def _end_with_the_tests() -> None:
    """In the new process: a test run that is killed leaves no daemon behind."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(daemon: subprocess.Popen[bytes], log: Path) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        returncode = daemon.wait(WATCHDOG_S)
    finally:
        daemon.kill()
        daemon.wait(WATCHDOG_S)
    assert returncode == 0, log.read_text()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/c, compiled without a warning."""
    target = tmp_path_factory.mktemp("c") / "digits"
    compiled = compile_c(target, "-O2")
    assert (compiled.returncode, compiled.stderr) == (0, "")
    return target


def compile_c(target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the C compiler."""
    if shutil.which("cc") is None:
        pytest.fail("examples/c cannot be compiled since there is no C compiler: install one that is called cc")
    sources = [str(SOURCES / name) for name in ("digits.c", "tensord.c")]
    command = ["cc", *STRICT, *options, *sources, "-lm", "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_S)


def pixels(image: Path) -> str:
    """64 numbers, as the program reads them."""
    with Image.open(image) as picture:
        return " ".join(f"{grey / 255:.9g}" for grey in picture.tobytes())


def run(program: Path, socket: Path | str, numbers: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program."""
    command = [str(program), str(socket)]
    return subprocess.run(command, input=numbers, capture_output=True, text=True, timeout=WATCHDOG_S)


def classify(program: Path, socket: Path, numbers: str = "") -> Said:
    """What the program prints when all is well."""
    ended = run(program, socket, numbers)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    *lanes, refused, pipelined = ended.stdout.splitlines()
    found = [re.fullmatch(r"(\w+): label (.+), confidence ([\d.]+), scores (.+)", line) for line in lanes]
    parts = [each.groups() for each in found if each is not None]
    return Said(
        labels={lane: label for lane, label, _, _ in parts},
        confidences={lane: float(confidence) for lane, _, confidence, _ in parts},
        scores={lane: [float(score) for score in scores.split()] for lane, _, _, scores in parts},
        refusal=refused.removeprefix("refused: "),
        matched=pipelined.removeprefix("pipelined: "),
    )


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)
def test_program_reads_the_digit_in_both_lanes(program: Path, socket: Path, image: Path) -> None:
    said = classify(program, socket, pixels(image))
    label = image.stem.rpartition("-")[2]
    assert said.labels == {"inline": label, "arena": label}
    assert said.scores["inline"] == said.scores["arena"]
    assert len(said.scores["inline"]) == 10
    assert said.scores["inline"].index(max(said.scores["inline"])) == int(label)
    assert 0.5 < said.confidences["inline"] <= 1


def test_built_in_image_is_a_three(program: Path, socket: Path) -> None:
    assert classify(program, socket).labels == {"inline": "3", "arena": "3"}


def test_wrong_shape_is_refused_with_a_sentence_and_the_connection_goes_on(program: Path, socket: Path) -> None:
    said = classify(program, socket)
    assert said.refusal == ("error 108, input 'image' of model 'digits' must have shape (rows, 1, 8, 8), not (1, 8, 8)")
    assert said.matched == "100 of 100 answers matched"


def test_program_is_clean_under_sanitizers(socket: Path, tmp_path: Path) -> None:
    target = tmp_path / "digits"
    compiled = compile_c(target, *SANITIZERS)
    assert (compiled.returncode, compiled.stderr) == (0, ""), "the sanitizers come with Debian's package gcc"
    assert classify(target, socket).matched == "100 of 100 answers matched"


def test_missing_daemon_is_named(program: Path, tmp_path: Path) -> None:
    ended = run(program, tmp_path / "none.sock")
    assert ended.returncode == 1
    assert ended.stderr == f"error 500: no daemon at {tmp_path / 'none.sock'}: No such file or directory\n"


def test_numbers_that_are_no_image_are_refused(program: Path, socket: Path) -> None:
    for numbers in ("0.5", "ink", " ".join(["0"] * 65)):
        ended = run(program, socket, numbers)
        assert (ended.returncode, ended.stderr) == (1, "standard input is not 64 numbers\n")
