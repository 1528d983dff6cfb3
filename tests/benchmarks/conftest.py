"""The package `benchmarks`, importable without the repository's root on the path, and its compiled programs."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _import_package() -> None:
    """With the root on the path `ipc` and `daemon` would be importable a second time, as other modules."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["benchmarks"])


_import_package()


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of `load` and `echo`, compiled by the Makefile, where a warning is an error."""
    from benchmarks import generator

    return generator.build()
