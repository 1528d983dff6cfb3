"""What an operator reads of an instance whose processes are the test: each field from the one who counts it."""

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from tensord.daemon import control
from tensord.daemon import messages as m
from tensord.daemon.supervisor import supervisor as module
from tensord.daemon.supervisor.report import report
from tensord.daemon.supervisor.supervisor import DevicePlan
from tensord.ipc.heartbeat import Activity
from tensord.ipc.statistics import Counter, Phase, Word

from .rig import INGEST_BYTES, Rig, fall_silent

pytestmark = pytest.mark.timeout(60)

AddModel = Callable[..., Path]

MICROSECOND = 1_000


@pytest.fixture
def rig(tmp_path: Path, root: Path, add_model: AddModel, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Two versions of a model that is required and one of a model that is not, on two devices."""
    add_model("one", 1)
    add_model("one", 2)
    add_model("two", head="required = false\n")
    devices = [DevicePlan("cpu:0", (1, 2), ""), DevicePlan("cpu:1", (), "")]
    return Rig(tmp_path, root, monkeypatch, devices, {})


def test_an_instance_that_starts(rig: Rig) -> None:
    async def body() -> None:
        told = report(rig.supervisor)
        assert (told.version, told.pid, told.socket) == (version("tensord"), os.getpid(), str(rig.config.socket))
        assert told.uptime_s >= 0
        assert (told.state, told.reasons) == ("starting", rig.supervisor.reasons())
        assert (told.epoch, told.converging, told.pending_restart) == (0, [], [])
        assert (told.arenas, told.arena_bytes) == (0, 0)
        assert told.frontend == control.FrontendStatus(rig.frontend.pid, 1, 0, 0, 0, 0, 0, INGEST_BYTES, 0)
        first, second = told.workers
        assert first == control.WorkerStatus(
            device="cpu:0",
            cores=[1, 2],
            state="starting",
            activity="starting",
            pid=rig.worker("cpu:0").pid,
            uptime_s=first.uptime_s,
            restarts=0,
            memory_bytes=0,
            models_loaded=0,
        )
        assert (second.device, second.cores) == ("cpu:1", [])
        assert [(model.name, model.version, model.labels, model.required) for model in told.models] == [
            ("one", 1, [], True),
            ("one", 2, ["stable"], True),
            ("two", 1, ["stable"], False),
        ]
        assert all(not (model.ready_on or model.broken_on) for model in told.models)

    rig.run(body)


def test_the_front_ends_words_are_its_page(rig: Rig) -> None:
    async def body() -> None:
        words = rig.supervisor.page.block.words
        for place, word in enumerate(
            (Word.CONNECTIONS, Word.CONNECTIONS_TOTAL, Word.QUEUED, Word.RUNNING, Word.INGEST_USED_BYTES)
        ):
            words[word] = 10 + place
        told = report(rig.supervisor).frontend
        assert (told.connections, told.connections_total, told.queued, told.running) == (10, 11, 12, 13)
        assert (told.ingest_bytes, told.ingest_used_bytes) == (INGEST_BYTES, 14)

    rig.run(body)


def test_a_workers_words_are_its_page_and_its_place(rig: Rig) -> None:
    async def body() -> None:
        rig.load("cpu:1")
        page = rig.place("cpu:1").page
        page.block.words[Word.MEMORY_BYTES] = 5_000
        fall_silent(page, 0, Activity.RUNNING)
        _, told = report(rig.supervisor).workers
        assert (told.state, told.activity, told.memory_bytes, told.models_loaded) == ("ready", "running", 5_000, 3)
        rig.worker("cpu:1").end()
        _, told = report(rig.supervisor).workers
        assert (told.state, told.pid, told.uptime_s, told.restarts) == ("backing off", None, 0.0, 1)
        assert (told.models_loaded, told.memory_bytes) == (0, 5_000)

    rig.run(body)


def test_a_gpus_memory_is_told_and_a_cpu_has_none(rig: Rig) -> None:
    async def body() -> None:
        words = rig.place("cpu:1").page.block.words  # as the worker of a GPU would write it
        for place, word in enumerate(
            (
                Word.DEVICE_ALLOCATED_BYTES,
                Word.DEVICE_FREE_BYTES,
                Word.DEVICE_TOTAL_BYTES,
                Word.PINNED_BYTES,
                Word.UNPINNED_BYTES,
            )
        ):
            words[word] = 10 + place
        told = [worker.device_memory for worker in report(rig.supervisor).workers]
        assert told == [None, control.DeviceMemory(10, 11, 12, 13, 14)]

    rig.run(body)


def test_a_second_tier_that_fails_is_told_while_it_does(rig: Rig) -> None:
    async def body() -> None:
        told = []
        for failing in (1, 0):
            rig.supervisor.page.block.words[Word.SECOND_TIER_FAILING] = failing
            told.append(report(rig.supervisor).frontend.notes)
        assert told == [["the cache's second tier does not answer"], []]

    rig.run(body)


def test_what_a_worker_notes_is_told_until_it_takes_it_back_or_ends(rig: Rig) -> None:
    def told() -> list[str]:
        return report(rig.supervisor).workers[0].notes

    async def body() -> None:
        worker = rig.worker("cpu:0")
        worker.say(m.WorkerStarted(2**30))
        assert told() == []
        worker.say(m.WorkerNoted("pinning", "the arena could not be pinned"))
        worker.say(m.WorkerNoted("graphs", "no graph was captured"))
        assert told() == ["the arena could not be pinned", "no graph was captured"]
        worker.say(m.WorkerNoted("pinning", ""))
        assert told() == ["no graph was captured"]
        worker.end()
        assert told() == []

    rig.run(body)


def test_a_models_memory_is_told_where_it_is_loaded(rig: Rig) -> None:
    async def body() -> None:
        worker = rig.worker("cpu:1")
        worker.say(m.WorkerStarted(2**30))
        worker.say(m.ModelLoaded(0, 1.0, 700))
        one, other, _ = report(rig.supervisor).models
        assert (one.memory_bytes, other.memory_bytes) == ({"cpu:1": 700}, {})
        worker.end()
        assert report(rig.supervisor).models[0].memory_bytes == {}

    rig.run(body)


def test_a_model_is_ready_where_it_is_loaded_and_the_front_end_knows(rig: Rig) -> None:
    async def body() -> None:
        rig.load("cpu:0")
        worker = rig.worker("cpu:1")
        worker.say(m.WorkerStarted(2**30))
        worker.say(m.ModelBroken(0, "bad weights"))
        worker.say(m.ModelLoaded(1, 1.0))
        one, stable, two = report(rig.supervisor).models
        assert (one.ready_on, one.broken_on) == (["cpu:0"], {"cpu:1": "bad weights"})
        assert (stable.ready_on, stable.broken_on) == (["cpu:0"], {})
        assert (two.ready_on, two.broken_on) == (["cpu:0"], {})
        rig.open_channel("cpu:1")
        assert report(rig.supervisor).models[1].ready_on == ["cpu:0", "cpu:1"]
        rig.frontend.end()
        assert [model.ready_on for model in report(rig.supervisor).models] == [["cpu:0"], ["cpu:0", "cpu:1"], ["cpu:0"]]

    rig.run(body)


def test_counters_and_phases_are_those_of_all_processes_together(rig: Rig) -> None:
    async def body() -> None:
        pages = [rig.supervisor.page, rig.place("cpu:0").page, rig.place("cpu:1").page]
        for amount, page in enumerate(pages, 1):
            page.block.count(1, Counter.ROWS, amount)
            page.block.observe(1, Phase.COMPUTE, 100 * MICROSECOND, amount)
        other, told, _ = report(rig.supervisor).models
        assert (told.counters["rows"], told.counters["requests"], other.counters["rows"]) == (6, 0, 0)
        assert set(told.counters) == {counter.name.lower() for counter in Counter}
        assert set(told.phases) == {phase.name.lower() for phase in Phase}
        compute = told.phases["compute"]
        assert compute.count == 6
        assert compute.p50_us is not None
        assert compute.p95_us is not None
        assert compute.p99_us is not None
        assert 80 < compute.p50_us < compute.p95_us < compute.p99_us < 130
        assert compute.p50_us == round(compute.p50_us, 1)
        assert told.phases["queue"] == control.PhaseTimes(0, None, None, None)

    rig.run(body)


def test_knobs_that_wait_and_arenas_are_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SET_WAIT_S", 0.0)

    async def body() -> None:
        rig.load("cpu:0")
        await rig.supervisor.set(control.Set({"ingest_bytes": 2 * INGEST_BYTES}), "uid 0")
        rig.frontend.say(m.ArenaWanted(1, 5_000))
        await rig.until(lambda: bool(rig.frontend.of(m.ArenaMade)))
        told = report(rig.supervisor)
        assert (told.epoch, told.converging) == (1, ["frontend", "worker cpu:0"])
        assert told.pending_restart == ["ingest_bytes"]
        assert (told.arenas, told.arena_bytes) == (1, 8_192)

    rig.run(body)


def test_an_instance_without_a_front_end_says_so(rig: Rig) -> None:
    async def body() -> None:
        rig.get_ready()
        rig.frontend.end()
        told = report(rig.supervisor)
        assert (told.frontend.pid, told.frontend.generation, told.frontend.restarts) == (None, 1, 1)
        assert (told.state, told.reasons) == ("degraded", ["the front end is starting"])

    rig.run(body)


def test_a_report_comes_through_the_control_socket_whole(rig: Rig) -> None:
    async def body() -> None:
        rig.get_ready()
        told = report(rig.supervisor)
        assert told.state == "ready"
        assert control.decode_answer(control.encode(told)) == told

    rig.run(body)


def test_the_memory_of_a_gpu_and_of_models_and_what_a_worker_notes_are_told(rig: Rig) -> None:
    async def body() -> None:
        worker, words = rig.worker("cpu:0"), rig.place("cpu:0").page.block.words
        worker.say(m.WorkerStarted(2**30))
        worker.say(m.ModelLoaded(1, 1.0, 700))
        worker.say(m.WorkerNoted("pinned memory", "not pinned"))
        worker.say(m.WorkerNoted("graphs", "no graphs"))
        worker.say(m.WorkerNoted("pinned memory", ""))
        for number, word in enumerate(
            (Word.DEVICE_ALLOCATED_BYTES, Word.DEVICE_FREE_BYTES, Word.DEVICE_TOTAL_BYTES, Word.PINNED_BYTES), 1
        ):
            words[word] = number
        words[Word.UNPINNED_BYTES] = 5
        told = report(rig.supervisor)
        first, second = told.workers
        assert (first.device_memory, first.notes) == (control.DeviceMemory(1, 2, 3, 4, 5), ["no graphs"])
        assert (second.device_memory, second.notes) == (None, [])
        assert [model.memory_bytes for model in told.models] == [{}, {"cpu:0": 700}, {}]
        worker.end()
        assert report(rig.supervisor).workers[0].notes == []

    rig.run(body)
