"""Whatever the lane, data type, shape and company: what comes back is bit for bit what the model computed."""

import asyncio
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np
import pytest

from tensord import AsyncClient, Client
from tensord.ipc.tensors import DType, TensorSpec, align
from tensord.ipc.wire import FrameType, Lane, TensorHeader

if TYPE_CHECKING:
    from tests.process.conftest import Array, Connect, Daemon, RawClient, Received

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

ARENA_BYTES: Final = 256 * 1024
ROWS_MAX: Final = 7


def random_tensor(generator: np.random.Generator, spec: TensorSpec, rows: int) -> "Array":
    """Random bits, NaN and all; a bool is 0 or 1."""
    shape = spec.batch_shape(rows)
    if spec.dtype is DType.BOOL:
        return generator.integers(0, 2, shape).astype(np.bool_)
    data = generator.bytes(math.prod(shape) * spec.dtype.itemsize)
    return np.frombuffer(data, spec.dtype.numpy).reshape(shape)


class Mixture:
    """Requests to one connection, each tensor by a lane of its own; arena ranges are never used twice at once."""

    def __init__(self, client: "RawClient", seed: int, models: "Sequence[str]" = ("pair",)) -> None:
        self.generator = np.random.default_rng(seed)
        self._client = client
        self._arenas = [client.attach(ARENA_BYTES) for _ in range(2)]
        self._free = [0, 0]
        self._expected: dict[int, list[Array]] = {}
        for model in models:
            client.open(model)

    def send(self, model: str, order: tuple[int, ...]) -> None:
        """A random request; output number i is expected to be input number order[i]."""
        opened = self._client.open(model)
        rows = int(self.generator.integers(1, ROWS_MAX + 1))
        tensors = [random_tensor(self.generator, spec, rows) for spec in opened.spec.inputs]
        headers, payload = [], b""
        for index, tensor in enumerate(tensors):
            if self.generator.random() < 0.5:
                headers.append(self._client.inline(index, tensor))
                payload += tensor.tobytes()
            else:
                arena, offset = self._lease(tensor.nbytes)
                self._arenas[arena].write(offset, tensor)
                headers.append(self._client.placed(index, tensor, self._arenas[arena].number, offset))
        outputs = []
        for index in self.generator.permutation(len(order)):
            if self.generator.random() < 0.5:
                nbytes = tensors[order[index]].nbytes + int(self.generator.integers(0, 100))
                arena, offset = self._lease(nbytes)
                outputs.append(self._client.place(int(index), nbytes, self._arenas[arena].number, offset))
        request_id = self._client.new_id()
        self._expected[request_id] = [tensors[index] for index in order]
        self._client.send(self._client.infer(opened.handle, headers, payload, outputs=outputs, request_id=request_id))

    def _lease(self, nbytes: int) -> tuple[int, int]:
        arena = int(self.generator.integers(0, 2))
        offset = self._free[arena]
        self._free[arena] = align(offset + nbytes)
        assert self._free[arena] <= ARENA_BYTES
        return arena, offset

    def check_all(self) -> None:
        """Every request has its one answer, and it is right."""
        while self._expected:
            answer = self._client.receive()
            expected = self._expected.pop(answer.request_id)
            _, headers = answer.result()
            assert [header.index for header in headers] == list(range(len(expected)))
            position = 0
            for header, tensor in zip(headers, expected, strict=True):
                assert (header.shape, header.nbytes) == (tensor.shape, tensor.nbytes)
                assert header.dtype.numpy == tensor.dtype
                data, position = self._bytes_of(header, answer, position)
                assert data == tensor.tobytes()
            assert position == len(answer.payload)
        self._free = [0, 0]

    def _bytes_of(self, header: TensorHeader, answer: "Received", position: int) -> tuple[bytes, int]:
        if header.lane is Lane.INLINE:
            return answer.payload[position : position + header.nbytes], position + header.nbytes
        arena = next(arena for arena in self._arenas if arena.number == header.arena)
        return bytes(arena.memory[header.offset : header.offset + header.nbytes]), position


def one_to_one_models(daemon: "Daemon") -> list[str]:
    """Two for each data type, with rows of 0 to 7 dimensions."""
    names = [model.name for model in daemon.status().models if model.name.startswith("same-")]
    assert {name.rpartition("-")[2] for name in names} == set("01234567")
    assert {name.split("-")[1] for name in names} == {dtype.label for dtype in DType}
    return names


# ── raw frames ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(6))
def test_every_data_type_and_shape_by_every_lane(unharmed: "Daemon", connect: "Connect", seed: int) -> None:
    models = one_to_one_models(unharmed)
    mixture = Mixture(connect(), seed, models)
    for _ in range(3):
        for model in mixture.generator.permutation(models):
            mixture.send(str(model), (0,))
        mixture.check_all()


@pytest.mark.parametrize("seed", range(6))
def test_several_tensors_each_by_its_own_lane(unharmed: "Daemon", connect: "Connect", seed: int) -> None:
    mixture = Mixture(connect(), seed)
    for _ in range(4):
        for _ in range(40):
            mixture.send("pair", (1, 0))
        mixture.check_all()


def test_interleaved_connections_get_each_its_own_answers(unharmed: "Daemon", connect: "Connect") -> None:
    mixtures = [Mixture(connect(), seed, ("pair", "same-bfloat16-7")) for seed in range(8)]
    for _ in range(3):
        for _ in range(20):
            for mixture in mixtures:
                if mixture.generator.random() < 0.5:
                    mixture.send("pair", (1, 0))
                else:
                    mixture.send("same-bfloat16-7", (0,))
        for mixture in reversed(mixtures):
            mixture.check_all()


def test_rows_of_different_requests_run_in_one_batch(unharmed: "Daemon", connect: "Connect") -> None:
    """Gathered from the ingest arena and from client arenas: otherwise the tests above would prove little."""
    clients = [connect() for _ in range(4)]
    mixtures = [Mixture(client, seed) for seed, client in enumerate(clients)]
    batches, rows = unharmed.counter("pair", "batches"), unharmed.counter("pair", "batch_rows")
    viewed, gathered = unharmed.counter("pair", "viewed_bytes"), unharmed.counter("pair", "gathered_bytes")
    with unharmed.knobs(pair__window_us=20_000):
        for _ in range(30):
            for mixture in mixtures:
                mixture.send("pair", (1, 0))
        for mixture in mixtures:
            mixture.check_all()
    assert unharmed.counter("pair", "batches") - batches < 120
    assert unharmed.counter("pair", "batch_rows") - rows >= 120
    assert unharmed.counter("pair", "gathered_bytes") > gathered
    assert unharmed.counter("pair", "viewed_bytes") >= viewed


def test_last_partial_batch_holds_no_bytes_of_others(unharmed: "Daemon", connect: "Connect") -> None:
    """An output range larger than the output keeps its tail as the client left it."""
    client = connect()
    arena = client.attach(4096)
    x = np.arange(4, dtype=np.float32)[None]
    arena.memory[:] = b"\xaa" * 4096
    handle = client.open("echo").handle
    for _ in range(20):
        output = client.place(0, 2048, arena.number, 0)
        answer = client.ask(client.infer(handle, [client.inline(0, x)], x.tobytes(), outputs=[output]))
        assert answer.frame_type == FrameType.RESULT
        assert answer.payload == b""
    assert arena.memory[:16] == x.tobytes()
    assert arena.memory[16:] == b"\xaa" * 4080


# ── the library's clients ───────────────────────────────────────────────────────────────────────


def test_threads_that_share_a_client_get_each_its_own_answers(unharmed: "Daemon") -> None:
    models = one_to_one_models(unharmed)
    barrier = threading.Barrier(8)

    def work(client: Client, seed: int) -> int:
        generator = np.random.default_rng(seed)
        barrier.wait()
        for _ in range(30):
            model = str(generator.choice(models))
            spec = client.model(model).inputs["x"]
            x = random_tensor(generator, spec, int(generator.integers(1, ROWS_MAX)))
            y = client.infer(model, x)
            assert (y.shape, y.dtype, y.tobytes()) == (x.shape, x.dtype, x.tobytes())
        return seed

    with Client(unharmed.socket) as one, Client(unharmed.socket) as other, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(work, (one, other)[seed % 2], seed) for seed in range(8)]
        assert [future.result() for future in futures] == list(range(8))


def test_tasks_that_share_an_async_client_get_each_its_own_answers(unharmed: "Daemon") -> None:
    async def work(client: AsyncClient, seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(20):
            rows = int(generator.integers(1, ROWS_MAX))
            a = generator.standard_normal((rows, 3), np.float32)
            b = generator.integers(-9, 9, (rows, 2, 2))
            outputs = await client.infer("pair", {"a": a, "b": b})
            np.testing.assert_array_equal(outputs["a_out"], a)
            np.testing.assert_array_equal(outputs["b_out"], b)

    async def main() -> None:
        async with AsyncClient(unharmed.socket) as one, AsyncClient(unharmed.socket) as other:
            await asyncio.gather(*[work((one, other)[seed % 2], seed) for seed in range(16)])

    asyncio.run(main())


def test_leased_slots_and_inline_requests_side_by_side(unharmed: "Daemon") -> None:
    generator = np.random.default_rng(3)
    with Client(unharmed.socket) as client:
        slots = [client.lease("pair", rows) for rows in (1, 3, 7, 2)]
        for _ in range(10):
            futures = []
            for slot in slots:
                slot["a"][:] = generator.standard_normal(slot["a"].shape, np.float32)
                slot["b"][:] = generator.integers(-9, 9, slot["b"].shape)
                x = generator.standard_normal((2, 4), np.float32)
                futures.append((slot.submit(), slot, client.submit("echo", x), x))
            for leased, slot, inline, x in futures:
                outputs = leased.result()
                np.testing.assert_array_equal(outputs["a_out"], slot["a"])
                np.testing.assert_array_equal(outputs["b_out"], slot["b"])
                np.testing.assert_array_equal(inline.result(), x)
        for slot in slots:
            slot.release()


def test_large_tensors_take_the_arena_and_come_back_whole(unharmed: "Daemon") -> None:
    x = np.random.default_rng(4).integers(0, 256, (64, 65536), np.uint8)  # 4 MiB, four times inline_bytes_max
    with Client(unharmed.socket) as client:
        for _ in range(3):
            assert client.infer("large", x).tobytes() == x.tobytes()


def test_bfloat16_and_lists_are_what_they_say(unharmed: "Daemon") -> None:
    with Client(unharmed.socket) as client:
        shape = client.model("same-bfloat16-7").inputs["x"].row_shape()
        x = np.arange(2 * math.prod(shape)).reshape(2, *shape).astype(ml_dtypes.bfloat16)
        y = client.infer("same-bfloat16-7", x)
        assert y.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32))
        assert client.infer("echo", [[1, 2, 3, 4]]).tolist() == [[1.0, 2.0, 3.0, 4.0]]
