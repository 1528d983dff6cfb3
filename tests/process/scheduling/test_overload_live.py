"""Five times what a real daemon can do, with deadlines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from tensord.ipc.errors import DeadlineInfeasible

from .load import Ask, Ended, Flow, poisson, run

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

MAX_BATCH: Final = 32
DEADLINE_S: Final = 0.2
SECONDS: Final = 1.6
OVERLOAD: Final = 5
SETTLED_S: Final = 0.5
"""After this from the first answer rates are measured."""


def good_rows_per_s(ended: Sequence[Ended]) -> float:
    """Rows of the requests that were answered in time, per second."""
    first_s = ended[0].ended_s + SETTLED_S
    last_s = ended[0].ended_s + SECONDS
    good = [each.ask.rows for each in ended if each.met and first_s <= each.ended_s < last_s]
    return sum(good) / (last_s - first_s)


def share_in_time(ended: Sequence[Ended]) -> float:
    """Of the requests that were admitted, the share that met their deadlines."""
    admitted = [each for each in ended if not isinstance(each.error, DeadlineInfeasible)]
    return sum(each.met for each in admitted) / len(admitted)


def test_at_five_times_the_capacity_what_is_admitted_is_answered_in_time(idle: "Daemon", join: "Connect") -> None:
    """Goodput stays at the peak; without the check of deadlines it collapses.

    Twice, and one of the runs must show both: where somebody else stops the whole machine for longer than is usual, all
    that were admitted just in time are late.
    """
    sizes = (int(rows) for rows in np.random.default_rng(1).integers(1, 8, 10**6, endpoint=True))
    closed = (Ask(rows=rows) for rows in sizes)

    def overload(seed: int) -> list[Ended]:
        per_s = OVERLOAD * peak / 4.5
        return run(Flow(join(), poisson(per_s, SECONDS + 0.2, seed, lambda at_s: Ask(at_s, next(sizes), DEADLINE_S))))

    with idle.knobs(nap__max_batch=MAX_BATCH):
        peak = good_rows_per_s(run(Flow(join(), closed, depth=32), seconds=SECONDS + 0.1))
        checked = [overload(seed) for seed in (1, 2)]
        with idle.knobs(nap__deadline_check=False):
            unchecked = overload(3)
    seen = [(good_rows_per_s(each) / peak, share_in_time(each)) for each in checked]
    assert any(goodput >= 0.95 and in_time >= 0.99 for goodput, in_time in seen), seen
    assert good_rows_per_s(unchecked) < 0.5 * peak
