"""From a manifest to a module: the factory's code and its weights, or an exported program."""

import importlib.util
import itertools
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch.export.passes import move_to_device_pass

from .errors import ManifestError, reason_of
from .manifest import Manifest
from .steps import PythonFunction

_imports = itertools.count(1)


def build_module(manifest: Manifest, device: torch.device) -> torch.nn.Module:
    """The module on `device`, in evaluation mode. Raises ManifestError naming the file at fault."""
    if manifest.program is not None:
        return _load_program(manifest.program, device)
    assert manifest.factory is not None
    module = _call_factory(manifest.factory)
    if manifest.weights is not None:
        _load_weights(module, manifest.weights)
    elif next(module.parameters(), None) is not None:
        remedy = "the module has parameters; name the safetensors file that holds them"
        raise ManifestError(manifest.path, "weights", "missing", remedy)
    try:
        return module.eval().to(device)
    except (RuntimeError, NotImplementedError) as error:
        raise ManifestError(
            manifest.factory.file, "the module", f"not movable to {device} ({reason_of(error)})", "mend it"
        ) from error


def read_tensors(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises ManifestError with `remedy` when it is broken."""
    try:
        path.open("rb").close()  # the parser calls a file that it may not read a missing one
    except PermissionError as error:
        raise ManifestError(path, "the file", "not readable", "make it readable for the daemon's user") from error
    except OSError:
        pass  # the parser says what is wrong
    try:
        return safetensors.torch.load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # the parser's own classes differ between versions
        raise ManifestError(path, "the file", f"not readable as safetensors ({reason_of(error)})", remedy) from error


def _load_program(path: Path, device: torch.device) -> torch.nn.Module:
    try:
        program = torch.export.load(path)
        if device.type != "cpu":
            # Constants and device arguments are part of the graph: moving the parameters alone leaves them behind.
            program = move_to_device_pass(program, device)
        return program.module()
    except MemoryError:
        raise
    except Exception as error:
        value = f"not loadable ({reason_of(error)})"
        remedy = f"save it again with torch.export.save; this is torch {torch.__version__}"
        raise ManifestError(path, "the program", value, remedy) from error


def _load_weights(module: torch.nn.Module, path: Path) -> None:
    tensors = read_tensors(path, "write it again with safetensors.torch.save_file")
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        # "Error(s) in loading state_dict for Net:", then one indented line per problem
        problem = (str(error).splitlines()[1:] or [str(error)])[0].strip()[:200].rstrip(". ")
        remedy = "save the state_dict of the very module that the factory builds"
        raise ManifestError(path, "the file", f"not this module's weights ({problem})", remedy) from error


# ── the factory ─────────────────────────────────────────────────────────────────────────────────


class _SourceOnlyLoader(SourceFileLoader):
    """Neither reads nor writes bytecode: what runs is what the manifest names, and its directory stays as it is."""

    def path_stats(self, path: Any) -> NoReturn:  # noqa: ARG002 - the base class calls it so
        raise OSError("no bytecode")


def import_function(source: PythonFunction) -> Callable[..., Any]:
    """Import the function's file under a name that nothing else can have; sys.path stays untouched.

    Raises ManifestError.
    """
    name = f"_tensord_model_{next(_imports)}"
    loader = _SourceOnlyLoader(name, str(source.file))
    spec = importlib.util.spec_from_file_location(name, source.file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up there
    try:
        _run_code(source, lambda: loader.exec_module(module))
    except BaseException:
        del sys.modules[name]
        raise
    function = getattr(module, source.function, None)
    if not callable(function):
        raise ManifestError(source.file, f"{source.function}()", "missing", "define it, or correct the manifest")
    return function  # type: ignore[no-any-return]


def _call_factory(factory: PythonFunction) -> torch.nn.Module:
    module = _run_code(factory, import_function(factory))
    if not isinstance(module, torch.nn.Module):
        value = f"returning {type(module).__name__}"
        raise ManifestError(factory.file, f"{factory.function}()", value, "return a torch.nn.Module")
    return module


def _run_code(source: PythonFunction, code: Callable[[], Any]) -> Any:
    try:
        return code()
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        value = f"failing ({reason_of(error)})"
        raise ManifestError(source.file, f"{source.function}()", value, "mend the code") from error
