from pathlib import Path

import pytest

from tensord.daemon.supervisor import memory
from tensord.ipc.errors import NoMemory

MIB = 1024 * 1024


def cgroup(root: Path, limit: str, current: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "memory.max").write_text(f"{limit}\n")
    (root / "memory.current").write_text(f"{current}\n")


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    path = tmp_path / "membership"
    path.write_text("1:name=systemd:/old\n0::/system.slice/tensord.service\n")
    return path


def test_the_tightest_enclosing_cgroup_counts(tmp_path: Path, membership: Path) -> None:
    cgroup(tmp_path / "system.slice" / "tensord.service", "max", 5 * MIB)
    cgroup(tmp_path / "system.slice", str(8 * MIB), 5 * MIB)
    assert memory.available_bytes(tmp_path, membership) == 3 * MIB


def test_without_limits_the_host_counts(tmp_path: Path, membership: Path) -> None:
    cgroup(tmp_path / "system.slice" / "tensord.service", "max", 5 * MIB)
    assert memory.available_bytes(tmp_path, membership) > 64 * MIB
    assert memory.available_bytes(tmp_path, tmp_path / "missing") > 64 * MIB


def test_what_would_wake_the_oom_killer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: memory.RESERVE_BYTES + MIB)
    memory.check_room(MIB)
    with pytest.raises(NoMemory, match=f"{MIB} are free"):
        memory.check_room(MIB + 1)
