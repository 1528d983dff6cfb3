from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensord.daemon.frontend.cache.key import DIGEST_BYTES, HEADS_MAX, Keys
from tensord.ipc.tensors import Dimension, DType, TensorSpec

SECRET = bytes(range(32))
TOKENS = Dimension("tokens", 100)


@dataclass(frozen=True)
class Form:
    rows: int = 2
    sizes: tuple[int, ...] = (6,)
    inline_inputs: tuple[int, ...] = (0, 1)


def model(**fields: Any) -> Any:
    specified = {
        "name": "text",
        "version": 1,
        "inputs": (TensorSpec("ids", DType.INT64, (TOKENS,)), TensorSpec("mask", DType.UINT8, (TOKENS,), (), True)),
        "outputs": (TensorSpec("y", DType.FLOAT32, (3,)),),
    }
    return SimpleNamespace(**{**specified, **fields})


def digest(
    *tensors: bytes, form: Form | None = None, tenant: str | None = "7", secret: bytes = SECRET, **fields: Any
) -> bytes:
    return Keys(secret, model(**fields)).digest(form or Form(), tenant, map(memoryview, tensors))


A, B = bytes(96), bytes(12)


def test_the_same_request_has_the_same_key_wherever_its_bytes_lie() -> None:
    keys = Keys(SECRET, model())
    arena = memoryview(bytearray(1024))
    found = {keys.digest(Form(), "7", [arena[at : at + 96], arena[at + 512 : at + 524]]) for at in (0, 64, 128)}
    assert found == {digest(A, B)}
    assert len(digest(A, B)) == DIGEST_BYTES


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(digest(A[:-1] + b"\1", B), id="a byte"),
        pytest.param(digest(A, B, tenant="7/a"), id="a tenant"),
        pytest.param(digest(A, B, tenant=None), id="shared"),
        pytest.param(digest(A, B, tenant=""), id="a tenant without a name"),
        pytest.param(digest(A, B, name="tex"), id="a model"),
        pytest.param(digest(A, B, version=2), id="a version"),
        pytest.param(digest(A, B, form=replace(Form(), rows=3, sizes=(4,))), id="a shape of the same bytes"),
        pytest.param(digest(A, form=replace(Form(), inline_inputs=(0,))), id="an optional input left out"),
        pytest.param(digest(A + B, form=replace(Form(), inline_inputs=(0,))), id="one input instead of two"),
        pytest.param(digest(A, B, outputs=(TensorSpec("y", DType.FLOAT16, (3,)),)), id="an output's type"),
        pytest.param(digest(A, B, secret=bytes(32)), id="a secret"),
    ],
)
def test_what_differs_in_anything_has_another_key(other: bytes) -> None:
    assert other != digest(A, B)


names = st.text("ab7/\0", max_size=3)


@settings(max_examples=60)
@given(st.tuples(names, names, st.binary(max_size=3)), st.tuples(names, names, st.binary(max_size=3)))
def test_no_two_requests_run_into_each_other(one: tuple[str, str, bytes], two: tuple[str, str, bytes]) -> None:
    first, second = (digest(data, name=name, tenant=tenant) for name, tenant, data in (one, two))
    assert (first == second) == (one == two)


def test_remembered_heads_are_bounded_and_change_nothing() -> None:
    keys = Keys(SECRET, model())
    for rows in range(HEADS_MAX + 10):
        keys.digest(Form(rows=rows), "7", [])
    assert len(keys._heads) <= HEADS_MAX
    assert keys.digest(Form(), "7", [memoryview(A), memoryview(B)]) == digest(A, B)
