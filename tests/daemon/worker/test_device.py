"""The CPU as a device, on memory that a test can look at; and what stacking, padding and copying must keep apart."""

import itertools
import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensord.daemon.models.dtypes import TORCH_DTYPES
from tensord.daemon.worker.device import CpuDevice, Device, DeviceUnusable, Stage, open_device
from tensord.ipc.statistics import Phase
from tensord.ipc.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FLOAT32, (2, 3))


@pytest.fixture
def device() -> CpuDevice:
    return CpuDevice("cpu:0")


def region_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def cut(region: torch.Tensor, rows: Sequence[int], row_bytes: int) -> list[torch.Tensor]:
    """The region in parts of so many rows."""
    return list(region.split([count * row_bytes for count in rows]))


def values(dtype: DType, rows: int, *shape: int) -> torch.Tensor:
    numbers = torch.arange(rows * TensorSpec("", dtype, shape).row_bytes // dtype.itemsize) % 100
    return numbers.to(TORCH_DTYPES[dtype]).view(rows, *shape)


# ── stacking ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.BOOL])
def test_one_run_of_rows_is_a_view(device: CpuDevice, dtype: DType) -> None:
    sent = values(dtype, 4, 3)
    region = region_of(sent)
    stacked, is_view = device.stack(TensorSpec("x", dtype, (3,)), [region], private=False)
    assert is_view
    assert stacked.data_ptr() == region.data_ptr()
    assert stacked.dtype is TORCH_DTYPES[dtype]
    assert torch.equal(stacked, sent)


def test_a_row_may_be_a_single_number(device: CpuDevice) -> None:
    sent = values(DType.INT64, 5)
    stacked, _ = device.stack(TensorSpec("x", DType.INT64, ()), [region_of(sent)], private=False)
    assert torch.equal(stacked, sent)


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=2, max_size=6), private=st.booleans())
def test_several_runs_are_gathered_in_their_order(counts: list[int], private: bool) -> None:
    sent = values(DType.FLOAT32, sum(counts), 2, 3)
    parts = cut(region_of(sent), counts, X.row_bytes)
    stacked, is_view = CpuDevice("cpu:0").stack(X, parts[::-1], private=private)
    assert not is_view
    assert torch.equal(stacked, torch.cat(list(sent.split(counts))[::-1]))


@pytest.mark.parametrize("counts", [[4], [1, 3]])
@pytest.mark.parametrize("dtype", DType)
def test_a_private_copy_leaves_the_clients_bytes_alone(device: CpuDevice, dtype: DType, counts: list[int]) -> None:
    spec = TensorSpec("x", dtype, (3,))
    region = region_of(values(dtype, 4, 3))
    before = region.clone()
    stacked, is_view = device.stack(spec, cut(region, counts, spec.row_bytes), private=True)
    assert not is_view
    stacked.zero_()
    stacked += 1 if dtype is not DType.BOOL else True
    assert torch.equal(region, before)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("counts", [[4], [1, 2, 1]])
def test_any_byte_but_zero_is_true(device: CpuDevice, counts: list[int], private: bool) -> None:
    spec = TensorSpec("x", DType.BOOL, (2,))
    region = torch.tensor([0, 1, 2, 255, 0, 128, 7, 0], dtype=torch.uint8)
    stacked, is_view = device.stack(spec, cut(region, counts, 2), private=private)
    assert not is_view
    assert stacked.dtype is torch.bool
    assert stacked.view(torch.uint8).tolist() == [[0, 1], [1, 1], [0, 1], [1, 0]]


def test_a_run_that_is_cut_off_is_an_error(device: CpuDevice) -> None:
    with pytest.raises(RuntimeError):
        device.stack(X, [torch.zeros(3 * X.row_bytes - 4, dtype=torch.uint8)], private=False)


# ── copying out ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("counts", [[5], [1, 1, 3], [4, 1]])
def test_rows_go_to_their_places_in_order(device: CpuDevice, dtype: DType, counts: list[int]) -> None:
    output = values(dtype, 5, 2, 3)
    spec = TensorSpec("y", dtype, (2, 3))
    gap = torch.full((64,), 0xA5, dtype=torch.uint8)
    region = torch.cat([torch.cat([torch.zeros(count * spec.row_bytes, dtype=torch.uint8), gap]) for count in counts])
    parts, first = [], 0
    for count in counts:
        parts.append(region[first : first + count * spec.row_bytes])
        first += count * spec.row_bytes + 64
    for piece, part in zip(output.split(counts), parts, strict=True):
        device.copy_out(piece, part.view(piece.dtype).view(piece.shape))
    assert torch.equal(torch.cat(parts), region_of(output))
    assert int((region == 0xA5).sum()) >= 64 * len(counts)


@pytest.mark.parametrize(
    "output",
    [
        torch.arange(12.0).view(4, 3).T[:, :2].contiguous().T.T,
        torch.arange(6.0).view(2, 3).T,
        torch.ones(1, 2).expand(3, 2),
        torch.arange(100.0)[::7][:6].view(3, 2),
    ],
)
def test_an_output_may_be_strided(device: CpuDevice, output: torch.Tensor) -> None:
    place = torch.zeros(output.shape)
    device.copy_out(output, place)
    assert torch.equal(place, output)


def test_an_output_that_is_the_input_comes_back(device: CpuDevice) -> None:
    region = region_of(values(DType.FLOAT32, 2, 2, 3))
    stacked, _ = device.stack(X, [region], private=False)
    place = torch.zeros(2, 2, 3)
    device.copy_out(stacked, place)
    assert torch.equal(region_of(place), region)


# ── padding ─────────────────────────────────────────────────────────────────────────────────────


def expected_padding(
    tensors: Sequence[torch.Tensor], shape: tuple[int, ...], value: float, dtype: torch.dtype
) -> torch.Tensor:
    """One element after the other."""
    whole = torch.full(shape, value, dtype=dtype)
    first = 0
    for tensor in tensors:
        for place in itertools.product(*map(range, tensor.shape)):
            whole[(first + place[0], *place[1:])] = tensor[place]
        first += len(tensor)
    return whole


row_shapes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4)


@settings(deadline=None)
@given(row_shapes, st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(DType), st.booleans())
def test_each_part_fills_the_corner_of_its_rows(
    shapes: list[tuple[int, int, int]], more: tuple[int, int], dtype: DType, private: bool
) -> None:
    tensors = [values(dtype, *shape) for shape in shapes]
    rows, heights, widths = zip(*shapes, strict=True)
    shape = (sum(rows), max(heights) + more[0], max(widths) + more[1])
    parts = [region_of(tensor) for tensor in tensors]
    padded, is_view = CpuDevice("cpu:0").pad(dtype, parts, shapes, shape, 1, private=private)
    assert torch.equal(padded, expected_padding(tensors, shape, 1, TORCH_DTYPES[dtype]))
    assert is_view == (shapes == [shape] and not private and dtype is not DType.BOOL)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(DType.INT64, -(2**63)), (DType.UINT8, 255), (DType.BFLOAT16, -0.5), (DType.FLOAT64, 1e300), (DType.BOOL, 1)],
)
def test_padding_has_the_models_value_in_its_type(device: CpuDevice, dtype: DType, value: float) -> None:
    part = region_of(values(dtype, 1, 1))
    padded, _ = device.pad(dtype, [part], [(1, 1)], (1, 3), value, private=False)
    assert padded.dtype is TORCH_DTYPES[dtype]
    assert padded[0, 1:].tolist() == [value, value]


def test_one_part_of_the_whole_size_is_a_view(device: CpuDevice) -> None:
    part = region_of(values(DType.FLOAT32, 2, 3))
    padded, is_view = device.pad(DType.FLOAT32, [part], [(2, 3)], (2, 3), 0, private=False)
    assert is_view
    assert padded.data_ptr() == part.data_ptr()


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("shape", [(2, 3), (2, 4)])
def test_a_private_padded_tensor_leaves_the_clients_bytes_alone(
    device: CpuDevice, dtype: DType, shape: tuple[int, int]
) -> None:
    part = region_of(values(dtype, 2, 3))
    before = part.clone()
    padded, is_view = device.pad(dtype, [part], [(2, 3)], shape, 0, private=True)
    assert not is_view
    padded.fill_(1)
    assert torch.equal(part, before)


@pytest.mark.parametrize("shape", [(1, 4), (1, 6)])
def test_any_byte_but_zero_is_true_in_a_padded_tensor_too(device: CpuDevice, shape: tuple[int, int]) -> None:
    part = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)
    padded, is_view = device.pad(DType.BOOL, [part], [(1, 4)], shape, 0, private=False)
    assert not is_view
    assert padded.view(torch.uint8).tolist() == [[0, 1, 1, 1] + [0] * (shape[1] - 4)]


def test_a_part_that_is_cut_off_cannot_be_padded(device: CpuDevice) -> None:
    for shape in ((1, 3), (1, 4)):
        with pytest.raises(RuntimeError):
            device.pad(DType.FLOAT32, [torch.zeros(8, dtype=torch.uint8)], [(1, 3)], shape, 0, private=False)


# ── regions, stages and marks ───────────────────────────────────────────────────────────────────


def test_a_region_is_the_memory_itself(device: CpuDevice) -> None:
    memory = bytearray(b"abcdef")
    region = device.open_region(memory)
    memory[1] = 0
    assert region.tolist() == list(b"a\x00cdef")
    region[5] = 1
    assert memory[5] == 1
    device.close_region(region)


def test_a_stage_is_over_when_its_block_is(device: CpuDevice) -> None:
    place = torch.zeros(1, dtype=torch.int64)
    for stage in Stage:
        with device.stage(stage):
            device.copy_out(torch.full((1,), int(stage)), place)
        assert place.tolist() == [stage]


def test_times_of_copying_are_those_of_memory(device: CpuDevice) -> None:
    assert (device.copy_in_phase, device.copy_out_phase) == (Phase.COPY_IN, Phase.COPY_OUT)


def test_marks_are_reached_when_they_are_made(device: CpuDevice) -> None:
    before = time.monotonic_ns()
    first, second = device.mark(), device.mark()
    device.wait(second)
    assert 0 <= device.between_ns(first, second) <= time.monotonic_ns() - before


def test_memory_is_that_of_the_process(device: CpuDevice) -> None:
    assert device.statistics().memory_bytes > 10 * 1024 * 1024
    assert device.statistics().total_bytes == 0


def test_a_device_is_opened_by_its_name() -> None:
    opened: Device = open_device("cpu:3")
    assert (opened.name, opened.torch_device) == ("cpu:3", torch.device("cpu"))


def test_a_gpu_that_is_not_there_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        DeviceUnusable, match="'cuda:0': torch finds no usable CUDA device; check the driver, or use cpu:0"
    ):
        open_device("cuda:0")
