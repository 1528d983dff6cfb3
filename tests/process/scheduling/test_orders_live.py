"""Order policies on a real daemon: switched while requests wait, and the figure that tells each from FCFS."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from .load import Ask, Ended, Flow, errors, nap_s, run

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

ORDERS: Final = ("fcfs", "sjf", "hrrn", "mlfq", "edf")
ROUNDS: Final = 2
SPREAD_S: Final = 0.1
"""A burst arrives within this, and takes more than twice as long to be served."""


def burst(seed: int) -> list[Ask]:
    """Many small requests and some large ones, in any order."""
    generator = np.random.default_rng(seed)
    sizes = generator.permutation([1] * 80 + [8] * 36)
    return [
        Ask(at_s, int(rows)) for at_s, rows in zip(np.linspace(0, SPREAD_S, len(sizes)).tolist(), sizes, strict=True)
    ]


def mean_s(ended: Sequence[Ended]) -> float:
    """Mean response time."""
    return fmean(each.response_s for each in ended)


def test_orders_change_while_requests_wait_and_each_shows_its_figure(idle: "Daemon", join: "Connect") -> None:
    """SJF has the least mean response, HRRN lies between it and FCFS; nobody ever gets an error or a wrong answer."""
    found: dict[str, list[float]] = defaultdict(list)
    longest: dict[str, list[float]] = defaultdict(list)
    for seed in range(ROUNDS):
        for order in ORDERS:
            switched = run(Flow(join(), burst(seed)), meanwhile=lambda order=order: idle.set(nap__order=order))
            ended = run(Flow(join(), burst(seed)))
            assert (errors(switched), errors(ended)) == ({}, {})
            found[order].append(mean_s(ended))
            longest[order].append(max(each.response_s for each in ended))
    idle.set(nap__order=None)
    means = {order: fmean(values) for order, values in found.items()}
    print(means, {k: fmean(v) for k, v in longest.items()})
    assert means["sjf"] < 0.8 * means["fcfs"]
    assert means["sjf"] < 1.05 * means["hrrn"]
    assert means["hrrn"] < 0.9 * means["fcfs"]


def test_edf_meets_more_deadlines_than_fcfs(idle: "Daemon", join: "Connect") -> None:
    """All requests are there at once, the most urgent last: in that order all of them can be met."""
    sizes = [1, 8] * 25
    deadlines_s: list[float] = []
    passed_s = 0.03
    for rows in reversed(sizes):
        passed_s += 1.5 * nap_s(rows)
        deadlines_s.insert(0, passed_s)
    asks = [Ask(0.0, rows, deadline_s) for rows, deadline_s in zip(sizes, deadlines_s, strict=True)]
    met: dict[str, int] = defaultdict(int)
    with idle.knobs(nap__deadline_check=False):
        for _ in range(ROUNDS):
            for name in ("fcfs", "edf"):
                with idle.knobs(nap__order=name):
                    met[name] += sum(each.met for each in run(Flow(join(), asks)))
    shares = {name: count / (ROUNDS * len(sizes)) for name, count in met.items()}
    print(shares)
    assert shares["edf"] > shares["fcfs"] + 0.2


def test_mlfq_keeps_the_tail_of_a_light_flow_short_beside_heavy_ones(idle: "Daemon", join: "Connect") -> None:
    """p99 of a client that asks now and then for a row, beside clients of the same user that always ask for more."""
    tails: dict[str, list[float]] = defaultdict(list)
    with idle.knobs(nap__mlfq_boost_ms=60_000, nap__mlfq_quantum_us=100_000):
        for _ in range(2):
            for order in ("fcfs", "mlfq"):
                with idle.knobs(nap__order=order):
                    heavy = [Flow(join(), iter(lambda: Ask(rows=8), None), depth=12) for _ in range(4)]
                    light = Flow(join(), [Ask(0.4 + 0.05 * number) for number in range(16)])
                    ended = run(*heavy, light, meanwhile=lambda light=light, heavy=heavy: end_with(light, heavy))
                    assert errors(ended) == {}
                    tails[order] += [each.response_s for each in light.ended]
    p99 = {order: float(np.quantile(values, 0.99)) for order, values in tails.items()}
    print(p99)
    assert p99["mlfq"] < 0.5 * p99["fcfs"]


def end_with(light: Flow, heavy: Sequence[Flow]) -> None:
    """The heavy flows stop when the light one is through."""
    light.join(30)
    for flow in heavy:
        flow.stop()
