"""Where things are, who may import whom, and what is in the wheel."""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("ipc", "daemon", "admin", "configs")
MAY_IMPORT = {"ipc": {"ipc"}, "daemon": {"daemon", "ipc"}, "admin": {"admin", "ipc"}}

HEAVY = (
    "torch",
    "uvloop",
    "posix_ipc",
    "psutil",
    "pynvml",
    "structlog",
    "typer",
    "rich",
    "safetensors",
    "sklearn",
    "PIL",
    "redis",
)
"""What a client does without, and who uses none of it need not wait for."""


@dataclass(frozen=True)
class Import:
    """One import statement."""

    file: str
    line: int
    level: int
    """Leading dots; 0 for an absolute import."""
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {'.' * self.level}{self.module}"


def sources(folder: str) -> list[Path]:
    return sorted(
        path for path in (ROOT / folder).rglob("*.py") if not path.is_relative_to(ROOT / "configs" / "models")
    )


def imports(folder: str) -> Iterator[Import]:
    """Every import of a folder, wherever it stands in its file."""
    for path in sources(folder):
        for node in ast.walk(ast.parse(path.read_text())):
            file = str(path.relative_to(ROOT))
            if isinstance(node, ast.Import):
                yield from (Import(file, node.lineno, 0, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield Import(file, node.lineno, node.level, node.module or "")


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has after running `code`."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    return set(json.loads(done.stdout))


def modules(*folders: str) -> list[str]:
    """Import names of the modules in these folders."""
    names = []
    for folder in folders:
        for path in sources(folder):
            parts = ("tensord", *path.relative_to(ROOT).with_suffix("").parts)
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


# ── who imports whom ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_whom_it_may(folder: str) -> None:
    absolute = [each for each in imports(folder) if each.level == 0 and each.module.split(".")[0] == "tensord"]
    wrong = [
        str(each) for each in absolute if each.module.split(".")[1:2] not in [[name] for name in MAY_IMPORT[folder]]
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_inside_a_folder_are_relative(folder: str) -> None:
    wrong = [str(each) for each in imports(folder) if each.level == 0 and each.module.startswith(f"tensord.{folder}")]
    assert wrong == []


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_relative_imports_stay_inside_their_folder(folder: str) -> None:
    wrong = [str(each) for each in imports(folder) if each.level > len(Path(each.file).parts) - 1]
    assert wrong == []


def test_the_scheduling_core_does_no_io_and_reads_no_clock() -> None:
    used = {each.module.split(".")[0] for each in imports("daemon/scheduling") if each.level == 0}
    assert used <= {
        "abc",
        "bisect",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "math",
        "operator",
        "tensord",
        "typing",
    }


def test_the_client_needs_what_its_installation_brings_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {dependency.partition(">")[0] for dependency in project["dependencies"]}
    foreign = {each.module.split(".")[0] for each in imports("ipc") if each.level == 0} - set(sys.stdlib_module_names)
    assert foreign - {"posix_ipc"} == required
    users = {each.file for each in imports("ipc") if each.module == "posix_ipc"}
    assert users == {"ipc/segment.py"}, "which the client does not import"


# ── what is loaded ──────────────────────────────────────────────────────────────────────────────


def test_the_client_loads_nothing_heavy() -> None:
    assert loaded_by("import tensord").isdisjoint(HEAVY)


def test_the_supervisor_loads_neither_torch_nor_uvloop() -> None:
    everything = "\n".join(f"import {name}" for name in modules("daemon/supervisor"))
    assert loaded_by(everything).isdisjoint({"torch", "uvloop", "pynvml"})


def test_the_front_end_does_not_load_torch() -> None:
    names = [name for name in modules("daemon/frontend") if not name.endswith("__main__")]
    assert "torch" not in loaded_by("\n".join(f"import {name}" for name in names))


def test_the_front_end_loads_redis_only_with_a_second_tier() -> None:
    assert "redis" not in loaded_by("import tensord.daemon.frontend.__main__")


def test_the_command_line_does_not_load_torch() -> None:
    everything = "\n".join(f"import {name}" for name in modules("daemon/cli"))
    assert loaded_by(everything).isdisjoint({"torch", "uvloop"})


def test_a_worker_pins_itself_before_torch_is_loaded() -> None:
    assert "torch" not in loaded_by("import tensord.daemon.worker.__main__")


def compiled() -> set[Path]:
    """The modules that setup.py lists."""
    code = ast.parse((ROOT / "setup.py").read_text())
    assigned = {ast.unparse(node.targets[0]): node.value for node in code.body if isinstance(node, ast.Assign)}
    folders: dict[str, str] = ast.literal_eval(assigned["COMPILED"])
    listed = {
        folder: {path for name in names.split() for path in (ROOT / folder).glob(f"{name}.py")}
        for folder, names in folders.items()
    }
    assert all(listed.values()), "a folder without any of its modules"
    return set().union(*listed.values())


def test_no_interpreted_class_inherits_from_a_compiled_one() -> None:
    """mypyc forbids it, but nobody would see it before something runs compiled."""
    files = compiled()
    theirs = {
        (path.parent, node.name)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    wrong = []
    for path in {*sources("daemon"), *sources("ipc")} - files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        packages = {
            alias.asname or alias.name: module if module.is_dir() else module.parent
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for module in [path.parents[max(node.level, 1) - 1].joinpath(*(node.module or "").split("."))]
            for alias in node.names
        }
        bases = {
            ast.unparse(base).partition("[")[0]
            for node in nodes
            if isinstance(node, ast.ClassDef)
            for base in node.bases
        }
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in bases if (packages.get(name), name) in theirs]
    assert wrong == []


def test_no_compiled_module_is_older_than_its_source() -> None:
    """Then it would run instead of what was edited: `make compiled`, or `make interpreted`."""
    built = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.so")]
    source = {path: path.parent / f"{path.name.partition('.')[0]}.py" for path in built}
    assert [path.name for path in built if path.stat().st_mtime < source[path].stat().st_mtime] == []


# ── packages and the wheel ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_linked_into_the_package(folder: str) -> None:
    assert os.readlink(ROOT / "src" / "tensord" / folder) == f"../../{folder}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_with_code_is_a_package(folder: str) -> None:
    folders = {path.parent for path in sources(folder)}
    assert [str(each.relative_to(ROOT)) for each in sorted(folders) if not (each / "__init__.py").exists()] == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for folder in MAY_IMPORT
        for path in sources(folder)
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def files_of_the_package() -> set[str]:
    """What an installation has, below `tensord/`."""
    files = set()
    for directory, folders, names in os.walk(ROOT / "src" / "tensord", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        here = Path(directory).relative_to(ROOT / "src")
        files |= {str(here / name) for name in names if not name.endswith((".pyc", ".so"))}
    return files


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built from a copy: what an earlier build left here must not get into it, nor this one's stay."""
    copy = tmp_path_factory.mktemp("wheel") / "tensord"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "tests", "benchmarks")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=unwanted)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").iterdir()
    return zipfile.Path(built)


def names_in(wheel: zipfile.Path) -> set[str]:
    return {name for name in wheel.root.namelist() if not name.endswith("/")}


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: zipfile.Path) -> None:
    package = {name for name in names_in(wheel) if ".dist-info/" not in name}
    assert package == files_of_the_package()


def test_the_wheel_has_the_models_pictures_and_types(wheel: zipfile.Path) -> None:
    wanted = {
        "tensord/__init__.py",
        "tensord/__main__.py",
        "tensord/py.typed",
        "tensord/ipc/wire.py",
        "tensord/ipc/client/__init__.py",
        "tensord/daemon/frontend/__main__.py",
        "tensord/daemon/worker/__main__.py",
        "tensord/admin/__init__.py",
        "tensord/configs/demo.toml",
        "tensord/configs/models/digits/1/model.toml",
        "tensord/configs/models/digits/1/model.py",
        "tensord/configs/models/digits/1/weights.safetensors",
        "tensord/configs/models/digits/1/warmup.safetensors",
        "tensord/configs/models/identity/1/model.toml",
    }
    assert wanted <= names_in(wheel)
    assert sum(name.startswith("tensord/configs/images/digits/") for name in names_in(wheel)) >= 10


def test_the_wheel_has_no_links(wheel: zipfile.Path) -> None:
    kinds = {info.external_attr >> 28 for info in wheel.root.infolist()}
    assert kinds <= {0, 0o10}, "ordinary files"


def test_the_wheel_asks_for_little_and_gives_a_command(wheel: zipfile.Path) -> None:
    (folder,) = {name.partition("/")[0] for name in names_in(wheel) if ".dist-info/" in name}
    metadata = (wheel / folder / "METADATA").read_text()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert sorted(line.split()[1].partition(">")[0] for line in required) == ["ml_dtypes", "msgspec", "numpy"]
    assert (wheel / folder / "entry_points.txt").read_text().split() == [
        "[console_scripts]",
        "tensord",
        "=",
        "tensord.__main__:main",
    ]


def test_the_wheel_is_a_client_by_itself(wheel: zipfile.Path) -> None:
    built = str(wheel.root.filename)
    code = "import tensord; print(tensord.__file__); tensord.Client"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": built},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{built}/tensord/__init__.py\n"
