"""What an operator can get wrong: the daemon ends with one line that names the thing, its value and the remedy.

Nothing is left behind: no process, no shared memory, no socket.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tensord import Client
from tensord.daemon.cli import app
from tensord.daemon.exits import Exit
from tensord.ipc.errors import ModelUnavailable

if TYPE_CHECKING:
    from tests.process.operation.conftest import Site

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

Break = Callable[["Site"], None]
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def refused(
    site: "Site", code: Exit, *parts: str, prefix: tuple[str, ...] = (), arguments: tuple[str, ...] = ()
) -> str:
    """Start it; it ends with this code, and its one line has these parts."""
    before = site_files(site)
    instance = site.serve(*arguments, prefix=prefix)
    assert instance.wait_end() == code, instance.log.read_text()
    line = instance.last_line()
    assert [part for part in parts if part not in line] == [], line
    assert site_files(site) == before
    return line


def site_files(site: "Site") -> list[str]:
    """What lies in the runtime directory."""
    return sorted(path.name for path in site.runtime_dir.iterdir()) if site.runtime_dir.is_dir() else []


# ── the configuration ───────────────────────────────────────────────────────────────────────────


CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown knob": ("max_bach = 8", ("knobs.max_bach = 8", "did you mean max_batch?")),
    "unknown section": ("[model.echo]", ("model = ", "did you mean models?")),
    "broken TOML": ("max_batch = = 8", ("not TOML", "line 8")),
    "value out of range": ("max_batch = 0", ("knobs.max_batch = 0", "1 to 65536 rows")),
    "value of another kind": ("window_us = true", ("knobs.window_us = True", '"5s"')),
    "unit of another kind": ("window_us = '5MiB'", ("window_us = '5MiB'", "a duration")),
    "knob of a model that is not there": (
        "[models.eco]\nmax_batch = 8",
        ("models.eco", "has no such model", "did you mean echo?"),
    ),
    "knob of a device that is not used": (
        "[devices.'cpu:1']\nspin_us = 8",
        ('devices."cpu:1"', "it uses cpu:0"),
    ),
    "daemon knob for a model": (
        "[models.echo]\nin_flight_max = 8",
        ("models.echo.in_flight_max = 8", "set it in [knobs]"),
    ),
}
"""Lines below [knobs], and what the error says."""
SERVED = ("unknown knob", "broken TOML", "value out of range")
"""With these the daemon is started, too."""


@pytest.mark.parametrize("case", CONFIGS)
def test_broken_configuration_names_key_value_and_remedy(
    site: "Site", case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    knobs, parts = CONFIGS[case]
    site.models.add("echo")
    path = site.write_config(knobs)
    assert app.run(["check-config", str(path)]) == Exit.CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tensord: {path}: ")
    assert [part for part in parts if part not in line] == [], line
    if case in SERVED:
        assert refused(site, Exit.CONFIG) == line


def test_runtime_directory_whose_sockets_no_path_can_name(site: "Site") -> None:
    site.models.add("echo")
    site.write_config()
    path = site.runtime_dir / ("d" * 90)
    parts = ("command line: daemon.runtime_dir", str(path)[:60], "Linux takes 107", "give a shorter directory")
    refused(site, Exit.CONFIG, *parts, arguments=("--runtime-dir", str(path)))
    assert not path.exists()


def test_configuration_that_is_not_there(site: "Site") -> None:
    site.config = site.directory / "missing.toml"
    refused(site, Exit.CONFIG, "missing.toml", "No such file", "check the path")


@pytest.mark.parametrize("device", ["cpu:4095", "gpu:0"])
def test_device_that_is_not_there(site: "Site", device: str) -> None:
    site.models.add("echo")
    site.write_config(devices=(device,))
    code = Exit.CONFIG if device == "gpu:0" else Exit.DEVICE
    refused(site, code, f"daemon.devices = '{device}'", "not a device" if code is Exit.CONFIG else "no such device")


# ── the runtime directory ───────────────────────────────────────────────────────────────────────


def test_runtime_directory_that_cannot_be_made(site: "Site") -> None:
    site.models.add("echo")
    site.write_config()
    site.runtime_dir.rmdir()
    site.runtime_dir.write_text("a file")
    try:
        line = refused(site, Exit.CONFIG, f"runtime_dir {site.runtime_dir}", "set [daemon] runtime_dir")
        assert "File exists" in line
        refused(site, Exit.CONFIG, "Not a directory", arguments=("--runtime-dir", f"{site.runtime_dir}/below"))
    finally:
        site.runtime_dir.unlink()


def test_runtime_directory_that_all_may_write(site: "Site") -> None:
    site.models.add("echo")
    site.write_config()
    site.runtime_dir.chmod(0o777)
    refused(site, Exit.CONFIG, f"runtime_dir {site.runtime_dir}", "chmod 0750")


def test_socket_of_another_program_is_left_alone(site: "Site") -> None:
    site.models.add("echo")
    site.write_config()
    path = site.runtime_dir / "tensord.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        refused(site, Exit.RUNNING, f"socket {path} is in use by another program", "set another runtime_dir")
        assert path.is_socket()


def test_file_in_place_of_the_socket_is_left_alone(site: "Site") -> None:
    site.models.add("echo")
    site.write_config()
    path = site.runtime_dir / "control.sock"
    path.write_text("precious")
    refused(site, Exit.RUNNING, f"{path} exists and is not a socket", "remove it")
    assert path.read_text() == "precious"


# ── memory and descriptors ──────────────────────────────────────────────────────────────────────


def small_shm(mebibytes: int) -> tuple[str, ...]:
    """What to write before a command so that it has this much in /dev/shm, and only it."""
    mount = f"mount -t tmpfs -o size={mebibytes}m none /dev/shm"
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True)
    assert tried.returncode == 0, f"this kernel allows no mount in a user namespace: {tried.stderr}"
    return ("unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh")


def test_too_little_shared_memory_is_refused_at_the_start(site: "Site") -> None:
    site.models.add("echo")
    site.write_config()
    parts = (f"ingest_bytes = {32 * 2**20}", "No space left", "make /dev/shm larger, or lower ingest_bytes in [knobs]")
    refused(site, Exit.RESOURCES, *parts, prefix=small_shm(16))


def test_front_end_comes_back_where_shared_memory_has_no_room_for_two_generations(site: "Site") -> None:
    site.models.add("echo")
    site.write_config()
    instance = site.serve(prefix=small_shm(48)).wait_ready()
    with Client(instance.socket) as client:
        np.testing.assert_array_equal(client.infer("echo", X), X)
        os.kill(instance.frontend_pid(), signal.SIGKILL)
        now = instance.wait_status(lambda now: now.frontend.generation == 2 and now.state == "ready")
        assert (now.frontend.restarts, now.workers[0].restarts) == (1, 1)  # the worker gave the old memory back
        np.testing.assert_array_equal(client.infer("echo", X), X)


def test_too_few_descriptors_are_refused_at_the_start(site: "Site") -> None:
    site.models.add("echo")
    site.write_config()
    for limit in (8, 12, 20):  # at the first segment, and at the first child
        few = ("sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh")
        refused(site, Exit.RESOURCES, "files", "raise the service's limit", prefix=few)


# ── the models ──────────────────────────────────────────────────────────────────────────────────


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def no_repository(site: "Site") -> None:
    shutil.rmtree(site.models.root)


def file_for_repository(site: "Site") -> None:
    no_repository(site)
    site.models.root.write_text("")


def empty_repository(site: "Site") -> None:
    no_repository(site)
    site.models.root.mkdir()


def broken_manifest(site: "Site") -> None:
    edit(site.models.root / "digits/1/model.toml", 'dtype = "float32"', 'dtype = "float33"')


def bad_manifest_knob(site: "Site") -> None:
    edit(site.models.root / "digits/1/model.toml", "max_batch = 64", "max_batch = 0")


def corrupt_weights(site: "Site") -> None:
    path = site.models.root / "digits/1/weights.safetensors"
    path.write_bytes(b"\xff" * 100)


def wrong_warmup_answer(site: "Site") -> None:
    path = site.models.root / "digits/1/warmup.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "logits" in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, path)


REPOSITORIES: dict[str, tuple[Break, tuple[str, ...]]] = {
    "no repository": (no_repository, ("models: the directory is not readable", "No such file")),
    "a file for a repository": (file_for_repository, ("models: the directory is not readable", "Not a directory")),
    "empty repository": (empty_repository, ("holds no model", "set [daemon] models")),
    "broken manifest": (broken_manifest, ("model.toml: inputs[0].dtype is 'float33'", "float32")),
    "bad knob in a manifest": (bad_manifest_knob, ("digits.max_batch = 0", "1 to 65536 rows")),
}
LOADED: dict[str, tuple[Break, tuple[str, ...]]] = {
    "corrupt weights": (corrupt_weights, ("weights.safetensors", "not readable as safetensors", "write it again")),
    "wrong warm-up answer": (
        wrong_warmup_answer,
        ("warmup.safetensors: outputs/logits is not what the model answers", "check the weights"),
    ),
}


@pytest.mark.parametrize("case", [*REPOSITORIES, *LOADED])
def test_required_model_that_is_broken_ends_the_start(site: "Site", case: str) -> None:
    site.models.add_shipped("digits")
    site.write_config()
    break_it, parts = (REPOSITORIES | LOADED)[case]
    break_it(site)
    refused(site, Exit.MODELS, *parts)


def test_broken_model_that_is_not_required_leaves_the_daemon_degraded(site: "Site") -> None:
    site.models.add("echo")
    site.models.add_shipped("digits")
    site.write_config()
    edit(site.models.root / "digits/1/model.toml", 'format = "factory"', 'format = "factory"\nrequired = false')
    corrupt_weights(site)
    instance = site.serve()
    now = instance.wait_status(lambda now: now.state == "degraded" and bool(now.models[1].ready_on))
    (reason,) = now.reasons
    assert reason.startswith("model digits:1 has no replica ready: ")
    assert "weights.safetensors: the file is not readable as safetensors" in reason
    assert list(now.models[0].broken_on) == ["cpu:0"]
    with Client(instance.socket) as client:
        np.testing.assert_array_equal(client.infer("echo", X), X)
        with pytest.raises(ModelUnavailable, match="the daemon's log says why"):
            client.infer("digits", np.zeros((1, 1, 8, 8), np.float32))


def test_model_that_hangs_in_loading_is_given_up_and_the_others_serve(site: "Site") -> None:
    hanging = site.models.add("a_hanging", top="required = false")
    (hanging / "model.py").write_text("import time\n\ndef build():\n    time.sleep(600)\n")
    site.models.add("echo")
    site.write_config("load_timeout_s = 1")
    instance = site.serve()
    now = instance.wait_status(lambda now: now.state == "degraded" and bool(now.models[1].ready_on))
    assert now.reasons == [
        "model a_hanging:1 has no replica ready: model a_hanging:1 on cpu:0: it did not load within "
        "load_timeout_s: mend it, or allow more"
    ]
    with Client(instance.socket) as client:
        np.testing.assert_array_equal(client.infer("echo", X), X)
    assert instance.status().workers[0].restarts == 1


def test_required_model_whose_loading_kills_its_worker_ends_the_start(site: "Site") -> None:
    deadly = site.models.add("deadly")
    (deadly / "model.py").write_text("import os\n\ndef build():\n    os._exit(3)\n")
    site.write_config("backoff_max_s = 1")
    refused(site, Exit.MODELS, "model deadly:1 on cpu:0", "its loading ended the worker 3 times (exit code 3)")
