"""Execution times that a daemon has learned are there when it starts again, and when its front end does."""

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def test_what_was_learned_survives_the_daemon_and_its_front_end(
    daemon: "Daemon", connect: "Connect", tmp_path: Path
) -> None:
    state = tmp_path / "state"
    for start in range(2):
        running = type(daemon)(tmp_path / str(start), state_dir=state)
        try:
            running.wait_ready()
            client = connect(running)
            for _ in range(5):
                assert client.call("echo", X)[0].tobytes() == X.tobytes()
            if start:
                os.kill(running.frontend_pid, signal.SIGKILL)
                running.wait_status(lambda now: now.frontend.generation == 2 and now.state == "ready")
        finally:
            running.stop()
        learned = json.loads((state / "costs.json").read_bytes())
        (line,) = learned["echo:1"]
        assert line["device"] == "cpu:0"
        assert line["mean_rows"] == 2
        if not start:
            assert "picky:1" not in learned
            learned["picky:1"] = [{**line, "mean_rows": 7, "mean_square_rows": 49.0}]
            (state / "costs.json").write_text(json.dumps(learned))
    assert learned["picky:1"][0]["mean_rows"] == 7  # handed from one to the next, though nobody asked for it
