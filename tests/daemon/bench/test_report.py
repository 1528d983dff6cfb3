from dataclasses import replace

import msgspec
import pytest

from tensord.daemon.bench.plan import Plan
from tensord.daemon.bench.report import Batches, Column, OpenLoop, ProcessCpu, Times, columns, report
from tensord.daemon.bench.run import Measurement
from tensord.daemon.bench.tally import Errors
from tensord.ipc.errors import QueueFull

from .measurements import durations, measurement, status, tally

OPEN = Plan("digits", seconds=2.0, rate_per_s=50.0)


def warnings(seen: Measurement) -> list[str]:
    return report(seen).warnings


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def test_throughput_is_what_came_within_the_window() -> None:
    throughput = report(measurement(plan=Plan("digits", rows=4, seconds=2.0))).throughput
    assert (throughput.requests_per_s, throughput.rows_per_s) == (50.0, 200.0)
    assert throughput.thirds_requests_per_s == [49.5, 51.0, 49.5]


def test_requests_add_up() -> None:
    errors = {"QueueFull": Errors(3, "operator", str(QueueFull("digits", 4)))}
    figures = report(measurement(tally=tally(sent=126, failed=6, errors=errors, unanswered=2)))
    requests = figures.requests
    assert requests.sent == requests.answered + requests.failed
    assert (requests.measured, requests.measured_answered, requests.measured_unanswered) == (105, 100, 2)
    assert figures.errors == errors


def test_latency_and_its_parts_have_percentiles() -> None:
    figures = report(measurement())
    assert figures.latency.count == 100
    assert figures.latency.p50_us == pytest.approx(1_490, rel=0.002)
    assert figures.latency.p99_us == pytest.approx(1_980, rel=0.002)
    assert figures.latency.p999_us is None
    assert figures.latency.max_us == 1_990
    assert {name: times.p50_us for name, times in figures.phases.items()} == {
        "queue": pytest.approx(200, rel=0.002),
        "compute": pytest.approx(500, rel=0.002),
        "elsewhere": pytest.approx(300, rel=0.002),
    }


def test_nothing_measured_has_no_percentile() -> None:
    assert Times.of(durations()) == Times(0, None, None, None, None, None, None)


def test_copying_in_is_shown_on_the_arena_lane() -> None:
    assert "copy_in" in report(measurement(tally=tally(copy_in=durations(*[0.1] * 100)))).phases


def test_batches_are_counted_by_their_rows() -> None:
    figures = report(measurement(tally=tally(batches={1: 30.0, 7: 10.0})))
    assert figures.batches == Batches(
        mean_rows=2.5,
        share_by_rows={1: 0.75, 7: 0.25},
        released={"full": 2, "window": 0, "idle": 25, "deadline": 0, "drain": 0},
    )


def test_cpu_time_is_per_result_of_the_window() -> None:
    assert report(measurement()).cpu == [
        ProcessCpu("front end", 11, 5_000.0, 0.25),
        ProcessCpu("worker cpu:0", 12, 10_000.0, 0.5),
        ProcessCpu("load generator", None, 200.0, 0.01),
    ]


def test_requests_of_others_are_those_that_we_did_not_send() -> None:
    assert report(measurement()).requests.others == 0
    assert report(measurement(after=status(requests=137))).requests.others == 10


def test_a_daemon_that_does_not_show_itself_leaves_figures_out() -> None:
    figures = report(measurement(before=None, after=None, usages={}, silence="it refuses your user"))
    assert figures.requests.others is None
    assert figures.batches is not None
    assert figures.batches.released is None
    assert [each.name for each in figures.cpu] == ["load generator"]
    assert figures.warnings == ["nothing is known of the daemon itself: it refuses your user"]


def test_an_open_loop_says_how_well_it_kept_to_its_schedule() -> None:
    delays = durations(0.01, 0.02)
    figures = report(measurement(plan=OPEN, tally=tally(late=1, held=2, send_delay=delays)))
    assert figures.open_loop == OpenLoop(50.0, 1, 2, Times.of(delays))
    assert (figures.load.loop, figures.load.arrivals) == ("open", "poisson")


def test_a_closed_loop_has_no_schedule() -> None:
    figures = report(measurement())
    assert figures.open_loop is None
    assert (figures.load.loop, figures.load.arrivals, figures.load.rate_per_s) == ("closed", None, None)


def test_a_run_that_ended_early_says_so_and_compares_no_thirds() -> None:
    figures = report(measurement(interrupted=True, tally=tally(window_s=1.25)))
    assert (figures.interrupted, figures.load.measured_s, figures.throughput.thirds_requests_per_s) == (True, 1.25, [])
    figures = report(measurement(tally=tally(window_s=1.25, lost="the daemon closed it")))
    assert (figures.interrupted, figures.lost) == (False, "the daemon closed it")


def test_who_interrupts_the_wait_for_the_last_answers_has_the_whole_window() -> None:
    assert not report(measurement(interrupted=True)).interrupted


def test_every_number_in_json_has_a_unit_in_its_name_or_counts_something() -> None:
    built = msgspec.to_builtins(report(measurement(plan=OPEN)))
    assert {"p50_us", "p999_us", "max_us", "mean_us", "count"} == set(built["latency"]) - {"p90_us", "p99_us"}
    assert built["load"]["measured_s"] == 2.0
    assert built["cpu"][0]["cpu_us_per_request"] == 5_000.0
    assert set(built["histogram"][0]) == {"from_us", "to_us", "count"}


# ── the histogram ───────────────────────────────────────────────────────────────────────────────


def test_columns_hold_every_request_and_follow_one_another() -> None:
    made = columns(durations(*(1.05 * 1.001**number for number in range(5_000))))
    assert sum(column.count for column in made) == 5_000
    assert [column.to_us for column in made[:-1]] == [column.from_us for column in made[1:]]
    assert len(made) <= 56
    assert made[0].from_us <= 1_050 < made[0].to_us


def test_columns_are_finer_where_latencies_differ_less() -> None:
    wide, narrow = (columns(durations(1, last)) for last in (1.2, 9_000))
    assert wide[0].to_us - wide[0].from_us < narrow[0].to_us - narrow[0].from_us
    assert columns(durations()) == []


def test_one_latency_is_one_column() -> None:
    (column,) = columns(durations(3, 3))
    assert column == Column(column.from_us, column.to_us, 2)
    assert column.from_us <= 3_000 < column.to_us


# ── warnings ────────────────────────────────────────────────────────────────────────────────────


def test_good_figures_come_without_a_warning() -> None:
    assert warnings(measurement()) == []
    assert warnings(measurement(plan=OPEN, tally=tally(late=1))) == []


def test_a_load_that_sees_its_arrivals_late_says_that_it_was_the_limit() -> None:
    (warning,) = warnings(measurement(plan=OPEN, tally=tally(late=20)))
    assert warning == "the load generator was the limit: it began 20% of the arrivals more than 1 ms late"


def test_a_load_that_had_no_core_left_says_that_it_was_the_limit() -> None:
    (warning,) = warnings(measurement(tally=tally(busy_s=1.9)))
    assert warning == "the load generator was the limit: it computed, or waited for a core, 95% of the time"


def test_arrivals_without_a_place_are_told_of() -> None:
    (warning,) = warnings(measurement(plan=OPEN, tally=tally(held=30)))
    assert warning.startswith("30% of the arrivals had to wait until one of 16 × 1 requests in flight was answered")


def test_missing_answers_are_told_of() -> None:
    (warning,) = warnings(measurement(tally=tally(unanswered=3)))
    assert warning == "3 requests had no answer when the waiting ended: the true percentiles are higher"


@pytest.mark.parametrize(("parts", "steady"), [([1_000, 1_000, 1_099], True), ([1_000, 1_050, 1_101], False)])
def test_a_throughput_that_changes_is_told_of(parts: list[int], steady: bool) -> None:
    found = warnings(measurement(tally=tally(parts=parts)))
    assert (found == []) == steady
    assert steady or found == ["not steady: 1,500, 1,575, 1,652 requests/s in the thirds of the time"]


def test_few_results_are_not_called_unsteady() -> None:
    assert warnings(measurement(tally=tally(parts=[10, 40, 90]))) == []


def test_others_on_the_same_model_are_told_of() -> None:
    (warning,) = warnings(replace(measurement(), after=status(requests=1_127)))
    assert warning == "others sent 1,000 requests to the model meanwhile"
