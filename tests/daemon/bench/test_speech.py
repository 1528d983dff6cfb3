import pytest

from tensord.daemon.bench import speech
from tensord.daemon.bench.plan import Arrivals, Form, Lane, Plan
from tensord.daemon.bench.speech import Answer, Begin, Failed, Finished, Job, Order, Progress, Ready, Stop
from tensord.daemon.exits import Exit

from .measurements import tally

PLAN = Plan("digits:canary", rate_per_s=2.5, arrivals=Arrivals.CONSTANT, lane=Lane.ARENA)


@pytest.mark.parametrize("order", [Job("a.sock", PLAN, Form(Lane.ARENA, 3, 4, 5, 6), 0, 7), Begin(2**60), Stop()])
def test_an_order_arrives_as_it_was_given(order: Order) -> None:
    assert speech.decode_order(speech.encode(order)) == order


@pytest.mark.parametrize("answer", [Ready(), Progress(1, 2), Failed("it's full\n", Exit.FAILED), Finished(tally())])
def test_an_answer_arrives_as_it_was_given_and_is_one_line(answer: Answer) -> None:
    line = speech.encode(answer)
    assert b"\n" not in line
    assert speech.decode_answer(line) == answer
