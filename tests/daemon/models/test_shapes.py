"""Tensors and free dimensions: what a good manifest promises, and the sentence that each mistake gets."""

from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensord.daemon.models.document import Document, read_document
from tensord.daemon.models.dtypes import TORCH_DTYPES
from tensord.daemon.models.errors import ManifestError
from tensord.daemon.models.shapes import BUCKETS_MAX, FLOATS, SIZE_MAX, Shapes, read_shapes
from tensord.ipc.limits import DATA_DIMENSIONS_MAX
from tensord.ipc.tensors import Dimension, DType, TensorSpec

PATH = Path("model.toml")

FULL_TOML = """
format = "factory"

[dimensions.tokens]
max = 100
buckets = [16, 32, 100]

[dimensions.width]
max = 9

[dimensions.found]
max = 20
count = "count"

[[inputs]]
name = "ids"
dtype = "int64"
shape = ["tokens"]
pad = -1

[[inputs]]
name = "image"
dtype = "float32"
shape = [3, "width", "width"]
pad = 0.5

[[inputs]]
name = "mask"
dtype = "bool"
shape = ["tokens"]
mask = "tokens"

[[outputs]]
name = "states"
dtype = "float16"
shape = ["tokens", 2]

[[outputs]]
name = "boxes"
dtype = "float32"
shape = ["found", 4]

[[outputs]]
name = "count"
dtype = "int32"
shape = []
"""


def document_of(toml: str, directory: Path) -> Document:
    (directory / "model.toml").write_text(toml)
    return read_document(directory / "model.toml")


def shapes_of(toml: str, directory: Path) -> Shapes:
    return read_shapes(document_of(toml, directory), PATH)


def refused(toml: str, directory: Path) -> ManifestError:
    document = document_of(toml, directory)
    with pytest.raises(ManifestError) as caught:
        read_shapes(document, PATH)
    return caught.value


def test_a_full_manifest_is_read_as_written(tmp_path: Path) -> None:
    tokens, width, found = Dimension("tokens", 100), Dimension("width", 9), Dimension("found", 20, from_data=True)
    shapes = shapes_of(FULL_TOML, tmp_path)
    assert shapes == Shapes(
        (
            TensorSpec("ids", DType.INT64, (tokens,)),
            TensorSpec("image", DType.FLOAT32, (3, width, width)),
            TensorSpec("mask", DType.BOOL, (tokens,), optional=True),
        ),
        (
            TensorSpec("states", DType.FLOAT16, (tokens, 2)),
            TensorSpec("boxes", DType.FLOAT32, (found, 4)),
            TensorSpec("count", DType.INT32, ()),
        ),
        buckets={"tokens": (16, 32, 100)},
        counts={"found": 2},
        pads=(-1, 0.5, 0),
        masks=(None, None, "tokens"),
    )
    assert shapes.dimensions == (tokens, width)
    assert shapes.data_dimensions == (found,)


def test_a_manifest_without_dimensions_has_none(tmp_path: Path) -> None:
    tensor = '[[{}]]\nname = "x"\ndtype = "uint8"\nshape = [3]\n'
    shapes = shapes_of('format = "export"\n' + tensor.format("inputs") + tensor.format("outputs"), tmp_path)
    spec = TensorSpec("x", DType.UINT8, (3,))
    assert shapes == Shapes((spec,), (spec,), {}, {}, (0,), (None,))
    assert (shapes.dimensions, shapes.data_dimensions) == ((), ())


MISTAKES = {
    "max of 0": ("max = 9", "max = 0", "dimensions.width.max is 0", f"from 1 to {SIZE_MAX}"),
    "max beyond 31 bits": ("max = 9", f"max = {SIZE_MAX + 1}", f"dimensions.width.max is {SIZE_MAX + 1}", "from 1"),
    "max of many digits": ("max = 9", f"max = 0x{'f' * 5000}", "thousands of digits", "from 1"),
    "name with a space": ("[dimensions.width]", '[dimensions."a b"]', "the name of dimensions.a b", "rename the dim"),
    "buckets that fall": ("[16, 32, 100]", "[32, 16, 100]", "dimensions.tokens.buckets is [32, 16, 100]", "rise"),
    "buckets given twice": ("[16, 32, 100]", "[16, 16, 100]", "dimensions.tokens.buckets", "rise"),
    "buckets below max": ("[16, 32, 100]", "[16, 32]", "dimensions.tokens.buckets", "end with max, 100"),
    "buckets beyond max": ("[16, 32, 100]", "[16, 101]", "dimensions.tokens.buckets", "end with max, 100"),
    "a bucket of 0": ("[16, 32, 100]", "[0, 100]", "dimensions.tokens.buckets", "rise"),
    "buckets for a count": ("max = 20", "max = 20\nbuckets = [20]", "dimensions.found.buckets is [20]", "no buckets"),
    "unknown dimension": ('shape = ["tokens", 2]', 'shape = ["words", 2]', "outputs[0].shape", "[dimensions.words]"),
    "unused dimension": ("[dimensions.width]", "[dimensions.more]\nmax = 1\n[dimensions.width]", "not used", "remove"),
    "dimension of outputs only": (
        'shape = ["tokens", 2]',
        'shape = ["depth", 2]\n[dimensions.depth]\nmax = 3',
        "dimensions.depth is in no input that every request carries",
        "count =",
    ),
    "count of an input": (
        'shape = [3, "width", "width"]',
        'shape = ["found"]',
        "dimensions.found.count",
        "leave count",
    ),
    "count that is no output": ('count = "count"', 'count = "counts"', "dimensions.found.count is 'counts'", "boxes"),
    "count of floats": (
        'dtype = "int32"\nshape = []',
        'dtype = "float32"\nshape = []',
        "outputs[2] is count: float32 (rows)",
        "one int32 or int64 per row",
    ),
    "count per entry": (
        'dtype = "int32"\nshape = []',
        'dtype = "int32"\nshape = [1]',
        "outputs[2] is count: int32 (rows, 1)",
        "shape = []",
    ),
    "mask of another shape": (
        'dtype = "bool"\nshape = ["tokens"]',
        'dtype = "bool"\nshape = ["tokens", 1]',
        "inputs[2].shape is ['tokens', 1]",
        "shape = ['tokens']",
    ),
    "mask of a size": ('mask = "tokens"', 'mask = "width"', "inputs[2].shape", "shape = ['width']"),
    "pad of a mask": ('mask = "tokens"', 'mask = "tokens"\npad = true', "inputs[2].pad is True", "leave it out"),
    "pad of no number": ("pad = 0.5", "pad = nan", "inputs[1].pad is nan", "finite number that float32 holds"),
    "infinite pad": ("pad = 0.5", "pad = -inf", "inputs[1].pad is -inf", "finite number that float32 holds"),
    "pad beyond float32": ("pad = 0.5", "pad = 3.5e38", "inputs[1].pad is 3.5e+38", "float32 holds"),
    "pad of many digits": ("pad = 0.5", f"pad = 0x{'f' * 500}", "inputs[1].pad", "float32 holds"),
    "pad with a fraction": ("pad = -1", "pad = 0.5", "inputs[0].pad is 0.5", "int64 holds whole numbers"),
    "pad that is not finite": ("pad = -1", "pad = inf", "inputs[0].pad is inf", "int64 holds whole numbers"),
    "pad beyond 64 bits": ("pad = -1", f"pad = {2**63}", "inputs[0].pad", f"to {2**63 - 1}"),
    "row above 1 GiB": ("max = 9", "max = 9460", "inputs[1].shape", "up to 1073741824 bytes"),
}


@pytest.mark.parametrize(("old", "new", "what", "remedy"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_one_sentence_with_key_and_remedy(
    tmp_path: Path, old: str, new: str, what: str, remedy: str
) -> None:
    assert FULL_TOML.count(old) == 1
    error = refused(FULL_TOML.replace(old, new), tmp_path)
    assert what in str(error)
    assert remedy in error.remedy
    assert str(error).isprintable()


def test_a_size_that_only_a_mask_has_is_refused(tmp_path: Path) -> None:
    toml = FULL_TOML.replace('dtype = "int64"\nshape = ["tokens"]', 'dtype = "int64"\nshape = [5]')
    error = refused(toml, tmp_path)
    assert (error.key, error.value) == ("dimensions.tokens", "in no input that every request carries")


def test_masks_alone_are_no_request(tmp_path: Path) -> None:
    document = document_of(FULL_TOML, tmp_path)
    with pytest.raises(ManifestError, match="in no input that every request carries"):
        read_shapes(msgspec.structs.replace(document, inputs=document.inputs[2:]), PATH)


def test_a_size_that_comes_from_the_data_may_be_that_of_several_outputs(tmp_path: Path) -> None:
    toml = FULL_TOML + '[[outputs]]\nname = "scores"\ndtype = "float32"\nshape = ["found", "tokens"]\n'
    assert shapes_of(toml, tmp_path).counts == {"found": 2}


def test_several_sizes_may_be_counted_by_outputs_of_their_own(tmp_path: Path) -> None:
    dimension = '[dimensions.d{0}]\nmax = 3\ncount = "n{0}"\n'
    tensors = '[[outputs]]\nname = "y{0}"\ndtype = "int8"\nshape = ["d{0}"]\n'
    tensors += '[[outputs]]\nname = "n{0}"\ndtype = "int64"\nshape = []\n'

    def with_more(count: int) -> str:
        return FULL_TOML + "".join((dimension + tensors).format(index) for index in range(count))

    most = shapes_of(with_more(DATA_DIMENSIONS_MAX - 1), tmp_path)
    assert most.counts == {"found": 2, "d0": 4, "d1": 6, "d2": 8}
    assert [each.name for each in most.data_dimensions] == ["found", "d0", "d1", "d2"]
    error = refused(with_more(DATA_DIMENSIONS_MAX), tmp_path)
    assert (error.value, error.remedy) == ("5 with a count", "a model has at most 4")


def test_buckets_of_all_dimensions_together_are_bounded(tmp_path: Path) -> None:
    def with_buckets(count: int) -> str:
        toml = FULL_TOML.replace("max = 9", f"max = {count}\nbuckets = {list(range(1, count + 1))}")
        return toml.replace("[16, 32, 100]", "[100]")

    assert len(shapes_of(with_buckets(BUCKETS_MAX - 1), tmp_path).buckets["width"]) == BUCKETS_MAX - 1
    error = refused(with_buckets(BUCKETS_MAX), tmp_path)
    assert (error.key, error.value) == ("dimensions", f"{BUCKETS_MAX + 1} buckets")


def test_the_largest_row_counts_where_sizes_are_free(tmp_path: Path) -> None:
    largest = FULL_TOML.replace("max = 9", "max = 9459")
    assert shapes_of(largest, tmp_path).inputs[1].row_bytes == 3 * 9459**2 * 4 <= 1024**3


# ── labels ──────────────────────────────────────────────────────────────────────────────────────


def test_labels_of_whole_numbers_name_values_and_may_be_any_number(tmp_path: Path) -> None:
    toml = FULL_TOML + '[[outputs]]\nname = "class"\ndtype = "int64"\nshape = ["found"]\nlabels = ["cat", "dog"]\n'
    assert shapes_of(toml, tmp_path).outputs[3].labels == ("cat", "dog")


def test_labels_of_scores_name_the_elements_of_a_fixed_dimension(tmp_path: Path) -> None:
    toml = FULL_TOML + '[[outputs]]\nname = "p"\ndtype = "float32"\nshape = ["found", 2]\nlabels = ["cat", "dog"]\n'
    assert shapes_of(toml, tmp_path).outputs[3].labels == ("cat", "dog")
    error = refused(toml.replace('["found", 2]', '[2, "found"]'), tmp_path)
    assert (error.key, error.value) == ("outputs[3].labels", "a list of 2")


# ── padding ─────────────────────────────────────────────────────────────────────────────────────

INTEGER_RANGES = {
    DType.BOOL: (0, 1),
    DType.UINT8: (0, 255),
    DType.INT8: (-128, 127),
    DType.INT16: (-(2**15), 2**15 - 1),
    DType.INT32: (-(2**31), 2**31 - 1),
    DType.INT64: (-(2**63), 2**63 - 1),
}


def with_pad(dtype: DType, pad: object) -> str:
    return FULL_TOML.replace(
        'dtype = "float32"\nshape = [3, "width"', f'dtype = "{dtype.label}"\nshape = [1, "width"', 1
    ).replace("pad = 0.5", f"pad = {pad}")


@pytest.mark.parametrize("dtype", INTEGER_RANGES)
def test_an_integer_input_is_padded_with_what_its_type_holds(tmp_path: Path, dtype: DType) -> None:
    low, high = INTEGER_RANGES[dtype]
    for pad in (low, high):
        read = shapes_of(with_pad(dtype, pad), tmp_path).pads[1]
        assert torch.full((1,), read, dtype=TORCH_DTYPES[dtype]).tolist() == [pad]
    for pad in (low - 1, high + 1):
        assert (
            refused(with_pad(dtype, pad), tmp_path).remedy == f"{dtype.label} holds whole numbers from {low} to {high}"
        )


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_floating_input_is_padded_with_what_its_type_holds(tmp_path: Path, dtype: DType) -> None:
    largest = torch.finfo(TORCH_DTYPES[dtype]).max
    for pad in (largest, -largest, 1):
        read = shapes_of(with_pad(dtype, repr(pad)), tmp_path).pads[1]
        assert torch.full((1,), read, dtype=TORCH_DTYPES[dtype]).tolist() == [pad]
    for wrong in ("inf", "nan", 2 * int(largest), -2 * int(largest)):
        assert refused(with_pad(dtype, wrong), tmp_path).key == "inputs[1].pad"


def test_truth_values_are_padded_with_truth_values(tmp_path: Path) -> None:
    assert [shapes_of(with_pad(DType.BOOL, pad), tmp_path).pads[1] for pad in ("true", "false")] == [1, 0]


numbers = st.integers() | st.floats() | st.booleans()


@settings(deadline=None)
@given(st.sampled_from(DType), numbers)
def test_any_pad_is_refused_or_fills_a_tensor(
    tmp_path_factory: pytest.TempPathFactory, dtype: DType, pad: float
) -> None:
    document = document_of(FULL_TOML, tmp_path_factory.getbasetemp())
    changed = msgspec.structs.replace(document.inputs[0], dtype=dtype.label, pad=pad)
    try:
        shapes = read_shapes(msgspec.structs.replace(document, inputs=(changed, *document.inputs[1:])), PATH)
    except ManifestError as error:
        assert error.key == "inputs[0].pad"  # noqa: PT017 - most pads are refused, not all
        return
    filled = torch.full((1,), shapes.pads[0], dtype=TORCH_DTYPES[dtype])
    assert filled.isfinite().all()
    if dtype in INTEGER_RANGES:
        assert filled.tolist() == [pad]
