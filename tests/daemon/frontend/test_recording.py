"""A recording writes what became of requests, and ends once, whatever ends it."""

import os
from pathlib import Path

import pytest

from tensord.daemon.frontend.recording import NO_ROOM, Recording
from tensord.daemon.scheduling.request import Request
from tensord.daemon.simulation.trace import read_trace

FAR_NS = 10**18


def request_at(arrival_ns: int) -> Request:
    return Request(0, None, "0", 1, 3, arrival_ns, FAR_NS, nbytes=100)


class Ends(list[tuple[int, str]]):
    """What `ended` heard."""

    def __call__(self, records: int, complaint: str) -> None:
        self.append((records, complaint))


def start(path: Path, ends: Ends, bytes_max: int = 2**20) -> Recording:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    return Recording(fd, bytes_max, {"max_batch": 8}, {"m": {}}, {1: "cpu:0"}, ends)


def test_what_was_recorded_can_be_read(tmp_path: Path) -> None:
    ends = Ends()
    recording = start(tmp_path / "t", ends)
    recording.record(FAR_NS, request_at(FAR_NS - 5), "m")
    recording.record(FAR_NS, request_at(FAR_NS - 5), "m", outcome=200)
    recording.record(FAR_NS, request_at(0), "m")  # arrived before it began
    recording.stop()
    recording.stop()
    recording.record(FAR_NS, request_at(FAR_NS - 5), "m")
    trace = read_trace(tmp_path / "t")
    assert ends == [(2, "")]
    assert (trace.complete, trace.header.models, trace.header.workers) == (True, {"m": {}}, {1: "cpu:0"})
    assert [(record.rows, record.outcome, record.response_ns) for record in trace.records] == [(3, 0, 5), (3, 200, 5)]


def test_a_full_file_ends_it(tmp_path: Path) -> None:
    ends = Ends()
    recording = start(tmp_path / "t", ends, 1000)
    for _ in range(100):
        recording.record(FAR_NS, request_at(FAR_NS - 5), "m")
    ((records, complaint),) = ends
    assert (0 < records < 100, complaint) == (True, NO_ROOM)
    trace = read_trace(tmp_path / "t")
    assert (len(trace.records), trace.complete) == (records, False)
    assert (tmp_path / "t").stat().st_size <= 1000


@pytest.mark.parametrize("bytes_max", [2**20, 2**26])
def test_a_disk_that_fails_ends_it_and_nothing_else(bytes_max: int) -> None:
    ends = Ends()
    recording = start(Path("/dev/full"), ends, bytes_max)
    for _ in range(2000):
        recording.record(FAR_NS, request_at(FAR_NS - 5), "m")
    recording.stop()
    ((_, complaint),) = ends
    assert complaint == "No space left on device"
