"""examples/minilm through a daemon: requests of all lengths and row counts share batches, and get their own answers."""

import contextlib
import ctypes
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from examples.minilm.encoding import Encoder
from examples.minilm.search import QUESTIONS
from numpy.typing import NDArray

from tensord import Client

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

ROOT: Final = Path(__file__).parents[2]
ROUNDING: Final = 1e-6
"""How far single precision is off in numbers below 1 that are added in another order."""

WATCHDOG_S: Final = 60.0
"""Longest wait for something that must happen; a limit against hanging, not a measurement."""

PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""

_libc = ctypes.CDLL(None)


@pytest.fixture(scope="module")
def socket(root: Path) -> Iterator[Path]:
    """The socket of a daemon that serves minilm."""
    directory = Path(tempfile.mkdtemp(prefix="td", dir="/tmp"))
    command = ["serve", "--models", str(root), "--runtime-dir", str(directory / "run"), "--device", "cpu:0"]
    log = directory / "log"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        output = stack.enter_context(log.open("wb"))
        daemon = subprocess.Popen(
            [sys.executable, "-m", "tensord", *command],
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


@pytest.fixture
def client(socket: Path) -> Iterator[Client]:
    with Client(socket) as client:
        yield client


def test_texts_of_all_lengths_at_once_get_the_embeddings_of_the_other_implementation(
    client: Client, encoder: Encoder, texts: list[str], expected: NDArray[np.float32]
) -> None:
    order = list(range(len(texts)))
    random.Random(20_24).shuffle(order)
    answers, left = [], order
    while left:  # one to four texts in a request
        rows, left = left[: 1 + len(left) % 4], left[1 + len(left) % 4 :]
        answers.append(client.submit("minilm", encoder.encode([texts[index] for index in rows]), timeout=WATCHDOG_S))
    served = np.concatenate([answer.result() for answer in answers])
    assert np.abs(served - expected[order]).max() < ROUNDING


def test_a_text_alone_needs_no_mask(
    client: Client, encoder: Encoder, texts: list[str], expected: NDArray[np.float32]
) -> None:
    rows = range(0, len(texts), 20)
    answers = [
        client.submit("minilm", {"ids": encoder.encode([texts[row]])["ids"]}, timeout=WATCHDOG_S) for row in rows
    ]
    served = np.concatenate([answer.result() for answer in answers])
    assert np.abs(served - expected[rows]).max() < ROUNDING


def test_numbers_that_are_no_tokens_fail_nobody(client: Client, encoder: Encoder) -> None:
    good = encoder.encode(["Bread rises because yeast turns sugar into gas."])
    alone = client.infer("minilm", good, timeout=WATCHDOG_S)
    bad = {name: np.full_like(array, 2**40) for name, array in good.items()}
    answers = [client.submit("minilm", inputs, timeout=WATCHDOG_S) for inputs in (bad, good, bad, good)]
    first, second, third, fourth = (answer.result() for answer in answers)
    assert np.abs(np.concatenate([second, fourth]) - alone).max() < ROUNDING
    assert np.abs(first - third).max() < ROUNDING


def test_the_search_finds_sentences_by_meaning(socket: Path) -> None:
    command = [sys.executable, "-m", "examples.minilm.search", "--socket", str(socket), "--top", "1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    count, *found = ended.stdout.split("\n\n")
    assert count.startswith("310 sentences in ")
    assert [each.split("\n", 1)[0] for each in found] == QUESTIONS
    assert found[0].splitlines()[1].endswith("  Leaves turn light into sugar.")


def test_the_search_without_a_daemon_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.minilm.search", "--socket", str(tmp_path / "none.sock")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
