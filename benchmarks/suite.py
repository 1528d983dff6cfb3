"""The whole run: every section in turn, each with processes of its own, all ended at the end."""

import argparse
import contextlib
import os
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from . import goodput, hop, idle, peer, policies, saturation, scale
from .cases import SATURATED
from .generator import build
from .inprocess import offline
from .processes import Machine
from .report import rendered, replace_figures
from .results import Results, noted
from .served import copy_model, device_cores
from .timing import FULL, QUICK, Timing

HERE: Final = Path(__file__).parent
PAGE: Final = HERE / "README.md"
LATEST: Final = HERE / "results" / "latest.json"
SECTIONS: Final = ("hop", "saturation", "goodput", "scale", "policies", "idle")


def main() -> None:
    """Run, print the tables, and write them down if the run was a full one."""
    options = argparse.ArgumentParser(prog="benchmarks/run.py", description="What the hop through the daemon costs.")
    options.add_argument("--quick", action="store_true", help="two short repetitions, to see that everything works")
    options.add_argument("--only", choices=SECTIONS, help="one section")
    chosen = options.parse_args()
    timing = QUICK if chosen.quick else FULL
    results = run(timing, (chosen.only,) if chosen.only else SECTIONS, quick=chosen.quick)
    text = rendered(results)
    print(text)
    if timing is FULL and not chosen.only:
        LATEST.parent.mkdir(exist_ok=True)
        LATEST.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
        replace_figures(PAGE, text)


def run(timing: Timing, sections: tuple[str, ...], *, quick: bool) -> Results:
    """Measure these sections. What fails is in the results, too."""
    build()
    machine = Machine.this()
    results = Results(
        datetime.now(UTC).strftime("%Y-%m-%d"), _commit(), _compiled(), quick, timing.repetitions, timing.seconds,
        machine.cores, machine.cpu, machine.kernel, f"mosec {peer.VERSION}",
    )  # fmt: skip
    failures = results.failures
    with_peer = False
    with noted(failures, "mosec"):
        peer.install()
        with_peer = True
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tdb"))
        repository = Path(directory) / "repository"
        for model in SATURATED:
            copy_model(repository, model.name)
        in_process = stack.enter_context(offline(repository, Path(directory), device_cores()))
        for section in sections:
            place = Path(directory) / section
            (place / "models").mkdir(parents=True)
            with noted(failures, section):
                match section:
                    case "hop":
                        results.hops = hop.measure(place, in_process, timing, failures, with_peer=with_peer)
                    case "saturation":
                        results.saturations = saturation.measure(
                            place, in_process, timing, failures, with_peer=with_peer
                        )
                    case "goodput":
                        results.goodputs = goodput.measure(place, in_process, timing, failures)
                    case "scale":
                        results.scale = scale.measure(place, timing, failures)
                    case "policies":
                        results.policies = policies.measure(place, timing, failures)
                    case "idle":
                        results.idle = idle.measure(place, timing)
    return results


def _commit() -> str:
    """The commit that is measured; marked where files of it were changed."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    return done.stdout.strip() or "unknown"


def _compiled() -> bool:
    """Whether daemons import what mypyc has made of their sources. All of it is built together, or none."""
    found = find_spec("tensord.daemon.scheduling.scheduler")
    return found is not None and isinstance(found.loader, ExtensionFileLoader)
