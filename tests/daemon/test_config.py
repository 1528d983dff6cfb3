import os
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon import config as config_module
from tensord.daemon.config import (
    Config,
    ConfigError,
    NoSuchDevice,
    assign_cores,
    auto_devices,
    check_devices,
    check_models,
    load_config,
)
from tensord.daemon.exits import Exit
from tensord.daemon.knobs import KNOBS, example
from tensord.daemon.users import Access, TenantClass, Users
from tensord.ipc.limits import SOCKET_PATH_BYTES_MAX

CONFIGS = Path(__file__).parents[2] / "configs"
ENVIRON = {"XDG_RUNTIME_DIR": "/run/user/7"}


def load(tmp_path: Path, text: str | bytes, overrides: dict[str, object] | None = None) -> Config:
    file = tmp_path / "t.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(file, overrides or {}, ENVIRON)


def refusal(tmp_path: Path, text: str | bytes, overrides: dict[str, object] | None = None) -> str:
    """The sentence of the error, without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, overrides)
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1
    return sentence.replace(f"{tmp_path}/", "")


# ── who may, and who is of which class ──────────────────────────────────────────────────────────


def test_users_of_models_and_classes_are_read_in_the_files_order(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [models.digits]
        allow = ["uid:7", "gid:8", "user:root", "group:root"]
        max_batch = 16
        [models.minilm]
        deny = ["uid:9"]
        [tenants.nightly]
        users = ["uid:1"]
        tenant_weight = 0.5
        [tenants.web]
        users = ["gid:2"]
        [tenants.default]
        tenant_rows_max = 10
        """,
    )
    assert config.access == {"digits": Access(Users((7, 0), (8, 0))), "minilm": Access(None, Users((9,)))}
    assert config.tenant_classes == (TenantClass("nightly", Users((1,))), TenantClass("web", Users((), (2,))))
    assert config.model_knobs["digits"] == {"max_batch": 16}
    assert config.tenant_knobs == {"nightly": {"tenant_weight": 0.5}, "web": {}, "default": {"tenant_rows_max": 10}}
    assert config.configured["nightly.tenant_weight"] == 0.5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[models.m]\nallow = []", "t.toml: models.m.allow = []: lists nobody: give"),
        ('[models.m]\nallow = "uid:1"', "t.toml: models.m.allow = 'uid:1': give a list; in it, give"),
        ('[models.m]\ndeny = ["uid:x"]', "t.toml: models.m.deny = 'uid:x': uid takes a number from 0 to 4294967294"),
        (
            '[models.m]\ndeny = ["user:no-such-user"]',
            "t.toml: models.m.deny = 'user:no-such-user': this host has no such",
        ),
        ('[models.m]\ndeny = ["root"]', "t.toml: models.m.deny = 'root': give"),
        ("[tenants.t]", "t.toml: tenants.t.users = []: lists nobody: give"),
        ('[tenants.default]\nusers = ["uid:1"]', "t.toml: tenants.default.users = ['uid:1']: this class is everybody"),
        ('[tenants.t]\nusers = ["uid:1"]\nweight = 2', "t.toml: tenants.t.weight = 2: this is a model knob"),
    ],
)
def test_users_that_make_no_sense_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(tmp_path, text).startswith(sentence)


def test_lists_of_a_model_that_the_repository_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such model"):
        check_models(load(tmp_path, '[models.digit]\nallow = ["uid:1"]'), ["digits"])


# ── what a file says ────────────────────────────────────────────────────────────────────────────


def test_every_section_is_read_into_the_knobs_own_units(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [daemon]
        runtime_dir = "/run/t"
        models = "repository"
        devices = ["cpu:1", "cpu:0", "cuda:0"]
        [knobs]
        max_batch = 16
        drain_timeout_s = "1m"
        [models.digits]
        window_us = "2ms"
        [models."resnet.v2"]
        weight = 2
        [devices."cpu:0"]
        spin_us = 0
        """,
    )
    assert (config.runtime_dir, config.models) == (Path("/run/t"), tmp_path / "repository")
    assert (config.socket, config.control_socket) == (Path("/run/t/tensord.sock"), Path("/run/t/control.sock"))
    assert config.devices == ("cpu:1", "cpu:0", "cuda:0")
    assert config.configured == {
        "max_batch": 16,
        "drain_timeout_s": 60,
        "digits.window_us": 2_000,
        "resnet.v2.weight": 2.0,
        "cpu:0.spin_us": 0,
    }


def test_the_second_tier_has_a_socket_and_a_key_file_or_neither(tmp_path: Path) -> None:
    daemon = '[daemon]\nruntime_dir = "/run/t"\n[cache]\n'
    config = load(tmp_path, f'{daemon}redis = "/run/r.sock"\nkey_file = "key"')
    assert (config.redis, config.key_file) == (Path("/run/r.sock"), tmp_path / "key")
    assert (load(tmp_path, daemon).redis, load(tmp_path, daemon).key_file) == (None, None)
    assert refusal(tmp_path, f'{daemon}redis = "/run/r.sock"').startswith(
        "t.toml: cache.key_file: missing: give a file"
    )
    assert refusal(tmp_path, f'{daemon}key_file = "key"').startswith(
        "t.toml: cache.redis: missing: give the Unix socket"
    )
    assert refusal(tmp_path, f"{daemon}redis = 6379").startswith("t.toml: cache.redis = 6379: give the Unix socket")


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, '[daemon]\nruntime_dir = "/run/t"')
    assert (config.models, config.devices, config.configured) == (tmp_path / "models", "auto", {})


def test_no_file_is_all_defaults_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {"runtime_dir": "run"})
    assert (config.path, config.runtime_dir, config.models) == (None, tmp_path / "run", tmp_path / "models")


def test_command_line_beats_the_file_and_counts_paths_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    overrides = {"models": Path("mine"), "devices": ["cpu:3"], "runtime_dir": None}
    config = load(tmp_path, '[daemon]\nruntime_dir = "r"\nmodels = "m"\ndevices = ["cpu:0"]', overrides)
    assert (config.models, config.devices) == (tmp_path / "here/mine", ("cpu:3",))
    assert config.runtime_dir == tmp_path / "r"


def test_runtime_dir_defaults_to_the_systems_where_that_is_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    monkeypatch.setattr(config_module, "SYSTEM_RUNTIME_DIR", tmp_path)
    assert load_config(None, {}, ENVIRON).runtime_dir == tmp_path
    monkeypatch.setattr(config_module, "SYSTEM_RUNTIME_DIR", tmp_path / "absent")
    assert load_config(None, {}, ENVIRON).runtime_dir == Path("/run/user/7/tensord")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load_config(None, {}, {}).runtime_dir == tmp_path / "absent"


@pytest.mark.parametrize(("environ", "found"), [({}, "unset"), ({"XDG_RUNTIME_DIR": "run"}, "run")])
def test_runtime_dir_without_any_default_says_what_to_set(
    environ: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    monkeypatch.setattr(config_module, "SYSTEM_RUNTIME_DIR", Path("/absent"))
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, environ)
    assert str(caught.value) == (
        f"daemon.runtime_dir: unset, /absent is not writable and XDG_RUNTIME_DIR is {found}: "
        "set runtime_dir, or make one of the two usable"
    )


# ── what is refused, and in which words ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[deamon]\n", "t.toml: deamon = {}: no such key; did you mean daemon?"),
        ("[daemon]\nmodel = 1", "t.toml: daemon.model = 1: no such key; did you mean models?"),
        ("[daemon]\nzz = 1", "t.toml: daemon.zz = 1: no such key; known: devices, models, runtime_dir"),
        ("knobs = 3", "t.toml: knobs = 3: give a table: a line [knobs], and its keys below"),
        ("[models]\ndigits = 3", "t.toml: models.digits = 3: give a table: a line [models.digits], and its keys below"),
        ("[daemon]\nmodels = 3", 't.toml: daemon.models = 3: give a directory, such as "/srv/models"'),
        ('[daemon]\nmodels = ""', "t.toml: daemon.models = '': give a directory, such as \"/srv/models\""),
        ('[daemon]\nruntime_dir = "a\\u0000"', "t.toml: daemon.runtime_dir = 'a\\x00': give a directory, such as"),
        ("[daemon]\nruntime_dir = []", 't.toml: daemon.runtime_dir = []: give a directory, such as "/run/tensord"'),
        ('[daemon]\ndevices = "cpu:0"', "t.toml: daemon.devices = 'cpu:0': give \"auto\", or a list such as"),
        ("[daemon]\ndevices = [1]", 't.toml: daemon.devices = [1]: give "auto", or a list such as'),
        ("[daemon]\ndevices = []", 't.toml: daemon.devices = []: give "auto", or a list such as'),
        ('[daemon]\ndevices = ["gpu:0"]', "t.toml: daemon.devices = 'gpu:0': not a device: give cpu:N or cuda:N"),
        ('[daemon]\ndevices = ["cpu:00"]', "t.toml: daemon.devices = 'cpu:00': not a device: give cpu:N or cuda:N"),
        ('[daemon]\ndevices = ["cpu:0\\n"]', "t.toml: daemon.devices = 'cpu:0\\n': not a device"),
        (
            '[daemon]\ndevices = ["cpu:0", "cuda:0", "cpu:0"]',
            "t.toml: daemon.devices = 'cpu:0': named twice: name each device once",
        ),
        ("[knobs]\nmax_bach = 3", "t.toml: knobs.max_bach = 3: no such knob; did you mean max_batch?"),
        ("[knobs]\nmax_batch = 0", "t.toml: knobs.max_batch = 0: give a whole number, 1 to 65536 rows"),
        ("[knobs]\nmax_batch = true", "t.toml: knobs.max_batch = True: give a whole number, 1 to 65536 rows"),
        ("[knobs]\nmax_batch = [1]", "t.toml: knobs.max_batch = [1]: give a whole number, 1 to 65536 rows"),
        ("[models.digits]\nmax_batch = 0", "t.toml: models.digits.max_batch = 0: give a whole number, 1 to 65536"),
        (
            "[models.digits]\nlog_level = 'info'",
            "t.toml: models.digits.log_level = 'info': this is a global knob, not a model knob: set it in [knobs]",
        ),
        ('[devices."cpu:0"]\nspin = 0', 't.toml: devices."cpu:0".spin = 0: no such knob; did you mean spin_us?'),
        ("[devices.cpu]\nspin_us = 0", 't.toml: devices."cpu": not a device: write [devices."cpu:N"] or'),
        ("[daemon\n", "t.toml: not TOML: Expected ']' at the end of a table declaration (at line 1, column 8)"),
        (
            "[knobs]\nmax_batch 3\n",
            "t.toml: not TOML: Expected '=' after a key in a key/value pair (at line 2, column 11)",
        ),
        ("[knobs]\na = [1,\n", "t.toml: not TOML: Invalid value (at line 2, column 8)"),
        (b"\xff\xfe", "t.toml: byte 0: not UTF-8: save the file as UTF-8 text"),
        (f"a = {'9' * 5000}", "t.toml: a number too long or a table too deep to be meant"),
        (f"a = {'[' * 5000}", "t.toml: a number too long or a table too deep to be meant"),
        (f"[knobs]\nmax_batch = 0x{'f' * 5000}", "t.toml: knobs.max_batch = a number of thousands of digits: give a"),
    ],
)
def test_refusal_names_the_file_the_key_the_value_and_the_remedy(
    tmp_path: Path, text: str | bytes, sentence: str
) -> None:
    assert refusal(tmp_path, text)[: len(sentence)] == sentence


def test_override_at_fault_is_told_from_the_file(tmp_path: Path) -> None:
    assert refusal(tmp_path, "", {"devices": ["x"]}).startswith("command line: daemon.devices = 'x': not a device")
    assert (
        refusal(tmp_path, "", {"modles": "m"}) == "command line: daemon.modles = 'm': no such key; did you mean models?"
    )


def test_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"absent\.toml: cannot be read \(No such file or directory\): check the path$"
    ):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r": cannot be read \(Is a directory\): check the path$"):
        load_config(tmp_path)


def test_runtime_dir_whose_sockets_fit_exactly_is_the_longest_allowed(tmp_path: Path) -> None:
    fits = "/" + "é" * ((SOCKET_PATH_BYTES_MAX - len("//tensord.sock")) // 2)  # bytes count, not characters
    fits += "x" * (SOCKET_PATH_BYTES_MAX - len(os.fsencode(f"{fits}/tensord.sock")))
    assert len(os.fsencode(load(tmp_path, "", {"runtime_dir": fits}).socket)) == SOCKET_PATH_BYTES_MAX
    sentence = refusal(tmp_path, f'[daemon]\nruntime_dir = "{fits}y"')
    assert sentence.startswith("t.toml: daemon.runtime_dir = '/éé")
    assert sentence.endswith(": its sockets' paths have 108 bytes, Linux takes 107: give a shorter directory")
    assert refusal(tmp_path, "", {"runtime_dir": f"{fits}y"}).startswith("command line: daemon.runtime_dir = ")


# ── against the repository and the host ─────────────────────────────────────────────────────────


def test_table_of_a_model_that_the_repository_lacks_is_refused(tmp_path: Path) -> None:
    config = load(tmp_path, "[models.digit]\nmax_batch = 1")
    check_models(config, ["digit"])
    with pytest.raises(ConfigError) as caught:
        check_models(config, ["digits", "identity"])
    assert str(caught.value) == (
        f"{tmp_path}/t.toml: models.digit: the repository {tmp_path}/models has no such model; did you mean digits?"
    )


@pytest.mark.parametrize(
    ("cores", "gpus", "devices"),
    [
        (1, 0, ("cpu:0",)),
        (7, 0, ("cpu:0",)),
        (8, 0, ("cpu:0", "cpu:1")),
        (64, 2, ("cuda:0", "cuda:1")),
    ],
)
def test_auto_is_every_gpu_or_a_cpu_device_for_each_four_cores(cores: int, gpus: int, devices: tuple[str, ...]) -> None:
    assert auto_devices(range(cores), gpus) == devices


def test_check_devices_answers_the_devices_of_the_instance(tmp_path: Path) -> None:
    assert check_devices(load(tmp_path, ""), range(8), 0) == ("cpu:0", "cpu:1")
    named = load(tmp_path, '[daemon]\ndevices = ["cuda:1", "cpu:0"]\n[devices."cpu:0"]\nspin_us = 0')
    assert check_devices(named, range(1), 2) == ("cuda:1", "cpu:0")


def test_device_that_the_host_lacks_is_named(tmp_path: Path) -> None:
    config = load(tmp_path, '[daemon]\ndevices = ["cpu:0", "cpu:1", "cuda:2"]')
    with pytest.raises(NoSuchDevice) as caught:
        check_devices(config, range(2), 2)
    assert str(caught.value).endswith(
        "t.toml: daemon.devices = 'cuda:2': no such device: GPUs on this host: 2, counted from cuda:0"
    )
    with pytest.raises(NoSuchDevice) as caught:
        check_devices(config, range(1), 3)
    assert str(caught.value).endswith(
        "t.toml: daemon.devices = 'cpu:1': no such device: with 1 cores there are cpu:0 to cpu:0 at most"
    )


def test_table_of_a_device_that_is_not_used_is_refused(tmp_path: Path) -> None:
    config = load(tmp_path, '[devices."cpu:1"]\nspin_us = 0')
    check_devices(config, range(8), 0)
    with pytest.raises(
        ConfigError, match=r't\.toml: devices\."cpu:1": this instance does not use that device; it uses cpu:0$'
    ):
        check_devices(config, range(2), 0)


def test_cores_are_split_in_order_and_the_first_devices_get_the_remainder() -> None:
    assert assign_cores(["cpu:1", "cpu:0"], [4, 5, 6]) == {"cpu:0": (4, 5), "cpu:1": (6,)}
    assert assign_cores(["cuda:0"], [4, 5]) == {}
    assert assign_cores(["cpu:10", "cpu:9"], range(11)) == {"cpu:9": tuple(range(6)), "cpu:10": tuple(range(6, 11))}


@given(st.lists(st.integers(0, 500), min_size=1, max_size=40, unique=True), st.data())
def test_cores_of_devices_are_disjoint_even_and_complete(cores: list[int], data: st.DataObject) -> None:
    indices = data.draw(st.sets(st.integers(0, len(cores) - 1), min_size=1))
    assigned = assign_cores([f"cpu:{index}" for index in indices], cores)
    assert [core for share in assigned.values() for core in share] == cores
    sizes = [len(share) for share in assigned.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


# ── the files that come with it ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["minimal.toml", "demo.toml", "production.toml"])
def test_configuration_that_comes_with_tensord_is_valid_on_one_core(name: str) -> None:
    config = load_config(CONFIGS / name, {}, ENVIRON)
    assert check_devices(config, [0], 0) == ("cpu:0",)


def test_production_file_shows_every_knob_as_it_is_declared() -> None:
    assert example() in (CONFIGS / "production.toml").read_text()


def test_production_file_uncommented_is_valid_and_says_the_defaults(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=[a-z\[])", "", (CONFIGS / "production.toml").read_text(), flags=re.MULTILINE)
    assert set(tomllib.loads(text)) == {"daemon", "knobs", "models", "devices", "tenants", "cache"}
    config = load(tmp_path, text)
    assert config.knobs == {name: knob.default for name, knob in KNOBS.items()}
    assert config.model_knobs == {"digits": {"max_batch": 64, "weight": 2.0}, "minilm": {}}
    assert config.device_knobs == {"cpu:0": {"spin_us": 0}}
    assert config.access == {"minilm": Access(Users((1000,), (44,)), Users((65534,)))}
    assert config.tenant_classes == (TenantClass("nightly", Users((1001,))),)
    assert set(config.tenant_knobs) == {"nightly", "default"}


def test_exit_codes_are_the_documented_ones() -> None:
    assert {exit_.name: exit_.value for exit_ in Exit} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "CONFIG": 3,
        "MODELS": 4,
        "RUNNING": 5,
        "DEVICE": 6,
        "RESOURCES": 7,
        "UNREACHABLE": 8,
        "INTERRUPTED": 130,
    }
