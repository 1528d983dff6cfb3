"""The life of a worker's place: states and transitions, in one table with one gate. Pure.

A *place* is a device for which a worker process should run; processes come and go, the place stays.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """What is true of a place."""

    STARTING = "starting"  # a process runs and imports; it has not spoken yet
    LOADING = "loading"  # it has spoken, and models are still loading; those that are ready are served
    READY = "ready"  # every model that it can serve is loaded and warm
    BACKING_OFF = "backing off"  # the process has died; the next one starts when the delay is over
    STOPPED = "stopped"  # the instance ends: no process runs, and none will


class Event(StrEnum):
    """What moves a place."""

    SPAWNED = "spawned"
    SPOKE = "spoke"
    LOADED = "loaded all"
    LOADING_MORE = "loads another"
    DIED = "died"
    STOPPING = "instance stops"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.STARTING: {
        Event.SPOKE: State.LOADING,
        Event.DIED: State.BACKING_OFF,
        Event.STOPPING: State.STOPPED,
    },
    State.LOADING: {
        Event.LOADED: State.READY,
        Event.DIED: State.BACKING_OFF,
        Event.STOPPING: State.STOPPED,
    },
    State.READY: {
        Event.LOADING_MORE: State.LOADING,
        Event.DIED: State.BACKING_OFF,
        Event.STOPPING: State.STOPPED,
    },
    State.BACKING_OFF: {
        Event.SPAWNED: State.STARTING,
        Event.STOPPING: State.STOPPED,
    },
    State.STOPPED: {},
}


class Lifecycle:
    """One place's state; `on` is the only way to change it."""

    def __init__(self, moved: Callable[[State, State], None]) -> None:
        """`moved` is told the old and the new state."""
        self.state = State.BACKING_OFF
        self._moved = moved

    def on(self, event: Event) -> None:
        """Raises ValueError for an event that the state does not know: the supervisor has a bug."""
        old = self.state
        try:
            self.state = TRANSITIONS[old][event]
        except KeyError:
            raise ValueError(f"a worker that is {old} cannot be told {event}") from None
        self._moved(old, self.state)
