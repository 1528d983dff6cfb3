from pathlib import Path

import pytest

from tensord.daemon.supervisor import costs
from tensord.daemon.supervisor.costs import FILE_NAME, Costs

LINES = [{"bucket": [1, "x"], "device": "cpu:0", "fixed_ns": 1.5}]


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    before = Costs(tmp_path / "state")
    before.learned("digits:1", LINES)
    assert before.write(before.content()) == ""
    after = Costs(tmp_path / "state")
    assert after.load() == ""
    assert (after.of("digits:1"), after.of("digits:2")) == (LINES, [])
    assert [path.name for path in (tmp_path / "state").iterdir()] == [FILE_NAME]


def test_without_a_directory_nothing_is_written() -> None:
    found = Costs(None)
    found.learned("digits:1", LINES)
    assert (found.load(), found.write(found.content()), found.of("digits:1")) == ("", "", LINES)


def test_no_file_is_no_complaint(tmp_path: Path) -> None:
    assert Costs(tmp_path).load() == ""


@pytest.mark.parametrize("content", [b"", b"[]", b'{"m": 1}', b'{"m": [1]}', b"\xff", b"[" * 10_000], ids=repr)
def test_a_file_that_is_none_of_ours_is_said_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    found = Costs(tmp_path)
    assert "learned anew" in found.load()
    assert found.of("m") == []
    assert (tmp_path / FILE_NAME).read_bytes() == content


def test_a_file_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "FILE_BYTES_MAX", 10)
    (tmp_path / FILE_NAME).write_bytes(b'{"m":     []}')
    assert "longer than 10 bytes" in Costs(tmp_path).load()


def test_a_directory_that_cannot_be_written_is_said_and_the_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = Costs(tmp_path / "file")  # no directory, and so not even for root
    found.learned("digits:1", LINES)
    assert "not written" in found.write(found.content())


def test_models_that_come_and_go_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "UNKNOWN_MAX", 2)
    found = Costs(tmp_path)
    for name in ("a:1", "b:1", "a:1", "c:1"):
        found.learned(name, LINES)
    assert [bool(found.of(name)) for name in ("a:1", "b:1", "c:1")] == [True, False, True]
