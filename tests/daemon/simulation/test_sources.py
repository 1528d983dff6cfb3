from itertools import count, repeat

from tensord.daemon.simulation.request import SimulatedRequest
from tensord.daemon.simulation.shapes import Shape
from tensord.daemon.simulation.sources import PATIENCE_NS, ClosedSource, OpenSource, source_of
from tensord.daemon.simulation.workload import Arrivals, Choice, Workload

MS = 1_000_000


def request(sent_ns: int, flow: int = 1, session: int = 0) -> SimulatedRequest:
    return SimulatedRequest(0, 0, (1, "", "t", 1, session, 1.0), sent_ns, sent_ns + MS, flow=flow)


def test_a_session_is_a_flow() -> None:
    assert request(0, flow=4, session=9).flow == 9
    assert request(0, flow=4).flow == 4


def test_an_open_source_gives_one_after_the_other() -> None:
    source = OpenSource(request(at) for at in range(3))
    (first,) = source.first()
    second = source.after(first)
    assert second is not None
    assert source.ended(first, 5, None) is None
    assert not source.closed
    third = source.after(second)
    assert third is not None
    assert (first.sent_ns, second.sent_ns, third.sent_ns, source.after(third)) == (0, 1, 2, None)


def test_an_open_source_may_be_empty() -> None:
    assert list(OpenSource(iter([])).first()) == []


def test_each_client_of_a_closed_source_has_one_request() -> None:
    source = ClosedSource(3, request, (number * MS for number in count(1)))
    requests = list(source.first())
    assert [(each.sent_ns, each.flow) for each in requests] == [(MS, 1), (2 * MS, 2), (3 * MS, 3)]
    assert source.after(requests[0]) is None
    following = source.ended(requests[1], 10 * MS, None)
    assert following is not None
    assert (following.sent_ns, following.flow) == (14 * MS, 2)


def test_a_refused_client_waits_as_long_as_it_was_told() -> None:
    source = ClosedSource(1, request, repeat(0))
    (first,) = source.first()
    told, untold = source.ended(first, 0, 7 * MS), source.ended(first, 0, 0)
    assert told is not None
    assert untold is not None
    assert (told.sent_ns, untold.sent_ns) == (7 * MS, PATIENCE_NS)


def test_a_workload_makes_its_source() -> None:
    spec = Workload(2, rate_per_s=100, rows=Choice([4]), row_bytes=8, tenants=Choice(["a"]), deadline_ns=5 * MS)
    (first,) = source_of(1, spec, Shape(), (1, 0)).first()
    assert (first.model, first.workload, first.rows, first.nbytes, first.tenant) == (2, 1, 4, 32, "a")
    assert first.deadline_ns == first.sent_ns + 5 * MS
    closed = source_of(1, Workload(0, Arrivals.CLOSED, clients=5, think_ns=MS, deadline_ns=MS), Shape(), (1, 0))
    assert len(list(closed.first())) == 5
