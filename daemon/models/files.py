"""Which files of a model may be read at all: those in its version directory that not everybody may change."""

import os
import shlex
import stat
from pathlib import Path, PurePosixPath

from .errors import ManifestError, shown


def file_inside(directory: Path, name: str, manifest: Path, key: str) -> Path:
    """The regular file `name` below the version directory.

    `name` stands at `key` of the manifest. Raises ManifestError when the name is not a plain relative one,
    when a symbolic link leads out of the directory, when there is no such file, or when every user could
    change it (or a folder between it and the version directory).
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or not name.isprintable():
        raise ManifestError(manifest, key, shown(name), "name a file inside the version directory, without '..'")
    try:
        root = os.path.realpath(directory, strict=True)
        real = os.path.realpath(directory / name, strict=True)
    except OSError as error:
        remedy = f"it cannot be opened in {directory} ({error.strerror}); put the file there or correct the name"
        raise ManifestError(manifest, key, shown(name), remedy) from error
    if os.path.commonpath((root, real)) != root:
        remedy = "it is a symbolic link out of the version directory; put the file itself there"
        raise ManifestError(manifest, key, shown(name), remedy)
    if not os.path.isfile(real):
        raise ManifestError(manifest, key, shown(name), "it is not a regular file; name one")
    for path in (Path(real), *Path(real).parents):
        if path == Path(root):
            break
        refuse_writable_by_all(path)
    return directory / name


def refuse_writable_by_all(path: Path) -> None:
    """Raise ManifestError when every user may write to `path`: the daemon runs the code that it finds there."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        remedy = f"make it readable for the daemon's user ({error.strerror})"
        raise ManifestError(path, "the path", "not accessible", remedy) from error
    if mode & stat.S_IWOTH:
        remedy = f"every user could change what the daemon runs; chmod o-w {shlex.quote(str(path))}"
        raise ManifestError(path, "its mode", f"{mode:04o}", remedy)
