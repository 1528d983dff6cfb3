"""Every setting of tensord, each declared once; the loader, the command line and the reference derive from here.

`python -m tensord.daemon.knobs` prints docs/reference/knobs.md, and with the argument `toml` the
`[knobs]` section of configs/production.toml; the tests compare both files with what is declared here.
"""

import sys
from collections.abc import Mapping
from textwrap import wrap
from typing import Any, Final

from tensord.ipc.limits import ARENA_BYTES_MAX, PAYLOAD_BYTES_MAX

from .knob import Context, Kind, Knob, KnobError, Scope, Setting, suggestion

__all__ = [
    "KNOBS",
    "Context",
    "Kind",
    "Knob",
    "KnobError",
    "Scope",
    "Setting",
    "contradiction",
    "find",
    "in_scope",
    "reference",
]

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30

# A table, two to three lines a row: one argument per line would hide it.
# fmt: off
_MODEL = (
    Knob(name="max_batch", kind=Kind.INTEGER, unit="rows", default=32, minimum=1, maximum=65_536, scope=Scope.MODEL,
         help="The most rows that run as one batch.",
         trades="Higher: more throughput and device memory, and a longer wait behind the batch before."),
    Knob(name="window_us", kind=Kind.DURATION, unit="us", default=500, maximum=10_000_000, scope=Scope.MODEL,
         help="How long a batch that is not full may wait for more rows, while a worker has room for it.",
         trades="Higher: fuller batches, and so throughput; each lone request waits that much longer. 0 never waits."),
    Knob(name="queue_max", kind=Kind.INTEGER, unit="requests", default=4096, minimum=1, maximum=1_000_000,
         scope=Scope.MODEL,
         help="The most requests that wait for the model; one more gets QueueFull.",
         trades="Higher: longer bursts are absorbed; in overload the waits are longer before anyone is refused."),
    Knob(name="queue_rows_max", kind=Kind.INTEGER, unit="rows", default=65_536, minimum=1, maximum=2**40,
         scope=Scope.MODEL,
         help="The most rows that wait for the model; one more gets QueueRowsFull.",
         trades="Higher: longer bursts are absorbed; in overload the waits are longer before anyone is refused."),
    Knob(name="queue_bytes_max", kind=Kind.BYTES, unit="bytes", default=_GIB, minimum=4 * _KIB, maximum=2**40,
         scope=Scope.MODEL,
         help="The most bytes of inputs and outputs of the requests that wait for the model; more gets QueueBytesFull.",
         trades="Higher: longer bursts of large tensors; more shared memory is held by what waits."),
    Knob(name="tenant_queue_percent", kind=Kind.INTEGER, unit="percent", default=50, minimum=1, maximum=100,
         scope=Scope.MODEL,
         help="How much of each bound of the queue one tenant may use; more gets TenantQueueFull.",
         trades="Higher: one tenant's burst is absorbed; it leaves less room for the others."),
    Knob(name="deadline_check", kind=Kind.SWITCH, default=True, scope=Scope.MODEL,
         help="Whether a request whose deadline cannot be met, as predicted, gets DeadlineInfeasible at once.",
         trades="on: in overload the device works only for what comes in time; off: every request has its chance."),
    Knob(name="codel_target_ms", kind=Kind.DURATION, unit="ms", default=0, maximum=3_600_000, scope=Scope.MODEL,
         help="Queueing time that a standing queue may have, beyond the batching window, before QueueDelay cuts it; "
              "0 turns it off.",
         trades="Lower: short queues under overload, more refusals; higher: bursts wait instead."),
    Knob(name="codel_interval_ms", kind=Kind.DURATION, unit="ms", default=100, minimum=1, maximum=3_600_000,
         scope=Scope.MODEL,
         help="For how long the shortest wait must have been too long before CoDel refuses.",
         trades="Higher: longer bursts pass; a standing queue is noticed later."),
    Knob(name="adaptive_concurrency", kind=Kind.SWITCH, default=False, scope=Scope.MODEL,
         help="Whether the requests inside are limited to what the gradient of their latency allows: ConcurrencyLimit.",
         trades="on: latency stays near its best without any target; short bursts are refused."),
    Knob(name="cache_bytes", kind=Kind.BYTES, unit="bytes", default=0, maximum=64 * _GIB, scope=Scope.MODEL,
         help="Memory for answers to inline requests that may come again; 0 turns the cache off.",
         trades="Higher: more answers are kept; hashing every request costs a microsecond per KiB."),
    Knob(name="cache_item_bytes_max", kind=Kind.BYTES, unit="bytes", default=64 * _KIB, maximum=PAYLOAD_BYTES_MAX,
         scope=Scope.MODEL,
         help="The most inline bytes, inputs and outputs together, of a request that is looked up and kept.",
         trades="Higher: larger requests can be spared; more time goes into hashing what never comes again."),
    Knob(name="cache_ttl_s", kind=Kind.DURATION, unit="s", default=60, minimum=1, maximum=2_592_000, scope=Scope.MODEL,
         help="How long a kept answer may be given.",
         trades="Higher: more hits; an answer that no longer holds is given for longer."),
    Knob(name="cache_shared", kind=Kind.SWITCH, default=False, scope=Scope.MODEL,
         help="Whether tenants get each other's kept answers.",
         trades="on: more hits; a tenant can tell by the time whether another has asked the same."),
    Knob(name="timeout_ms", kind=Kind.DURATION, unit="ms", default=30_000, minimum=1, maximum=3_600_000,
         scope=Scope.MODEL,
         help="The deadline of a request that brings none, counted from its arrival.",
         trades="Higher: slow answers still count; in overload more work is done for callers who have given up."),
    Knob(name="weight", kind=Kind.NUMBER, default=1.0, minimum=0.01, maximum=100, scope=Scope.MODEL,
         help="The model's share of device time, relative to other models that have work for the same device.",
         trades="Higher: this model waits less when the device is busy, and the others more."),
    Knob(name="order", kind=Kind.CHOICE, default="fcfs", choices=("fcfs", "sjf", "hrrn", "mlfq", "edf"),
         scope=Scope.MODEL,
         help="Which of a tenant's waiting requests of one priority class runs next (docs/scheduling.md).",
         trades="fcfs is fair and blind; sjf and hrrn shorten the mean wait, mlfq the wait of light flows; edf meets "
                "more deadlines."),
    Knob(name="mlfq_levels", kind=Kind.INTEGER, unit="levels", default=3, minimum=2, maximum=8, scope=Scope.MODEL,
         help="With the order mlfq: levels that a connection or session can sink through.",
         trades="Higher: heavy flows are told apart more finely; the heaviest wait longer."),
    Knob(name="mlfq_quantum_us", kind=Kind.DURATION, unit="us", default=10_000, minimum=1, maximum=60_000_000,
         scope=Scope.MODEL,
         help="With the order mlfq: device time of a flow on the highest level; each below has twice as much.",
         trades="Higher: more flows count as light; a heavy one is found out later."),
    Knob(name="mlfq_boost_ms", kind=Kind.DURATION, unit="ms", default=1000, minimum=1, maximum=3_600_000,
         scope=Scope.MODEL,
         help="With the order mlfq: how often all flows come back to the highest level.",
         trades="Higher: light flows are better off; a flow that was heavy once is punished for longer."),
    Knob(name="balance", kind=Kind.CHOICE, default="least_work",
         choices=("round_robin", "weighted_round_robin", "least_connections", "least_work", "fastest_response",
                  "power_of_two", "hash", "consistent_hash"), scope=Scope.MODEL,
         help="Which replica gets the next batch (docs/scheduling.md).",
         trades="least_work evens out replicas of unequal speed and trusts the learned times; the hashes keep a "
                "session on one replica and let others idle."),
    Knob(name="response_half_life_ms", kind=Kind.DURATION, unit="ms", default=1000, minimum=1, maximum=3_600_000,
         scope=Scope.MODEL,
         help="With the balance fastest_response: what happened so long ago counts half in a replica's average.",
         trades="Higher: steadier; a replica that became slow is avoided later."),
    Knob(name="batching", kind=Kind.CHOICE, default="fixed", choices=("fixed", "aimd", "deferred"), scope=Scope.MODEL,
         help="When a batch stops waiting for rows: by max_batch and window_us, adapted to latency_target_ms, or as "
              "late as deadlines allow.",
         trades="fixed is predictable; aimd finds the largest batch that keeps the target; deferred gives the fullest "
                "batches and the latest answers."),
    Knob(name="latency_target_ms", kind=Kind.DURATION, unit="ms", default=50, minimum=1, maximum=3_600_000,
         scope=Scope.MODEL,
         help="With the batching aimd: the time from arrival to the end of the batch that is aimed at; with deferred: "
              "the longest that a batch waits, however far its deadlines are.",
         trades="Higher: larger batches and more throughput; slower answers."),
    Knob(name="preferred_batches", kind=Kind.SIZES, unit="rows", default="", minimum=1, maximum=65_536,
         scope=Scope.MODEL,
         help="Batch sizes that the model runs best at; a batch that is not full ends at one of these where it can.",
         trades="Fewer sizes: each is run more often, and a few rows wait for the next batch."),
    Knob(name="rows_max", kind=Kind.INTEGER, unit="rows", default=4096, minimum=1, maximum=65_536, scope=Scope.MODEL,
         help="The most rows of one request; more than max_batch are split over several batches.",
         trades="Higher: clients need not split; one request can occupy the queue."),
    Knob(name="retries", kind=Kind.INTEGER, unit="times", default=1, maximum=5, scope=Scope.MODEL,
         help="How often a request runs again when its worker died; never for a model that is not idempotent.",
         trades="Higher: survives more crashes of others; a request that kills workers kills more of them."),
)
_GLOBAL = (
    Knob(name="pipeline_depth", kind=Kind.INTEGER, unit="batches", default=2, minimum=1, maximum=8, scope=Scope.GLOBAL,
         help="Batches that one worker holds at once: one computing, the others ready to follow.",
         trades="Higher: no idle gap between batches; what is in a worker can no longer be reordered or joined."),
    Knob(name="ageing_ms", kind=Kind.DURATION, unit="ms", default=1000, maximum=3_600_000, scope=Scope.GLOBAL,
         help="Waiting that long lifts a request by one priority class; 0 switches it off.",
         trades="Higher: priority classes are kept more strictly, and low ones wait longer under load."),
    Knob(name="in_flight_max", kind=Kind.INTEGER, unit="requests", default=1024, minimum=1, maximum=65_536,
         scope=Scope.GLOBAL,
         help="The most unanswered requests of one connection; one more gets TooManyInFlight.",
         trades="Higher: deeper pipelines; a single client can fill more of the queues."),
    Knob(name="in_flight_bytes_max", kind=Kind.BYTES, unit="bytes", default=64 * _MIB, minimum=4 * _KIB,
         maximum=64 * _GIB, scope=Scope.GLOBAL,
         help="The most inline bytes of the unanswered requests of one connection.",
         trades="Higher: deeper pipelines of large tensors; a single client can fill more of the shared memory."),
    Knob(name="connections_max", kind=Kind.INTEGER, unit="connections", default=10_000, minimum=1, maximum=100_000,
         scope=Scope.GLOBAL,
         help="The most connections at once; one more gets TooManyConnections and is closed.",
         trades="Higher: more clients; each costs a file descriptor and some kilobytes."),
    Knob(name="inline_bytes_max", kind=Kind.BYTES, unit="bytes", default=_MIB, maximum=PAYLOAD_BYTES_MAX,
         scope=Scope.GLOBAL,
         help="The most bytes of tensors that a request may carry inline; more gets PayloadTooLarge.",
         trades="Higher: clients need an arena less often; reading one such payload delays the other connections."),
    Knob(name="arena_bytes_max", kind=Kind.BYTES, unit="bytes", default=_GIB, minimum=4 * _KIB,
         maximum=ARENA_BYTES_MAX, scope=Scope.GLOBAL,
         help="The most bytes of one client arena.",
         trades="Higher: larger tensors in place; one client can hold more memory."),
    Knob(name="arenas_bytes_max", kind=Kind.BYTES, unit="bytes", default=4 * _GIB, maximum=2**40, scope=Scope.GLOBAL,
         help="The most bytes of all client arenas together; 0 refuses every arena.",
         trades="Higher: more clients with arenas; that much memory of the host can be taken, as it is prefaulted."),
    Knob(name="read_budget_bytes", kind=Kind.BYTES, unit="bytes", default=_MIB, minimum=4 * _KIB, maximum=64 * _MIB,
         scope=Scope.GLOBAL,
         help="The most bytes that are read from one connection before the others have their turn.",
         trades="Higher: fewer system calls for large payloads; the other connections wait longer for their turn."),
    Knob(name="stall_timeout_s", kind=Kind.DURATION, unit="s", default=30, minimum=1, maximum=3600, scope=Scope.GLOBAL,
         help="A connection that stops in the middle of a frame, or does not read its answers, is closed after this.",
         trades="Higher: patient with slow or suspended clients; they hold shared memory for longer."),
    Knob(name="hang_timeout_s", kind=Kind.DURATION, unit="s", default=60, minimum=1, maximum=86_400,
         scope=Scope.GLOBAL,
         help="A worker that shows no sign of life for that long is ended and started again.",
         trades="Higher: slow models are safe; after a real hang, requests wait longer for the new worker."),
    Knob(name="load_timeout_s", kind=Kind.DURATION, unit="s", default=600, minimum=1, maximum=86400, scope=Scope.GLOBAL,
         help="How long a model may take to load and warm up; then its worker is ended and loads the others.",
         trades="Lower: a model that hangs holds up the others for less long; a large one may be given up too early."),
    Knob(name="drain_timeout_s", kind=Kind.DURATION, unit="s", default=30, maximum=3600, scope=Scope.GLOBAL,
         help="How long a daemon that is told to stop waits for the answers in flight.",
         trades="Higher: fewer requests are cut off; a stop or an upgrade can take longer."),
    Knob(name="backoff_max_s", kind=Kind.DURATION, unit="s", default=30, minimum=1, maximum=3600, scope=Scope.GLOBAL,
         help="The longest pause before a process that keeps dying is started again; pauses double up to it.",
         trades="Higher: a crash loop costs less; the service comes back later once its cause is gone."),
    Knob(name="redis_timeout_ms", kind=Kind.DURATION, unit="ms", default=5, minimum=1, maximum=1000,
         scope=Scope.GLOBAL,
         help="How long a request waits at most for the second tier of the cache.",
         trades="Higher: a slow Redis still gives hits; a hung one delays requests by as much."),
    Knob(name="log_level", kind=Kind.CHOICE, default="info", choices=("debug", "info", "warning", "error"),
         scope=Scope.GLOBAL,
         help="The least severe line that is logged.",
         trades="Towards debug: more of what happened can be seen; more lines to store and to read."),
    Knob(name="ingest_bytes", kind=Kind.BYTES, unit="bytes", default=256 * _MIB, minimum=_MIB, maximum=64 * _GIB,
         scope=Scope.GLOBAL, context=Context.RESTART,
         help="The shared memory for inline tensors and their results; without room in it a request gets IngestFull.",
         trades="Higher: more inline requests in flight; that much of /dev/shm, and of the host's memory."),
)
_DEVICE = (
    Knob(name="spin_us", kind=Kind.DURATION, unit="us", default=300, maximum=100_000, scope=Scope.DEVICE,
         help="How long an idle worker looks for work without sleeping; 0 sleeps at once.",
         trades="Higher: no wake-up delay for requests that come soon after another; a core stays busy that long."),
    Knob(name="threads", kind=Kind.INTEGER, unit="threads", default=0, maximum=4096, scope=Scope.DEVICE,
         context=Context.RESTART,
         help="Threads that the worker computes with on the CPU; 0 means one for each core of the device.",
         trades="Higher, up to the cores: shorter batches; beyond them, or for small models, only contention."),
    Knob(name="device_weight", kind=Kind.NUMBER, default=1.0, minimum=0.01, maximum=100, scope=Scope.DEVICE,
         help="With the balance weighted_round_robin: the device's share of batches.",
         trades="Higher: this device gets more of them, whether it is faster or not."),
)
_TENANT = (
    Knob(name="tenant_weight", kind=Kind.NUMBER, default=1.0, minimum=0.01, maximum=100, scope=Scope.TENANT,
         help="Each user's share of a model's device time; the names that a user's clients give share it.",
         trades="Higher: these users wait less when a model is busy, and the others more."),
    Knob(name="tenant_connections_max", kind=Kind.INTEGER, unit="connections", default=10_000, minimum=1,
         maximum=100_000, scope=Scope.TENANT,
         help="The most connections of one user of the class; one more gets TooManyTenantConnections.",
         trades="Higher: more clients of one user; it can take more of connections_max."),
    Knob(name="tenant_priority", kind=Kind.INTEGER, unit="class", default=0, maximum=2, scope=Scope.TENANT,
         help="The highest class of these users' requests (0 high, 1 normal, 2 low); what asks for more counts as it.",
         trades="Higher numbers: these users never go before the others, whatever their clients ask for."),
    Knob(name="tenant_rows_max", kind=Kind.INTEGER, unit="rows", default=1_000_000, minimum=1, maximum=2**40,
         scope=Scope.TENANT,
         help="The most rows of one user's unanswered requests; more get TooManyTenantRows.",
         trades="Higher: larger bursts of one user; it can fill more of the queues."),
    Knob(name="tenant_arena_bytes_max", kind=Kind.BYTES, unit="bytes", default=4 * _GIB, maximum=2**40,
         scope=Scope.TENANT,
         help="The most bytes of one user's arenas together; more get TenantArenaQuotaExceeded.",
         trades="Higher: more tensors in place for one user; it can take more of arenas_bytes_max."),
)
# fmt: on

KNOBS: Final[dict[str, Knob]] = {knob.name: knob for knob in (*_MODEL, *_GLOBAL, *_DEVICE, *_TENANT)}
"""Every knob, by name."""

_TAKES_EFFECT = {
    Context.LIVE: "at once",
    Context.DRAIN: "after the work in flight",
    Context.RESTART: "when the process that uses it starts next",
}
_SCOPES = {
    Scope.MODEL: "One value for all models in `[knobs]`, and one per model in `[models.NAME]`.",
    Scope.GLOBAL: "One value for the whole instance, in `[knobs]`.",
    Scope.DEVICE: 'One value for all devices in `[knobs]`, and one per device in `[devices."cpu:0"]`.',
    Scope.TENANT: "One value for all users in `[knobs]`, and one per class of users in `[tenants.NAME]`.",
}
_REFERENCE_HEAD = """\
# Knobs

Generated by `python -m tensord.daemon.knobs` from their declarations in `daemon/knobs.py`.

A knob is set in the configuration file (`configs/production.toml` shows each), in a model's manifest
(model knobs only), or at run time: `tensord set digits.max_batch=64` for one model, `tensord set
max_batch=64` for all. What is said of one model or device beats what is said of all; within each,
run time beats the configuration, which beats the manifest.

A duration is a number of the unit that the knob's name ends with, or text with its own unit (`"500us"`,
`"5ms"`, `"2s"`, `"1m"`). A size is a number of bytes, or text with a unit (`"64KiB"`, `"1MiB"`, `"2MB"`).
"""


def find(name: str, value: Setting | None = None, *, scope: Scope | None = None) -> Knob:
    """The knob `name`, which must be of `scope` where one is given; raises KnobError, with `value` in its sentence."""
    known = in_scope(scope) if scope else KNOBS
    if name in known:
        return known[name]
    if name in KNOBS:
        actual = KNOBS[name].scope
        places = "in [knobs]" if actual is Scope.GLOBAL else f"in [knobs] or for a {actual}"
        raise KnobError(name, value, f"this is a {actual} knob, not a {scope} knob: set it {places}")
    raise KnobError(name, value, f"no such knob; {suggestion(name, known)}")


def in_scope(scope: Scope) -> dict[str, Knob]:
    """The knobs of one scope, by name, in the order of their declaration."""
    return {name: knob for name, knob in KNOBS.items() if knob.scope is scope}


def contradiction(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """A model knob that does not go with the others, and what to do; None: `values`, of all model knobs, agree."""
    window_ms, timeout_ms = values["window_us"] / 1000, values["timeout_ms"]
    if window_ms > timeout_ms:
        return "window_us", f"longer than timeout_ms ({timeout_ms:g} ms): no request could wait for it; lower it"
    if values["latency_target_ms"] > timeout_ms:
        return "latency_target_ms", f"longer than timeout_ms ({timeout_ms:g} ms): nothing would be in time; lower it"
    largest = int(values["preferred_batches"].rpartition(",")[2] or 0)
    if largest > values["max_batch"]:
        return "preferred_batches", f"{largest} is more than max_batch ({values['max_batch']}): raise that, or lower it"
    return None


def reference() -> str:
    """The reference page, as Markdown."""
    sections = [_REFERENCE_HEAD]
    for scope, where in _SCOPES.items():
        sections.append(f"## {scope.capitalize()} knobs\n\n{where}\n")
        sections += [_entry(knob) for knob in in_scope(scope).values()]
    return "\n".join(sections)


def example() -> str:
    """Every knob as commented TOML: prose after `# `, settings, at their defaults, after a bare `#`."""
    sections = []
    for scope in _SCOPES:
        sections.append(f"# ── {scope} knobs ".ljust(100, "─") + "\n")
        sections += [_commented(knob) for knob in in_scope(scope).values()]
    return "\n".join(sections)


def _entry(knob: Knob) -> str:
    return (
        f"### `{knob.name}`\n\n{knob.help} {knob.trades}\n\n"
        f"Default `{knob.format(knob.default)}`; allowed: {knob.range}; takes effect {_TAKES_EFFECT[knob.context]}.\n"
    )


def _commented(knob: Knob) -> str:
    facts = f"Default {knob.format(knob.default)}; allowed: {knob.range}; takes effect {_TAKES_EFFECT[knob.context]}."
    quoted = knob.kind in (Kind.CHOICE, Kind.BYTES, Kind.SIZES)
    setting = f'"{knob.format(knob.default)}"' if quoted else str(knob.default).lower()
    prose = "\n".join(f"# {line}" for text in (knob.help, knob.trades, facts) for line in wrap(text, 116))
    return f"{prose}\n#{knob.name} = {setting}\n"


if __name__ == "__main__":
    sys.stdout.write(example() if sys.argv[1:] == ["toml"] else reference())
