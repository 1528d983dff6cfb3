"""The front end itself: connections on one side, workers' rings on the other, the scheduler between them.

One turn of the loop: read what clients sent (requests are submitted as they become complete), then dispatch
once for all of them, with one doorbell per worker. Answers of workers become replies in the turn in which
their doorbell rings, and places that they free are filled first.
"""

import asyncio
import os
import resource
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tensord.ipc.descriptors import Kind, decode_done, decode_failed
from tensord.ipc.errors import (
    ERRORS,
    Cancelled,
    ConcurrencyLimit,
    DeadlineExceeded,
    DeadlineInfeasible,
    Fault,
    ModelFault,
    NoMemory,
    QueueBytesFull,
    QueueDelay,
    QueueFull,
    QueueRowsFull,
    ShuttingDown,
    Superseded,
    TenantQueueFull,
    TensordError,
    TooManyConnections,
    TooManyTenantRows,
)
from tensord.ipc.heartbeat import Activity, Heartbeat
from tensord.ipc.limits import ARENA_PAGE_BYTES, HELLO_TIMEOUT_S
from tensord.ipc.ring import RingBroken
from tensord.ipc.segment import Segment
from tensord.ipc.statistics import Block, Counter, Phase, Word
from tensord.ipc.tensors import align
from tensord.ipc.wire import FrameType, ResultHead, encode_result, frame

from .. import messages as m
from ..log import configure, get_logger
from ..scheduling.policy import GlobalPolicy, ModelPolicy
from ..scheduling.request import Batch, ReleaseReason
from ..scheduling.scheduler import Scheduler
from ..simulation.trace import ANSWERED
from .cache.answers import Answer
from .cache.key import SECRET_BYTES
from .cache.response_cache import ResponseCache
from .client_arenas import ClientArena
from .connection import Connection, Limits
from .ingest import Ingest
from .models import Model, Models
from .parts import Parts, cut_request
from .recording import Recording
from .replies import microseconds, result_frame, too_small
from .requests import InferRequest, batch_message
from .streams import Streams
from .timer import Timer
from .users import Users
from .worker_port import WorkerPort

if TYPE_CHECKING:
    from .cache.redis_tier import RedisTier

SWEEP_S: Final = 0.5
"""Between two looks at stalled connections, gauges and the heartbeat."""

COSTS_TOLD_S: Final = 10.0
"""Between two messages with learned execution times: what a front end that dies may forget."""

DRAIN_LOOK_S: Final = 0.02
SCRATCH_BYTES: Final = 128 * 1024
"""Read buffer shared by all connections: one read takes thirty requests of 4 KiB."""

DESCRIPTORS_RESERVED: Final = 32
"""For rings, doorbells and arenas on their way; every connection takes one of the rest."""

ACCEPT_BACKLOG: Final = 4096

FAULT_COUNTERS: Final = {
    Fault.CLIENT: Counter.FAILED_CLIENT,
    Fault.OPERATOR: Counter.FAILED_OPERATOR,
    Fault.MODEL: Counter.FAILED_MODEL,
    Fault.DAEMON: Counter.FAILED_DAEMON,
}
REFUSAL_COUNTERS: Final[dict[type[TensordError], Counter]] = {
    QueueFull: Counter.REFUSED_QUEUE,
    QueueRowsFull: Counter.REFUSED_QUEUE_ROWS,
    QueueBytesFull: Counter.REFUSED_QUEUE_BYTES,
    TenantQueueFull: Counter.REFUSED_TENANT_QUEUE,
    TooManyTenantRows: Counter.REFUSED_TENANT_ROWS,
    DeadlineInfeasible: Counter.REFUSED_DEADLINE,
    ConcurrencyLimit: Counter.REFUSED_CONCURRENCY,
    QueueDelay: Counter.REFUSED_DELAY,
    Superseded: Counter.SUPERSEDED,
}
QUEUE: Final = int(Phase.QUEUE)
REQUEST: Final = int(Phase.REQUEST)
RELEASE_COUNTERS: Final = {reason: Counter[f"RELEASED_{reason.name}"] for reason in ReleaseReason}

Completed = tuple[Batch[InferRequest], int, TensordError | None]
"""A batch that is through, its compute time in nanoseconds, and the error of all of its requests if it failed."""


class FrontEnd:
    """One generation of the front end; `run` returns when the supervisor says stop or is gone."""

    def __init__(self, link: m.Link) -> None:
        self.link = link
        self.limits = Limits()
        self.models = Models()
        self.users = Users()
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.draining = False
        self.arriving_bytes = 0
        self.watched: set[Connection] = set()
        self.scheduler: Scheduler[InferRequest] = Scheduler(tenants=self.users.of_tenant)
        self.instance: int
        self.ingest: Ingest
        self.ingest_view: memoryview
        self._block: Block
        self._heartbeat: Heartbeat
        self._loop: asyncio.AbstractEventLoop
        self._streams: Streams
        self._stopped: asyncio.Future[None]
        self._ports: dict[int, WorkerPort] = {}
        self._running: dict[int, Batch[InferRequest]] = {}
        self._connections: set[Connection] = set()
        self._connections_max = 1
        self._descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - DESCRIPTORS_RESERVED
        self._tickets: dict[int, tuple[Connection, int, int]] = {}
        """Arenas that were asked for: by whom, in which request, how many bytes."""
        self._next_ticket = 1
        self._dispatch_wanted = False
        self._recording: Recording | None = None
        self._costs_due_ns = 0
        self._costs_told: dict[int, int] = {}
        """How many requests of each model had been answered when its execution times were told last."""
        self._timer = Timer()
        self._cache = ResponseCache(self, os.urandom(SECRET_BYTES))
        self._redis: RedisTier | None = None
        self._knobs = m.KnobValues(0, {}, {}, {}, {})
        self._log = get_logger()

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Serve until the supervisor says stop or ends."""
        self._loop = asyncio.get_running_loop()
        self._stopped = self._loop.create_future()
        self._streams = Streams(self._loop, self._turn_over)
        self._loop.add_reader(self.link.fileno(), self._receive)
        self._loop.add_reader(self._timer.fd, self._timer_fired)
        await self._stopped
        for connection in list(self._connections):
            connection.stream.abort()
        if self._redis is not None:
            await self._redis.close()

    @property
    def block(self) -> Block:
        """The front end's block of the statistics page."""
        return self._block

    def _set_up(self, setup: m.FrontendSetup, fds: list[int]) -> None:
        listener_fd, ingest_fd, statistics_fd = fds
        self.instance = setup.instance
        self.users.set_classes(setup.tenant_classes)
        self._segments = Segment(ingest_fd, setup.ingest_bytes), Segment(statistics_fd, setup.statistics_bytes)
        self.ingest = Ingest(setup.ingest_bytes)
        self.ingest_view = self._segments[0].view
        self._block = Block(self._segments[1].view)
        self._block.words[Word.PID] = os.getpid()
        self._block.words[Word.GENERATION] = setup.generation
        self._heartbeat = Heartbeat(self._block)
        self._heartbeat.enter(Activity.STARTING, time.monotonic_ns())
        self._listener = socket.socket(fileno=listener_fd)
        if setup.redis:
            from .cache.redis_tier import RedisTier  # its library is optional, and slow to import

            self._redis = RedisTier(Path(setup.redis))
            self._cache = ResponseCache(self, setup.secret, self._redis)
        self._sweep()

    def _listen(self) -> None:
        self._listener.listen(ACCEPT_BACKLOG)
        self._streams.listen(self._listener, self._accepted)
        self._heartbeat.enter(Activity.IDLE, time.monotonic_ns())
        self._send(m.FrontendReady())

    def _accepted(self, sock: socket.socket) -> None:
        Connection(self).start(self._streams, sock)

    def _stop(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    # ── the supervisor ──────────────────────────────────────────────────────────────────────────

    def _send(self, message: m.Message) -> None:
        try:
            self.link.send(message)
        except m.LinkClosed:
            self._stop()

    def _receive(self) -> None:
        try:
            self.link.flush()
            while (received := self.link.receive()) is not None:
                self._handle(*received)
        except m.LinkClosed:
            self._stop()

    def _handle(self, message: m.AnyMessage, fds: list[int]) -> None:
        now = time.monotonic_ns()
        match message:
            case m.FrontendSetup():
                self._set_up(message, fds)
            case m.Listen():
                self._listen()
            case m.KnobValues():
                self._apply_knobs(message)
            case m.ModelServed():
                self._add_model(message)
            case m.WorkerJoined():
                self._add_worker(message, fds)
            case m.WorkerGone(worker):
                self._remove_worker(now, worker)
            case m.StartRecording(seconds, bytes_max):
                self._record(fds[0], seconds, bytes_max)
            case m.CostsKnown(index, lines):
                self.scheduler.restore_costs(index, lines)
            case m.ReplicaReady(worker, index):
                self.models.by_index[index].replicas.add(worker)
                self.scheduler.add_replica(now, worker, index)
            case m.ReplicaExpected(index, expected, reason):
                for request, error in self.scheduler.expect_replica(now, index, expected, reason):
                    self.refuse(request, error)
            case m.ArenaMade(ticket, arena, nbytes):
                connection, request_id, _ = self._tickets.pop(ticket)
                if fds:
                    connection.arenas.made(request_id, arena, nbytes, fds[0])
                else:  # the kernel drops descriptors that find no place in our table
                    self._send(m.ArenaReturned(arena))
                    self.users.arena_gone(connection.user, align(nbytes, ARENA_PAGE_BYTES))
                    connection.arenas.refused(request_id, NoMemory("a file descriptor"))
            case m.ArenaRefused(ticket, code, data):
                connection, request_id, nbytes = self._tickets.pop(ticket)
                self.users.arena_gone(connection.user, align(nbytes, ARENA_PAGE_BYTES))
                connection.arenas.refused(request_id, ERRORS[code](**data))
            case m.Drain():
                self._drain(now)
            case m.Stop():
                self._stop()
        self._want_dispatch()

    def _apply_knobs(self, values: m.KnobValues) -> None:
        general: dict[str, Any] = values.general
        self._knobs = values
        configure("frontend", general["log_level"])
        self.limits.in_flight_max = general["in_flight_max"]
        self.limits.in_flight_bytes_max = general["in_flight_bytes_max"]
        self.limits.inline_bytes_max = general["inline_bytes_max"]
        self.limits.arena_bytes_max = general["arena_bytes_max"]
        self.limits.read_budget_bytes = general["read_budget_bytes"]
        self.limits.stall_timeout_ns = general["stall_timeout_s"] * 10**9
        self._connections_max = general["connections_max"]
        self.users.set_knobs(general, values.tenants)
        self.scheduler.set_tenants(self.users.of_tenant)
        self.scheduler.set_global(GlobalPolicy.of(general))
        for device in {port.device for port in self._ports.values()}:
            self._weigh(device)
        if self._redis is not None:
            self._redis.timeout_ns = general["redis_timeout_ms"] * 10**6
        for model in self.models.by_index.values():
            policy = self._policy(model)
            self.scheduler.set_policy(model.index, policy)
        self._block.words[Word.EPOCH] = values.epoch
        self._send(m.KnobsApplied(values.epoch))

    def _weigh(self, device: str) -> None:
        """Tell the scheduler the weight in force of a device."""
        values: dict[str, Any] = {**self._knobs.general, **self._knobs.devices.get(device, {})}
        self.scheduler.set_device_weight(device, values["device_weight"])

    def _policy(self, model: Model) -> ModelPolicy:
        """The model's knobs in force, taken over by the model and as the scheduler's policy."""
        values: dict[str, Any] = {**self._knobs.general, **self._knobs.models.get(model.name, {})}
        model.apply(values)
        self._cache.configure(model, values)
        return ModelPolicy.of(values)

    def _add_model(self, served: m.ModelServed) -> None:
        model = self.models.add(served)
        self.scheduler.add_model(model.index, model.name, self._policy(model), idempotent=model.idempotent)

    # ── workers ─────────────────────────────────────────────────────────────────────────────────

    def _add_worker(self, joined: m.WorkerJoined, fds: list[int]) -> None:
        port = WorkerPort(joined.worker, joined.device, joined.generation, fds)
        self._ports[joined.worker] = port
        self.scheduler.add_worker(joined.worker, joined.device)
        self._weigh(joined.device)
        self._loop.add_reader(port.bell.fileno(), self._answered, port)

    def _remove_worker(self, now: int, worker: int) -> None:
        """The process is gone: what it had answered counts, what it had in flight runs again or is refused."""
        port = self._ports.pop(worker, None)
        if port is None:
            return
        completed = self._collect(now, port)
        self._loop.remove_reader(port.bell.fileno())
        port.close()
        for model in self.models.by_index.values():
            model.replicas.discard(worker)
        self._running = {key: batch for key, batch in self._running.items() if batch.worker != worker}
        lost = self.scheduler.remove_worker(now, worker)
        for request, error in lost.refused:
            self.refuse(request, error)
        for request in lost.requeued:
            self._block.count(request.model, Counter.RETRIED)
            if request.cancelled:
                self.cancel(request)
        self._deliver(now, completed)

    def _answered(self, port: WorkerPort) -> None:
        """The worker's doorbell rang: fill the places that became free, then reply."""
        now = time.monotonic_ns()
        completed = self._collect(now, port)
        self._dispatch()
        self._deliver(now, completed)

    def _collect(self, now: int, port: WorkerPort) -> list[Completed]:
        """What the worker has answered; answers that make no sense end it."""
        completed: list[Completed] = []
        try:
            for kind, body in port.answers():
                completed.append(self._completed(port, now, kind, body))
        except (RingBroken, struct.error, KeyError, ValueError) as error:
            self._log.error("worker's answers make no sense", worker=port.worker, reason=str(error))
            self._loop.remove_reader(port.bell.fileno())
            self._send(m.WorkerAccused(port.worker, port.generation, str(error)))
        return completed

    def _deliver(self, now: int, completed: list[Completed]) -> None:
        for batch, compute_ns, failure in completed:
            if failure is None:
                self._reply(now, batch, compute_ns)
            else:
                self._fail_batch(batch, failure)

    def _completed(self, port: WorkerPort, now: int, kind: int, body: bytes) -> Completed:
        """Raises KeyError for a batch that is not running."""
        error = None
        data_sizes: tuple[int, ...] = ()
        if kind == Kind.DONE:
            batch_id, compute_ns, data_sizes = decode_done(body)
        else:
            batch_id, compute_ns, error = decode_failed(body)
        batch = self._running[batch_id]
        if batch.worker != port.worker:
            raise RingBroken(f"an answer to batch {batch_id}, which another worker has")
        if error is None:
            self._take_sizes(batch, data_sizes)
        del self._running[batch_id]
        failed = error is not None and error.fault in (Fault.DAEMON, Fault.OPERATOR)
        self.scheduler.complete(now, batch, compute_ns, failed=failed)
        return batch, compute_ns, error

    def _take_sizes(self, batch: Batch[InferRequest], data_sizes: tuple[int, ...]) -> None:
        """Give each request the sizes of its outputs that came from the data. Raises RingBroken."""
        dimensions = self.models.by_index[batch.model].data_dimensions
        count = len(dimensions)
        if len(data_sizes) != count * len(batch.requests):
            raise RingBroken(f"{len(data_sizes)} sizes for batch {batch.id}")
        if count:
            for position, request in enumerate(batch.requests):
                sizes = data_sizes[position * count : (position + 1) * count]
                if any(size > each.max for size, each in zip(sizes, dimensions, strict=True)):
                    raise RingBroken(f"a size beyond its dimension in batch {batch.id}")
                request.data_sizes = sizes

    # ── dispatch ────────────────────────────────────────────────────────────────────────────────

    def submit(self, now: int, request: InferRequest) -> None:
        """A request has arrived whole."""
        request.arrival_ns = now
        self._block.arrived(request.model, request.rows, now - request.received_ns)
        model = request.model_served
        if request.rows > model.batch_rows:
            self._compute_parts(now, request)
        elif model.cache is None or not self._cache.takes(now, request):
            self.compute(now, request)
        elif self._cache.waiting:
            self._want_dispatch()

    def compute(self, now: int, request: InferRequest) -> None:
        """The scheduler gets it."""
        error = self.scheduler.submit(now, request)
        if error is None:
            self._want_dispatch()
        else:
            self.refuse(request, error)

    def _compute_parts(self, now: int, whole: InferRequest) -> None:
        """The scheduler gets its parts, each as a request of its own, until one is refused."""
        self._block.count(whole.model, Counter.SPLIT)
        parts = cut_request(whole, self.scheduler.parts(whole.model, whole.rows))
        for part in parts.parts:
            error = parts.error or self.scheduler.submit(now, part)
            if error is not None:
                self._part_ended(now, part, error)
        self._want_dispatch()

    def count_refused(self, model: Model) -> None:
        """A user asked for a model that is not for it."""
        self._block.count(model.index, Counter.REFUSED_PERMISSION)

    def cancel(self, request: InferRequest) -> None:
        """The client does not want the answer any more; it still gets one."""
        if request.parts is not None:
            request.parts.fail(Cancelled())
            self._take_parts_back(time.monotonic_ns(), request.parts)
        elif request in self._cache.waiting or self.scheduler.cancel(time.monotonic_ns(), request):
            self.refuse(request, Cancelled())
        else:
            request.cancelled = True

    def _want_dispatch(self) -> None:
        if not self._dispatch_wanted:
            self._dispatch_wanted = True
            self._loop.call_soon(self._dispatch)

    def _turn_over(self) -> None:
        """All that had come was read."""
        if self._dispatch_wanted:
            self._dispatch()

    def _timer_fired(self) -> None:
        self._timer.fired()
        self._dispatch()

    def _dispatch(self) -> None:
        """Release what the scheduler releases now, answer what has left its queue unrun, and set the timer."""
        self._dispatch_wanted = False
        scheduler = self.scheduler
        if self._cache.waiting:
            self._expire_waiting()
        if not scheduler.has_work:
            return
        now = time.monotonic_ns()
        ringing = set()
        for batch in scheduler.dispatch(now):
            port = self._ports[batch.worker]
            port.send(*batch_message(batch, self.models.by_index[batch.model]))
            ringing.add(port)
            self._running[batch.id] = batch
            self._block.count(batch.model, RELEASE_COUNTERS[batch.reason])
        for port in ringing:
            port.ring()
        for request, error in scheduler.expire(now):
            self.refuse(request, error)
        self._timer.arm(scheduler.wake_at())

    def _expire(self, now: int, request: InferRequest) -> None:
        self.refuse(request, DeadlineExceeded("queue", round((now - request.deadline_ns) / 1e6, 3)))

    def _expire_waiting(self) -> None:
        """Deadlines of requests that wait for somebody else's answer."""
        now = time.monotonic_ns()
        for request in self._cache.waiting.overdue(now):
            self._expire(now, request)
        self._timer.arm(self._cache.waiting.wake_at())

    # ── answers ─────────────────────────────────────────────────────────────────────────────────

    def _reply(self, now: int, batch: Batch[InferRequest], compute_ns: int) -> None:
        """Send every request of a batch its result; several for one connection go out in one write."""
        block, index = self._block, batch.model
        replying: list[Connection] = []
        answered: list[InferRequest] = []
        replied_bytes = 0
        for request in batch.requests:
            if request.flight is not None:
                self._cache.computed(now, request, batch, compute_ns)
            if request.whole is not None:
                self._part_ran(now, request, batch, compute_ns)
                continue
            error = Cancelled() if request.cancelled else too_small(request) if request.data_sizes else None
            if error is not None:
                self.refuse(request, error)
                continue
            queue_ns = batch.released_ns - request.arrival_ns
            parts = result_frame(request, self.ingest_view, batch.rows, queue_ns, compute_ns)
            if request.connection.reply(parts):
                replying.append(request.connection)
            answered.append(request)
            replied_bytes += sum(map(len, parts[2:])) if request.data_sizes else request.form.reply_bytes
            block.observe(index, QUEUE, queue_ns)
        for connection in replying:
            connection.send_replies()
        inline_bytes = arena_bytes = 0
        done = time.monotonic_ns()
        if (recording := self._recording) is not None:
            for request in answered:
                recording.record(done, request, request.model_served.name, ANSWERED, batch, compute_ns)
        for request in answered:
            form = request.form
            inline_bytes += form.payload_bytes
            if form.input_places:
                arena_bytes += sum([place.nbytes for place in form.input_places])
            block.observe(index, REQUEST, done - request.received_ns)
            request.connection.finished(request)
        block.observe(index, Phase.REPLY, done - now, len(answered))
        block.count(index, Counter.SUCCEEDED, len(answered))
        block.count(index, Counter.INLINE_BYTES, inline_bytes)
        block.count(index, Counter.ARENA_BYTES, arena_bytes)
        block.count(index, Counter.REPLIED_BYTES, replied_bytes)

    def _fail_batch(self, batch: Batch[InferRequest], error: TensordError) -> None:
        """The model failed on this batch. One bad request must not fail its neighbours: run each alone."""
        if len(batch.requests) > 1 and isinstance(error, ModelFault):
            again = self.scheduler.retry_alone(time.monotonic_ns(), batch)
            for request in again:
                self._block.count(request.model, Counter.RETRIED)
                if request.cancelled:
                    self.cancel(request)
            self._want_dispatch()
            refused: Iterable[InferRequest] = set(batch.requests) - set(again)
        else:
            refused = batch.requests
        for request in refused:
            self.refuse(request, Cancelled() if request.cancelled else error)

    def refuse(self, request: InferRequest, error: TensordError) -> None:
        """Send the final answer of a request that has no result."""
        if self._recording is not None and request.parts is None:
            self._recording.record(time.monotonic_ns(), request, request.model_served.name, error.code)
        if request.whole is not None:
            self._part_ended(time.monotonic_ns(), request, error)
            return
        if isinstance(error, DeadlineExceeded):
            self._block.count(request.model, Counter.EXPIRED)
        counter = Counter.CANCELLED if isinstance(error, Cancelled) else FAULT_COUNTERS[error.fault]
        self._block.count(request.model, counter)
        reason = REFUSAL_COUNTERS.get(type(error))
        if reason is not None:
            self._block.count(request.model, reason)
        request.connection.send_error(request.request_id, error)
        request.connection.finished(request)
        if request.flight is not None:
            self._cache.ended(request, error)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────

    def _part_ran(self, now: int, part: InferRequest, batch: Batch[InferRequest], compute_ns: int) -> None:
        assert part.whole is not None
        assert part.whole.parts is not None
        part.whole.parts.ran(batch.rows, batch.released_ns - part.arrival_ns, compute_ns)
        if self._recording is not None and not part.cancelled:
            self._recording.record(now, part, part.model_served.name, ANSWERED, batch, compute_ns)
        self._part_ended(now, part, Cancelled() if part.cancelled else None)

    def _part_ended(self, now: int, part: InferRequest, error: TensordError | None) -> None:
        """Answer the whole with the last of its parts; after the first error take back what still waits."""
        whole = part.whole
        assert whole is not None
        assert whole.parts is not None
        is_first = whole.parts.error is None
        if whole.parts.end(part, error):
            self._answer_whole(now, whole, whole.parts)
        elif error is not None and is_first:
            self._take_parts_back(now, whole.parts)

    def _take_parts_back(self, now: int, parts: Parts) -> None:
        """Those that wait; those that run are waited for."""
        for part in parts.open():
            if not self.scheduler.cancel(now, part):
                part.cancelled = True
            elif parts.end(part, Cancelled()):
                assert part.whole is not None
                self._answer_whole(now, part.whole, parts)

    def _answer_whole(self, now: int, whole: InferRequest, parts: Parts) -> None:
        if parts.error is not None:
            self.refuse(whole, parts.error)
            return
        frames = result_frame(whole, self.ingest_view, parts.batch_rows, parts.queue_ns, parts.compute_ns)
        self._block.observe(whole.model, QUEUE, parts.queue_ns)
        self._block.count(whole.model, Counter.ARENA_BYTES, sum(place.nbytes for place in whole.form.input_places))
        self._give(now, whole, frames, whole.form.reply_bytes)

    def give(
        self, now: int, request: InferRequest, answer: Answer, batch_rows: int, queue_ns: int, compute_ns: int
    ) -> None:
        """Send an answer that no worker wrote into the request's slots."""
        model, payload = request.model_served, answer.payload
        times = microseconds(queue_ns), microseconds(compute_ns)
        head = ResultHead(model.version, batch_rows, *times, len(model.outputs))
        frame = encode_result(head, request.request_id, answer.headers, len(payload))
        self._give(now, request, [frame, payload], len(payload))

    def _give(self, now: int, request: InferRequest, frames: list[bytes | memoryview], replied_bytes: int) -> None:
        """Send one result that is no part of a batch's."""
        block, connection = self._block, request.connection
        connection.send(b"".join(frames))
        block.observe(request.model, REQUEST, now - request.received_ns)
        block.count(request.model, Counter.SUCCEEDED)
        block.count(request.model, Counter.INLINE_BYTES, request.form.payload_bytes)
        block.count(request.model, Counter.REPLIED_BYTES, replied_bytes)
        connection.finished(request)

    # ── connections ─────────────────────────────────────────────────────────────────────────────

    def connection_opened(self, connection: Connection) -> TensordError | None:
        """Count a new connection; an error if it is one too many."""
        if self.draining:
            return ShuttingDown()
        limit = min(self._connections_max, self._descriptors_max)
        if len(self._connections) >= limit:
            return TooManyConnections(limit)
        if (error := connection.user.connect()) is not None:
            return error
        if connection.user.connections == 1:  # it may be of another class than when it was here last
            self.scheduler.set_tenants(self.users.of_tenant)
        self._connections.add(connection)
        self._block.words[Word.CONNECTIONS_TOTAL] += 1
        return None

    def connection_closed(self, connection: Connection) -> None:
        """Drop the requests that wait; those that run are dropped when their batch is done."""
        if connection in self._connections:
            self._connections.discard(connection)
            self.users.disconnected(connection.user)
        for request in list(connection.in_flight.values()):
            self.cancel(request)

    def want_arena(self, connection: Connection, request_id: int, nbytes: int) -> None:
        """Ask the supervisor for an arena; it answers with ArenaMade or ArenaRefused. Raises CapacityFault."""
        connection.user.take_arena(align(nbytes, ARENA_PAGE_BYTES))
        ticket = self._next_ticket
        self._next_ticket += 1
        self._tickets[ticket] = (connection, request_id, nbytes)
        self._send(m.ArenaWanted(ticket, nbytes))

    def return_arena(self, arena: ClientArena) -> None:
        """No lease is left in it, and its client is through with it."""
        self._send(m.ArenaReturned(arena.arena))
        self.users.arena_gone(arena.user, align(arena.nbytes, ARENA_PAGE_BYTES))

    # ── periodic ────────────────────────────────────────────────────────────────────────────────

    def _sweep(self) -> None:
        now = time.monotonic_ns()
        for connection in list(self.watched):
            connection.check_stall(now, int(HELLO_TIMEOUT_S * 1e9))
        if self.link.backlog:
            self._receive()
        self._heartbeat.beat(now)
        words = self._block.words
        words[Word.CONNECTIONS] = len(self._connections)
        words[Word.QUEUED] = self.scheduler.queued
        words[Word.RUNNING] = sum(len(batch.requests) for batch in self._running.values())
        words[Word.INGEST_USED_BYTES] = self.ingest.statistics().chunk_bytes
        words[Word.SECOND_TIER_FAILING] = self._redis is not None and self._redis.failing
        words[Word.LOOP_TURNS] += 1
        if now >= self._costs_due_ns:
            self._tell_costs(now)
        self._loop.call_later(SWEEP_S, self._sweep)

    def _record(self, fd: int, seconds: float, bytes_max: int) -> None:
        """Record for so long; one recording at a time."""
        if self._recording is not None:
            self._recording.stop()
        knobs = self._knobs
        models = {model.name: dict(knobs.models.get(model.name, {})) for model in self.models.by_index.values()}
        workers = {worker: port.device for worker, port in self._ports.items()}
        self._recording = Recording(fd, bytes_max, dict(knobs.general), models, workers, self._recorded)
        self._loop.call_later(seconds, self._recording.stop)

    def _recorded(self, records: int, complaint: str) -> None:
        self._recording = None
        self._send(m.RecordingEnded(records, complaint))

    def _tell_costs(self, now: int) -> None:
        """Have the supervisor keep the execution times that were learned, where there is news."""
        self._costs_due_ns = now + int(COSTS_TOLD_S * 1e9)
        for index in self.models.by_index:
            batches = self._block.counters(index)[Counter.SUCCEEDED]
            if batches != self._costs_told.get(index, 0):
                self._costs_told[index] = batches
                self._send(m.CostsLearned(index, self.scheduler.costs_snapshot(index)))

    def _drain(self, now: int) -> None:
        """Take nothing new, tell the clients, and say Drained when everything is answered.

        Connections are still accepted: who is refused knows why, who is left in the backlog waits.
        """
        self.draining = True
        self._heartbeat.enter(Activity.STOPPING, now)
        self.scheduler.drain(now)
        for connection in self._connections:
            connection.send(frame(FrameType.CLOSE, 0))
        self._look_drained()

    def _look_drained(self) -> None:
        unread = any(connection.stream.unsent_bytes for connection in self._connections)
        if self._running or self.scheduler.queued or self._cache.waiting or unread:
            self._loop.call_later(DRAIN_LOOK_S, self._look_drained)
        else:
            self._tell_costs(time.monotonic_ns())
            self._send(m.Drained())
