"""The supervisor's part of a recording: which wishes it grants, and that every one has its end."""

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tensord.daemon import control
from tensord.daemon import messages as m
from tensord.daemon.exits import Exit
from tensord.daemon.supervisor import recording as module
from tensord.daemon.supervisor.recording import BYTES_MAX, BYTES_MIN, Recording

Send = Callable[[m.Message, Sequence[int]], None]


def wish(path: Path | str, seconds: float = 1.0, bytes_max: int = BYTES_MIN) -> control.Record:
    return control.Record(str(path), seconds, bytes_max)


def run(recording: Recording, request: control.Record, send: Send) -> control.Recorded | control.Refused:
    return asyncio.run(recording.run(request, send))


def never(message: m.Message, fds: Sequence[int]) -> None:
    raise AssertionError("the front end was told")


def test_the_front_end_gets_a_file_of_its_own_and_says_when_it_is_done(tmp_path: Path) -> None:
    recording, sent = Recording(), []

    def send(message: m.Message, fds: Sequence[int]) -> None:
        sent.append(message)
        os.write(fds[0], b"a trace")
        recording.ended(7, "")

    assert run(recording, wish(tmp_path / "t", 2.5), send) == control.Recorded(7, "")
    assert sent == [m.StartRecording(2.5, BYTES_MIN)]
    assert (tmp_path / "t").read_bytes() == b"a trace"
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("seconds", "bytes_max", "name"),
    [
        (0.0, BYTES_MIN, "t"),
        (-1.0, BYTES_MIN, "t"),
        (float("nan"), BYTES_MIN, "t"),
        (float("inf"), BYTES_MIN, "t"),
        (1.0, BYTES_MIN - 1, "t"),
        (1.0, BYTES_MAX + 1, "t"),
        (1.0, BYTES_MIN, "missing/t"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(tmp_path: Path, seconds: float, bytes_max: int, name: str) -> None:
    answer = run(Recording(), wish(tmp_path / name, seconds, bytes_max), never)
    assert isinstance(answer, control.Refused)
    assert answer.exit == Exit.USAGE
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("t", "link"):
        assert isinstance(run(Recording(), wish(tmp_path / name), never), control.Refused)
    assert isinstance(run(Recording(), wish("t"), never), control.Refused)  # relative: to whose directory?
    assert (tmp_path / "t").read_bytes() == b"precious"
    assert not (tmp_path / "elsewhere").exists()


def test_one_at_a_time(tmp_path: Path) -> None:
    recording = Recording()

    async def both() -> tuple[control.Recorded | control.Refused, control.Recorded | control.Refused]:
        first = asyncio.ensure_future(recording.run(wish(tmp_path / "a"), lambda *_: None))
        await asyncio.sleep(0)
        second = await recording.run(wish(tmp_path / "b"), never)
        recording.ended(1, "")
        return await first, second

    first, second = asyncio.run(both())
    assert first == control.Recorded(1, "")
    assert isinstance(second, control.Refused)
    assert "under way" in second.sentence


def test_a_front_end_that_never_says_so_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    recording = Recording()
    assert isinstance(run(recording, wish(tmp_path / "t", 0.001), lambda *_: None), control.Refused)
    recording.ended(1, "")  # too late for anybody
    assert run(recording, wish(tmp_path / "u"), lambda *_: recording.ended(2, "")) == control.Recorded(2, "")
