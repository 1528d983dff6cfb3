import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensord.daemon.scheduling import Batch, ModelPolicy, ReleaseReason, Request
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.simulation import trace as format_
from tensord.daemon.simulation.trace import LINE_BYTES_MAX, BadTrace, Record, Recorder, Trace, read_trace
from tensord.ipc.errors import QueueFull

START_NS = 10**12
HEADER = '{"tensord_trace":1,"knobs":{"window_us":500},"models":{"digits":{"max_batch":8}},"workers":{"1":"cpu:0"}}'
RECORD = '[1000,"digits","f4",2,128,0,1,0,0,5000,0,900,100,700,1,2,1]'
TRAILER = '{"records":1,"complete":true}'


def request(arrival_ns: int, tenant: str = "alice", **changes: Any) -> Request:
    return Request(
        0, ("float32", (64,)), tenant, 1, 2, START_NS + arrival_ns, START_NS + arrival_ns + 5_000, nbytes=512, **changes
    )


def batch(*requests: Request, released_ns: int) -> Batch[Request]:
    queue = ModelQueue(0, "digits", ModelPolicy(), idempotent=True)
    rows = sum(each.rows for each in requests)
    return Batch(7, queue, "", 1, list(requests), rows, ReleaseReason.IDLE, START_NS + released_ns, 0, 1)


def recorder(file: io.BytesIO, bytes_max: int = 1_000_000) -> Recorder:
    return Recorder(file, START_NS, bytes_max, {"window_us": 500}, {"digits": {"max_batch": 8}}, {1: "cpu:0"})


def read(tmp_path: Path, content: bytes | str) -> Trace:
    path = tmp_path / "load.trace"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_trace(path)


# ── there and back ──────────────────────────────────────────────────────────────────────────────


def test_what_was_recorded_is_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = recorder(file)
    answered = request(1_000, session=77, flow=12)
    writer.record(answered, "digits", START_NS + 4_000, batch=batch(answered, released_ns=1_500), compute_ns=2_000)
    writer.record(request(500, "bob"), "digits", START_NS + 600, QueueFull.code)
    writer.close()
    trace = read(tmp_path, file.getvalue())
    assert trace.header == format_.Header(1, {"window_us": 500}, {"digits": {"max_batch": 8}}, {1: "cpu:0"})
    bucket = "('float32', (64,))"
    assert trace.records == [
        Record(500, "digits", bucket, 2, 512, 1, 1, 0, 1, 5_000, QueueFull.code, 100),
        Record(1_000, "digits", bucket, 2, 512, 0, 1, 1, 0, 5_000, 0, 3_000, 500, 2_000, 7, 2, 1),
    ]
    assert trace.complete


def test_nobodys_name_is_in_the_file() -> None:
    file = io.BytesIO()
    writer = recorder(file)
    writer.record(request(0, "alice", session=0xDEADBEEF), "digits", START_NS + 1)
    writer.close()
    assert b"alice" not in file.getvalue()
    assert str(0xDEADBEEF).encode() not in file.getvalue()


def test_the_same_tenant_session_and_flow_keep_their_number(tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = recorder(file)
    for number, (tenant, session, flow) in enumerate([("a", 0, 5), ("b", 9, 5), ("a", 8, 4), ("b", 9, 4)]):
        writer.record(request(number, tenant, session=session, flow=flow), "digits", START_NS + number)
    writer.close()
    records = read(tmp_path, file.getvalue()).records
    assert [(each.tenant, each.session, each.flow) for each in records] == [(0, 0, 0), (1, 1, 0), (0, 2, 1), (1, 1, 1)]


def test_a_request_from_before_the_recording_is_left_out() -> None:
    writer = recorder(io.BytesIO())
    writer.record(request(-1), "digits", START_NS + 5)
    assert writer.records == 0


@pytest.mark.parametrize("bytes_max", [0, 150, 300, 1_000, 5_000])
def test_the_file_never_grows_beyond_its_bound_and_says_that_it_stopped(tmp_path: Path, bytes_max: int) -> None:
    file = io.BytesIO()
    writer = recorder(file, bytes_max)
    for number in range(100):
        writer.record(request(number), "digits", START_NS + number)
    writer.close()
    assert writer.full
    assert len(file.getvalue()) <= max(bytes_max, format_.TRAILER_BYTES)
    if bytes_max >= 300:
        trace = read(tmp_path, file.getvalue())
        assert (len(trace.records), trace.complete) == (writer.records, False)


def test_nothing_follows_what_found_no_room(tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = recorder(file, len(HEADER) + 250)
    long = request(0)
    long.bucket = "b" * 120
    for each in (request(0), request(1), long, request(2)):
        writer.record(each, "digits", START_NS + 10)
    writer.close()
    assert [each.arrival_ns for each in read(tmp_path, file.getvalue()).records] == list(range(writer.records))
    assert writer.records < 3


def test_a_recorder_that_died_leaves_what_was_written(tmp_path: Path) -> None:
    trace = read(tmp_path, f"{HEADER}\n{RECORD}\n{RECORD[:30]}")
    assert (len(trace.records), trace.complete) == (1, False)


# ── files that are no traces ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "line 1: no header"),
        ("#!/bin/sh", "line 1: no header"),
        ("hello\n", "line 1: no header"),
        ("[]\n", "line 1: no header"),
        (HEADER.replace("1", "2", 1) + "\n", "line 1: version 2 of the format; this tensord reads 1"),
        (f"{HEADER}\n", "no request was recorded"),
        (f"{HEADER}\n[1]\n", "line 2: no record"),
        (f"{HEADER}\nnull\n", "line 2: no record"),
        (f"{HEADER}\n{RECORD[:-1]},1]\n", "line 2: no record"),
        (f"{HEADER}\n{RECORD.replace('1000', '-1', 1)}\n", "line 2: no record"),
        (f"{HEADER}\n{RECORD.replace('1000', '1e999', 1)}\n", "line 2: no record"),
        (f"{HEADER}\n{RECORD.replace('1000', '9' * 400, 1)}\n", "line 2: no record"),
        (f"{HEADER}\n{RECORD.replace('digits', 'other')}\n", "line 2: model 'other', which the header does not have"),
        (f"{HEADER}\n{RECORD[:-2]}9]\n", "line 2: worker 9, which the header does not have"),
        (f"{HEADER}\n{RECORD.replace('f4', 'f' * LINE_BYTES_MAX)}\n", "line 2: longer than 1,024 bytes"),
        (f"{HEADER}\n{RECORD}\n{TRAILER}\n{RECORD}\n", "line 4: there is more behind the end"),
        (f"{HEADER}\n{RECORD}\n{RECORD}\n{TRAILER}\n", "line 4: 1 records are announced, 2 are there"),
        (f"{HEADER}\n{'[' * 1_000}\n", "line 2: no record"),
        (b"\xff\xfe\n", "line 1: no header"),
    ],
)
def test_a_file_that_is_no_trace_gets_one_line(tmp_path: Path, content: bytes | str, complaint: str) -> None:
    with pytest.raises(BadTrace) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'load.trace'}: {complaint}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "load.trace"
    with path.open("wb") as file:
        file.truncate(format_.TRACE_BYTES_MAX + 1)
    with pytest.raises(BadTrace, match="a trace has"):
        read_trace(path)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_file_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int) -> None:
    whole = f"{HEADER}\n{RECORD}\n{TRAILER}\n".encode()
    path = tmp_path_factory.mktemp("noise") / "load.trace"
    path.write_bytes(whole[:place] + noise + whole[place:])
    try:
        read_trace(path)
    except BadTrace as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_record_is_short() -> None:
    largest = Record(2**62, "m" * 128, "b" * 128, 2**31, *[2**62] * 2, 2, *[2**62] * 3, 65_535, *[2**62] * 6)  # type: ignore[call-arg]
    assert len(msgspec.json.encode(largest)) < LINE_BYTES_MAX
    assert json.loads(RECORD)[0] == 1_000
