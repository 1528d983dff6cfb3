import pytest

from tensord.ipc.heartbeat import Activity, Heartbeat, Pulse
from tensord.ipc.statistics import Block, Word

MS = 1_000_000


@pytest.fixture
def block() -> Block:
    return Block.format(memoryview(bytearray(Block.nbytes(1))), 1)


def test_a_pulse_tells_silence_and_activity_apart(block: Block) -> None:
    heartbeat = Heartbeat(block)
    heartbeat.enter(Activity.RUNNING, 100 * MS)
    heartbeat.beat(250 * MS)
    assert heartbeat.read(300 * MS) == Pulse(Activity.RUNNING, silent_ms=50.0, activity_ms=200.0)


def test_entering_an_activity_is_a_beat(block: Block) -> None:
    heartbeat = Heartbeat(block)
    heartbeat.beat(1 * MS)
    heartbeat.enter(Activity.LOADING, 9 * MS)
    assert heartbeat.read(9 * MS) == Pulse(Activity.LOADING, 0.0, 0.0)


def test_who_maps_the_same_block_reads_the_same_pulse(block: Block) -> None:
    Heartbeat(block).enter(Activity.IDLE, 5 * MS)
    reader = Heartbeat(Block(block.words.cast("B")))
    assert reader.read(6 * MS) == Pulse(Activity.IDLE, 1.0, 1.0)


def test_a_beat_just_after_the_reader_looked_at_the_clock_is_not_negative(block: Block) -> None:
    heartbeat = Heartbeat(block)
    heartbeat.enter(Activity.IDLE, 10 * MS)
    assert heartbeat.read(9 * MS) == Pulse(Activity.IDLE, 0.0, 0.0)


def test_a_broken_process_that_writes_an_unknown_activity_is_judged_like_one_that_starts(block: Block) -> None:
    heartbeat = Heartbeat(block)
    heartbeat.beat(1 * MS)
    block.words[Word.ACTIVITY] = 99
    assert heartbeat.read(2 * MS).activity is Activity.STARTING


def test_only_its_own_words_are_written(block: Block) -> None:
    before = block.words.tolist()
    heartbeat = Heartbeat(block)
    heartbeat.enter(Activity.STOPPING, 7)
    heartbeat.beat(8)
    changed = [index for index, (old, new) in enumerate(zip(before, block.words, strict=True)) if old != new]
    assert changed == [Word.HEARTBEAT_NS, Word.ACTIVITY, Word.ACTIVITY_SINCE_NS]
