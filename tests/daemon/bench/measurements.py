"""A measurement that tests change where they look."""

from dataclasses import replace
from typing import Any

import msgspec

from tensord.daemon import control
from tensord.daemon.bench.histogram import Histogram
from tensord.daemon.bench.plan import Form, Lane, Plan
from tensord.daemon.bench.run import Measurement
from tensord.daemon.bench.tally import Tally
from tensord.daemon.bench.watch import Usage
from tensord.ipc.statistics import Counter
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec

SPEC = ModelSpec(
    "digits", 3, (TensorSpec("x", DType.FLOAT32, (4,)),), (TensorSpec("y", DType.FLOAT32, (2,)),), 64, idempotent=True
)


def durations(*milliseconds: float) -> Histogram:
    """A histogram of these."""
    histogram = Histogram()
    for each in milliseconds:
        histogram.observe(round(each * 1e6))
    return histogram


def status(**counters: int) -> control.InstanceStatus:
    """What a supervisor says of an instance that serves the model, and another version of it."""
    counts = {counter.name.lower(): 0 for counter in Counter}
    models = [
        control.ModelStatus("digits", version, [], ["cpu:0"], {}, required=True, counters=each, phases={})
        for version, each in ((2, counts), (3, counts | counters))
    ]
    return control.InstanceStatus(
        version="1",
        pid=10,
        uptime_s=1.0,
        state="ready",
        reasons=[],
        epoch=0,
        converging=[],
        pending_restart=[],
        socket="",
        arenas=0,
        arena_bytes=0,
        frontend=control.FrontendStatus(11, 1, 0, 0, 0, 0, 0, 0, 0),
        workers=[control.WorkerStatus("cpu:0", [0], "ready", "idle", 12, 1.0, 0, 0, 1)],
        models=models,
    )


def tally(**changes: Any) -> Tally:
    """A hundred requests in two seconds, each in a batch with three others, after twenty that are not measured."""
    usual = Tally(
        sent=120,
        answered=120,
        latency=durations(*(1 + number / 100 for number in range(100))),
        queue=durations(*[0.2] * 100),
        compute=durations(*[0.5] * 100),
        elsewhere=durations(*[0.3] * 100),
        batches={4: 25.0},
        parts=[33, 34, 33],
        window_s=2.0,
        cpu_s=0.02,
        busy_s=0.03,
    )
    return msgspec.structs.replace(usual, **changes)


def measurement(**changes: Any) -> Measurement:
    """All was well."""
    usual = Measurement(
        plan=Plan("digits", seconds=2.0),
        form=Form(Lane.INLINE, 1, 16, 8, 0),
        spec=SPEC,
        processes=1,
        tally=tally(),
        before=status(requests=7, released_idle=5),
        after=status(requests=127, released_idle=30, released_full=2),
        usages={"front end": (Usage(11, 1.0), Usage(11, 1.5)), "worker cpu:0": (Usage(12, 2.0), Usage(12, 3.0))},
        silence="",
        interrupted=False,
    )
    return replace(usual, **changes)
