"""Graphs in the place of a model, captured by nothing but Python; at the end, on a stand-in for a GPU."""

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from tensord.daemon.worker import graphs as module
from tensord.daemon.worker.cuda import CudaDevice
from tensord.daemon.worker.device import Runner
from tensord.daemon.worker.graphs import Graphs, rows_captured
from tensord.ipc.statistics import Counter

from .fake_cuda import FakeGpu, open_fake, schedules

Function = Callable[..., Any]


class Play:
    """A model, its graphs, and what they say. `captures` captures by calling the model again each time."""

    def __init__(self, function: Function, rows_max: int = 64) -> None:
        self.rows_max = rows_max
        self.counted: Tally[Counter] = Tally()
        self.notes: list[str] = []
        self.captured: list[list[torch.Size]] = []
        self.tried: list[Any] = []
        """On what it was captured last."""
        self.failure: BaseException | None = None
        """What capturing raises."""
        self.model = self.graphs(self._capture, function)

    def graphs(self, capture: Callable[[Function, Sequence[torch.Tensor]], Runner], function: Function) -> Graphs:
        return Graphs(
            capture,
            function,
            rows_max=lambda: self.rows_max,
            count=lambda counter: self.counted.update([counter]),
            note=self.notes.append,
        )

    def _capture(self, function: Function, inputs: Sequence[torch.Tensor]) -> Runner:
        if self.failure is not None:
            raise self.failure
        self.captured.append([each.shape for each in inputs])
        self.tried = [each.tolist() for each in inputs]
        outputs = function(*inputs)

        def run() -> Any:
            again = function(*inputs)
            for output, new in zip(_leaves(outputs), _leaves(again), strict=True):
                output.copy_(new)
            return outputs

        return run


def _leaves(answer: Any) -> Sequence[torch.Tensor]:
    if isinstance(answer, dict):
        return list(answer.values())
    return answer if isinstance(answer, tuple | list) else [answer]


def double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1)


# ── forms ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("count", "rows_max", "expected"),
    [(1, 64, 1), (2, 64, 2), (3, 64, 4), (33, 64, 64), (33, 48, 48), (5, 6, 6), (9, 8, 9), (3, 1, 3), (1, 1, 1)],
)
def test_rows_are_rounded_up_to_a_power_of_two_or_the_largest_batch(count: int, rows_max: int, expected: int) -> None:
    assert rows_captured(count, rows_max) == expected


def test_there_is_one_graph_for_each_form(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(lambda x, y: (x * 2, y + 1))
    for count, size in [(1, 2), (3, 2), (4, 2), (3, 5), (1, 2), (4, 5)]:
        x, y = torch.ones(count, size), torch.arange(count)
        doubled, more = play.model(x, y)
        assert (doubled.tolist(), more.tolist()) == ((x * 2).tolist(), (y + 1).tolist())
    assert play.captured == [[(1, 2), (1,)], [(4, 2), (4,)], [(4, 5), (4,)]]
    assert play.counted == {Counter.GRAPHS_CAPTURED: 3, Counter.GRAPH_REPLAYS: 6}


def test_the_largest_batch_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(double)
    for play.rows_max in (64, 6, 5):
        assert play.model(rows(1, 2, 3, 4, 5)).tolist() == [[2], [4], [6], [8], [10]]
    assert play.captured == [[(8, 1)], [(6, 1)], [(5, 1)]]


def test_further_forms_run_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRAPHS_MAX", 2)
    play = Play(double)
    for count in (1, 2, 3, 2):
        assert play.model(torch.ones(count, 1)).tolist() == [[2]] * count
    assert play.captured == [[(1, 1)], [(2, 1)]]
    assert play.counted[Counter.GRAPH_REPLAYS] == 3
    assert play.notes == []


def test_a_model_is_tried_on_the_rows_that_came() -> None:
    play = Play(double)
    play.model(rows(7, 8, 9))
    assert play.tried == [[[7], [8], [9], [0]]]


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (double, [[2], [4], [6]]),
        (lambda x: [x + 1, x[:, 0]], ([[2], [3], [4]], [1, 2, 3])),
        (lambda x: {"b": x, "a": -x}, {"b": [[1], [2], [3]], "a": [[-1], [-2], [-3]]}),
        (lambda x: x.mul_(2), [[2], [4], [6]]),
    ],
)
def test_an_answer_has_the_form_that_the_model_gave_it_and_the_rows_that_there_were(
    function: Function, expected: Any
) -> None:
    answer = Play(function).model(rows(1, 2, 3))
    assert module._each(answer, torch.Tensor.tolist) == expected


def test_an_answer_stays_when_the_graph_runs_again() -> None:
    play = Play(double)
    first, second = play.model(rows(1, 2, 3)), play.model(rows(4, 5, 6, 7))
    assert (first.tolist(), second.tolist()) == ([[2], [4], [6]], [[8], [10], [12], [14]])
    assert len(play.captured) == 1


# ── without ─────────────────────────────────────────────────────────────────────────────────────


def test_a_model_that_cannot_be_captured_runs_without_and_says_so_once() -> None:
    play = Play(double)
    play.failure = RuntimeError("called a synchronizing CUDA operation\nat length")
    for count in (1, 2, 1):
        assert play.model(torch.ones(count, 1)).tolist() == [[2]] * count
    assert play.notes == ["RuntimeError: called a synchronizing CUDA operation"]
    assert play.counted == {}
    play.failure = None
    assert play.model(rows(1)).tolist() == [[2]]
    assert play.captured == []


def test_what_was_captured_is_replayed_when_a_later_capture_fails() -> None:
    play = Play(double)
    play.model(rows(1))
    play.failure = torch.OutOfMemoryError("CUDA out of memory")
    for count in (4, 4, 1):
        assert play.model(torch.ones(count, 1)).tolist() == [[2]] * count
    assert play.counted == {Counter.GRAPHS_CAPTURED: 1, Counter.GRAPH_REPLAYS: 2}
    assert play.notes == ["OutOfMemoryError: CUDA out of memory"]


def test_a_model_whose_graphs_are_given_up_is_captured_no_more() -> None:
    play = Play(double)
    play.model(rows(1))
    play.model.give_up("they answer wrongly")
    assert play.model(rows(3)).tolist() == [[6]]
    assert play.counted == {Counter.GRAPHS_CAPTURED: 1, Counter.GRAPH_REPLAYS: 1}
    assert play.notes == ["they answer wrongly"]


@pytest.mark.parametrize("answer", [torch.ones(3), torch.tensor(1.0), (torch.ones(2, 1), 5), None])
def test_what_has_no_rows_cannot_be_cut(answer: Any) -> None:
    play = Play(lambda _x: answer)
    assert play.model(rows(1, 2)) is answer
    assert play.notes == ["ValueError: it returns something that has not one row for each of its inputs"]


def test_a_model_that_raises_raises() -> None:
    def failing(_x: torch.Tensor) -> None:
        raise ZeroDivisionError

    play = Play(failing)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            play.model(rows(1))
    assert len(play.notes) == 1


# ── on a device ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu()
    made.install(monkeypatch)
    return made


@pytest.fixture
def device(gpu: FakeGpu) -> Iterator[CudaDevice]:
    with gpu, torch.inference_mode():
        yield open_fake(gpu)


@pytest.mark.parametrize("hasty", range(8))
@pytest.mark.parametrize("function", [double, torch.Tensor.sigmoid, lambda x: x.mul_(2).add_(1)])
def test_answers_on_a_device_are_those_of_the_model(
    device: CudaDevice, gpu: FakeGpu, function: Function, hasty: int
) -> None:
    gpu.hasty = schedules(gpu)[hasty]
    play = Play(function)
    model = play.graphs(device.capture, function)
    sent = [torch.randn(count, 3) for count in (3, 1, 4, 2, 3, 3, 1)]
    got = [model(tensor.to(device.torch_device)) for tensor in sent]
    for tensor, answer in zip(sent, got, strict=True):
        assert torch.equal(answer.cpu(), function(tensor.clone()))
    assert play.notes == []
    assert play.counted == {Counter.GRAPHS_CAPTURED: 3, Counter.GRAPH_REPLAYS: 7}


def test_a_model_that_makes_the_host_wait_runs_without(device: CudaDevice, gpu: FakeGpu) -> None:
    play = Play(double)
    model = play.graphs(device.capture, lambda x: x * 2 if x.sum() > 0 else x)
    for number in (1, -1):
        sent = torch.full((1, 2), float(number))
        assert model(sent.to(device.torch_device)).tolist() == [[2.0 * max(number, -0.5)] * 2]
    assert play.notes == ["RuntimeError: called a synchronizing CUDA operation"]
    assert gpu.captures == 0


def test_without_memory_for_a_graph_the_model_runs_without(device: CudaDevice, gpu: FakeGpu) -> None:
    play = Play(double)
    model = play.graphs(device.capture, double)
    sent = torch.ones(100, 3).to(device.torch_device)
    gpu.limit_bytes = 4096
    assert model(sent).tolist() == [[2.0] * 3] * 100
    (note,) = play.notes
    assert note.startswith("OutOfMemoryError: CUDA out of memory")
