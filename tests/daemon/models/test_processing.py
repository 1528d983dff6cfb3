"""Steps at work, each against a plain computation; and in a model, between what clients send and what they get."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensord.daemon.models.document import Classify, Normalize, Softmax
from tensord.daemon.models.dtypes import TORCH_DTYPES
from tensord.daemon.models.errors import ManifestError
from tensord.daemon.models.loader import LoadedModel, load
from tensord.daemon.models.manifest import read_manifest
from tensord.daemon.models.processing import completion, preparation
from tensord.daemon.models.steps import PythonFunction
from tensord.ipc.errors import BadModelOutput, ModelFailed
from tensord.ipc.tensors import DTYPES_BY_LABEL, Dimension, DType, TensorSpec

WriteModel = Callable[..., Path]
CPU = torch.device("cpu")

FIRST = TensorSpec("image", DType.UINT8, (3, 4, Dimension("width", 9)))
LAST = TensorSpec("image", DType.UINT8, (4, Dimension("width", 9), 3))
SCALE = TensorSpec("scale", DType.FLOAT32, ())


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ── normalize ───────────────────────────────────────────────────────────────────────────────────


def one_by_one(step: Normalize, image: torch.Tensor) -> torch.Tensor:
    """(x · scale − mean) / std of an image of three channels, which come first."""
    result = image.double()
    for channel in range(3):
        mean = step.mean[channel % len(step.mean)]
        std = step.std[channel % len(step.std)]
        result[:, channel] = (result[:, channel] * step.scale - mean) / std
    return result


numbers = st.floats(-4, 4).map(lambda number: round(number, 3))
channels = st.lists(numbers, min_size=1, max_size=1) | st.lists(numbers, min_size=3, max_size=3)
stds = channels.map(lambda std: tuple(each or 1.0 for each in std))
steps = st.builds(
    Normalize,
    st.just("image"),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([1.0, 1 / 255, 2.0]),
    channels.map(tuple),
    stds,
    st.just("first"),
)


@settings(deadline=None)  # torch imports much when it is first used
@given(steps, st.integers(1, 3), st.integers(1, 9))
def test_channels_first_are_normalized_one_by_one(step: Normalize, rows: int, width: int) -> None:
    image = images(rows, 3, 4, width)
    (normalized,) = preparation(step, [FIRST], CPU)((image,))
    assert normalized.dtype is TORCH_DTYPES[DTYPES_BY_LABEL[step.dtype]]
    torch.testing.assert_close(normalized.double(), one_by_one(step, image), rtol=1e-4, atol=1e-4)


@settings(deadline=None)  # torch imports much when it is first used
@given(steps, st.integers(1, 3), st.integers(1, 9))
def test_channels_last_are_normalized_and_come_first(step: Normalize, rows: int, width: int) -> None:
    last = Normalize(step.input, step.dtype, step.scale, step.mean, step.std, "last")
    image = images(rows, 4, width, 3)
    (normalized,) = preparation(last, [LAST], CPU)((image,))
    assert normalized.shape == (rows, 3, 4, width)
    torch.testing.assert_close(normalized.double(), one_by_one(step, image.movedim(-1, 1)), rtol=1e-4, atol=1e-4)


def test_without_settings_only_the_type_changes() -> None:
    image = images(2, 3, 4, 5)
    (normalized,) = preparation(Normalize("image"), [FIRST], CPU)((image,))
    assert normalized.dtype is torch.float32
    assert torch.equal(normalized, image.float())


def test_the_usual_numbers_of_image_models_give_the_usual_result() -> None:
    step = Normalize("image", "float32", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(1, 3, 3).view(1, 3, 1, 3)
    (normalized,) = preparation(step, [FIRST], CPU)((image,))
    expected = [[-2.1179, 0.0741, 2.2489], [-2.0357, 0.2052, 2.4286], [-1.8044, 0.4265, 2.6400]]
    torch.testing.assert_close(normalized[0, :, 0], torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_as_near_as_it_can_be(dtype: str) -> None:
    step = Normalize("image", dtype, 1 / 255, (0.5,), (0.25,))
    image = images(1, 3, 4, 5)
    (normalized,) = preparation(step, [FIRST], CPU)((image,))
    assert normalized.dtype is TORCH_DTYPES[DTYPES_BY_LABEL[dtype]]
    torch.testing.assert_close(normalized.double(), one_by_one(step, image), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("shape", [(), (5,), (5, 2)])
def test_rows_of_few_dimensions_can_be_normalized_too(where: Any, shape: tuple[int, ...]) -> None:
    spec = TensorSpec("x", DType.INT32, shape)
    x = torch.arange(spec.nbytes(2) // 4, dtype=torch.int32).view(2, *shape)
    (normalized,) = preparation(Normalize("x", mean=(1.0,), std=(2.0,), channels=where), [spec], CPU)((x,))
    expected = (x.double() - 1) / 2
    if where == "last" and len(shape) > 1:
        expected = expected.movedim(-1, 1)
    torch.testing.assert_close(normalized.double(), expected)


def test_a_row_of_numbers_is_a_row_of_channels() -> None:
    spec = TensorSpec("x", DType.FLOAT32, (3,))
    step = Normalize("x", mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    (normalized,) = preparation(step, [spec], CPU)((torch.tensor([[1.0, 4.0, 11.0]]),))
    assert normalized.tolist() == [[0.0, 1.0, 2.0]]


def test_other_inputs_stay_as_they_are() -> None:
    before, image, after = torch.ones(1), images(1, 3, 4, 5), torch.zeros(1)
    specs = [SCALE, FIRST, TensorSpec("more", DType.FLOAT32, ())]
    prepared = preparation(Normalize("image", mean=(1.0,)), specs, CPU)((before, image, after))
    assert prepared[0] is before
    assert prepared[2] is after
    assert torch.equal(prepared[1], image.float() - 1)


def test_what_clients_sent_is_not_changed() -> None:
    image = images(1, 3, 4, 5)
    kept = image.clone()
    preparation(Normalize("image", mean=(1.0,)), [FIRST], CPU)((image,))
    assert torch.equal(image, kept)
    x = torch.ones(2, 3)
    preparation(Normalize("x", mean=(1.0,)), [TensorSpec("x", DType.FLOAT32, (3,))], CPU)((x,))
    assert torch.equal(x, torch.ones(2, 3))


# ── softmax and classify ────────────────────────────────────────────────────────────────────────

SCORES = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]])


def plain_softmax(scores: Sequence[float]) -> list[float]:
    powers = [2.718281828459045**score for score in scores]
    return [power / sum(powers) for power in powers]


def test_scores_become_probabilities() -> None:
    outputs = [TensorSpec("other", DType.FLOAT32, (3,)), TensorSpec("p", DType.FLOAT32, (3,))]
    other, probabilities = completion(Softmax("p"), outputs)((SCORES, SCORES))
    assert other is SCORES
    torch.testing.assert_close(probabilities, torch.tensor([plain_softmax(row) for row in SCORES.tolist()]))


def test_softmax_is_along_the_last_dimension() -> None:
    scores = SCORES.view(1, 2, 3)
    (probabilities,) = completion(Softmax("p"), [TensorSpec("p", DType.FLOAT32, (2, 3))])((scores,))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 2))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_classify_gives_the_best_classes_and_their_probabilities_best_first(dtype: str) -> None:
    outputs = [TensorSpec("class", DType.INT64, (2,)), TensorSpec("score", DTYPES_BY_LABEL[dtype], (2,))]
    classes, scores = completion(Classify(2), outputs)((SCORES,))
    assert (classes.dtype, scores.dtype) == (torch.int64, TORCH_DTYPES[DTYPES_BY_LABEL[dtype]])
    expected = [plain_softmax(row) for row in SCORES.tolist()]
    assert classes.tolist() == [[1, 2], [2, classes[1, 1].item()]]
    picked = [[row[index] for index in own] for row, own in zip(expected, classes.tolist(), strict=True)]
    torch.testing.assert_close(scores.double(), torch.tensor(picked, dtype=torch.float64), rtol=2e-3, atol=1e-5)


# ── Python ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def code(tmp_path: Path) -> Callable[[str], PythonFunction]:
    """A step `step` with this code."""

    def write(text: str) -> PythonFunction:
        (tmp_path / "model.py").write_text(text)
        return PythonFunction(tmp_path / "model.py", "step")

    return write


def test_a_function_gets_the_tensors_in_order(code: Callable[[str], PythonFunction]) -> None:
    step = code("def step(a, b):\n    return b - a, a\n")
    for function in (preparation(step, [], CPU), completion(step, [])):
        difference, first = function((torch.tensor([1]), torch.tensor([5])))
        assert (difference.tolist(), first.tolist()) == ([4], [1])


@pytest.mark.parametrize("text", ["def step(: pass", "def other(): pass", "import nothing_of_this_name"])
def test_a_function_that_cannot_be_imported_is_told_with_its_file(
    code: Callable[[str], PythonFunction], text: str
) -> None:
    step = code(text)
    with pytest.raises(ManifestError) as before:
        preparation(step, [], CPU)
    with pytest.raises(ManifestError) as after:
        completion(step, [])
    assert [caught.value.path.name for caught in (before, after)] == ["model.py"] * 2


# ── in a model ──────────────────────────────────────────────────────────────────────────────────

TOML = """
format = "factory"
factory = "model.py:build"
[[inputs]]
name = "x"
dtype = "uint8"
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
CODE = """
import torch

class Model(torch.nn.Module):
    def forward(self, x):
        return {answer}

def build():
    return Model()

{more}
"""
X = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)


def loaded(write_model: WriteModel, steps: str, answer: str = "x, x.sum(1)", more: str = "") -> LoadedModel:
    directory = write_model(TOML + steps, CODE.format(answer=answer, more=more))
    return load(read_manifest(directory), CPU)


NORMALIZE = '[[preprocess]]\nop = "normalize"\ninput = "x"\nscale = 2\n'
SOFTMAX = '[[postprocess]]\nop = "softmax"\noutput = "y"\n'


def python(kind: str, function: str = "step") -> str:
    return f'[[{kind}]]\nop = "python"\nfunction = "model.py:{function}"\n'


def test_steps_run_in_their_order_around_the_model(write_model: WriteModel) -> None:
    steps = NORMALIZE + python("preprocess", "halve") + python("postprocess", "negate") + SOFTMAX
    more = "def halve(x):\n    return x / 2 + 1\n\ndef negate(y, total):\n    return -y, -total\n"
    model = loaded(write_model, steps, more=more)
    y, total = model.run([X])
    inner = X.float() + 1
    torch.testing.assert_close(y, (-inner).softmax(1))
    assert total.tolist() == [-9.0, -18.0]
    assert model.has_steps
    model.warm_up()


def test_a_model_without_steps_has_none(write_model: WriteModel) -> None:
    assert not loaded(write_model, "", "x.float(), x.float().sum(1)").has_steps


def test_a_step_before_may_change_how_many_tensors_the_model_gets(write_model: WriteModel) -> None:
    steps = python("preprocess")
    y, total = loaded(
        write_model, steps, "x[0], x[1]", "def step(x):\n    return [(x.float(), x.float().sum(1))]\n"
    ).run([X])
    assert (y.tolist(), total.tolist()) == (X.tolist(), [6.0, 15.0])


@pytest.mark.parametrize("answer", ["{'y': x, 'total': x.sum(1)}", "{'total': x.sum(1), 'y': x}"])
def test_a_dict_by_output_name_keeps_its_meaning_through_the_steps(write_model: WriteModel, answer: str) -> None:
    y, total = loaded(write_model, NORMALIZE + SOFTMAX, answer).run([X])
    torch.testing.assert_close(y, (2 * X.float()).softmax(1))
    assert total.tolist() == [12.0, 30.0]


def test_a_step_after_may_return_a_dict_by_output_name(write_model: WriteModel) -> None:
    more = "def step(logits):\n    return {'total': logits.sum(1), 'y': logits + 1}\n"
    y, total = loaded(write_model, NORMALIZE + python("postprocess"), "{'logits': x}", more).run([X])
    assert (y.tolist(), total.tolist()) == ((2 * X.float() + 1).tolist(), [12.0, 30.0])


def test_classify_takes_the_one_tensor_of_a_model_whatever_its_name(write_model: WriteModel) -> None:
    toml = TOML.partition("[[outputs]]")[0] + NORMALIZE + '[[postprocess]]\nop = "classify"\ntop = 1\n'
    toml += '[[outputs]]\nname = "class"\ndtype = "int64"\nshape = [1]\nlabels = ["a", "b", "c"]\n'
    toml += '[[outputs]]\nname = "score"\ndtype = "float32"\nshape = [1]\n'
    directory = write_model(toml, CODE.format(answer="{'logits': x}", more=""))
    classes, scores = load(read_manifest(directory), CPU).run([X])
    assert classes.tolist() == [[2], [2]]
    torch.testing.assert_close(scores, (2 * X.float()).softmax(1)[:, 2:])


@pytest.mark.parametrize(
    ("steps", "answer", "more", "reason"),
    [
        (python("preprocess"), "x, x", "def step(x):\n    raise ValueError('no good')\n", "ValueError: no good"),
        (python("preprocess"), "x, x", "def step():\n    pass\n", "TypeError"),
        (python("preprocess") + NORMALIZE, "x, x", "def step(x):\n    return ()\n", "IndexError"),
        (NORMALIZE + SOFTMAX, "None", "", "AttributeError"),
        (NORMALIZE + python("postprocess"), "x, x", "def step(*y):\n    raise SystemExit\n", "SystemExit"),
    ],
)
def test_a_step_that_raises_is_the_models_fault(
    write_model: WriteModel, steps: str, answer: str, more: str, reason: str
) -> None:
    model = loaded(write_model, steps, answer, more)
    with pytest.raises(ModelFailed) as caught:
        model.run([X])
    assert caught.value.reason.startswith(reason)
    assert caught.value.__cause__ is not None


def test_memory_that_is_short_in_a_step_passes(write_model: WriteModel) -> None:
    model = loaded(write_model, python("preprocess"), more="def step(x):\n    raise MemoryError\n")
    with pytest.raises(MemoryError):
        model.run([X])


def test_the_answer_is_checked_after_the_last_step(write_model: WriteModel) -> None:
    steps = NORMALIZE + python("postprocess")
    with pytest.raises(BadModelOutput) as caught:
        loaded(write_model, steps, more="def step(y, total):\n    return y[:, :2], total\n").run([X])
    assert (caught.value.tensor, caught.value.got) == ("y", "float32 (2, 2)")


def test_steps_run_in_inference_mode(write_model: WriteModel) -> None:
    more = "def step(x):\n    assert torch.is_inference_mode_enabled()\n    return x.float()\n"
    y, _ = loaded(write_model, python("preprocess"), more=more).run([X])
    assert not y.requires_grad
