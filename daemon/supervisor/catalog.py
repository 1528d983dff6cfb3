"""The models that this instance serves: an index for each version, and who is `stable`. Pure."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from .. import messages as m
from ..exits import Exit
from ..models.manifest import Manifest
from ..models.repository import Repository
from ..users import Access
from .failures import InstanceFailure

MODELS_SPARE: Final = 8
"""Room in the statistics pages beyond the models found at start."""


class Catalog:
    """Model versions by index. Indices are never reused while the instance lives."""

    def __init__(self, root: Path, repository: Repository, access: Mapping[str, Access] = MappingProxyType({})) -> None:
        """Raises InstanceFailure for a repository with a broken version, or with none at all."""
        if repository.broken:
            raise InstanceFailure(Exit.MODELS, str(repository.broken[0]))
        if not repository.manifests:
            sentence = f"{root} holds no model: put one into {root}/NAME/1, or set [daemon] models"
            raise InstanceFailure(Exit.MODELS, sentence)
        self.root = root
        self._access = access
        self._manifests = dict(enumerate(repository.manifests))
        self._stable = {manifest.name: manifest.version for manifest in repository.manifests}

    @property
    def models_max(self) -> int:
        """Models that the statistics pages have room for."""
        return len(self._manifests) + MODELS_SPARE

    @property
    def names(self) -> list[str]:
        """Names of all models, sorted."""
        return sorted(self._stable)

    def manifest(self, index: int) -> Manifest:
        """The manifest of the version with this index."""
        return self._manifests[index]

    def labels(self, manifest: Manifest) -> tuple[str, ...]:
        """Labels of a version: the highest version is `stable`."""
        return ("stable",) if self._stable[manifest.name] == manifest.version else ()

    def served(self) -> list[m.ModelServed]:
        """All versions, as the front end is told of them."""
        return [
            m.ModelServed(
                index,
                manifest.name,
                manifest.version,
                self.labels(manifest),
                tuple(map(m.TensorInfo.of, manifest.inputs)),
                tuple(map(m.TensorInfo.of, manifest.outputs)),
                manifest.idempotent,
                manifest.shapes.buckets,
                manifest.shapes.counts,
                self._access.get(manifest.name, Access()),
            )
            for index, manifest in self._manifests.items()
        ]

    def orders(self) -> list[m.LoadModel]:
        """What every worker is told to load."""
        return [
            m.LoadModel(index, str(self.root), manifest.name, manifest.version)
            for index, manifest in self._manifests.items()
        ]

    def manifests(self) -> dict[int, Manifest]:
        """All, by index."""
        return dict(self._manifests)
