from collections.abc import Callable
from pathlib import Path

import pytest

from tensord.daemon import messages as m
from tensord.daemon.exits import Exit
from tensord.daemon.models.repository import scan
from tensord.daemon.supervisor.catalog import MODELS_SPARE, Catalog
from tensord.daemon.supervisor.failures import InstanceFailure
from tensord.ipc.tensors import DType

AddModel = Callable[..., Path]


def catalog(root: Path) -> Catalog:
    return Catalog(root, scan(root))


def failure(root: Path) -> InstanceFailure:
    with pytest.raises(InstanceFailure) as caught:
        catalog(root)
    return caught.value


def test_the_front_end_is_told_of_every_version(root: Path, add_model: AddModel) -> None:
    add_model("two", head="idempotent = false\n")
    add_model("one")
    tensors = (
        (m.TensorInfo("x", DType.FLOAT32, (3,), ()),),
        (m.TensorInfo("y", DType.UINT8, (2,), ("no", "yes")),),
    )
    assert catalog(root).served() == [
        m.ModelServed(0, "one", 1, ("stable",), *tensors, idempotent=True),
        m.ModelServed(1, "two", 1, ("stable",), *tensors, idempotent=False),
    ]


FREE_TOML = """
format = "factory"
factory = "model.py:build"
inputs = [
    {name = "x", dtype = "int8", shape = ["n", 2]},
    {name = "mask", dtype = "bool", shape = ["n"], mask = "n"},
]
outputs = [{name = "count", dtype = "int32", shape = []}, {name = "y", dtype = "int8", shape = ["found"]}]

[dimensions]
n = {max = 9, buckets = [4, 9]}
found = {max = 5, count = "count"}
"""


def test_the_front_end_is_told_of_free_dimensions(root: Path, add_model: AddModel) -> None:
    (add_model("one") / "model.toml").write_text(FREE_TOML)
    (served,) = catalog(root).served()
    n, found = ("n", 9, False), ("found", 5, True)
    x, mask = m.TensorInfo("x", DType.INT8, (n, 2)), m.TensorInfo("mask", DType.BOOL, (n,), optional=True)
    assert served.inputs == (x, mask)
    assert served.outputs == (m.TensorInfo("count", DType.INT32, ()), m.TensorInfo("y", DType.INT8, (found,)))
    assert (served.buckets, served.counts) == ({"n": (4, 9)}, {"found": 0})


def test_the_highest_version_is_stable(root: Path, add_model: AddModel) -> None:
    for version in (9, 10, 2):
        add_model("one", version)
    labels = {served.version: served.labels for served in catalog(root).served()}
    assert labels == {2: (), 9: (), 10: ("stable",)}


def test_workers_are_told_what_to_load_under_the_same_index(root: Path, add_model: AddModel) -> None:
    add_model("one", 1)
    add_model("one", 3)
    add_model("two")
    made = catalog(root)
    assert made.orders() == [
        m.LoadModel(0, str(root), "one", 1),
        m.LoadModel(1, str(root), "one", 3),
        m.LoadModel(2, str(root), "two", 1),
    ]
    assert [served.index for served in made.served()] == [0, 1, 2] == list(made.manifests())
    assert made.manifest(1).version == 3
    assert made.names == ["one", "two"]
    assert made.models_max == 3 + MODELS_SPARE


def test_no_model_is_a_failure_that_says_what_to_do(root: Path) -> None:
    assert (failure(root).exit, str(failure(root))) == (
        Exit.MODELS,
        f"{root} holds no model: put one into {root}/NAME/1, or set [daemon] models",
    )


def test_a_root_that_is_not_there_is_a_failure(root: Path) -> None:
    assert failure(root / "nowhere").exit is Exit.MODELS
    assert str(root / "nowhere") in str(failure(root / "nowhere"))


def test_one_broken_version_is_a_failure_that_names_it(root: Path, add_model: AddModel) -> None:
    add_model("one")
    (add_model("two") / "model.toml").write_text("format = 1")
    assert failure(root).exit is Exit.MODELS
    assert str(root / "two" / "1" / "model.toml") in str(failure(root))
