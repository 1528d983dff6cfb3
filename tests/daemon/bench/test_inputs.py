import numpy as np
import pytest

from tensord.daemon.bench.inputs import random_inputs
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec


def spec_of(*inputs: TensorSpec) -> ModelSpec:
    return ModelSpec("model", 1, inputs, (TensorSpec("y", DType.FLOAT32, ()),), 64, idempotent=True)


@pytest.mark.parametrize("dtype", DType)
def test_an_input_has_the_form_and_the_range_of_its_type(dtype: DType) -> None:
    x = random_inputs(spec_of(TensorSpec("x", dtype, (50, 2))), 3, seed=1)["x"]
    assert (x.dtype, x.shape, x.flags.c_contiguous) == (dtype.numpy, (3, 50, 2), True)
    values = set(x.ravel().tolist())
    if dtype is DType.BOOL:
        assert values == {False, True}
    elif np.issubdtype(dtype.numpy, np.integer):
        assert values == set(range(10))
    else:
        assert len(values) > 50
        assert min(values) >= 0
        assert max(values) <= 1


def test_every_required_input_is_there_and_none_is_like_another() -> None:
    spec = spec_of(
        TensorSpec("a", DType.FLOAT32, (4,)),
        TensorSpec("b", DType.FLOAT32, (4,)),
        TensorSpec("mask", DType.BOOL, (4,), optional=True),
    )
    inputs = random_inputs(spec, 2, seed=1)
    assert list(inputs) == ["a", "b"]
    assert not np.array_equal(inputs["a"], inputs["b"])


def test_a_free_dimension_has_its_largest_size() -> None:
    spec = spec_of(TensorSpec("tokens", DType.INT64, (Dimension("length", 7), 2)))
    assert random_inputs(spec, 3, seed=1)["tokens"].shape == (3, 7, 2)


def test_the_seed_decides() -> None:
    spec = spec_of(TensorSpec("x", DType.FLOAT32, (4,)))
    one, same, other = (random_inputs(spec, 1, seed)["x"] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
