"""A CUDA GPU as a device: arenas registered as pinned memory, and three streams of which each waits for the one before.

The process sees one GPU only (CUDA_VISIBLE_DEVICES is set before it starts), which is `cuda:0` to torch whatever its
name in the configuration. What happens to a batch, and who waits for whom:

    copy in    ──H2D n──┐ ──H2D n+1──┐                 inputs are allocated here
    compute             └─ model n ──┼┐ ── model n+1   outputs are allocated here; models are loaded here
    copy out                         │└─D2H n── …      an output that is not dense is made so here, on the device

Only device streams wait for one another, by events. The host waits for the last mark of a batch, and where a model's
own code or a count of data makes it wait.

A copy between host and device is one cudaMemcpyAsync of dense bytes, never more. `Tensor.copy_` with `non_blocking`
calls it directly where both sides are dense and of one type. Everywhere else it goes through temporaries: dense on the
device when the device's side is strided (then it stays asynchronous), but dense in pageable memory when the host's
side is (then it does not). So what is strided is always on the device here, and copied there.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch

from tensord.ipc.statistics import Phase
from tensord.ipc.tensors import DType, TensorSpec

from ..models.dtypes import TORCH_DTYPES
from .device import DeviceLost, DeviceStatistics, DeviceUnusable, Runner, Stage, fill_corners, typed

MARKS_MAX: Final = 64
"""Events for marks, used in turn. Two batches in flight, one that is begun and one that failed have up to 8 each, and
the end of a failed one 3: 35, so a mark is not used again while somebody has it."""

TRIAL_RUNS: Final = 3
"""Runs before a capture: libraries choose their kernels and take their workspace in the first, as torch's own
make_graphed_callables expects of three."""


class _OrLost:
    """Around calls that fail only when an earlier kernel did: what CUDA answers then, it answers for ever."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, RuntimeError):
            sentence = f"{self._name} is lost to this process ({_first_line(error)}); a new one takes its place"
            raise DeviceLost(sentence) from error


def _first_line(error: RuntimeError) -> str:
    """Without the advice for debugging that torch adds to what CUDA says."""
    return str(error).partition("\n")[0]


class CudaDevice:
    """The one visible GPU."""

    in_flight_max = 2
    """One that computes, one whose copy is under way."""
    computes_in_place = False
    copy_in_phase = Phase.HOST_TO_DEVICE
    copy_out_phase = Phase.DEVICE_TO_HOST

    def __init__(self, name: str) -> None:
        if not torch.cuda.is_available():
            raise DeviceUnusable(f"device {name!r}: torch finds no usable CUDA device; check the driver, or use cpu:0")
        self.name = name
        self.torch_device = torch.device("cuda", 0)
        try:
            torch.cuda.set_device(self.torch_device)
            self._streams = [torch.cuda.Stream() for _ in Stage]
            self._capturing = torch.cuda.Stream()
        except RuntimeError as error:
            raise DeviceUnusable(f"device {name!r} does not start: {_first_line(error)}") from error
        self._ended = [torch.cuda.Event() for _ in (Stage.COPY_IN, Stage.COMPUTE)]
        """Where these stages ended for the last batch. One event is enough for each: who waits for it already waits
        for what it was then (cudaStreamWaitEvent)."""
        self._marks = itertools.cycle([torch.cuda.Event(enable_timing=True) for _ in range(MARKS_MAX)])
        self._pinned: dict[int, int] = {}
        """Address of a region to its bytes, as in the next."""
        self._unpinned: dict[int, int] = {}
        self._unpinned_reason = ""
        self._graph_pool = torch.cuda.graph_pool_handle()
        """One for all graphs: they never run at once, and an answer is copied before the next one runs."""
        self._given_up: list[torch.cuda.CUDAGraph] = []
        self._or_lost = _OrLost(name)
        self._current = self._streams[Stage.COMPUTE]
        torch.cuda.set_stream(self._current)

    # ── stages ──────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def stage(self, stage: Stage, uses: Sequence[torch.Tensor] = ()) -> Iterator[None]:
        stream = self._streams[stage]
        if stage is not Stage.COPY_IN:
            with self._or_lost:
                stream.wait_event(self._ended[stage - 1])
        for tensor in uses:
            if tensor.is_cuda:  # a model may compute an output on the host
                tensor.record_stream(stream)
        self._enter(stream)
        try:
            yield
        finally:  # what was begun before it raised is waited for like everything else
            self._enter(self._streams[Stage.COMPUTE])
            if stage is not Stage.COPY_OUT:
                with self._or_lost:
                    self._ended[stage].record(stream)

    def _enter(self, stream: torch.cuda.Stream) -> None:
        torch.cuda.set_stream(stream)
        self._current = stream

    def mark(self) -> torch.cuda.Event:
        event = next(self._marks)
        with self._or_lost:
            event.record(self._current)
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        with self._or_lost:
            mark.synchronize()

    def between_ns(self, first: torch.cuda.Event, second: torch.cuda.Event) -> int:
        return int(first.elapsed_time(second) * 1e6)

    # ── host memory ─────────────────────────────────────────────────────────────────────────────

    def open_region(self, buffer: Any) -> torch.Tensor:
        region = torch.frombuffer(buffer, dtype=torch.uint8)
        runtime = torch.cuda.cudart()
        code = int(runtime.cudaHostRegister(region.data_ptr(), region.numel(), 0))
        if code == 0:
            self._pinned[region.data_ptr()] = region.numel()
        else:
            self._unpinned[region.data_ptr()] = region.numel()
            self._unpinned_reason = f"{runtime.cudaGetErrorString(runtime.cudaError(code))} ({code})"
            self._clear_error()
        return region

    def close_region(self, region: torch.Tensor) -> None:
        address = region.data_ptr()
        self._unpinned.pop(address, None)
        if self._pinned.pop(address, None) and int(torch.cuda.cudart().cudaHostUnregister(address)) != 0:
            self._clear_error()

    def _clear_error(self) -> None:
        """Make the runtime forget the error of a call that was refused.

        It would say it to whoever asks next, and that is whoever launches a kernel next. torch has no call that only
        asks, and a process may hold several runtimes, so a kernel of no use is launched by torch itself.
        """
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, dtype=torch.int32, device=self.torch_device).add_(1)

    # ── copies ──────────────────────────────────────────────────────────────────────────────────

    def stack(self, spec: TensorSpec, parts: Sequence[torch.Tensor], *, private: bool) -> tuple[torch.Tensor, bool]:
        del private  # a copy on the device is always private
        whole = self._upload(parts)
        return typed(whole, spec.dtype).view(spec.batch_shape(len(whole) // spec.row_bytes)), False

    def pad(
        self,
        dtype: DType,
        parts: Sequence[torch.Tensor],
        shapes: Sequence[tuple[int, ...]],
        shape: tuple[int, ...],
        value: float,
        *,
        private: bool,
    ) -> tuple[torch.Tensor, bool]:
        del private
        elements = typed(self._upload(parts), dtype)
        if all(own[1:] == shape[1:] for own in shapes):
            return elements.view(shape), False
        whole = torch.full(shape, value, dtype=TORCH_DTYPES[dtype], device=self.torch_device)
        fill_corners(whole, elements.split([math.prod(own) for own in shapes]), shapes)
        return whole, False

    def _upload(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The bytes of all parts, one behind the other on the device: one copy for each, and none on the host."""
        whole = torch.empty(sum(map(len, parts)), dtype=torch.uint8, device=self.torch_device)
        first = 0
        for part in parts:
            whole[first : first + len(part)].copy_(part, non_blocking=True)
            first += len(part)
        return whole

    def copy_out(self, source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(source.contiguous(), non_blocking=True)

    # ── graphs ──────────────────────────────────────────────────────────────────────────────────

    def capture(self, function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Runner:
        compute, side = self._streams[Stage.COMPUTE], self._capturing
        side.wait_stream(compute)
        try:
            with torch.cuda.stream(side):
                for _ in range(TRIAL_RUNS):
                    function(*inputs)
                self._try_without_waiting(function, inputs)
        finally:
            compute.wait_stream(side)  # the inputs may be dropped now
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._graph_pool, stream=side):
                outputs = function(*inputs)
        except BaseException:
            self._give_up(graph)
            raise

        def run() -> Any:
            graph.replay()
            return outputs

        return run

    @staticmethod
    def _try_without_waiting(function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        """Raise RuntimeError where the function makes the host wait: it would spoil a capture, here it does not."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it does not find everything
            torch.cuda.set_sync_debug_mode("error")
        try:
            function(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """After a capture that failed: torch.cuda.graph may have been left half-way."""
        self._enter(self._streams[Stage.COMPUTE])
        # Up to torch 2.12 the allocator thinks that the capture goes on: it would never again take memory back that
        # was recorded on a second stream, and look at this very graph. Later ones refuse the call.
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(0, self._graph_pool)
        self._given_up.append(graph)

    # ── memory ──────────────────────────────────────────────────────────────────────────────────

    def statistics(self) -> DeviceStatistics:
        with self._or_lost:
            free_bytes, total_bytes = torch.cuda.mem_get_info()
        held = torch.cuda.memory_stats()
        return DeviceStatistics(
            memory_bytes=held.get("reserved_bytes.all.current", 0),
            allocated_bytes=held.get("allocated_bytes.all.current", 0),
            free_bytes=free_bytes,
            total_bytes=total_bytes,
            pinned_bytes=sum(self._pinned.values()),
            unpinned_bytes=sum(self._unpinned.values()),
            unpinned_reason=self._unpinned_reason if self._unpinned else "",
        )

    def held_bytes(self) -> int:
        return torch.cuda.memory_allocated()
