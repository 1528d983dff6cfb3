import pytest

from tensord.daemon.supervisor.lifecycle import TRANSITIONS, Event, Lifecycle, State

KNOWN = [(state, event) for state, events in TRANSITIONS.items() for event in events]
UNKNOWN = [(state, event) for state in State for event in Event if (state, event) not in KNOWN]


class Recorded(Lifecycle):
    """Remembers its moves."""

    def __init__(self, state: State) -> None:
        self.moves: list[tuple[State, State]] = []
        super().__init__(lambda old, new: self.moves.append((old, new)))
        self.state = state


def test_the_table_has_every_state() -> None:
    assert set(TRANSITIONS) == set(State)


def test_a_place_begins_without_a_process() -> None:
    assert Lifecycle(lambda _old, _new: None).state is State.BACKING_OFF


@pytest.mark.parametrize(("state", "event"), KNOWN)
def test_the_gate_moves_as_the_table_says_and_tells(state: State, event: Event) -> None:
    place = Recorded(state)
    place.on(event)
    assert place.state is TRANSITIONS[state][event]
    assert place.moves == [(state, place.state)]


@pytest.mark.parametrize(("state", "event"), UNKNOWN)
def test_an_event_that_makes_no_sense_is_a_bug_and_moves_nothing(state: State, event: Event) -> None:
    place = Recorded(state)
    with pytest.raises(ValueError, match=f"a worker that is {state} cannot be told {event}"):
        place.on(event)
    assert (place.state, place.moves) == (state, [])


def test_every_state_can_be_reached() -> None:
    reached, frontier = {State.BACKING_OFF}, [State.BACKING_OFF]
    while frontier:
        for state in TRANSITIONS[frontier.pop()].values():
            if state not in reached:
                reached.add(state)
                frontier.append(state)
    assert reached == set(State)


def test_every_place_can_be_stopped_and_stays_so() -> None:
    assert all(Event.STOPPING in TRANSITIONS[state] for state in State if state is not State.STOPPED)
    assert TRANSITIONS[State.STOPPED] == {}


def test_every_process_can_die() -> None:
    running = {State.STARTING, State.LOADING, State.READY}
    assert {state for state in State if Event.DIED in TRANSITIONS[state]} == running
    assert {TRANSITIONS[state][Event.DIED] for state in running} == {State.BACKING_OFF}
