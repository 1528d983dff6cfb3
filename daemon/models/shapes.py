"""What a model takes and gives, as its manifest promises it: tensors, free dimensions, padding. Checked without torch.

A *free dimension* has another size in each request. One that an input has comes with the request; requests share
a batch when their sizes fall into the same buckets, and are padded to it. One that only outputs have comes from the
data: an output counts for each row how many entries are real.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from tensord.ipc.limits import DATA_DIMENSIONS_MAX, LABELS_MAX, NAME_BYTES_MAX, TENSOR_DIMENSIONS_MAX, TENSORS_MAX
from tensord.ipc.tensors import DTYPES_BY_LABEL, Dimension, DType, TensorSpec, free_dimensions

from .document import DimensionTable, Document, InputTable, OutputTable, TensorTable
from .errors import ManifestError, shown
from .names import check_name

ROW_BYTES_MAX: Final = 1024**3
"""Bytes of one row of one tensor, 1 GiB: an arena must hold some. A larger row is a ManifestError."""

SIZE_MAX: Final = 2**31 - 1
"""Largest size of a free dimension: it travels to the worker as u32."""

BUCKETS_MAX: Final = 4_096
"""Buckets of all dimensions of a model together: 20 KiB of the message that tells the front end of it. More is a
ManifestError."""

FLOATS: Final = {
    DType.FLOAT16: 65504.0,
    DType.BFLOAT16: float.fromhex("0x1.fep127"),
    DType.FLOAT32: float.fromhex("0x1.fffffep127"),
    DType.FLOAT64: sys.float_info.max,
}
"""The floating types, each with the largest number that it holds."""

INTEGER_BITS: Final = {DType.INT8: 8, DType.INT16: 16, DType.INT32: 32, DType.INT64: 64}


@dataclass(frozen=True, slots=True)
class Shapes:
    """The tensors of a model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buckets: dict[str, tuple[int, ...]]
    """Sizes that a free dimension of the inputs is padded to, rising to its maximum; others are never padded."""
    counts: dict[str, int]
    """Of each dimension that comes from the data: index of the output that counts the real entries of a row."""
    pads: tuple[float, ...]
    """Of each input: what padding holds."""
    masks: tuple[str | None, ...]
    """Of each input: the dimension whose real elements it marks with 1, where a request may leave it out."""

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The free dimensions whose sizes come with a request."""
        return free_dimensions(self.inputs)

    @property
    def data_dimensions(self) -> tuple[Dimension, ...]:
        """The free dimensions whose sizes come from the data."""
        return tuple(each for each in free_dimensions(self.outputs) if each.from_data)


def read_shapes(document: Document, path: Path) -> Shapes:
    """Check the tensors and dimensions of a manifest. Raises ManifestError at the first thing that is wrong."""
    tables = document.dimensions
    dimensions = {name: _dimension(name, table, path) for name, table in tables.items()}
    inputs = _tensors("inputs", document.inputs, dimensions, path)
    outputs = _tensors("outputs", document.outputs, dimensions, path)
    masks = tuple(_mask(f"inputs[{index}]", table, path) for index, table in enumerate(document.inputs))
    _check_use(tables, inputs, outputs, path)
    return Shapes(
        inputs,
        outputs,
        {name: table.buckets for name, table in tables.items() if table.buckets},
        {name: _count(name, table.count, outputs, path) for name, table in tables.items() if table.count is not None},
        tuple(_pad(f"inputs[{index}]", table, path) for index, table in enumerate(document.inputs)),
        masks,
    )


# ── dimensions ──────────────────────────────────────────────────────────────────────────────────


def _dimension(name: str, table: DimensionTable, path: Path) -> Dimension:
    key = f"dimensions.{name}"
    check_name(path, f"the name of {key}", name, "rename the dimension")
    if not 1 <= table.max <= SIZE_MAX:
        raise ManifestError(path, f"{key}.max", shown(table.max), f"use a number from 1 to {SIZE_MAX}")
    buckets = table.buckets
    if buckets:
        rising = all(smaller < larger for smaller, larger in pairwise(buckets))
        if buckets[0] < 1 or buckets[-1] != table.max or not rising:
            remedy = f"give sizes that rise and end with max, {table.max}; leave them out for batches without padding"
            raise ManifestError(path, f"{key}.buckets", shown(list(buckets)), remedy)
        if table.count is not None:
            remedy = "a size that comes from the data has no buckets; leave them out"
            raise ManifestError(path, f"{key}.buckets", shown(list(buckets)), remedy)
    return Dimension(name, table.max, table.count is not None)


def _check_use(
    tables: Mapping[str, DimensionTable],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    path: Path,
) -> None:
    """Every dimension has a source: an input that each request carries, or the data."""
    carried = {each.name for each in free_dimensions([spec for spec in inputs if not spec.optional])}
    for dimension in free_dimensions(inputs, outputs):
        if dimension.from_data and dimension in free_dimensions(inputs):
            remedy = "an input's size comes with the request; leave count out"
            raise ManifestError(path, f"dimensions.{dimension.name}.count", shown(dimension.name), remedy)
        if not dimension.from_data and dimension.name not in carried:
            value = "in no input that every request carries"
            remedy = 'where the model decides, name the output that counts: count = "…"'
            raise ManifestError(path, f"dimensions.{dimension.name}", value, remedy)
    used = {each.name for each in free_dimensions(inputs, outputs)}
    for name in tables:
        if name not in used:
            raise ManifestError(path, f"dimensions.{name}", "not used by any tensor", "use it in a shape, or remove it")
    buckets = sum(len(table.buckets) for table in tables.values())
    if buckets > BUCKETS_MAX:
        raise ManifestError(path, "dimensions", f"{buckets} buckets", f"a model has at most {BUCKETS_MAX}")
    data = sum(table.count is not None for table in tables.values())
    if data > DATA_DIMENSIONS_MAX:
        raise ManifestError(path, "dimensions", f"{data} with a count", f"a model has at most {DATA_DIMENSIONS_MAX}")


def _count(name: str, count: str | None, outputs: Sequence[TensorSpec], path: Path) -> int:
    for index, spec in enumerate(outputs):
        if spec.name == count:
            if spec.dtype not in (DType.INT32, DType.INT64) or spec.shape:
                remedy = "one int32 or int64 per row counts: shape = []"
                raise ManifestError(path, f"outputs[{index}]", str(spec), remedy)
            return index
    remedy = f"name one of the outputs {', '.join(spec.name for spec in outputs)}"
    raise ManifestError(path, f"dimensions.{name}.count", shown(count), remedy)


# ── tensors ─────────────────────────────────────────────────────────────────────────────────────


def _tensors(
    key: str, tables: Sequence[TensorTable], dimensions: Mapping[str, Dimension], path: Path
) -> tuple[TensorSpec, ...]:
    if not 1 <= len(tables) <= TENSORS_MAX:
        raise ManifestError(path, key, f"a list of {len(tables)}", f"a model has 1 to {TENSORS_MAX} {key}")
    specs = tuple(_tensor(f"{key}[{index}]", table, dimensions, path) for index, table in enumerate(tables))
    names = [spec.name for spec in specs]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ManifestError(path, f"{key}[{index}].name", shown(name), f"{key} must have different names")
    return specs


def _tensor(key: str, table: TensorTable, dimensions: Mapping[str, Dimension], path: Path) -> TensorSpec:
    check_name(path, f"{key}.name", table.name, "rename the tensor")
    dtype = DTYPES_BY_LABEL.get(table.dtype)
    if dtype is None:
        raise ManifestError(path, f"{key}.dtype", shown(table.dtype), f"use one of {', '.join(DTYPES_BY_LABEL)}")
    fixed = [each for each in table.shape if isinstance(each, int)]
    if len(table.shape) >= TENSOR_DIMENSIONS_MAX or min(fixed, default=1) < 1:
        remedy = f"the shape of one row has up to {TENSOR_DIMENSIONS_MAX - 1} dimensions of at least 1"
        raise ManifestError(path, f"{key}.shape", shown(list(table.shape)), remedy)
    if unknown := [each for each in table.shape if isinstance(each, str) and each not in dimensions]:
        raise ManifestError(path, f"{key}.shape", shown(list(table.shape)), f"add [dimensions.{unknown[0]}] with a max")
    shape = tuple(dimensions[each] if isinstance(each, str) else each for each in table.shape)
    labels = _labels(key, table, dtype, path) if isinstance(table, OutputTable) else ()
    optional = isinstance(table, InputTable) and table.mask is not None
    spec = TensorSpec(table.name, dtype, shape, labels, optional)
    if spec.row_bytes > ROW_BYTES_MAX:
        remedy = f"one row may have up to {ROW_BYTES_MAX} bytes"
        raise ManifestError(path, f"{key}.shape", shown(list(table.shape)), remedy)
    return spec


def _labels(key: str, table: OutputTable, dtype: DType, path: Path) -> tuple[str, ...]:
    labels = table.labels
    if not labels:
        return ()
    last = table.shape[-1] if table.shape else 0
    of_values = dtype in INTEGER_BITS or dtype is DType.UINT8
    if len(labels) > LABELS_MAX or (len(labels) != last and not of_values):
        remedy = f"give one label for each of the {last} elements of the last dimension, at most {LABELS_MAX}"
        raise ManifestError(path, f"{key}.labels", f"a list of {len(labels)}", remedy)
    for index, label in enumerate(labels):
        if len(label.encode()) > NAME_BYTES_MAX:
            remedy = f"a label has up to {NAME_BYTES_MAX} bytes"
            raise ManifestError(path, f"{key}.labels[{index}]", shown(label), remedy)
    return labels


def _mask(key: str, table: InputTable, path: Path) -> str | None:
    if table.mask is not None and table.shape != (table.mask,):
        remedy = f"a mask has one dimension, the one it masks: shape = [{shown(table.mask)}]"
        raise ManifestError(path, f"{key}.shape", shown(list(table.shape)), remedy)
    return table.mask


def _pad(key: str, table: InputTable, path: Path) -> float:
    """A number that the input's type can hold."""
    pad, dtype = table.pad, DTYPES_BY_LABEL[table.dtype]
    if table.mask is not None and pad:
        raise ManifestError(path, f"{key}.pad", shown(pad), "a mask is padded with 0; leave it out")
    if dtype in FLOATS:
        if not abs(pad) <= FLOATS[dtype]:
            raise ManifestError(path, f"{key}.pad", shown(pad), f"use a finite number that {table.dtype} holds")
        return float(pad)
    low, high = 0, 1
    if dtype is DType.UINT8:
        high = 255
    elif dtype in INTEGER_BITS:
        high = 2 ** (INTEGER_BITS[dtype] - 1) - 1
        low = -high - 1
    if pad != pad // 1 or not low <= pad <= high:
        raise ManifestError(path, f"{key}.pad", shown(pad), f"{table.dtype} holds whole numbers from {low} to {high}")
    return int(pad)
