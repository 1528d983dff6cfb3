from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tensord.daemon.models.errors import ManifestError
from tensord.daemon.models.manifest import read_manifest
from tensord.daemon.models.warmup import warm_up
from tensord.ipc.errors import BadModelOutput, ModelFailed

WriteModel = Callable[..., Path]
Tensors = dict[str, torch.Tensor]

CPU = torch.device("cpu")
X = torch.arange(1.0, 10.0).view(3, 3)
DOUBLED = {"inputs/x": X, "outputs/y": X * 2}

HEAD = 'format = "factory"\nfactory = "model.py:build"\n'


def tensor(kind: str, name: str, dtype: str, shape: str, more: str = "") -> str:
    return f'[[{kind}]]\nname = "{name}"\ndtype = "{dtype}"\nshape = {shape}\n{more}\n'


class Model:
    """A function of the inputs that remembers with which batches it was run."""

    def __init__(self, *outputs: Callable[..., torch.Tensor]) -> None:
        self.batches: list[tuple[torch.Tensor, ...]] = []
        self._outputs = outputs

    def __call__(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        self.batches.append(tuple(each.clone() for each in inputs))
        return tuple(output(*inputs) for output in self._outputs)

    @property
    def shapes(self) -> list[list[tuple[int, ...]]]:
        """Of each run, the shapes of its inputs."""
        return [[tuple(each.shape) for each in batch] for batch in self.batches]


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def warmed_up(directory: Path, run: Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]) -> bool:
    return warm_up(read_manifest(directory), CPU, run)


def refusal(directory: Path, run: Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        warmed_up(directory, run)
    return caught.value


# ── which batches are run ───────────────────────────────────────────────────────────────────────


def test_without_a_sample_one_and_two_rows_of_zeros_are_run(write_model: WriteModel) -> None:
    model = Model(double)
    warmed_up(write_model(), model)
    assert model.shapes == [[(1, 3)], [(2, 3)]]
    assert [int(x.count_nonzero()) for (x,) in model.batches] == [0, 0]


def test_a_sample_is_run_whole_and_row_by_row(write_model: WriteModel) -> None:
    model = Model(double)
    warmed_up(write_model(sample=DOUBLED), model)
    compared = [x.tolist() for (x,) in model.batches[2:]]
    assert [len(x) for (x,) in model.batches[:2]] == [1, 3]
    assert compared == [X.tolist(), *([row] for row in X.tolist())]


def test_a_sample_of_one_row_is_run_as_two(write_model: WriteModel) -> None:
    model = Model(double)
    warmed_up(write_model(sample={key: each[:1] for key, each in DOUBLED.items()}), model)
    assert [len(x) for (x,) in model.batches] == [1, 2, 2, 1, 1]


# ── free dimensions ─────────────────────────────────────────────────────────────────────────────

PADDED = (
    HEAD
    + tensor("inputs", "ids", "int64", '["n"]', "pad = 7")
    + tensor("inputs", "mask", "bool", '["n"]', 'mask = "n"')
    + tensor("outputs", "y", "int64", '["n"]')
    + "[dimensions.n]\nmax = 8\nbuckets = [2, 4, 8]\n"
)
"""Ids of up to eight words, padded with 7 to two, four or eight."""


def masked(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A model that heeds the mask; what it answers for padding is nonsense."""
    total = (ids * mask).sum(1, keepdim=True)
    return torch.where(mask, total - ids, -99)


def sample_of(n: int) -> Tensors:
    ids = torch.arange(1, 2 * n + 1).view(2, n)
    return {"inputs/ids": ids, "outputs/y": ids.sum(1, keepdim=True) - ids}


def test_without_a_sample_zeros_have_the_smallest_bucket_or_the_largest_size(write_model: WriteModel) -> None:
    toml = (
        HEAD
        + tensor("inputs", "a", "float32", '["n", "m"]')
        + tensor("outputs", "y", "float32", "[]")
        + "[dimensions.n]\nmax = 8\nbuckets = [4, 8]\n[dimensions.m]\nmax = 5\n"
    )
    model = Model(lambda a: a.sum((1, 2)))
    warmed_up(write_model(toml), model)
    assert model.shapes == [[(1, 4, 5)], [(2, 4, 5)]]


@pytest.mark.parametrize(("n", "bucket"), [(1, 2), (2, 4), (3, 4), (7, 8)])
def test_a_sample_is_also_run_padded_to_the_next_larger_bucket(write_model: WriteModel, n: int, bucket: int) -> None:
    model = Model(masked)
    warmed_up(write_model(PADDED, sample=sample_of(n)), model)
    ids, mask = model.batches[-1]
    assert model.shapes == [[(rows, n)] * 2 for rows in (1, 2, 2, 1, 1)] + [[(2, bucket)] * 2]
    assert ids.tolist() == [[*row, *[7] * (bucket - n)] for row in sample_of(n)["inputs/ids"].tolist()]
    assert mask.tolist() == [[True] * n + [False] * (bucket - n)] * 2


def test_a_sample_of_the_largest_size_is_not_padded(write_model: WriteModel) -> None:
    model = Model(masked)
    warmed_up(write_model(PADDED, sample=sample_of(8)), model)
    assert model.shapes == [[(rows, 8)] * 2 for rows in (1, 2, 2, 1, 1)]


def test_an_answer_that_depends_on_padding_is_refused(write_model: WriteModel) -> None:
    error = refusal(write_model(PADDED, sample=sample_of(3)), Model(lambda ids, mask: ids.sum(1, keepdim=True) - ids))
    assert error.key == "outputs/y"
    told = "not what the model answers padded (n to 4): in row 0 3 of 3 elements are off, by up to 7"
    assert error.value == told
    assert error.remedy.startswith("a row's answer must not depend on other rows or on padding")


def test_a_mask_may_be_left_out_of_the_sample_wherever_the_manifest_names_it(write_model: WriteModel) -> None:
    head, ids, rest = PADDED.partition(tensor("inputs", "ids", "int64", '["n"]', "pad = 7"))
    mask, outputs, more = rest.partition("[[outputs]]")
    model = Model(lambda mask, ids: masked(ids, mask))
    warmed_up(write_model(head + mask + ids + outputs + more, sample=sample_of(3)), model)
    assert model.batches[2][0].tolist() == [[True] * 3] * 2


def test_tensors_of_a_sample_agree_on_the_size_of_a_dimension(write_model: WriteModel) -> None:
    sample = {**sample_of(3), "outputs/y": torch.zeros(2, 4, dtype=torch.int64)}
    error = refusal(write_model(PADDED, sample=sample), Model(masked))
    assert (error.key, error.value, error.remedy) == (
        "outputs/y",
        "int64 (2, 4)",
        "the manifest promises int64 (2, 3)",
    )


# ── sizes that come from the data ───────────────────────────────────────────────────────────────

FOUND = (
    HEAD
    + tensor("inputs", "x", "float32", "[3]")
    + tensor("outputs", "above", "float32", '["found"]')
    + tensor("outputs", "found", "int64", "[]")
    + '[dimensions.found]\nmax = 3\ncount = "found"\n'
)
"""Which of three numbers are above 4, and how many."""


def above(x: torch.Tensor) -> torch.Tensor:
    """Those above 4 at the front of each row; behind them is nonsense."""
    rows = [torch.cat((row[row > 4], torch.full((int((row <= 4).sum()),), 99.0))) for row in x]
    return torch.stack(rows)


def found(x: torch.Tensor) -> torch.Tensor:
    return (x > 4).sum(1)


EXPECTED = {
    "inputs/x": X,
    "outputs/above": torch.tensor([[0.0, 0.0, 0.0], [5.0, 6.0, 0.0], [7.0, 8.0, 9.0]]),
    "outputs/found": torch.tensor([0, 2, 3]),
}


def test_entries_beyond_those_that_a_row_counts_are_not_compared(write_model: WriteModel) -> None:
    warmed_up(write_model(FOUND, sample=EXPECTED), Model(above, found))


def test_a_wrong_count_is_told(write_model: WriteModel) -> None:
    error = refusal(write_model(FOUND, sample=EXPECTED), Model(above, lambda x: found(x).clamp(max=2)))
    assert (error.key, error.value.partition(": ")[2]) == ("outputs/above", "row 2 counts 2 found instead of 3")


def test_a_count_beyond_the_largest_size_is_told(write_model: WriteModel) -> None:
    sample = {**EXPECTED, "outputs/found": torch.tensor([0, 2, 4])}
    error = refusal(write_model(FOUND, sample=sample), Model(above, lambda x: found(x) + (found(x) == 3)))
    assert error.value.endswith(": row 2 counts entries that are not there")


@pytest.mark.parametrize(("count", "entries"), [(3, 2), (2, 1), (-1, 2), (2**40, 2)])
def test_counts_of_entries_that_are_not_there_are_told(write_model: WriteModel, count: int, entries: int) -> None:
    """Of the sample, of the model, or of both: what they count alike may still not be there."""
    x, counts = torch.ones(2, 3), torch.full((2,), count)
    sample = {"inputs/x": x, "outputs/above": torch.ones(2, 2), "outputs/found": counts}
    model = Model(lambda x: torch.ones(len(x), entries), lambda x: counts[: len(x)])
    error = refusal(write_model(FOUND, sample=sample), model)
    assert error.value.partition(": ")[2] == "row 0 counts entries that are not there"


def test_a_wrong_entry_is_told_with_its_row(write_model: WriteModel) -> None:
    error = refusal(write_model(FOUND, sample=EXPECTED), Model(lambda x: above(x) + (above(x) == 6), found))
    assert error.value.partition(": ")[2].startswith("in row 1 1 of 2 elements are off, by up to 1 (")


# ── what is right ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("off", "right"), [(0.009, True), (0.011, False)])
def test_numbers_may_differ_by_the_manifests_tolerance(write_model: WriteModel, off: float, right: bool) -> None:
    ones = {"inputs/x": torch.ones(2, 3), "outputs/y": torch.ones(2, 3)}
    directory = write_model(sample=ones)
    with (directory / "model.toml").open("a") as file:
        file.write("rtol = 0.006\natol = 0.004\n")
    model = Model(lambda x: x + off)
    if right:
        warmed_up(directory, model)
    else:
        assert refusal(directory, model).value.endswith("by up to 0.011 (rtol 0.006, atol 0.004)")


def test_no_number_is_right_only_where_it_is_expected(write_model: WriteModel) -> None:
    nothing = torch.full((2, 3), float("nan"))
    sample = {"inputs/x": nothing, "outputs/y": nothing}
    assert warmed_up(write_model(sample=sample), Model(lambda x: x)) is False
    error = refusal(write_model(sample=sample, name="other"), Model(torch.zeros_like))
    assert "6 of 6 elements are off, by up to nan" in error.value


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_whole_numbers_must_be_equal(write_model: WriteModel, dtype: str) -> None:
    toml = HEAD + tensor("inputs", "x", dtype, "[2]") + tensor("outputs", "y", dtype, "[2]")
    x = torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, dtype))
    directory = write_model(toml, sample={"inputs/x": x, "outputs/y": x})
    warmed_up(directory, Model(lambda x: x))
    error = refusal(directory, Model(torch.ones_like))
    assert error.value.endswith("2 of 4 elements are off, by up to 1")


def test_rows_that_influence_one_another_are_told(write_model: WriteModel) -> None:
    sample = {"inputs/x": X, "outputs/y": X - X.mean(0)}
    error = refusal(write_model(sample=sample), Model(lambda x: x - x.mean(0)))
    assert error.value.startswith("not what the model answers with row 0 alone: ")


# ── changed inputs ──────────────────────────────────────────────────────────────────────────────


def written_past_torch(x: torch.Tensor) -> torch.Tensor:
    x.numpy()[...] = -1
    return x


@pytest.mark.parametrize(
    ("function", "changes"),
    [(double, False), (lambda x: x, False), (lambda x: x.relu_(), True), (written_past_torch, True)],
)
def test_a_model_that_writes_to_its_input_is_known(
    write_model: WriteModel, function: Callable[[torch.Tensor], torch.Tensor], changes: bool
) -> None:
    assert warmed_up(write_model(), Model(function)) is changes


def test_an_input_that_is_changed_does_not_spoil_the_next_run(write_model: WriteModel) -> None:
    model = Model(lambda x: x.mul_(2))
    assert warmed_up(write_model(sample=DOUBLED), model) is True
    assert model.batches[-1][0].tolist() == X[2:].tolist()


# ── failing ─────────────────────────────────────────────────────────────────────────────────────


def failing(rows: set[int], error: Exception) -> Callable[..., Any]:
    """A model that fails with so many rows."""

    def run(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if len(inputs[0]) in rows:
            raise error
        return (inputs[0],)

    return run


ERRORS = [ModelFailed("double", "ValueError: no"), BadModelOutput("double", "y", "float32", "int64")]


@pytest.mark.parametrize("error", ERRORS, ids=["failed", "bad output"])
def test_a_model_that_always_fails_is_told_with_what_it_said(write_model: WriteModel, error: Exception) -> None:
    directory = write_model()
    told = refusal(directory, failing({1, 2}, error))
    assert (told.path, told.key) == (directory / "model.toml", "the model")
    assert told.value == f"failing its warm-up ({error})"


@pytest.mark.parametrize(("rows", "other"), [(1, 2), (2, 1)])
def test_a_model_that_fails_with_some_row_counts_is_told_which(write_model: WriteModel, rows: int, other: int) -> None:
    error = refusal(write_model(), failing({rows}, ERRORS[0]))
    assert error.value == f"failing with a batch of {rows} and not with one of {other} ({ERRORS[0]})"
    assert error.remedy == "make it take any number of rows"


def test_a_static_program_is_to_be_exported_again(write_model: WriteModel) -> None:
    toml = 'format = "export"\nprogram = "model.py"\n'
    toml += tensor("inputs", "x", "float32", "[3]") + tensor("outputs", "y", "float32", "[3]")
    directory = write_model(toml)
    error = refusal(directory, failing({2}, ERRORS[0]))
    assert error.path == directory / "model.py"
    assert error.remedy.endswith('torch.export.Dim("rows")')


def test_what_is_not_the_models_fault_passes(write_model: WriteModel) -> None:
    with pytest.raises(MemoryError):
        warmed_up(write_model(), failing({1}, MemoryError()))


# ── samples ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sample", "key", "value"),
    [
        ({"outputs/y": X}, "inputs/x", "missing"),
        ({"inputs/x": X}, "outputs/y", "missing"),
        ({**DOUBLED, "x": X}, "x", "not a tensor of this model"),
        ({**DOUBLED, "inputs/x": X.half()}, "inputs/x", "float16 (3, 3)"),
        ({**DOUBLED, "inputs/x": torch.tensor(1.0)}, "inputs/x", "float32 ()"),
        ({**DOUBLED, "outputs/y": X[:2]}, "outputs/y", "float32 (2, 3)"),
    ],
)
def test_a_sample_of_another_form_is_refused_before_anything_runs(
    write_model: WriteModel, sample: Tensors, key: str, value: str
) -> None:
    directory, model = write_model(sample=sample), Model(double)
    error = refusal(directory, model)
    assert (error.path, error.key, error.value) == (directory / "warmup.safetensors", key, value)
    assert model.batches == []
