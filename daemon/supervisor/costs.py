"""What was learned of the models' execution times, kept for the next front end and for the next start.

A file of the state directory holds a snapshot per model version. It is a help and never a need: what cannot be read
is left alone and said once, and the daemon learns anew.
"""

import contextlib
import os
from pathlib import Path
from typing import Any, Final

import msgspec

FILE_NAME: Final = "costs.json"
FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A thousand models with as many lines as they may have; a longer file is not ours."""

UNKNOWN_MAX: Final = 1024
"""Snapshots kept of models that are not served now: they may come back."""

Lines = list[dict[str, Any]]
"""One dictionary per bucket and device; scheduling/cost.py knows what is in it."""

_decoder = msgspec.json.Decoder(dict[str, Lines])


class Costs:
    """Snapshots by model version, `digits:1`."""

    def __init__(self, directory: Path | None) -> None:
        """Without a directory they are kept for the next front end only."""
        self._path = directory / FILE_NAME if directory else None
        self._lines: dict[str, Lines] = {}

    def load(self) -> str:
        """Read the file if there is one; what an operator should know of it, or nothing."""
        if self._path is None:
            return ""
        try:
            with self._path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
            if len(content) > FILE_BYTES_MAX:
                raise msgspec.DecodeError(f"longer than {FILE_BYTES_MAX} bytes")
            self._lines = _decoder.decode(content)
        except FileNotFoundError:
            return ""
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            return f"{self._path}: not read ({error}): execution times are learned anew"
        return ""

    def of(self, model: str) -> Lines:
        """What is known of a model version; empty for nothing."""
        return self._lines.get(model, [])

    def learned(self, model: str, lines: Lines) -> None:
        """A front end has learned this."""
        self._lines.pop(model, None)
        self._lines[model] = lines
        while len(self._lines) > UNKNOWN_MAX:
            del self._lines[next(iter(self._lines))]

    def content(self) -> bytes:
        """What `write` takes: to be made in the loop, and written elsewhere."""
        return msgspec.json.encode(self._lines)

    def write(self, content: bytes) -> str:
        """Replace the file, whole or not at all; what an operator should know, or nothing. May wait for the disk."""
        if self._path is None:
            return ""
        fresh = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            fresh.write_bytes(content)
            fresh.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            return f"{self._path}: not written ({error.strerror}): execution times will be learned anew"
        return ""
