"""A whole instance without a process: the test is the front end, the workers and the operator."""

import asyncio
import errno
import mmap
import os
import signal
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tensord.daemon import control
from tensord.daemon import messages as m
from tensord.daemon.exits import Exit
from tensord.daemon.knob import Setting
from tensord.daemon.supervisor import supervisor as module
from tensord.daemon.supervisor.failures import InstanceFailure
from tensord.daemon.supervisor.instance import RuntimeDirectory
from tensord.daemon.supervisor.lifecycle import State
from tensord.daemon.supervisor.rings import Rings
from tensord.daemon.supervisor.supervisor import DevicePlan
from tensord.ipc.arena import create_arena
from tensord.ipc.errors import ArenaQuotaExceeded, NoMemory
from tensord.ipc.heartbeat import Activity
from tensord.ipc.limits import ARENA_PAGE_BYTES

from .rig import FRONTEND, INGEST_BYTES, WORKER, Rig, fall_silent

pytestmark = pytest.mark.timeout(60)

AddModel = Callable[..., Path]
MakeRig = Callable[..., Rig]
Body = Callable[[], Awaitable[None]]

ARENA_BYTES = 3 * ARENA_PAGE_BYTES


@pytest.fixture
def make_rig(tmp_path: Path, root: Path, add_model: AddModel, monkeypatch: pytest.MonkeyPatch) -> MakeRig:
    """An instance on these devices, with one required model where a test has not described others."""

    def make(*devices: str | DevicePlan, **knobs: Setting) -> Rig:
        if not any(root.iterdir()):
            add_model("one")
        plans = [DevicePlan(each, (1,), "") if isinstance(each, str) else each for each in devices or ("cpu:0",)]
        return Rig(tmp_path, root, monkeypatch, plans, knobs)

    return make


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """One CPU device, one model."""
    return make_rig()


def failure(rig: Rig, body: Body) -> InstanceFailure:
    with pytest.raises(InstanceFailure) as caught:
        rig.run(body)
    return caught.value


def refuse_memory(*_: object) -> Any:
    raise NoMemory("9 bytes")


# ── the start ───────────────────────────────────────────────────────────────────────────────────


def test_a_front_end_is_told_everything_before_it_listens(rig: Rig, root: Path, add_model: AddModel) -> None:
    async def body() -> None:
        supervisor, heard = rig.supervisor, rig.frontend.heard
        page = supervisor.page.segment
        assert heard == [
            m.FrontendSetup(1, supervisor.instance, INGEST_BYTES, page.nbytes),
            supervisor.knobs.message(),
            *supervisor.catalog.served(),
            m.ReplicaExpected(0, True, ""),
            m.Listen(),
        ]
        listener, ingest, statistics = rig.frontend.files_of(m.FrontendSetup)
        assert stat.S_ISSOCK(listener.st_mode)
        assert ingest.st_size == INGEST_BYTES == supervisor.ingest_bytes
        assert os.path.samestat(statistics, os.fstat(page.fd))
        assert rig.frontend.environment == {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        assert rig.frontend.arguments == []

    assert rig.run(body) == Exit.OK


def test_a_worker_is_pinned_in_its_environment(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    devices = DevicePlan("cpu:0", (1, 2, 3), ""), DevicePlan("cuda:0", (), "GPU-aaaa")
    rig = make_rig(*devices)

    async def body() -> None:
        cpu, gpu = rig.worker("cpu:0"), rig.worker("cuda:0")
        assert [cpu.arguments, gpu.arguments] == [["cpu:0", "1,2,3"], ["cuda:0"]]
        pinned = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
        assert cpu.environment == {**os.environ, **pinned, "CUDA_VISIBLE_DEVICES": ""}
        pinned |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        assert gpu.environment == {**os.environ, **pinned, "CUDA_VISIBLE_DEVICES": "GPU-aaaa"}
        page = rig.place("cuda:0").page.segment
        assert cpu.heard == [m.WorkerSetup(0, "cpu:0", 3, True, page.nbytes)]
        assert gpu.heard == [m.WorkerSetup(1, "cuda:0", 1, True, page.nbytes)]
        (statistics,) = gpu.files_of(m.WorkerSetup)
        assert os.path.samestat(statistics, os.fstat(page.fd))
        assert rig.supervisor.device_names == ["cpu:0", "cuda:0"]

    rig.run(body)


@pytest.mark.parametrize(("cores", "spin"), [({0, 1}, True), ({1}, False)])
def test_a_worker_spins_only_where_a_core_is_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, cores: set[int], spin: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: cores)

    async def body() -> None:
        assert [setup.spin for setup in rig.worker().of(m.WorkerSetup)] == [spin]

    rig.run(body)


def test_threads_are_those_of_the_knob_when_the_process_starts(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SET_WAIT_S", 0.0)
    rig = make_rig(threads=5)

    async def body() -> None:
        rig.get_ready()
        await rig.supervisor.set(control.Set({"cpu:0.threads": 2}), "uid 0")
        rig.worker().end()
        await rig.until(lambda: len(rig.workers()) == 2)
        first, second = rig.workers()
        assert [first.environment["OMP_NUM_THREADS"], second.environment["OMP_NUM_THREADS"]] == ["5", "2"]
        assert [setup.threads for setup in second.of(m.WorkerSetup)] == [2]

    rig.run(body)


def test_a_worker_that_speaks_gets_knobs_rings_and_its_first_model(rig: Rig) -> None:
    async def body() -> None:
        rig.worker().say(m.WorkerStarted(2**30))
        _, *heard = rig.worker().heard
        order = rig.supervisor.catalog.orders()[0]
        assert heard == [rig.supervisor.knobs.message(), m.OpenChannel(1, INGEST_BYTES), order]
        files = rig.worker().files_of(m.OpenChannel)
        assert len(files) == 5
        assert os.path.samestat(files[-1], rig.frontend.files_of(m.FrontendSetup)[1])

    rig.run(body)


def test_it_is_ready_when_the_front_end_listens_and_every_model_has_a_replica(rig: Rig) -> None:
    async def body() -> None:
        supervisor = rig.supervisor
        assert supervisor.state == "starting"
        assert supervisor.reasons() == [
            "the front end is starting",
            "model one:1 has no replica ready",
            "worker cpu:0 is starting",
        ]
        rig.load()
        assert (supervisor.reasons(), supervisor.ready.is_set()) == (["the front end is starting"], False)
        rig.frontend.say(m.FrontendReady())
        assert (supervisor.state, supervisor.reasons(), supervisor.ready.is_set()) == ("ready", [], True)

    rig.run(body)


def test_a_worker_and_its_replicas_are_announced_with_their_rings(rig: Rig) -> None:
    async def body() -> None:
        worker, frontend = rig.worker(), rig.frontend
        worker.say(m.WorkerStarted(2**30))
        worker.say(m.ModelLoaded(0, 1.0))
        worker.say(m.ChannelOpened(7))
        assert frontend.heard[-1] == m.Listen(), "nothing goes through rings that the worker has not taken"
        rig.open_channel()
        assert frontend.heard[-2:] == [m.WorkerJoined(0, "cpu:0", 1), m.ReplicaReady(0, 0)]
        rings = worker.files_of(m.OpenChannel)[:4]
        assert all(map(os.path.samestat, frontend.files_of(m.WorkerJoined), rings))

    rig.run(body)


@pytest.mark.parametrize("required", [True, False])
def test_one_replica_is_enough_and_a_model_that_is_not_required_needs_none(
    make_rig: MakeRig, add_model: AddModel, *, required: bool
) -> None:
    add_model("one", head=f"required = {required}\n".lower())
    rig = make_rig("cpu:0", "cpu:1")

    async def body() -> None:
        supervisor = rig.supervisor
        rig.frontend.say(m.FrontendReady())
        for device in ("cpu:0", "cpu:1"):
            rig.worker(device).say(m.WorkerStarted(2**30))
            rig.open_channel(device)
        rig.worker("cpu:0").say(m.ModelBroken(0, "bad weights"))
        assert (supervisor.state, supervisor.reasons()) == (
            "starting",
            ["model one:1 has no replica ready: bad weights"],
        )
        assert rig.frontend.of(m.ReplicaExpected)[-1] == m.ReplicaExpected(0, True, "")
        if required:
            rig.worker("cpu:1").say(m.ModelLoaded(0, 1.0))
            assert supervisor.state == "ready"
        else:
            rig.worker("cpu:1").say(m.ModelBroken(0, "bad weights there too"))
            assert (supervisor.state, supervisor.ready.is_set()) == ("degraded", True)
            reason = "it failed to load; the daemon's log says why"
            assert rig.frontend.of(m.ReplicaExpected)[-1] == m.ReplicaExpected(0, False, reason)

    assert rig.run(body) == Exit.OK


def test_what_dead_instances_left_in_shared_memory_is_swept(rig: Rig) -> None:
    left = Path(f"/dev/shm/tensord-{2**22 + 1}-abcdef")
    left.touch()

    async def body() -> None:
        assert not left.exists()

    rig.run(body)


# ── starts that fail ────────────────────────────────────────────────────────────────────────────


def test_a_required_model_that_loads_nowhere_ends_the_start_with_the_first_reason(make_rig: MakeRig) -> None:
    rig = make_rig("cpu:0", "cpu:1")

    async def body() -> None:
        rig.frontend.say(m.FrontendReady())
        for device in ("cpu:0", "cpu:1"):
            rig.worker(device).say(m.WorkerStarted(2**30))
        rig.worker("cpu:0").say(m.ModelBroken(0, "bad weights"))
        rig.worker("cpu:1").say(m.ModelBroken(0, "model one:1: bad weights here too"))
        rig.supervisor.device_broken(rig.place("cpu:0"), "no reason any more")
        await rig.wait_over()

    failed = failure(rig, body)
    assert (failed.exit, str(failed)) == (Exit.MODELS, "model one:1: bad weights here too")
    assert [child.alive for child in rig.children] == [False] * 3


def test_a_broken_device_ends_the_start_and_no_more_than_that(rig: Rig) -> None:
    async def body() -> None:
        rig.worker().say(m.DeviceBroken("cpu:0: no such device"))
        await rig.wait_over()

    failed = failure(rig, body)
    assert (failed.exit, str(failed)) == (Exit.DEVICE, "cpu:0: no such device")


def test_a_device_that_breaks_later_costs_its_worker(rig: Rig) -> None:
    async def body() -> None:
        rig.get_ready()
        rig.worker().say(m.DeviceBroken("cpu:0: fell off the bus"))
        rig.worker().end()
        assert (rig.supervisor.state, rig.place().state) == ("degraded", State.BACKING_OFF)

    assert rig.run(body) == Exit.OK


def test_a_runtime_directory_that_is_taken_starts_nothing(rig: Rig) -> None:
    other = RuntimeDirectory(rig.config.runtime_dir)
    other.take()
    assert failure(rig, rig.wait_over).exit is Exit.RUNNING
    other.leave()
    assert rig.children == []


def test_too_little_memory_for_the_ingest_arena_names_the_knob(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "check_room", refuse_memory)
    failed = failure(rig, rig.wait_over)
    assert failed.exit is Exit.RESOURCES
    assert str(failed).startswith(f"ingest_bytes = {INGEST_BYTES}: ")
    assert str(failed).endswith("; or make /dev/shm larger, or lower ingest_bytes in [knobs]")


def test_too_little_memory_for_a_page_is_a_failure(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Page", refuse_memory)
    failed = failure(rig, rig.wait_over)
    assert (failed.exit, str(failed)) == (Exit.RESOURCES, str(NoMemory("9 bytes")))


def test_too_little_memory_for_the_first_rings_is_a_failure(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rings, "create", refuse_memory)

    async def body() -> None:
        rig.worker().say(m.WorkerStarted(2**30))
        await rig.wait_over()

    failed = failure(rig, body)
    assert (failed.exit, str(failed)) == (Exit.RESOURCES, f"no rings for worker cpu:0: {NoMemory('9 bytes')}")


@pytest.mark.parametrize("refused", [FRONTEND, WORKER])
def test_a_process_that_cannot_be_started_ends_those_that_were(rig: Rig, refused: str) -> None:
    rig.refuses.add(refused)
    failed = failure(rig, rig.wait_over)
    reason = os.strerror(errno.EAGAIN)
    sentence = f"the kernel refused a process or a descriptor ({reason}): free some, or raise the service's limit"
    assert (failed.exit, str(failed)) == (Exit.RESOURCES, sentence)
    assert all(child.killed for child in rig.children)
    assert list(rig.config.runtime_dir.iterdir()) == []


# ── front ends that die ─────────────────────────────────────────────────────────────────────────


def test_a_new_front_end_gets_a_new_ingest_arena_and_new_rings(rig: Rig) -> None:
    async def body() -> None:
        rig.get_ready()
        before = rig.frontend.files_of(m.FrontendSetup)[1]
        fall_silent(rig.supervisor.page, 1_000)
        rig.frontend.end(-signal.SIGSEGV)
        assert rig.supervisor.reasons()[0] == "the front end is starting"
        assert rig.supervisor.converging() == [], "nobody waits for the dead"
        await rig.until(lambda: len(rig.frontends) == 2)
        listener, ingest, _ = rig.frontend.files_of(m.FrontendSetup)
        assert [setup.generation for setup in rig.frontend.of(m.FrontendSetup)] == [2]
        assert os.path.samestat(listener, rig.frontends[0].files_of(m.FrontendSetup)[0])
        assert not os.path.samestat(ingest, before)
        assert [opened.generation for opened in rig.worker().of(m.OpenChannel)] == [1, 2]
        assert os.path.samestat(rig.worker().files_of(m.OpenChannel)[-1], ingest)
        assert rig.frontend.of(m.WorkerJoined) == [], "it leaves the old rings first"
        pulse = rig.supervisor.page.pulse()
        assert pulse.activity is Activity.STARTING
        assert pulse.silent_ms < 1_000_000, "the silence of the old one is not its own"
        rig.frontend.say(m.FrontendReady())
        rig.open_channel()
        assert rig.frontend.heard[-2:] == [m.WorkerJoined(0, "cpu:0", 2), m.ReplicaReady(0, 0)]
        assert rig.supervisor.state == "ready"
        assert (rig.supervisor.frontend_generation, rig.supervisor.frontend_restarts) == (2, 1)
        assert len(rig.workers()) == 1, "workers keep their models"

    rig.run(body)


def test_without_room_for_a_new_ingest_arena_workers_end_and_it_is_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRONTEND_BACKOFF_MAX_S", 0.001)

    async def body() -> None:
        rig.get_ready()
        with monkeypatch.context() as full:
            full.setattr(module, "check_room", refuse_memory)
            rig.frontend.end()
            await rig.until(lambda: len(rig.workers()) == 2)
            assert rig.workers()[0].killed
            rig.worker().say(m.WorkerStarted(2**30))
            assert rig.worker().of(m.OpenChannel) == [], "the next front end brings them"
            assert rig.supervisor.ingest_bytes == 0
            assert len(rig.frontends) == 1
        await rig.until(lambda: len(rig.frontends) == 2)
        assert [opened.ingest_bytes for opened in rig.worker().of(m.OpenChannel)] == [INGEST_BYTES]

    rig.run(body)


def test_a_front_end_that_cannot_be_started_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRONTEND_BACKOFF_MAX_S", 0.001)

    async def body() -> None:
        rig.refuses.add(FRONTEND)
        rig.frontend.end()
        await rig.until(lambda: rig.refused >= 2)
        rig.refuses.clear()
        await rig.until(lambda: len(rig.frontends) == 2)

    rig.run(body)


def test_a_worker_that_gets_no_rings_for_a_new_front_end_ends(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        rig.get_ready()
        with monkeypatch.context() as full:
            full.setattr(Rings, "create", refuse_memory)
            rig.frontend.end()
            await rig.until(lambda: len(rig.workers()) == 2)
            assert rig.workers()[0].killed
            rig.worker().say(m.WorkerStarted(2**30))
            assert rig.worker().killed
        await rig.until(lambda: len(rig.workers()) == 3)
        rig.load()
        rig.frontend.say(m.FrontendReady())
        assert (rig.supervisor.state, len(rig.frontends)) == ("ready", 2)

    rig.run(body)


# ── workers that die ────────────────────────────────────────────────────────────────────────────


def test_a_dead_worker_is_made_known_and_another_one_joins(rig: Rig) -> None:
    async def body() -> None:
        rig.get_ready()
        rig.worker().end(-signal.SIGKILL)
        assert rig.frontend.heard[-1] == m.WorkerGone(0)
        assert rig.supervisor.state == "degraded"
        assert rig.supervisor.reasons() == ["model one:1 has no replica ready", "worker cpu:0 is backing off"]
        await rig.until(lambda: len(rig.workers()) == 2)
        rig.load()
        assert rig.frontend.heard[-2:] == [m.WorkerJoined(0, "cpu:0", 2), m.ReplicaReady(0, 0)]
        assert rig.supervisor.state == "ready"

    rig.run(body)


def test_a_worker_that_never_joined_is_not_missed(rig: Rig) -> None:
    async def body() -> None:
        rig.worker().end()
        assert rig.frontend.of(m.WorkerGone) == []

    rig.run(body)


def test_a_worker_that_cannot_be_started_again_is_tried_until_it_can(make_rig: MakeRig) -> None:
    rig = make_rig(backoff_max_s=0)

    async def body() -> None:
        rig.refuses.add(WORKER)
        rig.worker().end()
        await rig.until(lambda: rig.refused >= 2)
        assert (len(rig.workers()), rig.place().state) == (1, State.BACKING_OFF)
        rig.refuses.clear()
        await rig.until(lambda: len(rig.workers()) == 2)

    rig.run(body)


def test_a_worker_is_accused_of_its_own_rings_only(rig: Rig) -> None:
    async def body() -> None:
        rig.get_ready()
        rig.frontend.say(m.WorkerAccused(0, 0, "an index that cannot be"))
        assert not rig.worker().killed
        rig.frontend.say(m.WorkerAccused(0, 1, "an index that cannot be"))
        assert rig.worker().killed
        await rig.until(lambda: not rig.workers()[0].alive)
        rig.frontend.say(m.WorkerAccused(0, 1, "said before it knew of the end"))

    rig.run(body)


# ── who hangs ───────────────────────────────────────────────────────────────────────────────────


def test_who_is_silent_is_killed(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_S", 0.001)
    rig = make_rig("cpu:0", "cpu:1", hang_timeout_s=5)

    async def body() -> None:
        rig.get_ready()
        for place in rig.supervisor.places.values():
            fall_silent(place.page, 4)
        fall_silent(rig.place("cpu:1").page, 6)
        await rig.until(lambda: rig.workers("cpu:1")[0].killed)
        assert not rig.worker("cpu:0").killed
        fall_silent(rig.supervisor.page, 6)
        await rig.until(lambda: rig.frontends[0].killed)

    rig.run(body)


def test_a_front_end_that_starts_may_be_silent_for_longer(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_S", 0.001)
    rig = make_rig(hang_timeout_s=1)

    async def body() -> None:
        rig.load()
        fall_silent(rig.supervisor.page, 10)
        for looks in (1, 2):  # at workers first, and then at the front end
            fall_silent(rig.place().page, 10)
            await rig.until(lambda looks=looks: len(rig.workers()) > looks)  # type: ignore[misc]
            rig.load()
        assert not rig.frontend.killed
        rig.frontend.say(m.FrontendReady())
        await rig.until(lambda: rig.frontends[0].killed)

    rig.run(body)


# ── arenas ──────────────────────────────────────────────────────────────────────────────────────


async def make_arena(rig: Rig, ticket: int = 1) -> int:
    """A client gets an arena; its number."""
    rig.frontend.say(m.ArenaWanted(ticket, ARENA_BYTES))
    await rig.until(lambda: any(made.ticket == ticket for made in rig.frontend.of(m.ArenaMade)))
    number: int = rig.frontend.of(m.ArenaMade)[-1].arena
    return number


def test_workers_map_an_arena_before_a_client_can_use_it(make_rig: MakeRig) -> None:
    rig = make_rig("cpu:0", "cpu:1")

    async def body() -> None:
        rig.load("cpu:0")
        arena = await make_arena(rig, 9)
        worker, late = rig.worker("cpu:0"), rig.worker("cpu:1")
        assert rig.frontend.of(m.ArenaMade) == [m.ArenaMade(9, arena, ARENA_BYTES)]
        assert worker.of(m.MapArena) == [m.MapArena(arena, ARENA_BYTES)]
        assert worker.moment_of(m.MapArena) < rig.frontend.moment_of(m.ArenaMade)
        (theirs,), (ours,) = rig.frontend.files_of(m.ArenaMade), worker.files_of(m.MapArena)
        assert os.path.samestat(theirs, ours)
        assert theirs.st_size == ARENA_BYTES
        assert late.of(m.MapArena) == [], "it has not spoken"
        rig.load("cpu:1")
        assert late.of(m.MapArena) == [m.MapArena(arena, ARENA_BYTES)]
        (lates,) = late.files_of(m.MapArena)
        assert os.path.samestat(lates, ours)

    rig.run(body)


def test_an_arena_beyond_the_limit_is_refused_with_its_error(make_rig: MakeRig) -> None:
    rig = make_rig(arenas_bytes_max=ARENA_BYTES)

    async def body() -> None:
        await make_arena(rig)
        rig.frontend.say(m.ArenaWanted(2, ARENA_BYTES))
        await rig.until(lambda: bool(rig.frontend.of(m.ArenaRefused)))
        error = ArenaQuotaExceeded(2 * ARENA_BYTES, ARENA_BYTES, "arenas_bytes_max")
        assert rig.frontend.of(m.ArenaRefused) == [m.ArenaRefused(2, error.code, error.data())]

    rig.run(body)


@pytest.mark.parametrize("refuses", ["check_room", "create_arena"])
def test_an_arena_without_memory_is_refused_and_not_counted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    async def body() -> None:
        with monkeypatch.context() as full:
            full.setattr(module, refuses, refuse_memory)
            rig.frontend.say(m.ArenaWanted(1, ARENA_BYTES))
            await rig.until(lambda: bool(rig.frontend.of(m.ArenaRefused)))
        error = NoMemory("9 bytes")
        assert rig.frontend.of(m.ArenaRefused) == [m.ArenaRefused(1, error.code, error.data())]
        assert (len(rig.supervisor.arenas), rig.supervisor.arenas.promised_bytes) == (0, 0)
        await make_arena(rig, 2)

    rig.run(body)


def test_arenas_that_are_being_made_count_for_the_room_that_is_left(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    may_make = threading.Event()

    def create_late(nbytes: int) -> int:
        assert may_make.wait(20)
        return create_arena(nbytes)

    async def body() -> None:
        monkeypatch.setattr(module, "check_room", asked.append)
        monkeypatch.setattr(module, "create_arena", create_late)
        for ticket in (1, 2):
            rig.frontend.say(m.ArenaWanted(ticket, ARENA_BYTES))
        await rig.until(lambda: len(asked) == 2)
        may_make.set()
        await rig.until(lambda: len(rig.frontend.of(m.ArenaMade)) == 2)
        await make_arena(rig, 3)
        assert asked == [ARENA_BYTES, 2 * ARENA_BYTES, ARENA_BYTES]

    rig.run(body)


def test_an_arena_for_a_dead_front_end_is_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    may_make, making = threading.Event(), threading.Event()

    def create_late(nbytes: int) -> int:
        making.set()
        assert may_make.wait(20)
        return create_arena(nbytes)

    monkeypatch.setattr(module, "create_arena", create_late)

    async def body() -> None:
        rig.load()
        rig.frontend.say(m.ArenaWanted(1, ARENA_BYTES))
        await rig.until(making.is_set)
        rig.frontend.end()
        await rig.until(lambda: len(rig.frontends) == 2)
        may_make.set()
        await rig.until(lambda: rig.supervisor.arenas.promised_bytes == 0)
        assert rig.frontend.of(m.ArenaMade) == rig.worker().of(m.MapArena) == []

    rig.run(body)


@pytest.mark.parametrize("draining", [False, True])
def test_a_returned_arena_is_emptied_unless_a_client_may_read_a_last_result(rig: Rig, *, draining: bool) -> None:
    async def body() -> None:
        rig.load()
        number = await make_arena(rig)
        (arena,) = rig.supervisor.arenas
        with mmap.mmap(arena.fd, ARENA_BYTES) as client:
            client[:] = b"y" * ARENA_BYTES
            if draining:
                rig.supervisor.drain()
            rig.frontend.say(m.ArenaReturned(number))
            assert client[:] == (b"y" if draining else b"\0") * ARENA_BYTES
        assert rig.worker().of(m.UnmapArena) == [m.UnmapArena(number)]
        assert (len(rig.supervisor.arenas), rig.supervisor.arenas.promised_bytes) == (0, 0)
        rig.frontend.say(m.ArenaReturned(number))
        assert len(rig.worker().of(m.UnmapArena)) == 1

    rig.run(body)


def test_a_dead_front_ends_arenas_are_forgotten_and_keep_what_is_in_them(make_rig: MakeRig) -> None:
    rig = make_rig("cpu:0", "cpu:1")

    async def body() -> None:
        rig.load()
        numbers = [await make_arena(rig, ticket) for ticket in (1, 2)]
        with mmap.mmap(next(iter(rig.supervisor.arenas)).fd, ARENA_BYTES) as client:
            client[:] = b"y" * ARENA_BYTES
            rig.worker("cpu:1").end()
            rig.frontend.end()
            assert client[:] == b"y" * ARENA_BYTES
        assert rig.worker().of(m.UnmapArena) == [m.UnmapArena(number) for number in numbers]
        assert len(rig.supervisor.arenas) == 0

    rig.run(body)


# ── knobs ───────────────────────────────────────────────────────────────────────────────────────


def test_a_change_is_answered_when_every_process_works_with_it(make_rig: MakeRig) -> None:
    rig = make_rig("cpu:0", "cpu:1")

    async def body() -> None:
        rig.load("cpu:0")
        change = asyncio.create_task(rig.supervisor.set(control.Set({"max_batch": 16}), "uid 0"))
        await rig.until(lambda: rig.supervisor.knobs.epoch == 1)
        message = rig.supervisor.knobs.message()
        assert (rig.frontend.heard[-1], rig.worker("cpu:0").heard[-1]) == (message, message)
        assert rig.worker("cpu:1").of(m.KnobValues) == [], "it gets them when it has spoken"
        assert rig.supervisor.converging() == ["frontend", "worker cpu:0"]
        rig.frontend.say(m.KnobsApplied(1))
        await rig.until(lambda: not rig.supervisor._acknowledged.is_set())  # it has looked again
        assert not change.done()
        rig.worker("cpu:0").say(m.KnobsApplied(1))
        assert await change == control.Applied(1, [control.Changed("max_batch", 32, 16, False, [])], [])

    rig.run(body)


def test_a_change_waits_for_nobody_who_is_gone(rig: Rig) -> None:
    async def body() -> None:
        rig.load()
        change = asyncio.create_task(rig.supervisor.set(control.Set({"max_batch": 16}), "uid 0"))
        await rig.until(lambda: rig.supervisor.knobs.epoch == 1)
        rig.refuses = {FRONTEND, WORKER}
        rig.worker().end()
        rig.frontend.end()
        answer = await change
        assert isinstance(answer, control.Applied)
        assert answer.converging == []
        later = await rig.supervisor.set(control.Set({"max_batch": 17}), "uid 0")
        assert isinstance(later, control.Applied), "though nobody is there to be told"

    rig.run(body)


def test_who_is_slow_to_work_with_a_change_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SET_WAIT_S", 0.01)

    async def body() -> None:
        rig.load()
        answer = await rig.supervisor.set(control.Set({"max_batch": 16}), "uid 0")
        assert isinstance(answer, control.Applied)
        assert answer.converging == ["frontend", "worker cpu:0"]

    rig.run(body)


@pytest.mark.parametrize(
    "request_", [control.Set({"queue_max": 9, "max_batch": 0}), control.Set({}), control.Set({"max_batch": 9}, "", 7)]
)
def test_a_change_that_is_not_allowed_tells_nobody(rig: Rig, request_: control.Set) -> None:
    async def body() -> None:
        before = list(rig.frontend.heard)
        answer = await rig.supervisor.set(request_, "uid 0")
        assert isinstance(answer, control.Refused)
        assert (answer.exit, rig.supervisor.knobs.epoch, rig.frontend.heard) == (Exit.CONFIG, 0, before)

    rig.run(body)


def test_knobs_are_read_and_an_unknown_one_is_refused(rig: Rig) -> None:
    async def body() -> None:
        values = rig.supervisor.get(["ingest_bytes"])
        assert values == rig.supervisor.knobs.values(["ingest_bytes"])
        refused = rig.supervisor.get(["max_bach"])
        assert refused == control.Refused("max_bach: no such knob; did you mean max_batch?", Exit.CONFIG)

    rig.run(body)


def test_the_control_socket_is_the_supervisors(rig: Rig) -> None:
    async def body() -> None:
        answer = await asyncio.to_thread(control.ask, rig.config.control_socket, control.Status())
        assert isinstance(answer, control.InstanceStatus)
        assert (answer.pid, answer.state, answer.socket) == (os.getpid(), "starting", str(rig.config.socket))

    rig.run(body)


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_and_then_everything_stops(rig: Rig, number: signal.Signals) -> None:
    async def body() -> None:
        rig.get_ready()
        os.kill(os.getpid(), number)
        await rig.until(lambda: rig.supervisor.state == "draining")
        rig.supervisor.drain()
        assert rig.frontend.of(m.Drain) == [m.Drain()]
        assert rig.frontend.of(m.Stop) == rig.worker().of(m.Stop) == []
        rig.frontend.say(m.Drained())
        assert [m.Stop() in child.heard for child in rig.children] == [True, True]
        await rig.wait_over()

    assert rig.run(body) == Exit.OK
    assert [child.killed for child in rig.children] == [False, False]
    assert list(rig.config.runtime_dir.iterdir()) == []
    assert rig.ignored == {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def test_another_thread_may_stop_it(rig: Rig) -> None:
    async def body() -> None:
        stopping = asyncio.create_task(asyncio.to_thread(stop_when_ready))
        rig.get_ready()
        await rig.until(lambda: rig.supervisor.draining)
        await stopping

    def stop_when_ready() -> None:
        assert rig.supervisor.ready.wait(20)
        rig.supervisor.stop_soon()

    assert rig.run(body) == Exit.OK


def test_draining_takes_no_longer_than_its_knob(make_rig: MakeRig) -> None:
    rig = make_rig(drain_timeout_s=0)

    async def body() -> None:
        rig.supervisor.drain()
        await rig.wait_over()

    assert rig.run(body) == Exit.OK
    assert rig.frontend.of(m.Stop) == [m.Stop()]


def test_a_second_signal_kills_and_waits_for_nobody(rig: Rig) -> None:
    async def body() -> None:
        rig.worker().mortal = False
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        await rig.wait_over()

    assert rig.run(body) == Exit.OK
    assert [child.killed for child in rig.children] == [True, True]


def test_a_front_end_that_dies_while_it_drains_has_no_successor(rig: Rig) -> None:
    async def body() -> None:
        rig.get_ready()
        rig.supervisor.drain()
        rig.frontend.end()
        await rig.wait_over()

    assert rig.run(body) == Exit.OK
    assert (len(rig.frontends), rig.supervisor.frontend_restarts) == (1, 0)
    assert rig.worker().of(m.Stop) == [m.Stop()]


def test_nobody_is_started_again_when_it_drains(rig: Rig) -> None:
    async def body() -> None:
        rig.get_ready()
        rig.worker().end()
        rig.frontend.end()
        rig.supervisor.drain()  # before the loop has come to start them again
        await rig.wait_over()

    assert rig.run(body) == Exit.OK
    assert len(rig.children) == 2


def test_who_does_not_stop_is_killed_after_a_while(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_GRACE_S", 0.01)

    async def body() -> None:
        rig.get_ready()
        rig.worker().obeys = False
        rig.supervisor.drain()
        rig.frontend.say(m.Drained())
        await rig.wait_over()

    assert rig.run(body) == Exit.OK
    assert [rig.frontend.killed, rig.worker().killed] == [False, True]


def test_what_a_front_end_has_no_business_to_say_is_ignored(rig: Rig) -> None:
    async def body() -> None:
        heard = list(rig.frontend.heard)
        rig.frontend.say(m.Stop(), [rig.supervisor.page.segment.fd])
        assert rig.frontend.heard == heard

    assert rig.run(body) == Exit.OK
