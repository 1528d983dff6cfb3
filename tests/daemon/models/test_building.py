import logging
import os
import py_compile
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch
import torch
from torch import nn

from tensord.daemon.models.building import build_module, import_function, read_tensors
from tensord.daemon.models.errors import ManifestError
from tensord.daemon.models.manifest import read_manifest
from tensord.daemon.models.steps import PythonFunction

WriteModel = Callable[..., Path]
Source = Callable[[str], PythonFunction]
WriteProgram = Callable[[bytes], Path]

CPU = torch.device("cpu")
META = torch.device("meta")
"""The one device other than the CPU that every host has: its tensors have a form and no numbers."""

LINEAR = "from torch import nn\ndef build():\n    return nn.Linear(2, 1)\n"
WEIGHTS = {"weight": torch.tensor([[3.0, 4.0]]), "bias": torch.tensor([5.0])}


def built(directory: Path, device: torch.device = CPU) -> nn.Module:
    return build_module(read_manifest(directory), device)


def refusal(build: Callable[[], Any]) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        build()
    return caught.value


def out_of_memory(*_: Any) -> NoReturn:
    raise MemoryError


# ── the module ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("device", [CPU, META])
def test_a_module_is_on_its_device_and_in_evaluation_mode(write_model: WriteModel, device: torch.device) -> None:
    module = built(write_model(code=LINEAR, weights=WEIGHTS), device)
    assert not module.training
    assert {parameter.device for parameter in module.parameters()} == {device}


def test_a_module_has_the_weights_of_its_file(write_model: WriteModel) -> None:
    module = built(write_model(code=LINEAR, weights=WEIGHTS))
    assert module(torch.tensor([[1.0, 10.0]])).tolist() == [[48.0]]


def test_parameters_without_a_file_are_refused(write_model: WriteModel) -> None:
    directory = write_model(code=LINEAR)
    error = refusal(lambda: built(directory))
    assert (error.path, error.key, error.value) == (directory / "model.toml", "weights", "missing")


def test_buffers_need_no_file(write_model: WriteModel) -> None:
    code = (
        "import torch\ndef build():\n    m = torch.nn.Module()\n    m.register_buffer('b', torch.ones(2))\n    return m"
    )
    assert [name for name, _ in built(write_model(code=code)).named_buffers()] == ["b"]


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"weight": torch.zeros(1, 2)}, 'Missing key(s) in state_dict: "bias"'),
        ({"weight": torch.zeros(1, 2), "bias": torch.zeros(2)}, "size mismatch for bias: "),
    ],
)
def test_weights_that_do_not_fit_are_told_with_the_first_problem(
    write_model: WriteModel, weights: dict[str, torch.Tensor], problem: str
) -> None:
    directory = write_model(code=LINEAR, weights=weights)
    error = refusal(lambda: built(directory))
    assert (error.path, error.key) == (directory / "weights.safetensors", "the file")
    assert error.value.startswith(f"not this module's weights ({problem}")


def test_a_module_that_cannot_be_moved_is_the_factorys_fault(write_model: WriteModel) -> None:
    tensor = "torch.ones(2, device='meta')"
    code = f"import torch\ndef build():\n    m = torch.nn.Module()\n    m.register_buffer('b', {tensor})\n    return m"
    directory = write_model(code=code)
    error = refusal(lambda: built(directory))
    assert (error.path, error.key) == (directory / "model.py", "the module")
    assert error.value.startswith("not movable to cpu (NotImplementedError: ")


def test_a_factory_must_return_a_module(write_model: WriteModel) -> None:
    directory = write_model(code="from torch import nn\ndef build(): return nn.Linear")
    error = refusal(lambda: built(directory))
    assert (error.path, error.key, error.value) == (directory / "model.py", "build()", "returning type")


# ── code ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Writes a file of Python and names the function `f` in it."""

    def write(code: str) -> PythonFunction:
        path = tmp_path / "code.py"
        path.write_text(code)
        return PythonFunction(path, "f")

    return write


def test_a_file_is_imported_anew_each_time_and_keeps_its_own_names(source: Source) -> None:
    first = import_function(source("number = 1\ndef f(): return number"))
    second = import_function(source("number = 2\ndef f(): return number"))
    assert (first(), second()) == (1, 2)
    assert sys.modules[first.__module__].number == 1
    assert sys.modules[second.__module__].number == 2


def test_bytecode_is_neither_read_nor_written(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    function = source("def f(): return 'as compiled'")
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compiled = Path(str(py_compile.compile(str(function.file), invalidation_mode=unchecked)))
    before = compiled.read_bytes()
    assert import_function(source("def f(): return 'as written'"))() == "as written"
    assert compiled.read_bytes() == before
    compiled.unlink()
    import_function(function)
    assert os.listdir(compiled.parent) == []


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("def f(:", "failing (SyntaxError: "),
        ("import nothing_of_this_name", "failing (ModuleNotFoundError: "),
        ("raise SystemExit(3)", "failing (SystemExit: 3)"),
        ("g = 1", "missing"),
        ("f = 1", "missing"),
    ],
)
def test_code_that_cannot_be_used_is_told_with_its_file(source: Source, code: str, value: str) -> None:
    function = source(code)
    error = refusal(lambda: import_function(function))
    assert (error.path, error.key) == (function.file, "f()")
    assert error.value.startswith(value)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_not_the_codes_fault_passes_and_leaves_no_module(source: Source, error: type[BaseException]) -> None:
    before = set(sys.modules)
    with pytest.raises(error):
        import_function(source(f"raise {error.__name__}"))
    assert set(sys.modules) == before


# ── tensors of a file ───────────────────────────────────────────────────────────────────────────


def test_tensors_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t"
    safetensors.torch.save_file(WEIGHTS, path)
    tensors = read_tensors(path, "write it again")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"weight": [[3.0, 4.0]], "bias": [5.0]}


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_tensors_that_cannot_be_read_are_told_with_the_remedy(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "t"
    if content is not None:
        path.write_bytes(content)
    error = refusal(lambda: read_tensors(path, "write it again"))
    assert (error.path, error.key, error.remedy) == (path, "the file", "write it again")
    assert error.value.startswith("not readable as safetensors (")
    assert str(tmp_path) not in error.value


def test_weights_that_may_not_be_read_are_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, _mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ManifestError, match="not readable: make it readable for the daemon's user"):
        read_tensors(tmp_path / "t", "write it again")


def test_no_memory_for_tensors_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors.torch, "load_file", out_of_memory)
    with pytest.raises(MemoryError):
        read_tensors(tmp_path / "t", "write it again")


# ── programs ────────────────────────────────────────────────────────────────────────────────────


class Counting(nn.Module):
    """Makes a tensor on a device that its graph names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(3)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("program") / "program.pt2"
    shapes = ({0: torch.export.Dim("rows")},)
    torch.export.save(torch.export.export(Counting(), (torch.zeros(2, 3),), dynamic_shapes=shapes), path)
    return path.read_bytes()


@pytest.fixture
def write_program(write_model: WriteModel) -> WriteProgram:
    """Writes a model that is an exported program."""

    def write(content: bytes) -> Path:
        tensor = 'dtype = "float32"\nshape = [3]\n'
        toml = 'format = "export"\nprogram = "p.pt2"\n'
        toml += f'[[inputs]]\nname = "x"\n{tensor}[[outputs]]\nname = "y"\n{tensor}'
        directory = write_model(toml, code=None)
        (directory / "p.pt2").write_bytes(content)
        return directory

    return write


@pytest.mark.parametrize("device", [CPU, META])
def test_a_program_runs_wholly_on_its_device(write_program: WriteProgram, program: bytes, device: torch.device) -> None:
    module = built(write_program(program), device)
    answer = module(torch.zeros(4, 3, device=device))
    assert (answer.device, tuple(answer.shape)) == (device, (4, 3))
    assert device == META or answer.tolist() == [[0.0, 1.0, 2.0]] * 4


def test_a_broken_program_is_told_with_the_version_of_torch(
    write_program: WriteProgram, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # torch logs its own traceback
    directory = write_program(b"nonsense")
    error = refusal(lambda: built(directory))
    assert (error.path, error.key) == (directory / "p.pt2", "the program")
    assert error.value.startswith("not loadable (")
    assert error.remedy.endswith(f"this is torch {torch.__version__}")


def test_no_memory_for_a_program_is_not_the_files_fault(
    write_program: WriteProgram, program: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "load", out_of_memory)
    with pytest.raises(MemoryError):
        built(write_program(program))
