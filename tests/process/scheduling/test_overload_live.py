"""Five times what a real daemon can do, with deadlines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import pytest

from .load import Ask, Ended, Flow, poisson, run

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

ROWS: Final = 4
DEADLINE_S: Final = 0.15
SECONDS: Final = 2.0
SETTLED_S: Final = 0.5
"""After this from the first answer rates are measured."""


def good_per_s(ended: Sequence[Ended]) -> float:
    """Requests that were answered in time, per second."""
    first_s = ended[0].ended_s + SETTLED_S
    last_s = ended[0].ended_s + SECONDS
    return sum(each.met and first_s <= each.ended_s < last_s for each in ended) / (last_s - first_s)


def answered_in_time(ended: Sequence[Ended]) -> float:
    """Of those that were admitted, the share that met their deadlines."""
    admitted = [each for each in ended if type(each.error).__name__ != "DeadlineInfeasible"]
    return sum(each.met for each in admitted) / len(admitted)


def test_at_five_times_the_capacity_what_is_admitted_is_answered_in_time(idle: "Daemon", join: "Connect") -> None:
    """Goodput stays at the peak; without the check of deadlines it collapses."""
    peak = good_per_s(run(Flow(join(), iter(lambda: Ask(rows=ROWS), None), depth=16), seconds=SECONDS + 0.1))
    print("peak", peak)

    def overload(seed: int) -> list[Ended]:
        asks = poisson(5 * peak, SECONDS + 0.2, seed, lambda at_s: Ask(at_s, ROWS, DEADLINE_S))
        return run(Flow(join(), asks))

    checked = overload(1)
    print(good_per_s(checked) / peak, answered_in_time(checked), len(checked))
    with idle.knobs(nap__deadline_check=False):
        unchecked = overload(2)
    print(good_per_s(unchecked) / peak, answered_in_time(unchecked))
    assert good_per_s(checked) >= 0.95 * peak
    assert answered_in_time(checked) >= 0.99
    assert good_per_s(unchecked) < 0.5 * peak
