"""A request of more rows than a batch: cut into parts that the scheduler sees, answered as one.

Parts are requests over the same memory: the rows of a part lie where those rows of the whole lie, so nothing is copied,
and the whole's leases and ranges cover them all. Only the whole is known to its connection. It is answered when
nobody works on any part any more: the first error decides, and then what still waits is taken back.
"""

from collections.abc import Sequence

from ..scheduling.split import Assembly
from .forms import Form, part_of
from .ingest import Lease
from .requests import InferRequest


class Parts(Assembly[InferRequest]):
    """The parts of one request, and what is said of them together in its RESULT."""

    __slots__ = ("batch_rows", "compute_ns", "queue_ns")

    def __init__(self, parts: Sequence[InferRequest]) -> None:
        super().__init__(parts)
        self.batch_rows = 0
        """Of the largest batch that a part ran in."""
        self.queue_ns = 0
        """Until the last part was released."""
        self.compute_ns = 0
        """Of all batches with a part of it."""

    def ran(self, batch_rows: int, queue_ns: int, compute_ns: int) -> None:
        """A part was computed in such a batch."""
        self.batch_rows = max(self.batch_rows, batch_rows)
        self.queue_ns = max(self.queue_ns, queue_ns)
        self.compute_ns += compute_ns


def cut_request(whole: InferRequest, rows: Sequence[int]) -> Parts:
    """The parts of a request that has arrived, of so many rows each."""
    parts, first = [], 0
    alike: dict[int, Form] = {}
    for count in rows:
        parts.append(_part(whole, _form(whole, first, count, alike), first))
        first += count
    whole.parts = Parts(parts)
    return whole.parts


def _form(whole: InferRequest, first: int, rows: int, alike: dict[int, Form]) -> Form:
    """The form of these rows. Where the lease alone says where they are, all parts of a size have one form."""
    form = whole.form
    if form.places or form.inline_offsets:
        return part_of(form, whole.model_served, first, rows)
    if rows not in alike:
        alike[rows] = part_of(form, whole.model_served, 0, rows)
    return alike[rows]


def _part(whole: InferRequest, form: Form, first: int) -> InferRequest:
    part = InferRequest(
        whole.connection,
        whole.request_id,
        whole.model_served,
        form,
        whole.priority,
        whole.session,
        whole.deadline_ns,
        whole.received_ns,
    )
    part.arrival_ns = whole.arrival_ns
    part.whole = whole
    lease = whole.lease
    if lease is not None:
        part.lease = lease if form.inline_offsets else Lease(lease.chunk, lease.first + first, form.rows)
    return part
