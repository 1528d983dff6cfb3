"""The asyncio client, on the loops of asyncio and uvloop."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import uvloop

from tensord import AsyncClient
from tensord.ipc.errors import (
    ArenaQuotaExceeded,
    BadRequest,
    ClientClosed,
    ConnectionLost,
    DaemonNotFound,
    DeadlineExceeded,
    QueueFull,
    UnknownHandle,
    UnknownModel,
    WrongShape,
)
from tensord.ipc.tensors import DType
from tensord.ipc.wire import FrameType, Welcome

from .fake_daemon import FakeDaemon, Infer, Script, ignore, one_to_one

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
DOUBLED = (X * 2).tolist()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "s")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


async def seen(daemon: FakeDaemon, kind: FrameType, count: int = 1) -> list[int]:
    """Wait for the daemon without blocking the loop."""
    return await asyncio.to_thread(daemon.wait_seen, kind, count)


def images(rows: int, value: float = 1.0) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.full((rows, 3, 64, 64), value, dtype=np.float32)


def test_the_methods_are_those_of_the_blocking_client(run: Run, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.path, tenant="tests") as client:
            assert (await client.infer("double", X)).tolist() == DOUBLED
            assert [entry.name for entry in await client.models()] == list(daemon.models)
            assert (await client.model("pair")).inputs["a"].shape == (2,)
            assert await client.ping() > 0
            assert client.statistics().answers == 1
            assert daemon.connections[0].tenant == "tests"

    run(main())


def test_many_tasks_share_one_connection(run: Run, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            outputs = await asyncio.gather(*(client.infer("double", X + step) for step in range(300)))
            assert [output[0, 0] for output in outputs] == [2 * step for step in range(300)]

    run(main())
    assert len(daemon.connections) == 1
    assert len(daemon.seen(FrameType.HELLO)) == 1


def test_submit_returns_a_task(run: Run, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            tasks = [client.submit("double", X + step) for step in range(10)]
            assert [(await task)[0, 0] for task in tasks] == [2 * step for step in range(10)]

    run(main())


def test_torch_tensors_give_torch_tensors(run: Run, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            output = await client.infer("half", torch.ones((2, 4), dtype=torch.bfloat16))
            assert output.dtype is torch.bfloat16
            assert output.tolist() == [[2.0] * 4] * 2

    run(main())


def test_large_tensors_take_an_arena_whose_descriptor_arrives(run: Run, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            outputs = await asyncio.gather(*(client.infer("image", images(40, step)) for step in range(4)))
            assert all((output == step + 1).all() for step, output in enumerate(outputs))
            statistics = client.statistics()
            assert (statistics.arena_requests, statistics.slots_leased) == (4, 0)

    run(main())
    assert len(daemon.seen(FrameType.ATTACH)) == 1


def test_a_full_socket_does_not_block_both_ends(run: Run, tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path / "s", {"wide": one_to_one("wide", DType.UINT8, (200_000,), lambda x: x)})
    daemon.start()

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            x = np.arange(200_000, dtype=np.uint8)[None]
            outputs = await asyncio.gather(*(client.infer("wide", x + step) for step in range(100)))
            assert all(np.array_equal(output, x + step) for step, output in enumerate(outputs))

    try:
        run(main())
    finally:
        daemon.stop()


def test_no_more_requests_are_in_flight_than_the_daemon_takes(run: Run, daemon: FakeDaemon) -> None:
    daemon.welcome = Welcome(1, 42, 3, 1 << 20, 1 << 26)
    held: list[Infer] = []

    def answer_three(infer: Infer) -> None:
        held.append(infer)
        assert len(held) <= 3
        if len(held) == 3:
            while held:
                held.pop().answer()

    daemon.on_infer = answer_three

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            outputs = await asyncio.gather(*(client.infer("double", X + step) for step in range(12)))
            assert [output[0, 0] for output in outputs] == [2 * step for step in range(12)]

    run(main())


# ── cancelling, time ────────────────────────────────────────────────────────────────────────────


def test_cancelling_a_task_tells_the_daemon(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            task = client.submit("double", X)
            await seen(daemon, FrameType.INFER)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await seen(daemon, FrameType.CANCEL) == [daemon.requests[0].request_id]
            daemon.requests[0].answer()
            daemon.on_infer = Infer.answer
            assert (await client.infer("double", X)).tolist() == DOUBLED
            assert client.statistics().unknown_replies == 0

    run(main())


def test_a_timeout_of_asyncio_cancels_too(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:

            async def expire(timeout: asyncio.Timeout) -> None:
                await seen(daemon, FrameType.INFER)
                timeout.reschedule(asyncio.get_running_loop().time())

            async def infer() -> None:
                async with asyncio.timeout(None) as timeout:
                    expiring = asyncio.create_task(expire(timeout))
                    await client.infer("double", X)
                await expiring

            with pytest.raises(TimeoutError):
                await infer()
            await seen(daemon, FrameType.CANCEL)

    run(main())


def test_a_cancelled_copy_gives_its_slot_back_with_the_answer(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            task = client.submit("image", images(8))
            await seen(daemon, FrameType.INFER)
            task.cancel()
            await asyncio.wait([task])
            assert client.statistics().slots_leased == 1
            daemon.requests[0].answer()
            await client.ping()
            assert client.statistics().slots_leased == 0

    run(main())


def test_a_daemon_that_never_answers_costs_the_timeout_and_a_cancel(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            with pytest.raises(DeadlineExceeded, match="client"):
                await client.infer("double", X, timeout=0.02)
            await seen(daemon, FrameType.CANCEL)

    run(main())


def test_a_daemon_that_does_not_welcome_costs_each_its_own_timeout(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_frame[FrameType.HELLO] = lambda connection, request_id, meta: None

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            outcomes = await asyncio.gather(
                client.ping(timeout=0.05), client.infer("double", X, timeout=0.02), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded, DeadlineExceeded]

    run(main())


# ── errors, lost connections ────────────────────────────────────────────────────────────────────


def test_errors_are_raised_where_they_are_awaited(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(lambda infer: infer.refuse(QueueFull("double", 3)), Infer.answer)

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            with pytest.raises(QueueFull):
                await client.infer("double", X)
            with pytest.raises(UnknownModel):
                await client.infer("nothing", X)
            with pytest.raises(WrongShape):
                await client.infer("double", X[0])
            assert (await client.infer("double", X)).tolist() == DOUBLED

    run(main())


def test_idempotent_requests_are_sent_again_and_others_are_lost(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(Infer.drop, Infer.answer)

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            assert (await client.infer("double", X)).tolist() == DOUBLED
            assert client.statistics().resent == 1
            daemon.on_infer = Script(Infer.drop, Infer.answer)
            with pytest.raises(ConnectionLost):
                await client.infer("once", X)
            assert (await client.infer("once", X)).tolist() == DOUBLED

    run(main())


def test_an_unknown_handle_opens_again(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(lambda infer: infer.refuse(UnknownHandle(1)), Infer.answer)

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            assert (await client.infer("double", X)).tolist() == DOUBLED

    run(main())


def test_all_tasks_are_sent_again_over_one_new_connection(run: Run, daemon: FakeDaemon) -> None:
    def drop_at_eight(infer: Infer) -> None:
        if len(daemon.requests) == 8:
            infer.drop()
        elif len(daemon.requests) > 8:
            infer.answer()

    daemon.on_infer = drop_at_eight

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            outputs = await asyncio.gather(*(client.infer("double", X + step) for step in range(8)))
            assert [output[0, 0] for output in outputs] == [2 * step for step in range(8)]
            assert client.statistics().reconnects == 1

    run(main())


def test_nobody_there_is_said_to_all_who_wait(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncClient(tmp_path / "nobody") as client:
            outcomes = await asyncio.gather(*(client.ping() for _ in range(5)), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [DaemonNotFound] * 5

    run(main())


def test_a_daemon_that_stays_away_is_not_found(run: Run, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.path, reconnect_timeout=0.05) as client:
            await client.infer("double", X)
            await asyncio.to_thread(daemon.stop)
            with pytest.raises(DaemonNotFound):
                await client.infer("double", X)

    run(main())


def test_nonsense_ends_the_connection_and_the_request_is_sent_again(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(lambda infer: infer.connection.send(bytes(64)), Infer.answer)

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            assert (await client.infer("double", X)).tolist() == DOUBLED

    run(main())
    assert len(daemon.connections) == 2


# ── leases ──────────────────────────────────────────────────────────────────────────────────────


def test_a_leased_slot_is_written_and_read_in_place(run: Run, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            async with client.lease("image", rows=2) as slot:
                slot.input[:] = 3
                outputs = await slot.infer()
                assert np.shares_memory(outputs, slot.outputs["y"])
                assert (outputs == 4).all()
                assert (await slot.submit() == 4).all()
                assert client.statistics().slots_leased == 1
            assert client.statistics().slots_leased == 0
            with pytest.raises(BadRequest, match="slot is released"):
                await slot.infer()

    run(main())


def test_a_lease_may_be_awaited_and_released_by_hand(run: Run, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            slot = await client.lease("double")
            slot["x"][:] = 1
            assert (await slot.infer()).tolist() == [[2] * 4]
            slot.release()
            assert client.statistics().slots_leased == 0

    run(main())


def test_a_lease_without_room_is_refused_and_infer_waits(run: Run, daemon: FakeDaemon) -> None:
    daemon.arenas_max = 1

    async def main() -> None:
        async with AsyncClient(daemon.path, arena_bytes=1 << 22) as client:
            async with client.lease("image", rows=40):
                with pytest.raises(ArenaQuotaExceeded):
                    await client.lease("image", rows=40)
                waiting = client.submit("image", images(40))
                await seen(daemon, FrameType.ATTACH, 3)
                assert not waiting.done()
            assert (await waiting == 2).all()

    run(main())


def test_a_slot_ends_with_its_connection(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = Infer.drop

    async def main() -> None:
        async with AsyncClient(daemon.path) as client, client.lease("double") as slot:
            with pytest.raises(ConnectionLost, match="lease again"):
                await slot.infer()

    run(main())


# ── loops, processes, the end ───────────────────────────────────────────────────────────────────


def test_one_client_serves_one_loop_after_another(daemon: FakeDaemon) -> None:
    client = AsyncClient(daemon.path)

    async def use() -> None:
        assert (await client.infer("double", X)).tolist() == DOUBLED

    async def end() -> None:
        await use()
        await client.close()

    asyncio.run(use())
    uvloop.run(use())
    asyncio.run(end())
    assert len(daemon.connections) == 3


def test_a_closed_client_says_so(run: Run, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore

    async def main() -> None:
        client = AsyncClient(daemon.path)
        task = client.submit("double", X)
        await seen(daemon, FrameType.INFER)
        await client.close()
        await client.close()
        with pytest.raises(ClientClosed):
            await task
        with pytest.raises(ClientClosed):
            await client.ping()
        await seen(daemon, FrameType.CLOSE)

    run(main())


def test_a_forked_child_connects_on_its_own(daemon: FakeDaemon) -> None:
    client = AsyncClient(daemon.path)

    async def use() -> None:
        assert (await client.infer("double", X)).tolist() == DOUBLED

    async def parent() -> None:
        await use()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                in_child = threading.Thread(target=asyncio.run, args=(use(),))
                in_child.start()
                in_child.join()
                status = 0 if client.statistics().answers == 1 else 2
            finally:
                os._exit(status)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await use()
        await client.close()

    asyncio.run(parent())
    assert len(daemon.connections) == 2
