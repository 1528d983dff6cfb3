import pytest

from tensord.daemon.simulation.results import Summary, summary
from tensord.daemon.simulation.tally import Tally
from tensord.ipc.errors import QueueFull

from .test_tally import request, run

MS = 1_000_000


def tally(*responses_ms: int, refused: int = 0) -> Tally:
    """One second, with a request of each duration."""
    made = Tally(0, 1_000 * MS)
    for duration in responses_ms:
        run(made, request(0, rows=2, deadline_ns=50 * MS), begun_ns=MS, ended_ns=duration * MS - 5)
    for _ in range(refused):
        made.refuse(request(0), QueueFull.code, 0)
    return made


def summed(*tallies: Tally) -> Summary:
    return summary("s", tallies, {9: "cpu:0"}, ["a", "b", "c", "m"], ["w", "other"])


def test_means_are_over_replications() -> None:
    found = summed(tally(10, 10), tally(20, 20, 20, 20))
    assert (found.throughput_per_s.mean, found.rows_per_s.mean, found.goodput_per_s.mean) == (3.0, 6.0, 3.0)
    assert found.response.mean_us is not None
    assert found.response.mean_us.mean == pytest.approx(15_000)
    assert found.response.mean_us.half_width is not None
    assert found.service.mean_us is not None
    assert found.service.mean_us.mean == pytest.approx(14_000, abs=1)
    assert found.wait.p50_us is not None
    assert found.wait.p50_us.mean == 1_000


def test_a_percentile_that_is_the_maximum_is_not_given() -> None:
    response = summed(tally(*range(2, 102))).response
    assert response.p99_us is not None
    assert response.p99_us.half_width is None
    assert response.p999_us is None


def test_refusals_are_named() -> None:
    found = summed(tally(10, refused=3), tally(10, refused=1))
    assert {name: each.mean for name, each in found.refused_per_s.items()} == {"QueueFull": 2.0}
    assert found.offered_per_s.mean == 3.0


def test_shares_are_of_all_device_time() -> None:
    found = summed(tally(10))
    assert (found.models, found.tenants, found.batches, found.released) == (
        {"m": 1.0},
        {"t": 1.0},
        {2: 1.0},
        {"full": 1.0},
    )
    assert found.batch_rows is not None
    assert found.batch_rows.mean == 2.0
    assert found.utilisation["cpu:0"].mean == pytest.approx(0.009, rel=1e-3)


def test_workloads_are_told_apart() -> None:
    found = summed(tally(10, 20))
    assert found.workloads["w"] == found.response
    assert found.workloads["other"].mean_us is None


def test_the_curve_climbs_as_far_as_it_is_known() -> None:
    curve = summed(tally(*range(2, 502)), tally(*range(2, 502))).curve
    assert [part for part, _ in curve] == sorted(part for part, _ in curve)
    assert [us for _, us in curve] == sorted(us for _, us in curve)
    assert 0.998 < curve[-1][0] <= 0.999


def test_nothing_answered_is_no_error() -> None:
    found = summed(tally())
    assert (found.response.mean_us, found.batch_rows, found.curve, found.models) == (None, None, [], {})
