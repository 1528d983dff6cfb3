"""Which models there are: a scan of `<root>/<name>/<version>/model.toml`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import ManifestError
from .files import refuse_writable_by_all
from .manifest import MANIFEST_NAME, Manifest, is_version, read_manifest


@dataclass(frozen=True, slots=True)
class Repository:
    """The outcome of one scan."""

    manifests: tuple[Manifest, ...]
    """All good versions, by name and then by rising version."""
    broken: tuple[ManifestError, ...]
    """What cannot be served, in the order in which the scan met it. An unusable root is the only entry."""

    def latest(self, name: str) -> Manifest | None:
        """The good version of `name` with the highest number, or None."""
        return max((m for m in self.manifests if m.name == name), key=lambda m: m.version, default=None)


def scan(root: Path) -> Repository:
    """Read every manifest below `root`, and never raise ManifestError: one broken model does not hide the others.

    Files, hidden directories, and inside a model directory all that is not named by a version number,
    are ignored.
    """
    manifests: list[Manifest] = []
    broken: list[ManifestError] = []
    try:
        models = _directories(root)
    except ManifestError as error:
        return Repository((), (error,))
    for model in models:
        try:
            versions = _versions(model)
        except ManifestError as error:
            broken.append(error)
            continue
        for version in versions:
            try:
                manifests.append(read_manifest(version))
            except ManifestError as error:
                broken.append(error)
    return Repository(tuple(manifests), tuple(broken))


def _versions(model: Path) -> list[Path]:
    """The version directories of one model, rising. Raises ManifestError when there is none."""
    versions = sorted((path for path in _directories(model) if is_version(path.name)), key=lambda path: int(path.name))
    if not versions:
        remedy = f"a model needs a version directory named by a whole number, such as {model.name}/1/{MANIFEST_NAME}"
        raise ManifestError(model, "the directory", "without a version", remedy)
    return versions


def _directories(path: Path) -> list[Path]:
    """The directories in `path` by name, without hidden ones. Raises ManifestError where `path` is unusable."""
    try:
        names = sorted(_visible_directories(path))
    except OSError as error:
        remedy = f"name a readable directory of models ({error.strerror})"
        raise ManifestError(path, "the directory", "not readable", remedy) from error
    # Whoever may write here may add or replace code that the daemon runs.
    refuse_writable_by_all(path)
    return [path / name for name in names]


def _visible_directories(path: Path) -> Iterator[str]:
    return (entry.name for entry in path.iterdir() if not entry.name.startswith(".") and entry.is_dir())
