"""Loading, running and warming up: what a good model gives, and what each kind of bad one gets."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tensord.daemon.models.dtypes import TORCH_DTYPES
from tensord.daemon.models.errors import ManifestError
from tensord.daemon.models.loader import LoadedModel, load
from tensord.daemon.models.manifest import read_manifest
from tensord.ipc.errors import BadModelOutput, ModelFailed
from tensord.ipc.tensors import DType

WriteModel = Callable[..., Path]
CPU = torch.device("cpu")

HEAD = """
import torch
from torch import nn

class Model(nn.Module):
    def forward(self, x, *more):
"""
TAIL = """

def build():
    return Model()
"""


def forward(body: str) -> str:
    """A model file whose forward has this body."""
    return HEAD + "".join(f"        {line}\n" for line in body.splitlines()) + TAIL


def loaded(directory: Path) -> LoadedModel:
    return load(read_manifest(directory), CPU)


def refused(directory: Path) -> ManifestError:
    """The error of loading or of warming up."""
    with pytest.raises(ManifestError) as caught:
        loaded(directory).warm_up()
    return caught.value


X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [0.0, 0.5, -1.0]])
DOUBLED = {"inputs/x": X, "outputs/y": X * 2}

TWO_OUTPUTS = """
format = "factory"
factory = "model.py:build"
[[inputs]]
name = "x"
dtype = "float32"
shape = [3]
[[outputs]]
name = "y"
dtype = "float32"
shape = [3]
[[outputs]]
name = "total"
dtype = "float32"
shape = []
"""

INTEGERS = """
format = "factory"
factory = "model.py:build"
[[inputs]]
name = "x"
dtype = "int64"
shape = [2]
[[outputs]]
name = "y"
dtype = "int64"
shape = [2]
"""


# ── running ─────────────────────────────────────────────────────────────────────────────────────


def test_a_model_answers_in_the_promised_form(write_model: WriteModel) -> None:
    (y,) = loaded(write_model()).run([X])
    assert torch.equal(y, X * 2)
    assert not y.requires_grad


def test_inputs_are_passed_in_the_manifests_order(write_model: WriteModel) -> None:
    toml = TWO_OUTPUTS.replace("[[outputs]]", '[[inputs]]\nname = "a"\ndtype = "float32"\nshape = []\n[[outputs]]', 1)
    model = loaded(write_model(toml, forward("return x * 0 + 1, more[0]")))
    y, total = model.run([X, torch.tensor([7.0, 8.0, 9.0])])
    assert (y.tolist(), total.tolist()) == ([[1.0] * 3] * 3, [7.0, 8.0, 9.0])


@pytest.mark.parametrize(
    "answer",
    [
        "x * 2, x.sum(1)",
        "[x * 2, x.sum(1)]",
        "{'total': x.sum(1), 'y': x * 2}",
        "__import__('collections').namedtuple('T', 'a b')(x * 2, x.sum(1))",
    ],
)
def test_tuple_list_and_dict_are_taken_as_outputs(write_model: WriteModel, answer: str) -> None:
    y, total = loaded(write_model(TWO_OUTPUTS, forward(f"return {answer}"))).run([X])
    assert torch.equal(y, X * 2)
    assert torch.equal(total, X.sum(1))


@pytest.mark.parametrize(
    ("answer", "tensor", "expected", "got"),
    [
        ("x * 2", "y", "the 2 outputs y, total", "one of 1"),
        ("(x, x, x)", "y", "the 2 outputs y, total", "one of 3"),
        ("{'y': x}", "total", "the outputs y, total", "missing"),
        ("{'y': x, 'total': x.sum(1), 'z': x}", "z", "the outputs y, total", "one too many"),
        ("None", "y", "the 2 outputs y, total", "one of 1"),
        ("x, 1.5", "total", "float32 (3)", "of type float"),
        ("x, x.sum(1).double()", "total", "float32 (3)", "float64 (3)"),
        ("x, x.sum(1, keepdim=True)", "total", "float32 (3)", "float32 (3, 1)"),
        ("x[:1], x.sum(1)", "y", "float32 (3, 3)", "float32 (1, 3)"),
        ("x.sum(), x.sum(1)", "y", "float32 (3, 3)", "float32 ()"),
        ("x.to_sparse(), x.sum(1)", "y", "float32 (3, 3)", "not dense, float32 (3, 3)"),
    ],
)
def test_an_answer_of_another_form_is_a_bad_output(
    write_model: WriteModel, answer: str, tensor: str, expected: str, got: str
) -> None:
    model = loaded(write_model(TWO_OUTPUTS, forward(f"return {answer}")))
    with pytest.raises(BadModelOutput) as caught:
        model.run([X])
    assert caught.value.data() == {"model": "double", "tensor": tensor, "expected": expected, "got": got}


FREE = """
format = "factory"
factory = "model.py:build"
[dimensions.n]
max = 5
[dimensions.found]
max = 4
count = "count"
[[inputs]]
name = "x"
dtype = "float32"
shape = ["n"]
[[outputs]]
name = "y"
dtype = "float32"
shape = ["n"]
[[outputs]]
name = "kept"
dtype = "float32"
shape = ["found"]
[[outputs]]
name = "count"
dtype = "int64"
shape = []
"""


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("x, x[:, :2], x.long().sum(1)", None),
        ("x, x[:, :0], x.long().sum(1)", None),
        ("x, torch.cat((x, x[:, :1]), 1), x.long().sum(1)", None),
        ("x[:, :2], x[:, :2], x.long().sum(1)", ("y", "float32 (2, 3)", "float32 (2, 2)")),
        ("x, x.repeat(1, 2), x.long().sum(1)", ("kept", "float32 (2, found ≤ 4)", "float32 (2, 6)")),
        ("x, x, x.sum(1)", ("count", "int64 (2)", "float32 (2)")),
    ],
)
def test_outputs_have_the_sizes_of_the_inputs_or_any_up_to_the_largest(
    write_model: WriteModel, answer: str, wrong: tuple[str, str, str] | None
) -> None:
    model = loaded(write_model(FREE, forward(f"return {answer}")))
    if wrong is None:
        assert len(model.run([torch.ones(2, 3)])) == 3
    else:
        with pytest.raises(BadModelOutput) as caught:
            model.run([torch.ones(2, 3)])
        assert (caught.value.tensor, caught.value.expected, caught.value.got) == wrong


def test_the_three_parts_of_a_run_can_be_called_apart(write_model: WriteModel) -> None:
    model = loaded(write_model(TWO_OUTPUTS, forward("return x * 2, x.sum(1)")))
    with torch.inference_mode():
        outputs = model.complete(model.compute(model.prepare([X])), 3, {})
    assert [output.tolist() for output in outputs] == [output.tolist() for output in model.run([X])]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no good')", "ValueError: no good"),
        ("raise ValueError('first\\nsecond')", "ValueError: first"),
        ("raise ValueError", "ValueError"),
        ("raise KeyError('k')", "KeyError: 'k'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("open('/nowhere/of all/secret.txt')", "FileNotFoundError: No such file or directory"),
        ("raise RuntimeError('cannot map /srv/models/x/1/w.bin: empty')", "RuntimeError: cannot map <path>: empty"),
        ("raise RuntimeError(\"in '/srv/my models/a.bin'\")", "RuntimeError: in <path>"),
        ("raise RuntimeError('../up/a.py and ~/b.py')", "RuntimeError: <path> and <path>"),
        ("raise RuntimeError('3 / 4 of and/or')", "RuntimeError: 3 / 4 of and/or"),
        ("raise RuntimeError('bell \\x07 and \\udc80')", "RuntimeError: bell \\x07 and \\udc80"),
        ("class Odd(Exception):\n    def __str__(self): return 1 / 0\nraise Odd", "Odd"),
    ],
)
def test_what_the_code_raises_becomes_one_line_without_paths(write_model: WriteModel, body: str, reason: str) -> None:
    model = loaded(write_model(code=forward(body)))
    with pytest.raises(ModelFailed) as caught:
        model.run([X])
    assert caught.value.data() == {"model": "double", "reason": reason}
    assert caught.value.__cause__ is not None


def test_a_long_reason_is_cut_at_200_characters(write_model: WriteModel) -> None:
    model = loaded(write_model(code=forward("raise ValueError('x' * 1000)")))
    with pytest.raises(ModelFailed) as caught:
        model.run([X])
    assert len(caught.value.reason) == 200


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_not_the_models_fault_passes(write_model: WriteModel, error: type[BaseException]) -> None:
    model = loaded(write_model(code=forward(f"raise {error.__name__}")))
    with pytest.raises(error):
        model.run([X])


def test_a_model_runs_in_evaluation_mode(write_model: WriteModel) -> None:
    assert loaded(write_model(code=forward("assert not self.training\nreturn x"))).run([X])[0] is X


def test_every_wire_type_has_a_torch_type() -> None:
    assert all(TORCH_DTYPES[dtype].itemsize == dtype.itemsize for dtype in DType)


# ── the factory ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("def build(: pass", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("raise SystemExit", "SystemExit"),
        ("def build(): raise OSError('no')", "OSError: no"),
        ("def build(): return 3", "returning int"),
        ("build = 3", "missing"),
        ("def make(): pass", "missing"),
    ],
)
def test_a_bad_factory_is_told_with_its_file(write_model: WriteModel, code: str, value: str) -> None:
    error = refused(write_model(code=code))
    assert (error.path.name, error.key) == ("model.py", "build()")
    assert value in error.value


def test_the_import_is_private_and_leaves_no_trace(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = list(sys.path)
    directories = [write_model(code=forward(f"return x * {factor}"), name=f"m{factor}") for factor in (2, 3)]
    answers = [loaded(directory).run([X])[0] for directory in directories]
    assert [torch.equal(answer, X * factor) for answer, factor in zip(answers, (2, 3), strict=True)] == [True, True]
    assert sys.path == before
    assert "model" not in sys.modules
    assert sorted(os.listdir(directories[0])) == ["model.py", "model.toml"]


def test_a_changed_factory_is_read_again(write_model: WriteModel) -> None:
    directory = write_model(code=forward("return x * 2"))
    loaded(directory)
    (directory / "model.py").write_text(forward("return x * 3"))
    assert torch.equal(loaded(directory).run([X])[0], X * 3)


def test_a_factory_may_use_dataclasses_with_postponed_annotations(write_model: WriteModel) -> None:
    code = "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass C:\n    a: int\n"
    assert loaded(write_model(code=code + forward("return x"))).run([X])[0] is X


# ── weights ─────────────────────────────────────────────────────────────────────────────────────

LINEAR = "from torch import nn\ndef build():\n    return nn.Linear(3, 3)\n"
WEIGHTS = {"weight": torch.eye(3) * 2, "bias": torch.zeros(3)}


def test_weights_are_loaded(write_model: WriteModel) -> None:
    model = loaded(write_model(code=LINEAR, weights=WEIGHTS, sample=DOUBLED))
    model.warm_up()
    assert torch.equal(model.run([X])[0], X * 2)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"weight": torch.eye(3)}, 'Missing key(s) in state_dict: "bias"'),
        ({**WEIGHTS, "more": torch.zeros(1)}, 'Unexpected key(s) in state_dict: "more"'),
        ({**WEIGHTS, "weight": torch.eye(4)}, "size mismatch for weight"),
    ],
)
def test_weights_of_another_module_are_refused(
    write_model: WriteModel, weights: dict[str, torch.Tensor], problem: str
) -> None:
    error = refused(write_model(code=LINEAR, weights=weights))
    assert error.path.name == "weights.safetensors"
    assert problem in error.value
    assert "state_dict" in error.remedy


@pytest.mark.parametrize("data", [b"", b"garbage, and more of it", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]"])
def test_broken_weights_are_refused(write_model: WriteModel, data: bytes) -> None:
    directory = write_model(code=LINEAR, weights=WEIGHTS)
    (directory / "weights.safetensors").write_bytes(data)
    error = refused(directory)
    assert error.path.name == "weights.safetensors"
    assert "not readable as safetensors" in error.value


def test_cut_weights_are_refused(write_model: WriteModel) -> None:
    directory = write_model(code=LINEAR, weights=WEIGHTS)
    path = directory / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "not readable as safetensors" in refused(directory).value


def test_parameters_without_weights_are_refused(write_model: WriteModel) -> None:
    error = refused(write_model(code=LINEAR))
    assert (error.key, error.value) == ("weights", "missing")


# ── warm-up ─────────────────────────────────────────────────────────────────────────────────────


def test_a_right_answer_makes_the_model_ready(write_model: WriteModel) -> None:
    model = loaded(write_model(sample=DOUBLED))
    model.warm_up()
    assert not model.changes_input


def test_before_the_warm_up_a_model_is_believed_to_change_its_input(write_model: WriteModel) -> None:
    assert loaded(write_model()).changes_input


def test_a_wrong_answer_is_told_with_output_and_largest_difference(write_model: WriteModel) -> None:
    expected = X * 2
    expected[1, 2] += 0.5
    expected[2, 0] -= 0.25
    error = refused(write_model(sample={"inputs/x": X, "outputs/y": expected}))
    assert (error.path.name, error.key) == ("warmup.safetensors", "outputs/y")
    assert "2 of 9 elements are off, by up to 0.5 (rtol 0.0001, atol 1e-05)" in error.value


def test_a_difference_within_the_tolerance_is_right(write_model: WriteModel) -> None:
    loaded(write_model(sample={"inputs/x": X, "outputs/y": X * 2 * (1 + 5e-5)})).warm_up()


def test_nan_is_right_only_where_it_is_expected(write_model: WriteModel) -> None:
    x = X.clone()
    x[0, 0] = float("nan")
    x[0, 1] = float("inf")
    loaded(write_model(sample={"inputs/x": x, "outputs/y": x * 2}, name="a")).warm_up()
    error = refused(write_model(sample={"inputs/x": x, "outputs/y": torch.nan_to_num(x) * 2}, name="b"))
    assert "1 of 9 elements are off, by up to nan" in error.value


def test_integers_must_be_equal(write_model: WriteModel) -> None:
    x = torch.tensor([[10**9, 2]])
    right = {"inputs/x": x, "outputs/y": x}
    wrong = {"inputs/x": x, "outputs/y": x + torch.tensor([1, 0])}
    loaded(write_model(INTEGERS, forward("return x"), name="a", sample=right)).warm_up()
    error = refused(write_model(INTEGERS, forward("return x"), name="b", sample=wrong))
    assert error.value.endswith("2 of 4 elements are off, by up to 1")


def test_bools_must_be_equal(write_model: WriteModel) -> None:
    toml = INTEGERS.replace("int64", "bool")
    x = torch.tensor([[True, False], [False, False]])
    loaded(write_model(toml, forward("return ~x"), name="a", sample={"inputs/x": x, "outputs/y": ~x})).warm_up()
    assert refused(write_model(toml, forward("return x"), name="b", sample={"inputs/x": x, "outputs/y": ~x}))


def test_rows_that_influence_each_other_are_found(write_model: WriteModel) -> None:
    sample = {"inputs/x": X, "outputs/y": X - X.mean(0)}
    error = refused(write_model(code=forward("return x - x.mean(0)"), sample=sample))
    assert "with row 0 alone" in error.value
    assert "must not depend on other rows" in error.remedy


def test_a_sample_of_one_row_is_also_run_as_two(write_model: WriteModel) -> None:
    sample = {"inputs/x": X[:1].clone(), "outputs/y": X[:1] * 2}
    loaded(write_model(sample=sample, name="a")).warm_up()
    error = refused(write_model(code=forward("return x * 2 * len(x)"), sample=sample, name="b"))
    assert "with 2 rows in one batch" in error.value


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return x * 2", False),
        ("return x", False),
        ("x *= 2\nreturn x", True),
        ("return x.relu_()", True),
        ("return torch.mul(x, 2, out=x)", True),
        ("x.t_()\nreturn x.t()", True),
        ("x.view(-1)[-1] = 7\nreturn x", True),
        ("x.numpy()[-1, -1] = 7\nreturn x", True),
        ("if len(x) == 1:\n    x += 1\nreturn x", True),
        ("if len(x) > 1:\n    x += 1\nreturn x", True),
    ],
)
def test_changing_the_input_is_noticed(write_model: WriteModel, body: str, expected: bool) -> None:
    model = loaded(write_model(code=forward(body)))
    model.warm_up()
    assert model.changes_input is expected


def test_an_input_with_nan_that_stays_is_not_changed(write_model: WriteModel) -> None:
    x = torch.full((2, 3), float("nan"))
    model = loaded(write_model(sample={"inputs/x": x, "outputs/y": x}))
    model.warm_up()
    assert not model.changes_input


def test_without_a_sample_only_the_form_is_checked(write_model: WriteModel) -> None:
    loaded(write_model(code=forward("return x + 5"))).warm_up()
    error = refused(write_model(code=forward("return x.double()"), name="b"))
    assert "float64 (1, 3)" in error.value


def test_a_model_that_raises_in_its_warm_up_is_refused(write_model: WriteModel) -> None:
    error = refused(write_model(code=forward("raise ValueError('no')"), sample=DOUBLED))
    assert error.path.name == "model.toml"
    assert "ValueError: no" in error.value


@pytest.mark.parametrize(
    ("sample", "key", "value"),
    [
        ({"inputs/x": X}, "outputs/y", "missing"),
        ({"outputs/y": X}, "inputs/x", "missing"),
        ({**DOUBLED, "inputs/z": X}, "inputs/z", "not a tensor of this model"),
        ({"inputs/x": X, "outputs/y": X[:2].clone()}, "outputs/y", "float32 (2, 3)"),
        ({"inputs/x": X.double(), "outputs/y": X}, "inputs/x", "float64 (3, 3)"),
        ({"inputs/x": X[:0].clone(), "outputs/y": X[:0].clone()}, "inputs/x", "float32 (0, 3)"),
        ({"inputs/x": torch.tensor(1.0), "outputs/y": X}, "inputs/x", "float32 ()"),
    ],
)
def test_a_sample_of_another_form_is_refused(
    write_model: WriteModel, sample: dict[str, torch.Tensor], key: str, value: str
) -> None:
    error = refused(write_model(sample=sample))
    assert (error.path.name, error.key, error.value) == ("warmup.safetensors", key, value)


def test_a_broken_sample_is_refused(write_model: WriteModel) -> None:
    directory = write_model(sample=DOUBLED)
    (directory / "warmup.safetensors").write_bytes(b"garbage")
    assert "not readable as safetensors" in refused(directory).value


# ── exported programs ───────────────────────────────────────────────────────────────────────────

EXPORT = """
format = "export"
program = "program.pt2"
[[inputs]]
name = "x"
dtype = "float32"
shape = [3]
[[outputs]]
name = "y"
dtype = "float32"
shape = [3]
"""


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one program of any number of rows, and static ones of 1 and 3 rows."""
    directory = tmp_path_factory.mktemp("programs")
    shapes = ({0: torch.export.Dim("rows")},)
    torch.export.save(torch.export.export(Scaled(), (X,), dynamic_shapes=shapes), directory / "dynamic.pt2")
    torch.export.save(torch.export.export(Scaled(), (X,)), directory / "static3.pt2")
    torch.export.save(torch.export.export(Scaled(), (X[:1],)), directory / "static1.pt2")
    return directory


def write_program(write_model: WriteModel, data: bytes, sample: dict[str, torch.Tensor] | None) -> Path:
    directory = write_model(EXPORT, code=None, sample=sample)
    (directory / "program.pt2").write_bytes(data)
    return directory


def test_an_exported_program_is_served(write_model: WriteModel, programs: Path) -> None:
    model = loaded(write_program(write_model, (programs / "dynamic.pt2").read_bytes(), DOUBLED))
    model.warm_up()
    (y,) = model.run([X[:2]])
    assert torch.equal(y, X[:2] * 2)
    assert not y.requires_grad


@pytest.mark.parametrize("name", ["static1.pt2", "static3.pt2"])
def test_a_static_program_is_refused_with_the_export_that_helps(
    write_model: WriteModel, programs: Path, name: str
) -> None:
    error = refused(write_program(write_model, (programs / name).read_bytes(), DOUBLED))
    assert error.path.name == "program.pt2"
    assert 'torch.export.Dim("rows")' in error.remedy


def test_a_program_static_at_one_row_is_found_without_a_sample(write_model: WriteModel, programs: Path) -> None:
    error = refused(write_program(write_model, (programs / "static1.pt2").read_bytes(), None))
    assert 'torch.export.Dim("rows")' in error.remedy


@pytest.mark.parametrize("part", ["nonsense", "half"])
def test_a_corrupt_program_is_refused(
    write_model: WriteModel, programs: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # torch logs its own traceback
    data = (programs / "dynamic.pt2").read_bytes()
    error = refused(write_program(write_model, data[: len(data) // 2] if part == "half" else b"nonsense", DOUBLED))
    assert (error.path.name, error.key) == ("program.pt2", "the program")
    assert "torch.export.save" in error.remedy
