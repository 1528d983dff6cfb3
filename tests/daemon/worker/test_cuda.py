"""The GPU as a device, on a stand-in that does everything as late as it may (`fake_cuda`); at the end, a real one."""

import contextlib
import itertools
import math
import mmap
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from tensord.daemon.models.dtypes import TORCH_DTYPES
from tensord.daemon.worker.cuda import MARKS_MAX, TRIAL_RUNS, CudaDevice
from tensord.daemon.worker.device import DeviceLost, DeviceUnusable, Stage
from tensord.ipc.statistics import Phase
from tensord.ipc.tensors import DType, TensorSpec

from .fake_cuda import OTHERS_BYTES, OUT_OF_MEMORY, TICK_MS, TOTAL_BYTES, FakeGpu, open_fake
from .fake_cuda import schedules as all_schedules

ROW = TensorSpec("x", DType.FLOAT32, (4,))
REGION_BYTES = 4096
SCHEDULES = range(2 ** len(Stage))
"""Which stages are hasty."""

Model = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu()
    made.install(monkeypatch)
    return made


@pytest.fixture
def device(gpu: FakeGpu) -> Iterator[CudaDevice]:
    with gpu, torch.inference_mode():
        yield open_fake(gpu)


@pytest.fixture
def region(device: CudaDevice) -> torch.Tensor:
    """Pinned host memory."""
    return device.open_region(mmap.mmap(-1, REGION_BYTES))


def noise(nbytes: int) -> torch.Tensor:
    """Always the same bytes; every third is zero."""
    made = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    made[::3] = 0
    return made


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


class Batch:
    """Rows of a region that are computed into rows of the same region."""

    def __init__(self, device: CudaDevice, region: torch.Tensor, source: int, target: int) -> None:
        self._device = device
        self._places = [region[row * ROW.row_bytes : (row + 2) * ROW.row_bytes] for row in (source, target)]
        self.marks: list[torch.cuda.Event] = []

    def begin(self, value: float, model: Model) -> None:
        """Two rows of this value; nothing but the marks is kept."""
        device, (source, target) = self._device, self._places
        source.view(torch.float32).fill_(value)
        with device.stage(Stage.COPY_IN):
            self.marks = [device.mark()]
            inputs, _ = device.stack(ROW, source.split(ROW.row_bytes), private=False)
            self.marks.append(device.mark())
        with device.stage(Stage.COMPUTE, [inputs]):
            self.marks.append(device.mark())
            outputs = model(inputs)
            del inputs
            self.marks.append(device.mark())
        with device.stage(Stage.COPY_OUT, [outputs]):
            self.marks.append(device.mark())
            cleaned = torch.zeros_like(outputs)
            cleaned[0], cleaned[1] = outputs[0], outputs[1]
            del outputs
            device.copy_out(cleaned, target.view(torch.float32).view(2, 4))
            self.marks.append(device.mark())

    def wait(self) -> None:
        self._device.wait(self.marks[-1])

    def result(self) -> list[float]:
        return self._places[1].view(torch.float32).unique().tolist()  # type: ignore[no-any-return]

    def give_back(self) -> None:
        """The slots are another's now."""
        for place in self._places:
            place.fill_(0xAA)


def triple_and_one(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mul(3).add(1)


def in_place(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mul_(3).add_(1)


def begin_again_and_again(device: CudaDevice, region: torch.Tensor, model: Model, count: int) -> list[list[float]]:
    """Batches, two in flight, each in the slots of the one before the last."""
    begun: list[Batch] = []
    results = []
    for number in range(count):
        begun.append(Batch(device, region, 4 * (number % 2), 20 + 4 * (number % 2)))
        begun[-1].begin(float(number), model)
        if len(begun) == device.in_flight_max:
            oldest = begun.pop(0)
            oldest.wait()
            results.append(oldest.result())
            oldest.give_back()
    for batch in begun:
        batch.wait()
        results.append(batch.result())
    return results


def test_without_a_gpu_the_device_is_unusable(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnusable, match="'cuda:0': torch finds no usable CUDA device"):
        CudaDevice("cuda:0")
    assert gpu.streams == []


def test_a_gpu_that_does_not_start_is_unusable(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise torch.AcceleratorError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "Stream", refuse)
    with pytest.raises(DeviceUnusable, match=r"^device 'cuda:0' does not start: CUDA error: out of memory$"):
        CudaDevice("cuda:0")


# ── stages ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", [triple_and_one, in_place, lambda tensor: tensor])
@pytest.mark.parametrize("hasty", SCHEDULES)
def test_batches_in_flight_do_not_disturb_one_another(
    device: CudaDevice, gpu: FakeGpu, region: torch.Tensor, hasty: int, model: Model
) -> None:
    gpu.hasty = all_schedules(gpu)[hasty]
    expected = [model(torch.full((1,), float(number))).tolist() for number in range(8)]
    assert begin_again_and_again(device, region, model, 8) == expected
    assert gpu.waits == 0


def test_nothing_is_done_before_somebody_waits(device: CudaDevice, gpu: FakeGpu, region: torch.Tensor) -> None:
    batch = Batch(device, region, 0, 20)
    batch.begin(1.0, triple_and_one)
    assert [stream.done for stream in gpu.streams[: len(Stage)]] == [0, 0, 0]
    batch.wait()
    assert all(stream.done == len(stream.steps) for stream in gpu.streams[: len(Stage)][: Stage.COPY_OUT])


def test_a_batch_is_copied_in_while_the_one_before_computes(
    device: CudaDevice, gpu: FakeGpu, region: torch.Tensor
) -> None:
    for place in (0, 4):
        Batch(device, region, place, 20 + place).begin(1.0, triple_and_one)
    copying, computing, _ = gpu.streams[: len(Stage)]
    copying.run_to(len(copying.steps))
    assert computing.done == 0


def test_a_batch_computes_while_the_one_before_is_copied_out(
    device: CudaDevice, gpu: FakeGpu, region: torch.Tensor
) -> None:
    for place in (0, 4):
        Batch(device, region, place, 20 + place).begin(1.0, triple_and_one)
    _, computing, copying = gpu.streams[: len(Stage)]
    computing.run_to(len(computing.steps))
    assert copying.done == 0


@pytest.mark.parametrize("fails", Stage)
@pytest.mark.parametrize("hasty", SCHEDULES)
def test_what_was_begun_in_a_stage_that_raised_is_behind_the_next_marks(
    device: CudaDevice, gpu: FakeGpu, region: torch.Tensor, hasty: int, fails: Stage
) -> None:
    gpu.hasty = all_schedules(gpu)[hasty]
    target = region[:16].view(torch.float32)
    for stage in range(fails + 1):
        with contextlib.suppress(ZeroDivisionError), device.stage(Stage(stage)):
            device.copy_out(torch.full((4,), float(stage), device=device.torch_device), target)
            if stage == fails:
                raise ZeroDivisionError
    for stage in Stage:
        with device.stage(stage):
            mark = device.mark()
    device.wait(mark)
    assert target.tolist() == [float(fails)] * 4
    assert begin_again_and_again(device, region, triple_and_one, 3) == [[1.0], [4.0], [7.0]]


def test_models_are_loaded_where_they_compute(device: CudaDevice, gpu: FakeGpu) -> None:
    assert gpu.current is gpu.streams[Stage.COMPUTE]
    for stage in Stage:
        with device.stage(stage):
            assert gpu.current is gpu.streams[stage]
        assert gpu.current is gpu.streams[Stage.COMPUTE]


# ── marks ───────────────────────────────────────────────────────────────────────────────────────


def test_times_are_those_of_the_device(device: CudaDevice, region: torch.Tensor) -> None:
    batch = Batch(device, region, 0, 20)
    batch.begin(1.0, triple_and_one)
    batch.wait()
    between = [device.between_ns(batch.marks[first], batch.marks[first + 1]) for first in (0, 2, 4)]
    two_copies, two_kernels, and_more = 3, 3, 5  # the mark itself is one piece of work, too
    assert between == [int(steps * TICK_MS * 1e6) for steps in (two_copies, two_kernels, and_more)]
    assert (device.copy_in_phase, device.copy_out_phase) == (Phase.HOST_TO_DEVICE, Phase.DEVICE_TO_HOST)


def test_marks_are_used_again_long_after_their_batch(device: CudaDevice) -> None:
    def mark(stage: Stage) -> torch.cuda.Event:
        with device.stage(stage):
            return device.mark()

    marks = [mark(Stage.COPY_IN) for _ in range(MARKS_MAX)]
    assert len(set(map(id, marks))) == MARKS_MAX
    assert mark(Stage.COPY_IN) is marks[0]


def test_a_device_that_answers_no_more_is_lost(device: CudaDevice, gpu: FakeGpu, region: torch.Tensor) -> None:
    def fault(tensor: torch.Tensor) -> torch.Tensor:
        gpu.break_later()
        return tensor

    batch = Batch(device, region, 0, 20)
    batch.begin(1.0, fault)
    told = "cuda:3 is lost to this process (CUDA error: an illegal memory access was encountered); a new one takes"
    with pytest.raises(DeviceLost) as lost:
        batch.wait()
    assert str(lost.value).startswith(told)
    for stage in Stage:
        with pytest.raises(DeviceLost), device.stage(stage):
            device.mark()
    with pytest.raises(DeviceLost):
        device.statistics()


def test_memory_that_is_not_there_is_not_the_devices_end(
    device: CudaDevice, gpu: FakeGpu, region: torch.Tensor
) -> None:
    gpu.limit_bytes = 2048
    too_large = TensorSpec("x", DType.UINT8, (2048,))
    with pytest.raises(torch.OutOfMemoryError), device.stage(Stage.COPY_IN):
        device.stack(too_large, [region[:2048]], private=False)
    batch = Batch(device, region, 0, 20)
    batch.begin(2.0, in_place)
    batch.wait()
    assert batch.result() == [7.0]


# ── host memory ─────────────────────────────────────────────────────────────────────────────────


def test_a_region_is_registered_while_it_is_open(device: CudaDevice, gpu: FakeGpu) -> None:
    memory = bytearray(4096)
    region = device.open_region(memory)
    assert gpu.runtime.registered == {region.data_ptr(): 4096}
    region[1] = 5
    assert memory[1] == 5
    assert (device.statistics().pinned_bytes, device.statistics().unpinned_bytes) == (4096, 0)
    device.close_region(region)
    assert (gpu.runtime.registered, gpu.runtime.last_error) == ({}, 0)
    assert device.statistics().pinned_bytes == 0


def test_a_region_that_cannot_be_registered_is_used_without(device: CudaDevice, gpu: FakeGpu) -> None:
    gpu.runtime.refuses = OUT_OF_MEMORY
    region = device.open_region(bytearray(REGION_BYTES))
    statistics = device.statistics()
    assert (statistics.pinned_bytes, statistics.unpinned_bytes) == (0, REGION_BYTES)
    assert statistics.unpinned_reason == "out of memory (2)"
    assert begin_again_and_again(device, region, triple_and_one, 3) == [[1.0], [4.0], [7.0]]
    assert gpu.waits == 3 * 3
    device.close_region(region)
    assert (gpu.runtime.registered, gpu.runtime.last_error) == ({}, 0)
    assert (device.statistics().unpinned_bytes, device.statistics().unpinned_reason) == (0, "")


def test_the_error_of_a_refused_call_does_not_surface_in_another(device: CudaDevice, gpu: FakeGpu) -> None:
    memory = bytearray(REGION_BYTES)
    first = device.open_region(memory)
    second = device.open_region(memory)
    assert device.statistics().unpinned_reason == "part or all of the requested memory range is already mapped (712)"
    assert gpu.runtime.last_error == 0
    torch.zeros(1, device=device.torch_device)  # would raise it
    gpu.runtime.registered.clear()
    device.close_region(first)
    assert gpu.runtime.last_error == 0
    device.close_region(second)


# ── copies ──────────────────────────────────────────────────────────────────────────────────────


def fetch(device: CudaDevice, region: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the stage COPY_IN as the device brings it back, at the region's end."""
    nbytes = tensor.numel() * tensor.element_size()
    place = region[REGION_BYTES - nbytes :]
    target = place.view(tensor.dtype).view(tensor.shape)
    with device.stage(Stage.COMPUTE, [tensor]):
        pass
    with device.stage(Stage.COPY_OUT, [tensor]):
        device.copy_out(tensor, target)
        mark = device.mark()
    device.wait(mark)
    return target


@pytest.mark.parametrize("counts", [[5], [1, 3, 1]])
@pytest.mark.parametrize("dtype", DType)
def test_rows_are_stacked_byte_for_byte(
    device: CudaDevice, gpu: FakeGpu, region: torch.Tensor, dtype: DType, counts: list[int]
) -> None:
    spec = TensorSpec("x", dtype, (3,))
    sent = region[: 5 * spec.row_bytes].copy_(noise(5 * spec.row_bytes))
    with device.stage(Stage.COPY_IN):
        parts = sent.split([count * spec.row_bytes for count in counts])
        stacked, is_view = device.stack(spec, parts, private=False)
    assert (stacked.dtype, tuple(stacked.shape), is_view) == (TORCH_DTYPES[dtype], (5, 3), False)
    expected = sent if dtype is not DType.BOOL else sent.ne(0).view(torch.uint8)
    assert torch.equal(bytes_of(fetch(device, region, stacked)), expected)
    assert gpu.waits == 0


@pytest.mark.parametrize("private", [False, True])
def test_a_model_never_writes_into_the_clients_bytes(device: CudaDevice, region: torch.Tensor, private: bool) -> None:
    sent = region[:24].copy_(noise(24))
    with device.stage(Stage.COPY_IN):
        stacked, _ = device.stack(TensorSpec("x", DType.FLOAT64, (3,)), [sent], private=private)
        padded, _ = device.pad(DType.FLOAT64, [sent], [(1, 3)], (1, 3), 0, private=private)
        changed = [stacked.zero_(), padded.zero_()]
    for tensor in changed:
        assert torch.equal(fetch(device, region, tensor), torch.zeros(1, 3, dtype=torch.float64))
    assert torch.equal(sent, noise(24))


SHAPES = [
    ([(1, 2, 3)], (1, 2, 3)),
    ([(1, 2, 3), (2, 2, 3)], (3, 2, 3)),
    ([(1, 2, 3), (2, 1, 1)], (3, 4, 3)),
    ([(2, 3, 2), (1, 3, 1)], (3, 3, 5)),
    ([(2,), (1,)], (3,)),
]


@pytest.mark.parametrize(("shapes", "shape"), SHAPES)
@pytest.mark.parametrize("dtype", [DType.BOOL, DType.INT16, DType.FLOAT64])
def test_rows_of_several_sizes_are_padded_on_the_device(
    device: CudaDevice,
    gpu: FakeGpu,
    region: torch.Tensor,
    dtype: DType,
    shapes: list[tuple[int, ...]],
    shape: tuple[int, ...],
) -> None:
    sizes = [math.prod(own) * dtype.itemsize for own in shapes]
    sent = region[: sum(sizes)].copy_(noise(sum(sizes)))
    with device.stage(Stage.COPY_IN):
        padded, is_view = device.pad(dtype, sent.split(sizes), shapes, shape, 1, private=False)
    assert (padded.dtype, padded.shape, is_view) == (TORCH_DTYPES[dtype], shape, False)
    expected = torch.full(shape, 1, dtype=TORCH_DTYPES[dtype])
    first = 0
    for part, own in zip(sent.split(sizes), shapes, strict=True):
        elements = part.ne(0) if dtype is DType.BOOL else part.view(TORCH_DTYPES[dtype])
        expected[(slice(first, first + own[0]), *map(slice, own[1:]))] = elements.view(own)
        first += own[0]
    assert torch.equal(bytes_of(fetch(device, region, padded)), bytes_of(expected))
    assert gpu.waits == 0


def test_a_part_that_is_cut_off_is_an_error(device: CudaDevice, region: torch.Tensor) -> None:
    with device.stage(Stage.COPY_IN):
        with pytest.raises(RuntimeError):
            device.stack(TensorSpec("x", DType.INT16, (3,)), [region[:4]], private=False)
        for shape in [(1, 3), (1, 4)]:
            with pytest.raises(RuntimeError):
                device.pad(DType.INT16, [region[:4]], [(1, 3)], shape, 0, private=False)


@pytest.mark.parametrize("dtype", DType)
def test_an_output_is_copied_out_byte_for_byte_whatever_its_strides(
    device: CudaDevice, gpu: FakeGpu, region: torch.Tensor, dtype: DType
) -> None:
    spec = TensorSpec("x", dtype, (4,))
    sent = region[: 3 * spec.row_bytes].copy_(noise(3 * spec.row_bytes) % 2)
    with device.stage(Stage.COPY_IN):
        stacked, _ = device.stack(spec, [sent], private=False)
    rows = sent.view(TORCH_DTYPES[dtype]).view(3, 4)
    views: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda tensor: tensor.T,
        lambda tensor: tensor[:, 1:3],
        lambda tensor: tensor[1:, ::2],
        lambda tensor: tensor[:1].expand(3, 4),
    ]
    for view in views:
        assert torch.equal(bytes_of(fetch(device, region, view(stacked))), bytes_of(view(rows)))
    assert gpu.waits == 0


# ── memory ──────────────────────────────────────────────────────────────────────────────────────


def test_memory_is_what_torch_says(device: CudaDevice, region: torch.Tensor) -> None:
    assert (device.statistics().allocated_bytes, device.held_bytes()) == (0, 0)
    held = torch.empty(1000, device=device.torch_device)
    dropped = torch.empty(2000, device=device.torch_device)
    del dropped
    statistics = device.statistics()
    assert 4000 <= statistics.allocated_bytes == device.held_bytes() < 5000
    assert 12_000 <= statistics.memory_bytes < 14_000
    assert statistics.free_bytes == TOTAL_BYTES - OTHERS_BYTES - statistics.memory_bytes
    assert statistics.total_bytes == TOTAL_BYTES
    assert len(held) == 1000


# ── graphs ──────────────────────────────────────────────────────────────────────────────────────


def on_device(device: CudaDevice, values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values).to(device.torch_device)


@pytest.mark.parametrize("hasty", SCHEDULES)
def test_a_captured_function_runs_again_on_its_inputs(device: CudaDevice, gpu: FakeGpu, hasty: int) -> None:
    gpu.hasty = all_schedules(gpu)[hasty]
    calls = itertools.count()
    inputs = on_device(device, [1.0, 2.0])
    run = device.capture(lambda tensor: (next(calls), triple_and_one(tensor))[1], [inputs])
    assert next(calls) == TRIAL_RUNS + 2  # one that may not wait, one that is captured
    outputs = run()
    assert outputs.tolist() == [4.0, 7.0]
    inputs.fill_(3.0)
    assert run() is outputs
    assert outputs.tolist() == [10.0, 10.0]
    assert next(calls) == TRIAL_RUNS + 3
    assert gpu.current is gpu.streams[Stage.COMPUTE]


def test_a_trial_begins_behind_what_fills_its_inputs(device: CudaDevice, gpu: FakeGpu) -> None:
    table, places = on_device(device, [5.0, 6.0, 7.0]), torch.full((2,), 1, device=device.torch_device)
    gpu.hasty = frozenset(gpu.streams[len(Stage) :])  # where it is tried
    run = device.capture(lambda places: table.index_select(0, places), [places])
    assert run().tolist() == [6.0, 6.0]


def test_inputs_may_be_dropped_when_a_trial_failed(device: CudaDevice, gpu: FakeGpu) -> None:
    table = on_device(device, [5.0, 6.0, 7.0])

    def failing(places: torch.Tensor) -> None:
        table.index_select(0, places)
        raise ZeroDivisionError

    try:
        device.capture(failing, [torch.full((2,), 1, device=device.torch_device)])
    except ZeroDivisionError:
        gpu.hasty = frozenset([gpu.streams[Stage.COMPUTE]])
    others = torch.full((2,), 99, device=device.torch_device)  # in the same memory
    torch.cuda.synchronize()
    assert others.tolist() == [99, 99]


def waits_from_call(number: int) -> Model:
    calls = itertools.count(1)

    def model(tensor: torch.Tensor) -> torch.Tensor:
        doubled = tensor.mul(2)
        return doubled.add(1) if next(calls) < number or doubled[0].item() else doubled

    return model


def test_a_function_that_makes_the_host_wait_is_found_before_the_capture(device: CudaDevice, gpu: FakeGpu) -> None:
    inputs = on_device(device, [1.0])
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        device.capture(waits_from_call(1), [inputs])
    assert gpu.captures == 0
    assert inputs[0].item() == 1.0  # waiting is allowed again


@pytest.mark.parametrize("error", [RuntimeError, ZeroDivisionError])
def test_a_capture_that_fails_leaves_the_device_as_it_was(
    device: CudaDevice, gpu: FakeGpu, region: torch.Tensor, error: type[Exception]
) -> None:
    waiting = waits_from_call(TRIAL_RUNS + 2)
    calls = itertools.count(1)

    def failing(tensor: torch.Tensor) -> torch.Tensor:
        if error is ZeroDivisionError and next(calls) == TRIAL_RUNS + 2:
            raise error
        return waiting(tensor) if error is RuntimeError else tensor.mul(2)

    with pytest.raises(error):
        device.capture(failing, [on_device(device, [1.0])])
    assert gpu.captures == 1
    assert gpu.current is gpu.streams[Stage.COMPUTE]
    assert gpu.ended_pools == [device._graph_pool]
    run = device.capture(triple_and_one, [on_device(device, [2.0])])
    assert run().tolist() == [7.0]
    assert begin_again_and_again(device, region, triple_and_one, 3) == [[1.0], [4.0], [7.0]]


def test_graphs_share_memory_and_do_not_disturb_one_another(device: CudaDevice) -> None:
    inputs = [on_device(device, [float(number)] * (4 - number)) for number in range(4)]
    runs = [device.capture(triple_and_one, [each]) for each in inputs]
    for order in itertools.permutations(range(4)):
        for number in order:
            copied = runs[number]().clone()
            assert copied.tolist() == [3.0 * number + 1] * (4 - number)


# ── a real GPU ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this host")
def test_a_real_gpu_does_what_the_stand_in_does() -> None:
    device = CudaDevice("cuda:0")
    region, memory = device.open_region(mmap.mmap(-1, REGION_BYTES)), mmap.mmap(-1, REGION_BYTES)
    device.open_region(memory)
    assert device.statistics().pinned_bytes == 2 * REGION_BYTES
    with torch.inference_mode():
        assert begin_again_and_again(device, region, triple_and_one, 8) == [[3.0 * n + 1] for n in range(8)]
        again = device.open_region(memory)  # the same memory twice: refused
        assert device.statistics().unpinned_bytes == REGION_BYTES
        assert torch.zeros(1, device=device.torch_device).add_(1).item() == 1
        device.close_region(again)
        inputs = on_device(device, [1.0, 2.0])
        run = device.capture(triple_and_one, [inputs])
        inputs.fill_(3.0)
        assert run().tolist() == [10.0, 10.0]
        with pytest.raises(RuntimeError):
            device.capture(waits_from_call(1), [inputs])
        with pytest.raises(RuntimeError):
            device.capture(waits_from_call(TRIAL_RUNS + 2), [inputs])
        assert run().tolist() == [10.0, 10.0]
        assert begin_again_and_again(device, region, in_place, 8) == [[3.0 * n + 1] for n in range(8)]
    assert 0 < device.statistics().free_bytes < device.statistics().total_bytes
    device.close_region(region)
