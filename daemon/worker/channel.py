"""A worker's end of one generation of rings."""

from collections import deque

from tensord.ipc.doorbell import Doorbell
from tensord.ipc.limits import DONE_RING_BYTES, PIPELINE_DEPTH_MAX, RING_BYTES
from tensord.ipc.ring import Consumer, Producer
from tensord.ipc.segment import Segment


class Channel:
    """Takes batches from the work ring and answers them in the done ring."""

    def __init__(self, generation: int, fds: list[int]) -> None:
        """`fds`: work ring, done ring, work doorbell, done doorbell; the channel owns them."""
        work_fd, done_fd, work_bell_fd, done_bell_fd = fds
        self.generation = generation
        self._work = Segment(work_fd, RING_BYTES)
        self._done = Segment(done_fd, DONE_RING_BYTES)
        self.bell = Doorbell(work_bell_fd)
        self._done_bell = Doorbell(done_bell_fd)
        self._consumer = Consumer(self._work.view, generation)
        self._producer = Producer(self._done.view, generation)
        self._unconfirmed: deque[int] = deque()

    def listen(self) -> None:
        """Look at the doorbell. Never waits."""
        count = self.bell.answer()
        if count:
            self._consumer.announce(count)

    def take(self) -> tuple[int, bytes] | None:
        """The next batch as kind and body; None if none is announced."""
        message = self._consumer.take()
        return message and message[:2]

    def answer(self, kind: int, body: bytes) -> None:
        """Publish an answer and ring.

        The front end sends batch n only after it has taken answer n - PIPELINE_DEPTH_MAX (or a later one), so
        the cells of that answer are free when batch n is answered.
        """
        if len(self._unconfirmed) == PIPELINE_DEPTH_MAX:
            self._producer.reclaim(self._unconfirmed.popleft())
        self._unconfirmed.append(self._producer.publish(kind, body))
        self._done_bell.ring(self._producer.take_unannounced())

    def close(self) -> None:
        """Unmap and close everything."""
        self._consumer.close()
        self._producer.close()
        self._work.close()
        self._done.close()
        self.bell.close()
        self._done_bell.close()
