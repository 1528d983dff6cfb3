import pytest
import torch

from tensord.daemon.models.dtypes import TORCH_DTYPES, form_of, has_form, promised_form
from tensord.ipc.tensors import Dimension, DType, TensorSpec

LENGTH = Dimension("length", 8)
PLAIN = TensorSpec("x", DType.FLOAT32, (2, 3))
FREE = TensorSpec("ids", DType.INT64, (LENGTH, 2))


@pytest.mark.parametrize("dtype", DType)
def test_a_type_has_the_same_name_and_size_in_torch(dtype: DType) -> None:
    assert str(TORCH_DTYPES[dtype]) == f"torch.{dtype.label}"
    assert TORCH_DTYPES[dtype].itemsize == dtype.itemsize


def test_a_tensor_as_promised_is_told_as_promised() -> None:
    assert form_of(torch.zeros(4, 2, 3)) == promised_form(PLAIN, 4) == "float32 (4, 2, 3)"
    sized = torch.zeros(1, 5, 2, dtype=torch.int64)
    assert form_of(sized) == promised_form(FREE, 1, {"length": 5}) == "int64 (1, 5, 2)"
    assert form_of(torch.zeros(7)) == promised_form(TensorSpec("y", DType.FLOAT32, ()), 7) == "float32 (7)"


def test_a_free_dimension_without_a_size_is_told_by_its_name_and_largest() -> None:
    assert promised_form(FREE, 3) == "int64 (3, length ≤ 8, 2)"


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(4, 2, 3), True),
        (torch.zeros(4, 3, 2).transpose(1, 2), True),
        (torch.zeros(4, 2, 3, dtype=torch.float64), False),
        (torch.zeros(4, 2, 3).to_sparse(), False),
        (torch.zeros(4, 6), False),
        (torch.zeros(4, 2, 3, 1), False),
        (torch.zeros(5, 2, 3), False),
        (torch.zeros(4, 2, 4), False),
    ],
)
def test_a_dense_tensor_of_type_and_shape_has_the_form(tensor: torch.Tensor, expected: bool) -> None:
    assert has_form(tensor, PLAIN, 4) is expected


@pytest.mark.parametrize(
    ("length", "sizes", "expected"),
    [(5, {"length": 5}, True), (4, {"length": 5}, False), (0, {}, True), (8, {}, True), (9, {}, False)],
)
def test_a_free_dimension_has_its_size_or_any_up_to_the_largest(
    length: int, sizes: dict[str, int], expected: bool
) -> None:
    assert has_form(torch.zeros(1, length, 2, dtype=torch.int64), FREE, 1, sizes) is expected
