"""The manifest: what is read from a good one, and the sentence that each mistake gets."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensord.daemon.models.document import Normalize, Softmax
from tensord.daemon.models.errors import ManifestError
from tensord.daemon.models.manifest import Format, Warmup, is_version, read_manifest
from tensord.daemon.models.steps import PythonFunction
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec

WriteModel = Callable[..., Path]

FULL_TOML = """
format = "factory"
factory = "model.py:build"
weights = "weights.safetensors"
idempotent = false
required = false

[[inputs]]
name = "image"
dtype = "uint8"
shape = [1, 8, 8]

[[inputs]]
name = "scale"
dtype = "bfloat16"
shape = []

[[outputs]]
name = "logits"
dtype = "float32"
shape = [2, 3]
labels = ["cat", "dog", "fish"]

[warmup]
sample = "warmup.safetensors"
rtol = 0
atol = 0.5

[knobs]
max_batch = 64
order = "fcfs"
weight = 0.5
"""

MINIMAL_TOML = """
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
"""


def refused(directory: Path) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        read_manifest(directory)
    return caught.value


def test_a_full_manifest_is_read_as_written(write_model: WriteModel) -> None:
    directory = write_model(FULL_TOML, name="vision", version="12")
    (directory / "weights.safetensors").write_bytes(b"")
    (directory / "warmup.safetensors").write_bytes(b"")
    manifest = read_manifest(directory)
    assert (manifest.name, manifest.version, manifest.directory) == ("vision", 12, directory)
    assert manifest.format is Format.FACTORY
    assert manifest.factory == PythonFunction(directory / "model.py", "build")
    assert manifest.weights == directory / "weights.safetensors"
    assert manifest.program is None
    assert manifest.inputs == (TensorSpec("image", DType.UINT8, (1, 8, 8)), TensorSpec("scale", DType.BFLOAT16, ()))
    assert manifest.outputs == (TensorSpec("logits", DType.FLOAT32, (2, 3), ("cat", "dog", "fish")),)
    assert (manifest.idempotent, manifest.required) == (False, False)
    assert manifest.warmup == Warmup(directory / "warmup.safetensors", 0.0, 0.5)
    assert manifest.knobs == {"max_batch": 64, "order": "fcfs", "weight": 0.5}


def test_free_dimensions_and_steps_are_read_with_their_tensors(write_model: WriteModel) -> None:
    toml = MINIMAL_TOML.replace("shape = [3]", 'shape = ["n"]', 1) + (
        '[dimensions.n]\nmax = 9\nbuckets = [4, 9]\n[[preprocess]]\nop = "normalize"\ninput = "x"\n'
        '[[postprocess]]\nop = "softmax"\noutput = "y"\n'
    )
    manifest = read_manifest(write_model(toml))
    n = Dimension("n", 9)
    assert (manifest.inputs, manifest.outputs) == (manifest.shapes.inputs, manifest.shapes.outputs)
    assert manifest.spec(7).inputs == (TensorSpec("x", DType.FLOAT32, (n,)),)
    assert manifest.shapes.buckets == {"n": (4, 9)}
    assert (manifest.preprocess, manifest.postprocess) == ((Normalize("x"),), (Softmax("y"),))


def test_defaults_are_idempotent_required_and_without_weights(write_model: WriteModel) -> None:
    manifest = read_manifest(write_model(MINIMAL_TOML))
    assert (manifest.idempotent, manifest.required) == (True, True)
    assert (manifest.weights, manifest.warmup, manifest.knobs) == (None, None, {})


def test_tolerances_have_defaults(write_model: WriteModel) -> None:
    directory = write_model(MINIMAL_TOML + '[warmup]\nsample = "s"\n')
    (directory / "s").write_bytes(b"")
    assert read_manifest(directory).warmup == Warmup(directory / "s", 1e-4, 1e-5)


def test_an_export_names_its_program(write_model: WriteModel) -> None:
    toml = (
        MINIMAL_TOML.replace('"factory"', '"export"').replace("factory =", "program =").replace("model.py:build", "p")
    )
    directory = write_model(toml, code=None)
    (directory / "p").write_bytes(b"")
    manifest = read_manifest(directory)
    assert (manifest.format, manifest.program, manifest.factory) == (Format.EXPORT, directory / "p", None)


def test_the_spec_is_what_a_client_learns(write_model: WriteModel) -> None:
    x, y = TensorSpec("x", DType.FLOAT32, (3,)), TensorSpec("y", DType.FLOAT32, (3,))
    assert read_manifest(write_model(MINIMAL_TOML)).spec(7) == ModelSpec("double", 1, (x,), (y,), 7, True)


def test_a_relative_directory_is_understood(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_model(MINIMAL_TOML)
    monkeypatch.chdir(directory)
    manifest = read_manifest(Path())
    assert (manifest.name, manifest.version) == ("double", 1)


MISTAKES = {
    "unknown key": ("format =", "idempotant = true\nformat =", "idempotant", "did you mean idempotent?"),
    "unknown key far from all": ("format =", "zzz = 1\nformat =", "zzz", "the keys here are format, inputs"),
    "unknown key of a tensor": ('name = "x"', 'name = "x"\nshap = [3]', "inputs[0].shap", "did you mean shape?"),
    "labels on an input": (
        'name = "x"',
        'name = "x"\nlabels = ["a"]',
        "inputs[0].labels",
        "the keys here are name, dtype, shape",
    ),
    "no format": ('format = "factory"', "", "format is missing", "add it"),
    "unknown format": ('"factory"', '"onnx"', "format is 'onnx'", "'factory' or 'export'"),
    "no factory": ('factory = "model.py:build"', "", "factory is missing", "'model.py:build'"),
    "factory without function": ("model.py:build", "model.py", "factory is 'model.py'", "'model.py:build'"),
    "factory with an expression": ("model.py:build", "model.py:build()", "factory", "'model.py:build'"),
    "factory not Python": ("model.py:build", "model.txt:build", "factory", "name a Python file"),
    "factory file missing": ("model.py:build", "other.py:build", "factory is 'other.py'", "No such file"),
    "program in format factory": ("format =", 'program = "p"\nformat =', "program is 'p'", "remove it"),
    "factory in format export": ('format = "factory"', 'format = "export"', "factory", "no such key"),
    "weights missing": ("format =", 'weights = "w"\nformat =', "weights is 'w'", "No such file"),
    "weights above": ("format =", 'weights = "../w"\nformat =', "weights is '../w'", "without '..'"),
    "weights absolute": ("format =", 'weights = "/etc/passwd"\nformat =', "weights", "inside the version directory"),
    "weights without a name": ("format =", 'weights = ""\nformat =', "weights is ''", "name a file"),
    "weights with a zero byte": ("format =", 'weights = "a\\u0000b"\nformat =', "weights", "name a file"),
    "weights with an endless name": ("format =", f'weights = "{"w" * 300}"\nformat =', "weights", "name too long"),
    "weights a directory": ("format =", 'weights = "."\nformat =', "weights", "name a file"),
    "no inputs": ('[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [3]', "inputs = []", "inputs", "1 to 16 inputs"),
    "shape as text": ("shape = [3]", 'shape = "3"', "inputs[0].shape is of type str", "array"),
    "shape with a truth value": ("shape = [3]", "shape = [true]", "inputs[0].shape[0] is of type bool", "int"),
    "zero dimension": ("shape = [3]", "shape = [3, 0]", "inputs[0].shape is [3, 0]", "at least 1"),
    "negative dimension": ("shape = [3]", "shape = [-1]", "inputs[0].shape is [-1]", "at least 1"),
    "eight dimensions": ("shape = [3]", f"shape = {[1] * 8}", "inputs[0].shape", "up to 7 dimensions"),
    "row above 1 GiB": ("shape = [3]", "shape = [16384, 16385]", "inputs[0].shape", "up to 1073741824 bytes"),
    "row beyond 64 bits": ("shape = [3]", f"shape = [{2**40}, {2**40}]", "inputs[0].shape", "up to 1073741824 bytes"),
    "dimension of many digits": ("shape = [3]", f"shape = [0x{'f' * 5000}]", "thousands of digits", "up to"),
    "number of many digits": ("shape = [3]", f"shape = [{'9' * 5000}]", "the text", "shorten it"),
    "unknown dtype": ('"float32"', '"float31"', "inputs[0].dtype is 'float31'", "float16, bfloat16, float32"),
    "dtype in capitals": ('"float32"', '"FLOAT32"', "inputs[0].dtype", "use one of"),
    "tensor name with a space": ('"x"', '"x y"', "inputs[0].name is 'x y'", "rename the tensor"),
    "tensor name of 129 bytes": ('"x"', f'"{"x" * 129}"', "inputs[0].name", "up to 128"),
    "tensor name with a newline": ('"x"', '"x\\n"', "inputs[0].name", "rename the tensor"),
    "rtol below zero": (
        "[[inputs]]",
        '[warmup]\nsample = "model.py"\nrtol = -1\n[[inputs]]',
        "warmup.rtol is -1.0",
        "0",
    ),
    "atol infinite": ("[[inputs]]", '[warmup]\nsample = "model.py"\natol = inf\n[[inputs]]', "warmup.atol", "finite"),
    "warmup without sample": ("[[inputs]]", "[warmup]\n[[inputs]]", "warmup.sample is missing", "add it"),
    "unknown key of the warmup": (
        "[[inputs]]",
        "[warmup]\nrtoll = 1\n[[inputs]]",
        "warmup.rtoll",
        "did you mean rtol?",
    ),
    "knob with a list": (
        "[[inputs]]",
        "[knobs]\nmax_batch = [1]\n[[inputs]]",
        "knobs.max_batch is of type list",
        "a number, text or boolean",
    ),
    "truth value as a number": ("format =", "required = 1\nformat =", "required is of type int", "bool"),
    "broken TOML": ('dtype = "float32"', "dtype = float32", "not TOML at line 6, column 9", "correct it there"),
    "key given twice": ("format =", 'format = "factory"\nformat =', "not TOML at line 3", "correct it there"),
}


@pytest.mark.parametrize(("old", "new", "what", "remedy"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_one_sentence_with_file_key_and_remedy(
    write_model: WriteModel, old: str, new: str, what: str, remedy: str
) -> None:
    assert old in MINIMAL_TOML
    error = refused(write_model(MINIMAL_TOML.replace(old, new, 1)))
    assert error.path.name == "model.toml"
    assert str(error).startswith(f"{error.path}: {error.key} is {error.value}: {error.remedy}")
    assert what in str(error)
    assert remedy.lower() in error.remedy.lower()
    assert "\n" not in str(error)


def outputs_of(labels: str, shape: str) -> str:
    head, _, _ = MINIMAL_TOML.partition("[[outputs]]")
    return f'{head}[[outputs]]\nname = "y"\ndtype = "float32"\nshape = {shape}\nlabels = {labels}\n'


@pytest.mark.parametrize(
    ("labels", "shape", "key"),
    [
        ('["a", "b"]', "[3]", "outputs[0].labels"),
        ('["a", "b"]', "[2, 3]", "outputs[0].labels"),
        ('["a"]', "[]", "outputs[0].labels"),
        (str(["a"] * 4097), "[4097]", "outputs[0].labels"),
        (f'["{"ä" * 65}"]', "[1]", "outputs[0].labels[0]"),
        (str(["l" * 100] * 4096), "[4096]", "outputs"),
    ],
    ids=["too few", "of another dimension", "of a scalar", "too many", "too long", "too many bytes for a frame"],
)
def test_labels_must_fit_the_last_dimension_and_a_frame(
    write_model: WriteModel, labels: str, shape: str, key: str
) -> None:
    assert refused(write_model(outputs_of(labels, shape))).key == key


def test_tensors_of_one_kind_have_different_names(write_model: WriteModel) -> None:
    twice = MINIMAL_TOML + '[[outputs]]\nname = "y"\ndtype = "int8"\nshape = []\n'
    error = refused(write_model(twice))
    assert (error.key, error.value) == ("outputs[1].name", "'y'")


def test_an_input_and_an_output_may_share_a_name(write_model: WriteModel) -> None:
    manifest = read_manifest(write_model(MINIMAL_TOML.replace('"y"', '"x"')))
    assert manifest.inputs == manifest.outputs


def test_sixteen_inputs_are_read_and_seventeen_refused(write_model: WriteModel) -> None:
    tables = [f'[[inputs]]\nname = "i{n}"\ndtype = "bool"\nshape = []\n' for n in range(16)]
    assert len(read_manifest(write_model(MINIMAL_TOML + "".join(tables[:15]), name="a")).inputs) == 16
    assert refused(write_model(MINIMAL_TOML + "".join(tables), name="b")).value == "a list of 17"


def test_a_row_of_exactly_1_gib_is_read(write_model: WriteModel) -> None:
    manifest = read_manifest(write_model(MINIMAL_TOML.replace("[3]", "[16384, 16384]")))
    assert manifest.inputs[0].row_bytes == 1024**3


def test_a_file_may_lie_in_a_folder_of_the_version_directory(write_model: WriteModel) -> None:
    directory = write_model('weights = "data/w"' + MINIMAL_TOML)
    (directory / "data").mkdir()
    (directory / "data" / "w").write_bytes(b"")
    assert read_manifest(directory).weights == directory / "data" / "w"


def test_a_symbolic_link_may_not_lead_out_of_the_version_directory(write_model: WriteModel, tmp_path: Path) -> None:
    directory = write_model('weights = "w"' + MINIMAL_TOML)
    (tmp_path / "secret").write_bytes(b"")
    (directory / "w").symlink_to(tmp_path / "secret")
    error = refused(directory)
    assert error.key == "weights"
    assert "symbolic link" in error.remedy


def test_a_directory_that_only_starts_with_the_same_name_is_outside(write_model: WriteModel) -> None:
    directory = write_model('weights = "w"' + MINIMAL_TOML)
    sibling = directory.with_name("11")
    sibling.mkdir()
    (sibling / "f").write_bytes(b"")
    (directory / "w").symlink_to(sibling / "f")
    assert "symbolic link" in refused(directory).remedy


def test_a_symbolic_link_inside_the_version_directory_is_followed(write_model: WriteModel) -> None:
    directory = write_model('weights = "w"' + MINIMAL_TOML)
    (directory / "v").write_bytes(b"")
    (directory / "w").symlink_to("v")
    assert read_manifest(directory).weights == directory / "w"


def test_a_circle_of_links_is_refused(write_model: WriteModel) -> None:
    directory = write_model('weights = "w"' + MINIMAL_TOML)
    (directory / "w").symlink_to("w")
    assert refused(directory).key == "weights"


def test_a_linked_manifest_may_not_lead_out_either(write_model: WriteModel, tmp_path: Path) -> None:
    directory = write_model(MINIMAL_TOML)
    (directory / "model.toml").rename(tmp_path / "elsewhere.toml")
    (directory / "model.toml").symlink_to(tmp_path / "elsewhere.toml")
    assert "symbolic link" in refused(directory).remedy


@pytest.mark.parametrize("name", [".", "model.toml", "model.py", "data", "data/w"])
def test_what_every_user_could_change_is_refused_with_the_chmod(write_model: WriteModel, name: str) -> None:
    directory = write_model('weights = "data/w"' + MINIMAL_TOML)
    (directory / "data").mkdir()
    (directory / "data" / "w").write_bytes(b"")
    path = directory / name
    path.chmod(path.stat().st_mode | 0o002)
    error = refused(directory)
    assert error.path == path
    assert error.remedy.endswith(f"chmod o-w {path}")
    path.chmod(path.stat().st_mode & ~0o002)
    read_manifest(directory)


def test_a_directory_without_manifest_is_refused(repository: Path) -> None:
    (repository / "m" / "1").mkdir(parents=True)
    error = refused(repository / "m" / "1")
    assert (error.path.name, "No such file" in error.remedy) == ("model.toml", True)


def test_a_directory_that_is_not_there_is_refused(repository: Path) -> None:
    assert refused(repository / "m" / "1").path == repository / "m" / "1"


def test_text_that_is_not_utf8_is_refused_with_its_place(write_model: WriteModel) -> None:
    directory = write_model(MINIMAL_TOML)
    (directory / "model.toml").write_bytes(b'format = "x"\nab\xff')
    assert refused(directory).value == "not UTF-8 at line 2, column 3"


def test_a_text_that_ends_too_early_is_refused_with_its_last_line(write_model: WriteModel) -> None:
    assert "not TOML at line 2, column 9" in refused(write_model('format = "factory"\na = [1, ')).value


def test_a_manifest_above_1_mib_is_refused(write_model: WriteModel) -> None:
    assert "longer than" in refused(write_model(MINIMAL_TOML + "#" * 1024 * 1024)).value


def test_thousands_of_brackets_are_refused(write_model: WriteModel) -> None:
    assert refused(write_model("a = " + "[" * 100_000)).key == "the text"


@pytest.mark.parametrize("name", ["-x", "a b", "ä", "x" * 129])
def test_the_model_directory_needs_a_plain_name(write_model: WriteModel, name: str) -> None:
    error = refused(write_model(MINIMAL_TOML, name=name))
    assert (error.key, "rename" in error.remedy) == ("its name", True)


@pytest.mark.parametrize("name", ["1", "10", "4294967295"])
def test_a_positive_whole_number_is_a_version(name: str) -> None:
    assert is_version(name)


@pytest.mark.parametrize("name", ["", "0", "01", "-1", "+1", "1.0", "²", "1\n", "4294967296", "9" * 5000])
def test_all_else_is_no_version(name: str) -> None:
    assert not is_version(name)


def test_the_error_can_be_copied(write_model: WriteModel) -> None:
    error = refused(write_model("format = 1"))
    constructor, arguments = error.__reduce__()
    assert str(constructor(*arguments)) == str(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(MINIMAL_TOML)), st.integers(0, 30), st.text(max_size=5)).map(
            lambda cut: (MINIMAL_TOML[: cut[0]] + cut[2] + MINIMAL_TOML[cut[0] + cut[1] :]).encode(errors="replace")
        ),
    )
)
def test_any_bytes_give_a_manifest_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.getbasetemp() / "any" / "1"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.py").write_text("")
    (directory / "model.toml").write_bytes(data)
    try:
        sentence = str(read_manifest(directory))
    except ManifestError as error:
        sentence = str(error)
    assert sentence.isprintable()


def test_graphs_are_asked_for(write_model: WriteModel) -> None:
    toml = MINIMAL_TOML.replace("shape = [3]", 'shape = ["n"]')
    buckets = "[dimensions.n]\nmax = 9\nbuckets = [4, 9]\n"
    assert read_manifest(write_model("cuda_graphs = true\n" + toml + buckets)).cuda_graphs
    assert not read_manifest(write_model(toml + buckets, name="other")).cuda_graphs


PYTHON_STEP = '\nop = "python"\nfunction = "model.py:build"\n'


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        ("[dimensions.n]\nmax = 9\n", "there is a graph for each size; give buckets to the dimension n"),
        (
            '[dimensions.n]\nmax = 9\nbuckets = [9]\n[dimensions.m]\nmax = 3\ncount = "count"\n[[outputs]]\n'
            'name = "count"\ndtype = "int64"\nshape = []\n[[outputs]]\nname = "z"\ndtype = "int8"\nshape = ["m"]\n',
            "the size of m comes from the data, and a graph's are fixed; remove it",
        ),
        *(
            (
                f"[dimensions.n]\nmax = 9\nbuckets = [9]\n[[{where}]]{PYTHON_STEP}",
                "a step in Python need not keep rows apart; put its code into the module, or remove cuda_graphs",
            )
            for where in ("preprocess", "postprocess")
        ),
    ],
)
def test_graphs_of_what_has_no_fixed_shapes_or_no_rows_are_refused(
    write_model: WriteModel, more: str, remedy: str
) -> None:
    toml = "cuda_graphs = true\n" + MINIMAL_TOML.replace("shape = [3]", 'shape = ["n"]') + more
    error = refused(write_model(toml))
    assert (error.key, error.value, error.remedy) == ("cuda_graphs", "true", remedy)


def test_reading_manifests_never_imports_torch() -> None:
    code = "import sys, tensord.daemon.models.repository as r; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
