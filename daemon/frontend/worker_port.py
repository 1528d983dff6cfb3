"""The front end's end of one worker's rings."""

from collections import deque

from tensord.ipc.descriptors import Kind
from tensord.ipc.doorbell import Doorbell
from tensord.ipc.limits import DONE_RING_BYTES, RING_BYTES
from tensord.ipc.ring import Consumer, Producer, RingBroken, RingFull
from tensord.ipc.segment import Segment

Answer = tuple[int, bytes]
"""Kind and body."""


class WorkerPort:
    """Sends batches to one worker and takes its answers; closed when the worker's process has ended."""

    def __init__(self, worker: int, device: str, generation: int, fds: list[int]) -> None:
        """`fds`: work ring, done ring, work doorbell, done doorbell; the port owns them."""
        work_fd, done_fd, work_bell_fd, done_bell_fd = fds
        self.worker = worker
        self.device = device
        self.generation = generation
        self._work = Segment(work_fd, RING_BYTES)
        self._done = Segment(done_fd, DONE_RING_BYTES)
        self._work_bell = Doorbell(work_bell_fd)
        self.bell = Doorbell(done_bell_fd)
        self._producer = Producer(self._work.view, generation)
        self._consumer = Consumer(self._done.view, generation)
        self._cells: deque[int] = deque()
        """Cells of the batches sent, oldest first: the worker answers in this order."""
        self._waiting: deque[tuple[Kind, bytes]] = deque()
        """Batches that found no room in the ring."""

    def send(self, kind: Kind, body: bytes) -> None:
        """Publish a batch; the worker learns of it with `ring`. Keeps it back while the ring has no room."""
        self._waiting.append((kind, body))
        self._publish()

    def _publish(self) -> None:
        while self._waiting:
            try:
                self._cells.append(self._producer.publish(*self._waiting[0]))
            except RingFull:
                return
            self._waiting.popleft()

    def ring(self) -> None:
        """One doorbell for all that was sent in this turn."""
        cells = self._producer.take_unannounced()
        if cells:
            self._work_bell.ring(cells)

    def answers(self) -> list[Answer]:
        """What the worker has answered since the last call. Raises RingBroken."""
        cells = self.bell.answer()
        if cells:
            self._consumer.announce(cells)
        answers = []
        while (message := self._consumer.take()) is not None:
            if not self._cells:
                raise RingBroken("an answer to a batch that was never sent")
            self._producer.reclaim(self._cells.popleft())
            answers.append(message[:2])
        if self._waiting and answers:
            self._publish()
            self.ring()
        return answers

    def close(self) -> None:
        """Unmap and close everything."""
        self._producer.close()
        self._consumer.close()
        self._work.close()
        self._done.close()
        self._work_bell.close()
        self.bell.close()
