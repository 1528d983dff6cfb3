from tensord.daemon.bench.tally import Errors, Tally, together
from tensord.ipc.errors import Cancelled, QueueFull

from .measurements import durations


def test_errors_are_counted_by_class_with_the_sentence_of_the_first() -> None:
    tally = Tally()
    for limit in (1, 2):
        tally.count_error(QueueFull("digits", limit))
    tally.count_error(Cancelled())
    assert tally.errors == {
        "QueueFull": Errors(2, "operator", str(QueueFull("digits", 1))),
        "Cancelled": Errors(1, "client", "cancelled by the client"),
    }


def test_every_measured_request_was_offered_whatever_became_of_it() -> None:
    tally = Tally(latency=durations(1, 2, 3), errors={"QueueFull": Errors(4, "operator", "")}, unanswered=5)
    assert tally.offered == 12


def test_several_processes_are_together_what_one_would_have_counted() -> None:
    first = Tally(
        sent=10,
        answered=8,
        failed=2,
        errors={"QueueFull": Errors(2, "operator", "full")},
        latency=durations(1, 2),
        batches={1: 0.5, 4: 2.0},
        parts=[1, 2, 3],
        window_s=2.0,
        cpu_s=0.5,
        busy_s=0.7,
    )
    second = Tally(
        sent=5,
        answered=4,
        failed=1,
        unanswered=1,
        errors={"QueueFull": Errors(1, "operator", "full"), "Cancelled": Errors(1, "client", "gone")},
        latency=durations(3),
        batches={4: 1.0},
        late=1,
        held=2,
        parts=[1, 1, 1],
        window_s=1.5,
        cpu_s=0.25,
        busy_s=0.9,
        lost="it ended",
    )
    assert together([first, second]) == Tally(
        sent=15,
        answered=12,
        failed=3,
        unanswered=1,
        errors={"QueueFull": Errors(3, "operator", "full"), "Cancelled": Errors(1, "client", "gone")},
        latency=durations(1, 2, 3),
        batches={1: 0.5, 4: 3.0},
        late=1,
        held=2,
        parts=[2, 3, 4],
        window_s=2.0,
        cpu_s=0.75,
        busy_s=0.9,
        lost="it ended",
    )
    assert first.errors["QueueFull"].count == 2, "which was not changed"


def test_results_of_the_window_are_those_of_its_parts() -> None:
    assert Tally(parts=[3, 4, 5]).results == 12
