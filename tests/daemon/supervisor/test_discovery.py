import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tensord.daemon.supervisor import discovery
from tensord.daemon.supervisor.discovery import Gpu, discover

GPUS = [Gpu(0, "GPU-aaaa", "H200", 2**37), Gpu(1, "GPU-bbbb", "H200", 2**37)]
Run = Callable[..., Any]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """A host with a driver, on which the child does what the test says."""

    def install(run: Run) -> None:
        monkeypatch.setattr(discovery, "Path", lambda _path: tmp_path)
        monkeypatch.setattr(subprocess, "run", run)

    return install


def test_without_a_driver_no_child_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "Path", lambda _path: tmp_path / "absent")
    monkeypatch.setattr(subprocess, "run", None)
    assert discover() == []


def test_the_child_is_asked_with_a_time_limit(driver: Callable[[Run], None]) -> None:
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append((command, options["timeout"], options["check"]))
        return SimpleNamespace(stdout=msgspec.json.encode(GPUS))

    driver(run)
    assert discover() == GPUS
    command = [sys.executable, "-P", "-m", "tensord.daemon.supervisor.discovery"]
    assert asked == [(command, discovery.TIME_LIMIT_S, True)]


@pytest.mark.parametrize(
    "error",
    [
        subprocess.TimeoutExpired("discovery", 20),
        subprocess.CalledProcessError(1, "discovery"),
        OSError(11, "Resource temporarily unavailable"),
    ],
)
def test_a_driver_that_does_not_answer_has_no_gpus(driver: Callable[[Run], None], error: Exception) -> None:
    def run(*_args: Any, **_options: Any) -> Any:
        raise error

    driver(run)
    assert discover() == []


@pytest.mark.parametrize("output", [b"", b"NVML: warning\n[]", b'[{"index": 0}]', b"{}"])
def test_an_answer_that_makes_no_sense_has_no_gpus(driver: Callable[[Run], None], output: bytes) -> None:
    driver(lambda *_args, **_options: SimpleNamespace(stdout=output))
    assert discover() == []


def test_the_child_prints_what_nvml_says(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(GPUS),
        nvmlDeviceGetHandleByIndex=lambda index: GPUS[index],
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(total=gpu.memory_bytes),
        nvmlDeviceGetUUID=lambda gpu: gpu.uuid,
        nvmlDeviceGetName=lambda gpu: gpu.name,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    discovery.main()
    assert msgspec.json.decode(capsysbinary.readouterr().out, type=list[Gpu]) == GPUS
