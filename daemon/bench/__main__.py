"""A process of the load: told what to do on standard input, says what came of it on standard output.

The end of standard input is the end of the command that it works for, and so its own.
"""

import contextlib
import gc
import resource
import sys
from typing import Final

from tensord.ipc.client.arrays import Array
from tensord.ipc.errors import CapacityFault, ConnectionFault, TensordError
from tensord.ipc.tensors import ModelSpec

from ..exits import Exit
from .arrivals import schedule
from .connection import LoadConnection
from .inputs import random_inputs
from .load import Load
from .plan import Arrivals
from .speech import Answer, Begin, Failed, Finished, Job, Progress, Ready, decode_order, encode

INPUTS_MAX: Final = 8
"""Different inputs, which connections share: thousands of copies of an image would only take memory."""


def main() -> None:
    """Do one job."""
    orders = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115 - open until the end
    answers = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115

    def say(answer: Answer) -> None:
        answers.write(encode(answer) + b"\n")

    job = decode_order(orders.readline())
    assert isinstance(job, Job)
    _allow_descriptors()
    try:
        load = _open(job)
    except TensordError as error:
        say(Failed(_sentence(job, error), Exit.UNREACHABLE if isinstance(error, ConnectionFault) else Exit.FAILED))
        return
    say(Ready())
    line = orders.readline()
    if not line:
        return
    begin = decode_order(line)
    assert isinstance(begin, Begin)
    gc.collect()
    gc.freeze()
    warmup_ns, window_ns = int(job.plan.warmup_s * 1e9), int(job.plan.seconds * 1e9)
    tally = load.run(
        begin.start_ns,
        warmup_ns,
        window_ns,
        orders.fileno(),
        lambda tally: say(Progress(tally.answered, tally.failed)),
    )
    say(Finished(tally))


def _open(job: Job) -> Load:
    """All connections of the job, with their places. Raises TensordError."""
    plan = job.plan
    inputs: dict[int, dict[str, Array]] = {}

    def connect(client: int) -> LoadConnection:
        number = client % INPUTS_MAX

        def inputs_of(spec: ModelSpec) -> dict[str, Array]:
            if number not in inputs:
                inputs[number] = random_inputs(spec, plan.rows, plan.seed + number)
            return inputs[number]

        return LoadConnection(job.socket, plan.model, inputs_of, job.form.arena_bytes)

    connections = [connect(client) for client in range(job.first, job.stop)]
    arrivals = None
    if plan.rate_per_s is not None:
        share = range(job.first, job.stop)
        arrivals = schedule(plan.rate_per_s, plan.arrivals or Arrivals.POISSON, plan.seed, share, plan.clients)
    return Load(connections, job.form.depth, int(plan.timeout_ms * 1e6), arrivals)


def _sentence(job: Job, error: TensordError) -> str:
    """A limit of the daemon was reached because so many clients were asked for."""
    return f"--clients is {job.plan.clients:,}: {error}" if isinstance(error, CapacityFault) else str(error)


def _allow_descriptors() -> None:
    """As many as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        main()
