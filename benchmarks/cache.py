"""What the response cache costs where nothing comes again, and what a hit spares: identity without and with it.

python benchmarks/cache.py [SECONDS]
"""

import sys
import tempfile
from pathlib import Path
from typing import Final

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.cases import Payload
from benchmarks.generator import Sample, build, run
from benchmarks.served import Daemon, serve, write_identity

PAYLOADS: Final = (Payload("4 KiB", 1024, 64, True, ()), Payload("64 KiB", 16 * 1024, 64, True, ()))
CONNECTIONS: Final = (1, 64)
KEEPING: Final = {"cache_bytes": 2 * 2**30, "cache_item_bytes_max": 2**20}
WARMUP_S: Final = 0.3
REPEATED: Final = 3
"""How much longer the first run is than the one that asks the same again, and faster."""


def counters(daemon: Daemon) -> dict[str, int]:
    """Of the one model."""
    (model,) = daemon.status().models
    return model.counters


def loaded(daemon: Daemon, payload: Payload, connections: int, seconds: float) -> Sample:
    """A closed loop; the generator numbers its requests, so that within a run none is like another's."""
    return run("tensord", daemon.socket, payload.request, "inline", connections, 1, seconds, WARMUP_S)


def measure(payload: Payload, connections: int, seconds: float) -> str:
    """One row of the table."""
    samples = {}
    for name, knobs in (("off", {}), ("on", KEEPING)):
        with tempfile.TemporaryDirectory(prefix="tdb", dir="/tmp") as directory:
            write_identity(Path(directory) / "models", payload.model, payload.floats, payload.max_batch)
            with serve(Path(directory), {payload.model: knobs} if knobs else {}) as daemon:
                samples[name] = loaded(daemon, payload, connections, REPEATED * seconds)
                if knobs:
                    missed = counters(daemon)
                    samples["again"] = loaded(daemon, payload, connections, seconds)
                    hits = counters(daemon)["cache_hits"] - missed["cache_hits"]
                    misses = counters(daemon)["cache_misses"] - missed["cache_misses"]
    hash_us = missed["cache_hash_ns"] / 1000 / (missed["cache_hits"] + missed["cache_misses"])
    cells = [
        payload.name,
        str(connections),
        *(f"{samples[name].latency_us.p50:.0f}" for name in ("off", "on", "again")),
        *(f"{samples[name].per_s:,.0f}" for name in ("off", "on", "again")),
        f"{hits / max(1, hits + misses):.0%}",
        f"{hash_us:.1f}",
        f"{1024 * missed['cache_hash_ns'] / missed['cache_hashed_bytes'] / 1000:.2f}",
        f"{hash_us / samples['off'].latency_us.p50:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def main(seconds: float) -> None:
    """Print the table."""
    build()
    print(
        "| payload | connections | p50 µs: off | on, all misses | asked again | requests/s: off | on, all misses ",
        end="",
    )
    print("| asked again | of which hits | hashing, µs | µs per KiB | hashing to the hop |")
    print(f"|{'---|' * 12}")
    for payload in PAYLOADS:
        for connections in CONNECTIONS:
            print(measure(payload, connections, seconds), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 1.0)
