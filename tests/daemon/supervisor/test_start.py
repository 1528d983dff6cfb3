import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensord.daemon.config import ConfigError, NoSuchDevice, load_config
from tensord.daemon.exits import Exit
from tensord.daemon.supervisor import start
from tensord.daemon.supervisor.discovery import Gpu
from tensord.daemon.supervisor.failures import InstanceFailure
from tensord.daemon.supervisor.start import prepare, worker_cores
from tensord.daemon.supervisor.supervisor import DevicePlan, Supervisor

AddModel = Callable[..., Path]
Prepare = Callable[..., Supervisor]

GPUS = [Gpu(0, "GPU-aaaa", "H200", 2**37), Gpu(1, "GPU-bbbb", "H200", 2**37)]


@pytest.fixture
def prepared(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """A supervisor on a host with these cores and GPUs, of a configuration with these keys and this text."""

    def make(cores: int = 8, gpus: list[Gpu] | None = None, text: str = "", **overrides: Any) -> Supervisor:
        def discover() -> list[Gpu]:
            if gpus is None:
                raise AssertionError("nobody asked for a GPU")
            return gpus

        monkeypatch.setattr(start, "discover", discover)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
        path = tmp_path / "config.toml"
        path.write_text(text)
        return prepare(load_config(path, {"runtime_dir": tmp_path / "rt", "models": root, **overrides}))

    return make


def plan(supervisor: Supervisor) -> list[DevicePlan]:
    return list(supervisor._devices.values())


def test_the_front_end_keeps_the_first_core(prepared: Prepare, add_model: AddModel) -> None:
    add_model()
    assert plan(prepared(8, devices=["cpu:0", "cpu:1"])) == [
        DevicePlan("cpu:0", (1, 2, 3, 4), ""),
        DevicePlan("cpu:1", (5, 6, 7), ""),
    ]


def test_a_single_core_is_shared(prepared: Prepare, add_model: AddModel) -> None:
    add_model()
    assert plan(prepared(1, devices=["cpu:0"])) == [DevicePlan("cpu:0", (0,), "")]


def test_gpus_are_seen_by_uuid_and_not_pinned(prepared: Prepare, add_model: AddModel) -> None:
    add_model()
    assert plan(prepared(4, GPUS, devices=["cuda:1", "cpu:0"])) == [
        DevicePlan("cuda:1", (), "GPU-bbbb"),
        DevicePlan("cpu:0", (1, 2, 3), ""),
    ]


def test_auto_takes_every_gpu_and_else_the_cores(prepared: Prepare, add_model: AddModel) -> None:
    add_model()
    assert [device.name for device in plan(prepared(4, GPUS))] == ["cuda:0", "cuda:1"]
    assert plan(prepared(4, [])) == [DevicePlan("cpu:0", (1, 2, 3), "")]


def test_nothing_is_started(prepared: Prepare, add_model: AddModel, tmp_path: Path) -> None:
    add_model()
    supervisor = prepared(devices=["cpu:0"])
    assert not (tmp_path / "rt").exists()
    assert (supervisor.frontend, supervisor.places) == (None, {})
    assert supervisor.catalog.names == ["one"]


def test_settings_reach_the_knobs(prepared: Prepare, add_model: AddModel) -> None:
    add_model()
    text = '[knobs]\nmax_batch = 16\n[models.one]\nwindow_us = "2ms"\n[devices."cpu:0"]\nspin_us = 3\n'
    knobs = prepared(devices=["cpu:0"], text=text).knobs
    assert knobs.general("max_batch") == 16
    assert knobs.message().models == {"one": {"window_us": 2000}}
    assert knobs.device("cpu:0", "spin_us") == 3


def test_an_empty_repository_is_found_before_anything_starts(prepared: Prepare) -> None:
    with pytest.raises(InstanceFailure, match="holds no model"):
        prepared(devices=["cpu:0"])


def test_a_gpu_that_is_not_there_is_no_such_device(prepared: Prepare, add_model: AddModel) -> None:
    add_model()
    with pytest.raises(NoSuchDevice, match="cuda:2"):
        prepared(4, GPUS, devices=["cuda:2"])
    with pytest.raises(NoSuchDevice, match="GPUs on this host: 0"):
        prepared(4, [], devices=["cuda:0"])


def test_more_cpu_devices_than_cores_are_refused(prepared: Prepare, add_model: AddModel) -> None:
    add_model()
    with pytest.raises(NoSuchDevice, match="cpu:2"):
        prepared(2, devices=["cpu:0", "cpu:1", "cpu:2"])


def test_a_section_for_a_model_that_is_not_there_is_refused(prepared: Prepare, add_model: AddModel) -> None:
    add_model()
    with pytest.raises(ConfigError, match=r"models\.ones: the repository .* has no such model"):
        prepared(devices=["cpu:0"], text="[models.ones]\nmax_batch = 1\n")


def test_a_manifest_with_a_wrong_knob_is_the_models_fault(prepared: Prepare, add_model: AddModel, root: Path) -> None:
    add_model(tail="\n[knobs]\nmax_batch = 0\n")
    with pytest.raises(InstanceFailure, match=rf"{root}: a model's \[knobs\]: one.max_batch") as caught:
        prepared(devices=["cpu:0"])
    assert caught.value.exit is Exit.MODELS


@pytest.mark.parametrize(
    ("devices", "cores", "left"),
    [
        (("cpu:0",), 1, [0]),
        (("cpu:0",), 2, [1]),
        (("cpu:0", "cpu:1"), 2, [0, 1]),
        (("cpu:0", "cpu:1"), 3, [1, 2]),
        (("cpu:1",), 2, [0, 1]),
        (("cuda:0",), 2, [1]),
    ],
)
def test_the_first_core_is_left_out_where_there_are_enough(
    devices: tuple[str, ...], cores: int, left: list[int]
) -> None:
    assert worker_cores(devices, list(range(cores))) == left
