from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon.scheduling import Request
from tensord.daemon.scheduling.order_hrrn import CLASSES_PER_OCTAVE, HighestResponseRatioNext, service_class

from .rig import MS
from .test_order import taken, waiting

YEAR_NS = 365 * 86_400 * 10**9


def order_of(*requests: Request) -> HighestResponseRatioNext:
    order = HighestResponseRatioNext()
    for request in requests:
        order.push(request)
    return order


def test_the_short_goes_before_the_long_that_came_with_it() -> None:
    order = order_of(long := waiting(1, predicted_ns=8 * MS), short := waiting(2, predicted_ns=MS))
    assert taken(order, MS) == [short, long]


def test_a_long_one_goes_once_it_has_waited_in_proportion_to_its_length() -> None:
    order = order_of(
        long := waiting(1, predicted_ns=8 * MS, arrival_ns=0),
        short := waiting(2, predicted_ns=MS, arrival_ns=7 * MS),
    )
    assert order.peek(8 * MS - 1) is long
    assert order.peek(8 * MS + 1) is short


def test_equal_ratios_go_by_place_of_submission() -> None:
    order = order_of(second := waiting(2, predicted_ns=MS), first := waiting(1, predicted_ns=4 * MS))
    assert taken(order) == [first, second]


@given(st.integers(1, 100 * YEAR_NS))
def test_a_class_stands_for_times_within_an_eighth_of_an_octave(predicted_ns: int) -> None:
    service_ns = 2 ** (service_class(predicted_ns) / CLASSES_PER_OCTAVE)
    assert 2**-0.126 < predicted_ns / service_ns < 2**0.126


@given(
    st.lists(st.tuples(st.integers(1, 100 * MS), st.integers(0, 10 * MS)), min_size=1, max_size=30),
    st.integers(0, 100 * MS),
)
def test_nobody_is_passed_over_by_one_of_a_much_lower_ratio(jobs: list[tuple[int, int]], wait_ns: int) -> None:
    """The bound of the module's text, with the true times."""
    arrivals = sorted(arrival_ns for _, arrival_ns in jobs)
    requests = [
        waiting(seq, predicted_ns=predicted_ns, arrival_ns=arrivals[seq]) for seq, (predicted_ns, _) in enumerate(jobs)
    ]
    now = arrivals[-1] + wait_ns
    first = order_of(*requests).peek(now)
    assert first is not None

    def waited_per_service(request: Request) -> Fraction:
        return Fraction(now - request.arrival_ns, request.predicted_ns)

    assert waited_per_service(first) >= max(map(waited_per_service, requests)) * Fraction(2**-0.251)


def test_classes_in_which_nobody_waits_are_dropped() -> None:
    order = HighestResponseRatioNext()
    for octave in range(60):
        order.push(waiting(octave, predicted_ns=2**octave))
    order.push(last := waiting(99, predicted_ns=1))
    for request in list(order.living()):
        if request is not last:
            request.home = None
    assert order.peek(0) is last
    assert len(order._lines) == 1
