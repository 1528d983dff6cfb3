"""A GPU in the place of torch.cuda, as strict as a real one: what is begun on a stream is done as late as allowed.

Tensors on it lie in host memory, but every operation on them is caught (a dispatch mode) and only enqueued on the
current stream. It is carried out when somebody waits for it: the host, or another stream that waits for an event behind
it. A stream can also be *hasty*: then its work is done as soon as what it waits for allows, while the others stay late.
Between these schedules a forgotten event, a slot that is given back too early, or memory that another stream still
reads shows as wrong bytes: memory of dropped tensors is handed out again at once, as torch's allocator does, except
where `record_stream` said who uses it.

    device.torch_device = gpu.marker    a tensor that is made or moved there lies on this GPU
    with gpu: ...                       in each thread that works with it
"""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from tensord.daemon.worker.cuda import CudaDevice
from tensord.daemon.worker.device import Stage

aten = torch.ops.aten

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, ALREADY_REGISTERED, NOT_REGISTERED = 0, 1, 2, 712, 713
ERRORS: Final = {
    SUCCESS: "no error",
    INVALID_VALUE: "invalid argument",
    OUT_OF_MEMORY: "out of memory",
    ALREADY_REGISTERED: "part or all of the requested memory range is already mapped",
    NOT_REGISTERED: "pointer does not correspond to a registered memory region",
}
TOTAL_BYTES: Final = 2**30
OTHERS_BYTES: Final = 2**20
"""What other processes use."""
TICK_MS: Final = 1.5
"""What the clock advances with each piece of work that is done."""
POISON: Final = 0xEE

Step = Callable[[], Any]

EMPTY: Final = {aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default}
WAITING: Final = {aten._local_scalar_dense.default, aten.equal.default}
"""What makes the host wait."""


class FakeRuntime:
    """Which host memory is registered: never nothing, never twice, and only what is can be given back.

    A call that is refused is remembered, and said again to whoever launches a kernel next.
    """

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.refuses = SUCCESS
        """With what registering is refused."""
        self.last_error = SUCCESS

    cudaError = staticmethod(int)  # noqa: N815 - CUDA's name

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        overlaps = any(
            first < address + nbytes and address < first + length for first, length in self.registered.items()
        )
        if address == 0 or nbytes == 0 or flags != 0:
            return self._refuse(INVALID_VALUE)
        if overlaps or self.refuses:
            return self._refuse(self.refuses or ALREADY_REGISTERED)
        self.registered[address] = nbytes
        return SUCCESS

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
        if address not in self.registered:
            return self._refuse(NOT_REGISTERED)
        del self.registered[address]
        return SUCCESS

    def cudaGetErrorString(self, code: int) -> str:  # noqa: N802 - CUDA's name
        return ERRORS[code]

    def _refuse(self, code: int) -> int:
        self.last_error = code
        return code

    def is_registered(self, tensor: torch.Tensor) -> bool:
        first = tensor.data_ptr()
        last = first + tensor.numel() * tensor.element_size()
        return any(start <= first and last <= start + length for start, length in self.registered.items())


class FakeStream:
    """Work in its order."""

    def __init__(self, gpu: "FakeGpu") -> None:
        self.steps: list[Step | None] = []
        self.done = 0
        self._gpu = gpu

    def append(self, step: Step) -> None:
        self.steps.append(step)
        if self in self._gpu.hasty:
            self.run_to(len(self.steps))

    def run_to(self, behind: int) -> None:
        """Carry out the first so many steps."""
        while self.done < behind:
            step, self.steps[self.done] = self.steps[self.done], None
            self.done += 1
            assert step is not None
            with _disable_current_modes(), torch.inference_mode():
                step()
            self._gpu.clock += 1

    def wait_event(self, event: "FakeEvent") -> None:
        self._gpu.check()
        assert event.stream is not None, "waits for an event that was never recorded"
        stream, behind = event.stream, event.behind  # as it is now, whatever is recorded later
        self.append(lambda: stream.run_to(behind))

    def wait_stream(self, stream: "FakeStream") -> None:
        self._gpu.check()
        behind = len(stream.steps)
        self.append(lambda: stream.run_to(behind))

    def synchronize(self) -> None:
        self._gpu.host_waits()
        self.run_to(len(self.steps))
        self._gpu.check()


class FakeEvent:
    """Times are known only of events that have timing, were recorded, and were reached."""

    def __init__(self, gpu: "FakeGpu", enable_timing: bool) -> None:
        self.stream: FakeStream | None = None
        self.behind = 0
        self._gpu = gpu
        self._timing = enable_timing
        self._ticks: list[int] = []
        """Of this record; a later one has a list of its own."""

    def record(self, stream: FakeStream) -> None:
        self._gpu.check()
        assert self._gpu.capturing is None, "an event is recorded in a graph"
        ticks: list[int] = []
        self._ticks = ticks
        stream.append(lambda: ticks.append(self._gpu.clock))
        self.stream, self.behind = stream, len(stream.steps)

    def synchronize(self) -> None:
        assert self.stream is not None, "waits for an event that was never recorded"
        self._gpu.host_waits()
        self.stream.run_to(self.behind)
        self._gpu.check()

    def elapsed_time(self, end: "FakeEvent") -> float:
        if not (self._timing and end._timing):
            raise ValueError("both events must be created with enable_timing=True")
        if not (self._ticks and end._ticks):
            raise RuntimeError("both events must be recorded and completed")
        return (end._ticks[0] - self._ticks[0]) * TICK_MS


class FakeGraph:
    """What was enqueued while it was captured."""

    def __init__(self, gpu: "FakeGpu") -> None:
        self.steps: list[Step] = []
        self.complete = False
        self._gpu = gpu

    def replay(self) -> None:
        assert self.complete, "replays a graph that was not captured"
        self._gpu.check()
        for step in self.steps:
            self._gpu.current.append(step)


@dataclass(eq=False)
class Block:
    """A piece of device memory; its bytes stay where they are while tensors on it come and go."""

    memory: bytearray
    home: tuple[FakeStream, object]
    """Stream and pool for which it was allocated, and for which alone it is used again."""
    storage: StorageWeakRef | None = None
    """Of the tensor that has it now."""
    users: set[FakeStream] = field(default_factory=set)
    """Streams that `record_stream` named."""
    awaited: list[tuple[FakeStream, int]] = field(default_factory=list)
    """When it was dropped: what these still have to do with it."""


class FakeGpu(TorchDispatchMode):
    """The driver, the allocator, and who is told what."""

    marker = torch.device("meta")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.runtime = FakeRuntime()
        self.default_stream = FakeStream(self)
        self.streams: list[FakeStream] = []
        """In the order in which they were made: first those of the stages."""
        self.hasty: frozenset[FakeStream] = frozenset()
        self.current = self.default_stream
        self.capturing: FakeGraph | None = None
        self.captures = 0
        self.broken = ""
        """What every call answers from now on."""
        self.limit_bytes = TOTAL_BYTES - OTHERS_BYTES
        self.clock = 0
        self.waits = 0
        """How often the host was made to wait by a copy."""
        self.ended_pools: list[object] = []
        self._errors_on_wait = False
        self._spoiled = False
        self._pool: object = None
        self._blocks: dict[int, Block] = {}
        """By address."""

    # ── torch.cuda ──────────────────────────────────────────────────────────────────────────────

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of torch.cuda."""
        replaced: dict[str, Any] = {
            "is_available": lambda: True,
            "set_device": lambda device: None,
            "Stream": self._new_stream,
            "Event": lambda enable_timing=False: FakeEvent(self, enable_timing),
            "set_stream": self._set_stream,
            "stream": self._stream,
            "synchronize": self._synchronize,
            "cudart": lambda: self.runtime,
            "mem_get_info": self._mem_get_info,
            "memory_stats": self._memory_stats,
            "memory_allocated": lambda: self._memory_stats()["allocated_bytes.all.current"],
            "set_sync_debug_mode": self._set_sync_debug_mode,
            "CUDAGraph": lambda: FakeGraph(self),
            "graph": self._graph,
            "graph_pool_handle": object,
            "is_current_stream_capturing": lambda: self.capturing is not None,
        }
        for name, replacement in replaced.items():
            monkeypatch.setattr(torch.cuda, name, replacement)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end_pool)
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: self.owns(tensor)))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self._record(tensor, stream))
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: self._tolist(tensor))

    def _new_stream(self) -> FakeStream:
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def _set_stream(self, stream: FakeStream) -> None:
        self.current = stream

    @contextlib.contextmanager
    def _stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def _synchronize(self) -> None:
        for stream in (self.default_stream, *self.streams):
            stream.synchronize()

    def _mem_get_info(self) -> tuple[int, int]:
        self.check()
        return self.limit_bytes - self._taken_bytes(), TOTAL_BYTES

    def _memory_stats(self) -> dict[str, int]:
        self._sweep()
        held = sum(len(block.memory) for block in self._blocks.values() if block.storage is not None)
        return {"allocated_bytes.all.current": held, "reserved_bytes.all.current": self._taken_bytes()}

    def _set_sync_debug_mode(self, mode: str) -> None:
        if mode != "default":
            warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2)
        self._errors_on_wait = {"default": False, "error": True}[mode]

    def _end_pool(self, device: int, pool: object) -> None:
        assert device == 0
        self.ended_pools.append(pool)
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    @contextlib.contextmanager
    def _graph(self, graph: FakeGraph, pool: object, stream: FakeStream) -> Iterator[None]:
        """Like torch's, it does not come back to the stream before when the capture was spoiled."""
        self._synchronize()
        before, self.current = self.current, stream
        self.capturing, self._pool = graph, pool
        self.captures += 1
        try:
            yield
        finally:
            self.capturing, self._pool = None, None
            if self._spoiled:
                self._spoiled = False
                raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
            self.current = before
            graph.complete = True

    # ── errors ──────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise what a broken context answers to everything."""
        if self.broken:
            raise torch.AcceleratorError(f"CUDA error: {self.broken}\nmore that nobody needs to read")

    def host_waits(self) -> None:
        """The host is about to wait: an error in a capture, and where torch was told to refuse it."""
        self.check()
        if self.capturing is not None:
            self._spoiled = True
            raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")

    def break_later(self) -> None:
        """What is enqueued now on the current stream breaks the context when it is done."""

        def fault() -> None:
            self.broken = "an illegal memory access was encountered"

        self.current.append(fault)

    def _wait_for_copy(self) -> None:
        if self._errors_on_wait:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.host_waits()
        self.waits += 1
        self.current.run_to(len(self.current.steps))
        self.check()

    def _enqueue(self, step: Step, *, launches: bool = True) -> None:
        self.check()
        if launches and (code := self.runtime.last_error):
            self.runtime.last_error = SUCCESS
            raise torch.AcceleratorError(f"CUDA error: {ERRORS[code]}")
        if self.capturing is not None:
            self.capturing.steps.append(step)
        else:
            self.current.append(step)

    # ── memory ──────────────────────────────────────────────────────────────────────────────────

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor lies on this GPU."""
        return self._block_of(tensor) is not None

    def _block_of(self, tensor: torch.Tensor) -> Block | None:
        if tensor.device == self.marker:
            return None
        return self._blocks.get(tensor.untyped_storage().data_ptr())

    def _allocate(self, form: torch.Tensor) -> torch.Tensor:
        """A tensor like this one, in memory of the current stream: whatever was there before is still in it."""
        self._sweep()
        nbytes = form.untyped_storage().nbytes() + form.element_size()
        home = (self.current, self._pool)
        for block in reversed(self._blocks.values()):
            if block.storage is None and not block.awaited and block.home == home and len(block.memory) >= nbytes:
                break
        else:
            nbytes = -(-nbytes // 512) * 512
            if self._taken_bytes() + nbytes > self.limit_bytes:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {nbytes} bytes")
            block = Block(bytearray([POISON]) * nbytes, home)
        whole = torch.frombuffer(block.memory, dtype=form.dtype)
        self._blocks[whole.data_ptr()] = block
        block.storage = StorageWeakRef(whole.untyped_storage())
        return whole.as_strided(form.size(), form.stride(), form.storage_offset())

    def _sweep(self) -> None:
        """See which tensors were dropped."""
        for block in self._blocks.values():
            if block.storage is not None and block.storage.expired():
                block.storage = None
                block.awaited = [(stream, len(stream.steps)) for stream in block.users]
                block.users = set()
            block.awaited = [(stream, behind) for stream, behind in block.awaited if stream.done < behind]

    def _taken_bytes(self) -> int:
        return sum(len(block.memory) for block in self._blocks.values())

    def _raw(self, value: Any) -> Any:
        """The memory of a tensor, whether or not the tensor lives on; other values as they are."""
        if isinstance(value, torch.device):
            return torch.device("cpu") if value == self.marker else value
        if not isinstance(value, torch.Tensor) or (block := self._block_of(value)) is None:
            return value
        whole = torch.frombuffer(block.memory, dtype=value.dtype)
        return whole.as_strided(value.size(), value.stride(), value.storage_offset())

    def _record(self, tensor: torch.Tensor, stream: FakeStream) -> None:
        block = self._block_of(tensor)
        assert block is not None, "a tensor of the host has no streams"
        block.users.add(stream)

    # ── operations ──────────────────────────────────────────────────────────────────────────────

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [each for each in leaves if isinstance(each, torch.Tensor)]
        if not any(each == self.marker for each in leaves if isinstance(each, torch.device)) and not any(
            map(self.owns, tensors)
        ):
            return func(*args, **kwargs)  # the host's own business
        self._sweep()
        if func.overloadpacket is aten.to and kwargs.get("device") == torch.device("cpu"):
            return self._download(args[0], kwargs.get("dtype"))
        with self:
            composed = func.decompose(*args, **kwargs)
        if composed is not NotImplemented:
            return composed
        if func in WAITING:
            self._wait_for_copy()
            return func(*tree_map(self._raw, args), **tree_map(self._raw, kwargs))
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        if func is aten._to_copy.default and not self.owns(args[0]):
            return self._upload(args[0], kwargs)
        if any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments):
            return self._change(func, args, kwargs)
        if all(each.alias_info is not None for each in func._schema.returns):
            return func(*args, **kwargs)  # a view
        return self._compute(func, args, kwargs, tensors)

    def _compute(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> Any:
        """New tensors from old ones."""
        self._refuse_strangers(tensors)
        forms = func(*tree_map(_form, args), **tree_map(_form, kwargs))
        made = tree_map(lambda form: self._allocate(form) if isinstance(form, torch.Tensor) else form, forms)
        if func in EMPTY:
            return made
        places = tree_map(self._raw, made)
        raw_args, raw_kwargs = tree_map(self._raw, args), tree_map(self._raw, kwargs)

        def step() -> None:
            for place, result in zip(tree_leaves(places), tree_leaves(func(*raw_args, **raw_kwargs)), strict=True):
                place.copy_(result)

        self._enqueue(step)
        return made

    def _change(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Old tensors in place."""
        changed = kwargs.get("out", args[0])
        self._refuse_strangers([each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)])
        raw_args, raw_kwargs = tree_map(self._raw, args), tree_map(self._raw, kwargs)
        self._enqueue(lambda: func(*raw_args, **raw_kwargs))
        if not changed.is_inference():
            torch.autograd.graph.increment_version(changed)
        return changed

    def _refuse_strangers(self, tensors: list[torch.Tensor]) -> None:
        if any(tensor.ndim and not self.owns(tensor) for tensor in tensors):
            raise RuntimeError("Expected all tensors to be on the same device, but got one on cpu and one on cuda:0")

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if self.owns(target) and (self.owns(source) or not source.ndim):
            return self._change(aten.copy_.default, (target, source), {})  # type: ignore[no-any-return]
        dense = target.is_contiguous() and source.is_contiguous() and target.shape == source.shape
        assert dense, "a copy through temporaries"
        assert target.dtype == source.dtype, "a copy through temporaries"
        host, there, back = (source if self.owns(target) else target), self._raw(target), self._raw(source)
        if non_blocking and self.runtime.is_registered(host):

            def step() -> None:
                assert self.runtime.is_registered(host), "memory was given back while a copy was under way"
                there.copy_(back)

            self._enqueue(step, launches=False)
        else:
            self._wait_for_copy()
            there.copy_(back)
        return target

    def _upload(self, source: torch.Tensor, kwargs: Any) -> torch.Tensor:
        form = aten._to_copy.default(_form(source), **kwargs)
        made = self._allocate(form)
        return self._copy(made, source.to(made.dtype).contiguous(), kwargs.get("non_blocking", False))

    def _download(self, source: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        self._wait_for_copy()
        return self._raw(source).clone().to(dtype or source.dtype)  # type: ignore[no-any-return]

    def _tolist(self, tensor: torch.Tensor) -> Any:
        if not self.owns(tensor):
            return torch._C.TensorBase.tolist(tensor)
        with _disable_current_modes():
            return torch._C.TensorBase.tolist(self._download(tensor, None))


def _form(value: Any) -> Any:
    """A tensor without its data; other values as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")


def schedules(gpu: FakeGpu) -> list[frozenset[FakeStream]]:
    """All sets of stages that may be hasty, from none to all."""
    stages = gpu.streams[: len(Stage)]
    return [frozenset(chosen) for count in range(len(stages) + 1) for chosen in itertools.combinations(stages, count)]


def open_fake(gpu: FakeGpu, name: str = "cuda:3") -> CudaDevice:
    """The device on this GPU."""
    device = CudaDevice(name)
    assert device.torch_device == torch.device("cuda", 0)
    device.torch_device = gpu.marker
    return device
