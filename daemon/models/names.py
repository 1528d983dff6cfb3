"""Names that stand in paths, frames and knobs: what they may be made of."""

import re
from pathlib import Path
from typing import Final

from tensord.ipc.limits import NAME_BYTES_MAX

from .errors import ManifestError, shown

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_name(path: Path, key: str, name: str, remedy: str) -> None:
    """Raise ManifestError for a name that no model, tensor or dimension may have."""
    if not NAME.fullmatch(name) or len(name) > NAME_BYTES_MAX:
        allowed = f"a name is up to {NAME_BYTES_MAX} of A-Z a-z 0-9 _ . -, and starts with a letter or digit"
        raise ManifestError(path, key, shown(name), f"{allowed}; {remedy}")
