"""The CPU as a device, on memory that a test can look at; and what stacking and unstacking must keep apart."""

import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon.models.dtypes import TORCH_DTYPES
from tensord.daemon.worker.device import CpuDevice, Device, DeviceUnusable, open_device
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


# ── unstacking ──────────────────────────────────────────────────────────────────────────────────


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
    device.unstack(output, parts)
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
    place = torch.zeros(output.numel() * 4, dtype=torch.uint8)
    device.unstack(output, [place])
    assert torch.equal(place.view(torch.float32).view(output.shape), output)


def test_an_output_that_is_the_input_comes_back(device: CpuDevice) -> None:
    region = region_of(values(DType.FLOAT32, 2, 2, 3))
    stacked, _ = device.stack(X, [region], private=False)
    place = torch.zeros_like(region)
    device.unstack(stacked, [place])
    assert torch.equal(place, region)


# ── regions and marks ───────────────────────────────────────────────────────────────────────────


def test_a_region_is_the_memory_itself(device: CpuDevice) -> None:
    memory = bytearray(b"abcdef")
    region = device.open_region(memory)
    memory[1] = 0
    assert region.tolist() == list(b"a\x00cdef")
    region[5] = 1
    assert memory[5] == 1
    device.close_region(region)


def test_marks_are_reached_when_they_are_made(device: CpuDevice) -> None:
    before = time.monotonic_ns()
    first, second = device.mark(), device.mark()
    device.wait(second)
    assert 0 <= device.between_ns(first, second) <= time.monotonic_ns() - before


def test_memory_is_that_of_the_process(device: CpuDevice) -> None:
    assert device.memory_bytes() > 10 * 1024 * 1024


def test_a_device_is_opened_by_its_name() -> None:
    opened: Device = open_device("cpu:3")
    assert (opened.name, opened.torch_device) == ("cpu:3", torch.device("cpu"))


def test_a_gpu_that_is_not_there_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        DeviceUnusable, match="'cuda:0': torch finds no usable CUDA device; check the driver, or use cpu:0"
    ):
        open_device("cuda:0")
