"""The models as the front end knows them: names, versions, labels, and what is computed once per model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tensord.ipc.errors import UnknownModel
from tensord.ipc.limits import PARTS_MAX
from tensord.ipc.tensors import ModelSpec, free_dimensions
from tensord.ipc.wire import Lane, ModelEntry, TensorHeader

from ..messages import ModelServed
from .forms import Form, FormCache
from .users import Credentials

if TYPE_CHECKING:
    from .cache.response_cache import ModelCache

KNOWN_MODELS_SHOWN: Final = 20

RESULT_HEADERS_MAX: Final = 4_096
"""Row counts and sizes for which the headers of inline results are remembered per model."""


class Model:
    """One served model version."""

    __slots__ = (
        "_inline_headers",
        "access",
        "batch_rows",
        "buckets",
        "cache",
        "counts",
        "data_dimensions",
        "dimensions",
        "forms",
        "idempotent",
        "index",
        "inputs",
        "is_ragged",
        "labels",
        "name",
        "outputs",
        "replicas",
        "rows_max",
        "timeout_ns",
        "version",
    )

    def __init__(self, served: ModelServed) -> None:
        self.index = served.index
        self.name = served.name
        self.version = served.version
        self.labels = served.labels
        self.inputs = tuple(info.spec for info in served.inputs)
        self.outputs = tuple(info.spec for info in served.outputs)
        self.dimensions = free_dimensions(self.inputs)
        """Free dimensions whose sizes come with a request."""
        self.data_dimensions = tuple(each for each in free_dimensions(self.outputs) if each.from_data)
        """Those whose sizes come from the data."""
        self.is_ragged = bool(self.dimensions or self.data_dimensions)
        self.buckets: Mapping[str, tuple[int, ...]] = served.buckets
        self.counts = served.counts
        self.idempotent = served.idempotent
        self.access = served.access
        self.replicas: set[int] = set()
        """Workers that have it ready."""
        self.rows_max = 1
        """Of one request."""
        self.batch_rows = 1
        """Of one batch: larger requests are cut."""
        self.timeout_ns = 0
        self.cache: ModelCache | None = None
        """Its kept answers; None where none are kept."""
        self.forms = FormCache()
        self._inline_headers: dict[tuple[int, tuple[int, ...]], bytes] = {}

    @property
    def spec(self) -> ModelSpec:
        """What clients are told."""
        return ModelSpec(self.name, self.version, self.inputs, self.outputs, self.rows_max, self.idempotent)

    def apply(self, values: Mapping[str, Any]) -> None:
        """Take over the values of the model's knobs that the front end itself uses.

        What would never find room in its queue is too large, and not told to come again.
        """
        self.batch_rows = int(values["max_batch"])
        parts_max = 1 if self.data_dimensions else PARTS_MAX  # one size from the data is that of all rows
        percent = values["tenant_queue_percent"]
        parts_max = min(parts_max, max(1, values["queue_max"] * percent // 100))
        waiting_max = max(self.batch_rows, values["queue_rows_max"] * percent // 100)
        self.rows_max = min(int(values["rows_max"]), parts_max * self.batch_rows, waiting_max)
        self.timeout_ns = int(values["timeout_ms"]) * 1_000_000

    def result_headers(self, form: Form, data_sizes: Sequence[int] = ()) -> bytes:
        """Tensor headers of the RESULT of a request of this form; sizes from the data in `data_dimensions`' order."""
        if form.output_places or data_sizes:
            return self._result_headers_of(form, data_sizes)
        key = (form.rows, form.sizes)
        headers = self._inline_headers.get(key)
        if headers is None:
            headers = self._result_headers_of(form, data_sizes)
            if len(self._inline_headers) < RESULT_HEADERS_MAX:
                self._inline_headers[key] = headers
        return headers

    def sizes(self, form: Form, data_sizes: Sequence[int]) -> dict[str, int]:
        """All sizes of a result by name."""
        return {
            **{each.name: size for each, size in zip(self.dimensions, form.sizes, strict=True)},
            **{each.name: size for each, size in zip(self.data_dimensions, data_sizes, strict=True)},
        }

    def _result_headers_of(self, form: Form, data_sizes: Sequence[int]) -> bytes:
        places = {place.tensor: place for place in form.output_places}
        sizes = self.sizes(form, data_sizes)
        headers = []
        for index, spec in enumerate(self.outputs):
            shape = spec.batch_shape(form.rows, sizes)
            nbytes = spec.nbytes(form.rows, sizes)
            place = places.get(index)
            header = (
                TensorHeader(index, spec.dtype, shape, nbytes)
                if place is None
                else TensorHeader(index, spec.dtype, shape, nbytes, Lane.ARENA, place.arena, place.offset)
            )
            headers.append(header.encode())
        return b"".join(headers)


class Models:
    """All served models, by index and by the names that clients may use."""

    def __init__(self) -> None:
        self.by_index: dict[int, Model] = {}
        self._by_name: dict[str, Model] = {}

    def add(self, served: ModelServed) -> Model:
        """Serve a model version. Its labels move to it; the plain name follows the label `stable`."""
        model = Model(served)
        self.by_index[served.index] = model
        self._by_name[f"{model.name}:{model.version}"] = model
        for label in served.labels:
            self._by_name[f"{model.name}:{label}"] = model
            if label == "stable":
                self._by_name[model.name] = model
        return model

    def find(self, name: str) -> Model:
        """The model called `name`, `name:version` or `name:label` now. Raises UnknownModel."""
        model = self._by_name.get(name)
        if model is None:
            known = sorted({model.name for model in self.by_index.values()})
            raise UnknownModel(name, known[:KNOWN_MODELS_SHOWN])
        return model

    def entries(self, credentials: Credentials) -> list[ModelEntry]:
        """What LIST answers: the models that this user may use."""
        permitted = [
            model for model in self.by_index.values() if model.access.permits(credentials.uid, credentials.gids)
        ]
        models = sorted(permitted, key=lambda model: (model.name, model.version))
        return [ModelEntry(model.name, model.version, bool(model.replicas)) for model in models]
