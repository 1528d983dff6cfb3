"""The worker's loop on a stand-in for a GPU: batches in flight, memory, graphs, and what a GPU may say."""

import os
import select
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tensord.daemon import messages as m
from tensord.daemon.worker import __main__ as main_module
from tensord.daemon.worker import device as device_module
from tensord.daemon.worker import loop as loops
from tensord.daemon.worker.device import CpuDevice, Device, DeviceLost
from tensord.ipc.arena import create_arena
from tensord.ipc.descriptors import RaggedRequest
from tensord.ipc.errors import ModelFailed, NoMemory, TensordError
from tensord.ipc.statistics import Counter, Phase, Word

from .fake_cuda import OTHERS_BYTES, OUT_OF_MEMORY, TOTAL_BYTES, FakeGpu, open_fake, schedules
from .test_loop import (
    CHANGING,
    CODE,
    FAILING,
    IDENTITY,
    INGEST_BYTES,
    MODELS,
    PADDED,
    POSITIVE,
    ROW,
    TENSORS,
    TOML,
    WATCHDOG_S,
)
from .test_loop import Play as CpuPlay

pytestmark = pytest.mark.timeout(60)

SCHEDULES = range(8)
WITH_GRAPHS = ("identity", "changing", "padded")


class Play(CpuPlay):
    """With the worker's thread on the GPU."""

    def __init__(self, root: Path, device: Device, gpu: FakeGpu) -> None:
        super().__init__(root, device)
        self.gpu = gpu
        self.waits_at_start = 0
        """What the warm-ups had to wait for."""

    def _run(self) -> None:
        with self.gpu:
            super()._run()

    def some_answers(self) -> list[tuple[int, TensordError | None]]:
        """Those that are there when one is."""
        readable, _, _ = select.select([self.port.bell], [], [], WATCHDOG_S)
        assert readable
        return self.answers_now()

    def counters(self, model: int, *counters: Counter) -> list[int]:
        counted = self.block.counters(model)
        return [counted[counter] for counter in counters]


Open = Callable[..., Play]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu()
    made.install(monkeypatch)
    return made


@pytest.fixture
def open_play(tmp_path: Path, gpu: FakeGpu) -> Iterator[Open]:
    """Starts a worker; it does not outlive the test."""
    plays: list[Play] = []

    def open_one(*, hasty: int = 0, graphs: bool = False) -> Play:
        for name, body in MODELS.items():
            directory = tmp_path / name / "1"
            directory.mkdir(parents=True)
            head = "cuda_graphs = true\n" if graphs and name in WITH_GRAPHS else ""
            (directory / "model.toml").write_text(head + TOML.get(name, TENSORS))
            (directory / "model.py").write_text(CODE.format(body=body))
        device = open_fake(gpu)
        gpu.hasty = schedules(gpu)[hasty]
        plays.append(Play(tmp_path, device, gpu))
        plays[-1].start(spin=False)
        plays[-1].waits_at_start = gpu.waits
        return plays[-1]

    yield open_one
    for play in plays:
        play.close()


@pytest.fixture
def play(open_play: Open) -> Play:
    return open_play()


def run_many(play: Play, model: int, batches: int) -> list[list[float]]:
    """Batches of three rows from two runs, in two sets of slots, which are somebody else's as soon as they are back."""
    places = [(0, 40), (10, 50)]
    results = []

    def send(number: int) -> None:
        source, target = places[number % 2]
        for row in range(3):
            play.write(source + row * 2, float(10 * number + row))
        inputs = [(0, 1, (source + row * 2) * ROW) for row in range(3)]
        play.send(number, inputs, [(0, 2, target * ROW), (0, 1, (target + 5) * ROW)], model)
        play.port.ring()

    answers: list[tuple[int, TensordError | None]] = []
    send(0)
    for number in range(batches):
        if number + 1 < batches:
            send(number + 1)
        while len(answers) <= number:
            answers += play.some_answers()
        assert answers[number] == (number, None)
        source, target = places[number % 2]
        results.append([*play.read(target, 2), *play.read(target + 5)])
        for row in (source, target):
            play.write(row, -1e9, rows=6)
    return results


# ── batches in flight ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hasty", SCHEDULES)
@pytest.mark.parametrize(
    ("model", "factor", "graphs"), [(IDENTITY, 1, False), (CHANGING, 2, False), (CHANGING, 2, True)]
)
def test_every_batch_gets_its_own_answer(open_play: Open, hasty: int, model: int, factor: int, graphs: bool) -> None:
    play = open_play(hasty=hasty, graphs=graphs)
    assert run_many(play, model, 6) == [[factor * (10.0 * n + row) for row in range(3)] for n in range(6)]
    assert play.gpu.waits == play.waits_at_start


REQUESTS = [
    RaggedRequest(1, (3,), ((0, 0),), ((0, 1024, 12), (0, 1088, 32), (0, 1152, 8))),
    RaggedRequest(2, (2,), ((0, 64),), ((0, 1216, 16), (0, 1280, 64), (0, 1344, 16))),
]


@pytest.mark.parametrize("hasty", SCHEDULES)
def test_sizes_and_counts_are_right_whatever_is_late(open_play: Open, hasty: int) -> None:
    play = open_play(hasty=hasty)
    for number in range(4):
        play.write_at(0, [1, -2, 3 + number])
        play.write_at(64, [5, -1, -1, -1])
        play.send_ragged(number, 4, REQUESTS, POSITIVE)
        play.send_ragged(100 + number, 4, REQUESTS, POSITIVE)
        assert play.answers(2) == [(number, None), (100 + number, None)]
        assert play.data_sizes == (2, 1)
        assert (play.read_at(1024, 3), play.read_at(1088, 3)) == ([2, -4, 6 + 2 * number], [6 + 2 * number, 2, 0])
        assert (play.read_at(1216, 4), play.read_at(1280, 3)) == ([10, -2, -2, -2], [10, 0, 0])


def test_times_and_bytes_are_counted_as_those_of_a_gpu(play: Play) -> None:
    play.run((0, 10))
    play.answers(1)
    play.until(lambda: play.counters(IDENTITY, Counter.WRITTEN_BYTES) == [ROW])
    assert play.phases(IDENTITY) == [Phase.LOAD, Phase.HOST_TO_DEVICE, Phase.COMPUTE, Phase.DEVICE_TO_HOST]
    assert play.counters(IDENTITY, Counter.VIEWED_BYTES, Counter.GATHERED_BYTES) == [0, ROW]


def test_a_batch_that_fails_does_not_disturb_its_neighbours(play: Play) -> None:
    play.switch("failing")
    for row in range(5):
        play.write(row, 1.0 + row)
    for batch_id, model in enumerate([CHANGING, FAILING, CHANGING, FAILING, CHANGING]):
        play.send(batch_id, [(0, 1, batch_id * ROW)], [(0, 1, (10 + batch_id) * ROW)], model)
    play.port.ring()
    answers = play.answers(5)
    assert [type(error) for _, error in answers] == [type(None), ModelFailed, type(None), ModelFailed, type(None)]
    assert play.read(10, 5) == [2.0, 0.0, 6.0, 0.0, 10.0]


# ── what a GPU may say ──────────────────────────────────────────────────────────────────────────


def test_a_batch_without_memory_fails_alone(play: Play) -> None:
    play.run((0, 10), model=CHANGING)
    play.answers(1)
    play.gpu.limit_bytes = 0  # what that batch had can be used again
    play.send(1, [(0, 2000, 0)], [(0, 2000, 2000 * ROW)], CHANGING)
    play.write(0, 3.0)
    play.send(2, [(0, 1, 0)], [(0, 1, 10 * ROW)], CHANGING)
    play.port.ring()
    (first, error), second = play.answers(2)
    assert (first, second) == (1, (2, None))
    assert isinstance(error, NoMemory)
    assert error.what == "memory of cuda:3 for a batch of 2000 rows"
    assert play.read(10) == [6.0]


def test_memory_that_the_models_own_code_does_not_get_is_not_its_fault(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    play.worker._models[IDENTITY].forward = none_left
    play.run((0, 10))
    ((_, error),) = play.answers(1)
    assert isinstance(error, NoMemory)


def test_a_model_that_does_not_fit_is_broken_and_the_others_are_served(play: Play) -> None:
    (play.root / "changing" / "1" / "model.py").write_text(CODE.format(body="return x.repeat(1, 1_000_000)[:, :4]"))
    play.gpu.limit_bytes = 2**20
    play.supervisor.send(m.LoadModel(CHANGING, str(play.root), "changing", 1))
    broken = play.expect(m.ModelBroken)
    assert isinstance(broken, m.ModelBroken)
    assert broken.reason.startswith("changing:1: OutOfMemoryError: CUDA out of memory")
    play.run((0, 10))
    assert play.answers(1) == [(1, None)]


@pytest.mark.parametrize("model", [IDENTITY, FAILING])
def test_a_worker_whose_gpu_is_lost_ends_without_another_answer(play: Play, model: int) -> None:
    forward = play.worker._models[IDENTITY].forward

    def fault(tensor: torch.Tensor) -> torch.Tensor:
        play.gpu.break_later()
        return forward(tensor)  # type: ignore[no-any-return]

    play.switch("failing")
    play.worker._models[IDENTITY].forward = fault
    play.send(1, [(0, 1, 0)], [(0, 1, 10 * ROW)])
    play.send(2, [(0, 1, 0)], [(0, 1, 11 * ROW)], model)
    play.port.ring()
    play.join()
    assert isinstance(play.lost, DeviceLost)
    assert "an illegal memory access was encountered" in str(play.lost)
    assert play.answers_now() == []


def test_the_process_of_a_lost_gpu_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost:
        def __init__(self, link: m.Link, _device: Device) -> None:
            self._link = link

        def run(self) -> None:
            self._link.close()
            raise DeviceLost("cuda:0 is lost")

    ours, theirs = m.Link.pair()
    monkeypatch.setattr(main_module, "tie_to_parent", lambda _pid: None)
    monkeypatch.setattr(device_module, "open_device", CpuDevice)
    monkeypatch.setattr(loops, "Worker", Lost)
    with pytest.raises(SystemExit) as ended:
        main_module.main([str(theirs.sock.detach()), "1", "cpu:0"])
    assert ended.value.code == "cuda:0 is lost"
    ours.close()


# ── memory ──────────────────────────────────────────────────────────────────────────────────────


def words(play: Play, *names: Word) -> list[int]:
    return [play.block.words[name] for name in names]


def test_arenas_are_counted_as_pinned_while_they_are_mapped(play: Play) -> None:
    play.until(lambda: words(play, Word.PINNED_BYTES) == [INGEST_BYTES])
    fd = create_arena(8192)
    play.supervisor.send(m.MapArena(3, 8192), [fd])
    os.close(fd)
    play.until(lambda: words(play, Word.PINNED_BYTES) == [INGEST_BYTES + 8192])
    play.supervisor.send(m.UnmapArena(3))
    play.until(lambda: words(play, Word.PINNED_BYTES) == [INGEST_BYTES])
    assert words(play, Word.UNPINNED_BYTES) == [0]


def test_arenas_that_cannot_be_pinned_are_used_and_said(play: Play) -> None:
    play.gpu.runtime.refuses = OUT_OF_MEMORY
    play.open_channel().close()
    told = "copies from and to some arenas are slow: they could not be pinned, out of memory (2)"
    assert play.expect(m.WorkerNoted) == m.WorkerNoted("pinned memory", told)
    assert play.expect(m.ChannelOpened) == m.ChannelOpened(2)
    assert words(play, Word.PINNED_BYTES, Word.UNPINNED_BYTES) == [0, INGEST_BYTES]
    assert run_many(play, CHANGING, 2) == [[0.0, 2.0, 4.0], [20.0, 22.0, 24.0]]
    play.gpu.runtime.refuses = 0
    play.open_channel().close()
    assert play.expect(m.WorkerNoted) == m.WorkerNoted("pinned memory", "")
    assert play.expect(m.ChannelOpened) == m.ChannelOpened(3)
    assert words(play, Word.PINNED_BYTES, Word.UNPINNED_BYTES) == [INGEST_BYTES, 0]


def test_the_memory_of_the_gpu_is_written_down_again_and_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "LOOK_S", 0.0)
    monkeypatch.setattr(loops, "BEAT_S", 0.001)
    play.worker._look_ns = 0
    play.gpu.limit_bytes = 2**24
    play.until(lambda: 0 < words(play, Word.DEVICE_FREE_BYTES)[0] < 2**24)
    assert words(play, Word.DEVICE_TOTAL_BYTES) == [TOTAL_BYTES]
    assert OTHERS_BYTES < TOTAL_BYTES


def test_the_memory_of_a_model_is_what_its_load_took(play: Play) -> None:
    code = "import torch\nclass Model(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    code += "        self.register_buffer('table', torch.ones(25_000))\n    def forward(self, x):\n        return x\n"
    (play.root / "changing" / "1" / "model.py").write_text(code + "def build():\n    return Model()\n")
    play.supervisor.send(m.LoadModel(CHANGING, str(play.root), "changing", 1))
    loaded = play.expect(m.ModelLoaded)
    assert isinstance(loaded, m.ModelLoaded)
    assert 100_000 <= loaded.memory_bytes < 110_000


# ── graphs ──────────────────────────────────────────────────────────────────────────────────────

CAPTURED_AND_REPLAYED = (Counter.GRAPHS_CAPTURED, Counter.GRAPH_REPLAYS)


def test_a_model_that_asks_for_graphs_is_replayed(open_play: Open) -> None:
    play = open_play(graphs=True)
    assert play.counters(CHANGING, *CAPTURED_AND_REPLAYED) == [2, 2]  # one row, and two: the warm-up's
    assert play.counters(POSITIVE, *CAPTURED_AND_REPLAYED) == [0, 0]
    assert run_many(play, CHANGING, 4) == [[2 * (10.0 * n + row) for row in range(3)] for n in range(4)]
    assert play.counters(CHANGING, *CAPTURED_AND_REPLAYED) == [3, 6]


def test_rows_are_rounded_up_to_the_largest_batch_at_most(open_play: Open) -> None:
    play = open_play(graphs=True)
    captured = play.gpu.captures
    for epoch, (own, rows) in enumerate([({}, 5), ({}, 8), ({"max_batch": 6}, 5), ({"max_batch": 6}, 6)], 1):
        play.supervisor.send(m.KnobValues(epoch, {"max_batch": 8, "spin_us": 0}, {"changing": dict(own)}, {}, {}))
        play.expect(m.KnobsApplied)
        play.send(1, [(0, rows, 0)], [(0, rows, 20 * ROW)], CHANGING)
        play.port.ring()
        assert play.answers(1) == [(1, None)]
    assert play.gpu.captures == captured + 2


@pytest.mark.parametrize("hasty", [0, 7])
def test_padded_batches_have_a_graph_for_each_bucket(open_play: Open, hasty: int) -> None:
    play = open_play(graphs=True, hasty=hasty)
    captured = play.gpu.captures
    requests = [
        RaggedRequest(1, (3,), ((0, 0),), ((0, 1024, 12),)),
        RaggedRequest(1, (2,), ((0, 64),), ((0, 1088, 8),)),
    ]
    for number, size in enumerate([4, 8, 4, 8]):
        play.write_at(0, [1, 2, 3 + number])
        play.write_at(64, [4, 5])
        play.send_ragged(number, size, requests, PADDED)
        assert play.answers(1) == [(number, None)]
        assert (play.read_at(1024, 4), play.read_at(1088, 3)) == ([1, 2, 3 + number, 0], [4, 5, 0])
    assert play.gpu.captures == captured + 1  # the warm-up has those of the smallest bucket


def say_no(_function: Callable[..., object], _inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
    raise RuntimeError("no graphs today")


def test_a_model_that_cannot_be_captured_is_served_without_and_said(
    open_play: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = open_play()
    play.worker._device.capture = say_no  # type: ignore[misc]
    toml = play.root / "changing" / "1" / "model.toml"
    toml.write_text("cuda_graphs = true\n" + toml.read_text())
    play.supervisor.send(m.LoadModel(CHANGING, str(play.root), "changing", 1))
    told = "batches of changing:1 run without CUDA graphs: RuntimeError: no graphs today"
    assert play.expect(m.WorkerNoted) == m.WorkerNoted("graphs of changing:1", told)
    play.expect(m.ModelLoaded)
    assert run_many(play, CHANGING, 3) == [[2 * (10.0 * n + row) for row in range(3)] for n in range(3)]
    assert play.counters(CHANGING, *CAPTURED_AND_REPLAYED) == [0, 0]


def test_a_model_whose_graphs_answer_wrongly_is_served_without_and_said(open_play: Open) -> None:
    """A graph does what the model did when it was captured: Python that differs from call to call is not in it."""
    play = open_play()
    directory = play.root / "changing" / "1"
    sample = {"inputs/x": torch.ones(2, 4), "outputs/y": torch.full((2, 4), 2.0)}
    save_file(sample, directory / "warmup.safetensors")
    body = "return x * (2 if not torch.cuda.is_current_stream_capturing() else 3)"
    (directory / "model.py").write_text(CODE.format(body=body))
    toml = directory / "model.toml"
    toml.write_text("cuda_graphs = true\n" + toml.read_text() + '[warmup]\nsample = "warmup.safetensors"\n')
    play.supervisor.send(m.LoadModel(CHANGING, str(play.root), "changing", 1))
    note = play.expect(m.WorkerNoted)
    assert isinstance(note, m.WorkerNoted)
    assert "not what the model answers with 2 rows in one batch" in note.sentence
    play.expect(m.ModelLoaded)
    assert run_many(play, CHANGING, 2) == [[0.0, 2.0, 4.0], [20.0, 22.0, 24.0]]
