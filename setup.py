"""Compiles the modules that every request passes, where it is asked to: TENSORD_COMPILED=1 (docs/decisions/0013).

Everything else about the package stands in pyproject.toml. Without the variable nothing is compiled and nothing but
setuptools is needed: the same sources then run as they are.
"""

import os
from pathlib import Path

from setuptools import setup

SOURCES = Path("src/tensord")

COMPILED = {
    "ipc": "allocator descriptors doorbell ring statistics wire",
    "daemon/scheduling": "*",
    "daemon/scheduling/balance": "*",
    "daemon/frontend": "client_arenas connection forms ingest models parts replies requests server streams users "
    "worker_port",
    "daemon/frontend/cache": "answers flights key response_cache",
    "daemon/simulation": "parts request",
}
"""Modules by folder. They are compiled together, so that they call each other without the interpreter."""


def paths() -> list[str]:
    """Of the modules that are compiled."""
    found = []
    for folder, names in COMPILED.items():
        for name in names.split():
            found += sorted(str(path) for path in (SOURCES / folder).glob(f"{name}.py") if path.stem != "__init__")
    return found


if os.environ.get("TENSORD_COMPILED") == "1":
    from mypyc.build import mypycify

    options = ["--config-file=", "--explicit-package-bases", "--ignore-missing-imports", "--follow-imports=silent"]
    os.environ.setdefault("MYPYPATH", "src")
    setup(ext_modules=mypycify([*options, *paths()], opt_level="3", debug_level="0", group_name="tensord"))
else:
    setup()
