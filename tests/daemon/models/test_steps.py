"""The steps of a manifest: what is read of good ones, and the sentence that each mistake gets."""

from pathlib import Path

import pytest

from tensord.daemon.models.document import Classify, Normalize, Softmax, read_document
from tensord.daemon.models.errors import ManifestError
from tensord.daemon.models.shapes import read_shapes
from tensord.daemon.models.steps import PythonFunction, Step, python_function, read_steps

PATH = Path("model.toml")

TENSORS = """
format = "factory"

[dimensions.width]
max = 9

[[inputs]]
name = "image"
dtype = "uint8"
shape = [3, 8, "width"]

[[inputs]]
name = "scale"
dtype = "float32"
shape = []

[[outputs]]
name = "class"
dtype = "int64"
shape = [2]

[[outputs]]
name = "score"
dtype = "float16"
shape = [2]
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A version directory with a file of code."""
    (tmp_path / "model.py").write_text("")
    return tmp_path


def steps_of(directory: Path, steps: str, tensors: str = TENSORS) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    (directory / "model.toml").write_text(tensors + steps)
    document = read_document(directory / "model.toml")
    return read_steps(document, read_shapes(document, PATH), directory, PATH)


def refused(directory: Path, steps: str, tensors: str = TENSORS) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        steps_of(directory, steps, tensors)
    return caught.value


def normalize(keys: str = "", *, of: str = "image") -> str:
    return f'[[preprocess]]\nop = "normalize"\ninput = "{of}"\n{keys}\n'


def test_a_manifest_without_steps_has_none(directory: Path) -> None:
    assert steps_of(directory, "") == ((), ())


def test_steps_are_read_as_written_and_in_order(directory: Path) -> None:
    before, after = steps_of(
        directory,
        normalize('scale = 0.5\nmean = [1, 2, 3]\nstd = [4.0, 5.0, 6.0]\ndtype = "bfloat16"')
        + '[[preprocess]]\nop = "python"\nfunction = "model.py:prepare"\n'
        + '[[postprocess]]\nop = "classify"\ntop = 2\n'
        + '[[postprocess]]\nop = "softmax"\noutput = "score"\n'
        + '[[postprocess]]\nop = "python"\nfunction = "model.py:finish"\n',
    )
    assert before == (
        Normalize("image", "bfloat16", 0.5, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        PythonFunction(directory / "model.py", "prepare"),
    )
    assert after == (Classify(2), Softmax("score"), PythonFunction(directory / "model.py", "finish"))


def test_one_number_stands_for_all_channels(directory: Path) -> None:
    ((step,), _) = steps_of(directory, normalize("mean = [5]\nstd = [2]"))
    assert step == Normalize("image", mean=(5.0,), std=(2.0,))


def test_channels_may_come_last(directory: Path) -> None:
    tensors = TENSORS.replace('[3, 8, "width"]', '["width", 8, 3]')
    ((step,), _) = steps_of(directory, normalize('mean = [1, 2, 3]\nchannels = "last"'), tensors)
    assert step == Normalize("image", mean=(1.0, 2.0, 3.0), channels="last")
    assert refused(directory, normalize("mean = [1, 2, 3]"), tensors).key == "preprocess[0].mean"


def test_a_single_number_per_row_has_one_channel(directory: Path) -> None:
    steps_of(directory, normalize("mean = [1]\nstd = [2]", of="scale"))
    assert refused(directory, normalize("mean = [1, 2]", of="scale")).remedy.endswith("each of the 1 channels")


@pytest.mark.parametrize(
    ("steps", "what", "remedy"),
    [
        (normalize(of="picture"), "preprocess[0].input is 'picture'", "name one of image, scale"),
        (
            normalize('dtype = "uint8"'),
            "preprocess[0].dtype is 'uint8'",
            "use one of float16, bfloat16, float32, float64",
        ),
        (normalize('dtype = "float31"'), "preprocess[0].dtype is 'float31'", "use one of float16"),
        (normalize("mean = [1, 2]"), "preprocess[0].mean is a list of 2", "one for each of the 3 channels"),
        (normalize("std = []"), "preprocess[0].std is a list of 0", "one for each of the 3 channels"),
        (normalize("std = [1, 0, 1]"), "preprocess[0] is (1.0, (0.0,), (1.0, 0.0, 1.0))", "none that is 0 in std"),
        (normalize("std = [-0.0]"), "preprocess[0] is", "none that is 0 in std"),
        (normalize("scale = nan"), "preprocess[0] is (nan", "use finite numbers"),
        (normalize("mean = [inf]"), "preprocess[0] is", "use finite numbers"),
        (normalize() + normalize(of="x"), "preprocess[1].input is 'x'", "name one of"),
        ('[[postprocess]]\nop = "softmax"\noutput = "scores"\n', "postprocess[0].output is 'scores'", "class, score"),
        (
            '[[postprocess]]\nop = "softmax"\noutput = "class"\n',
            "postprocess[0].output is class: int64 (rows, 2)",
            "scores of a floating type",
        ),
        ('[[postprocess]]\nop = "classify"\ntop = 0\n', "postprocess[0].top is 0", "use 1 or more"),
        (
            '[[postprocess]]\nop = "classify"\ntop = 3\n',
            "outputs is class: int64 (rows, 2); score: float16 (rows, 2)",
            "an int64 and a floating output of shape [3]",
        ),
        (
            '[[preprocess]]\nop = "python"\nfunction = "model.py"\n',
            "preprocess[0].function is 'model.py'",
            "and its func",
        ),
        (
            '[[postprocess]]\nop = "python"\nfunction = "other.py:f"\n',
            "postprocess[0].function is 'other.py'",
            "No such file",
        ),
        ('[[postprocess]]\nop = "python"\nfunction = "../a.py:f"\n', "postprocess[0].function", "without '..'"),
    ],
)
def test_a_mistake_gets_one_sentence_with_key_and_remedy(directory: Path, steps: str, what: str, remedy: str) -> None:
    error = refused(directory, steps)
    assert what in str(error)
    assert remedy in error.remedy
    assert str(error).isprintable()


def test_softmax_along_a_free_dimension_would_depend_on_padding(directory: Path) -> None:
    tensors = TENSORS.replace('"float16"\nshape = [2]', '"float16"\nshape = ["n"]')
    free = '[dimensions.n]\nmax = 4\ncount = "count"\n'
    free += '[[outputs]]\nname = "count"\ndtype = "int64"\nshape = []\n'
    error = refused(directory, '[[postprocess]]\nop = "softmax"\noutput = "score"\n' + free, tensors)
    assert "padding" in error.remedy


def test_softmax_needs_a_dimension(directory: Path) -> None:
    tensors = TENSORS.replace('"float16"\nshape = [2]', '"float16"\nshape = []')
    assert (
        refused(directory, '[[postprocess]]\nop = "softmax"\noutput = "score"\n', tensors).key
        == "postprocess[0].output"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "class"\ndtype = "int64"', 'name = "class"\ndtype = "int32"'),
        ('dtype = "float16"', 'dtype = "int64"'),
        ('name = "score"\ndtype = "float16"\nshape = [2]', 'name = "score"\ndtype = "float16"\nshape = [2, 1]'),
        ('[[outputs]]\nname = "score"\ndtype = "float16"\nshape = [2]\n', ""),
        (
            '[[outputs]]\nname = "score"',
            '[[outputs]]\nname = "more"\ndtype = "bool"\nshape = []\n[[outputs]]\nname = "score"',
        ),
    ],
)
def test_classify_gives_classes_and_their_probabilities(directory: Path, old: str, new: str) -> None:
    classify = '[[postprocess]]\nop = "classify"\ntop = 2\n'
    steps_of(directory, classify)
    assert TENSORS.count(old) == 1
    error = refused(directory, classify, TENSORS.replace(old, new))
    assert error.key == "outputs"
    assert error.remedy.startswith("classify gives an int64 and a floating output of shape [2]")


# ── Python ──────────────────────────────────────────────────────────────────────────────────────


def test_a_python_function_is_a_file_and_a_name(directory: Path) -> None:
    (directory / "code").mkdir()
    (directory / "code" / "a:b.py").write_text("")
    assert python_function("model.py:build", directory, PATH, "factory") == PythonFunction(
        directory / "model.py", "build"
    )
    assert python_function("code/a:b.py:f", directory, PATH, "x") == PythonFunction(directory / "code" / "a:b.py", "f")


@pytest.mark.parametrize(
    "text",
    ["", "model", "model.py", "model.py:", ":build", "model.py:build()", "model.py:a.b", "model.txt:build", "a:1"],
)
def test_all_else_is_told_with_an_example(directory: Path, text: str) -> None:
    with pytest.raises(ManifestError) as caught:
        python_function(text, directory, PATH, "factory")
    assert (caught.value.key, caught.value.value) == ("factory", repr(text))
    assert "'model.py:build'" in caught.value.remedy
