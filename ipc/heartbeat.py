"""Heartbeats: a process says in shared memory that it lives and what it does; the supervisor reads and judges.

No message, no reply, no waiting: a process that hangs cannot answer, and one that is busy need not.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from .statistics import Block, Word


class Activity(IntEnum):
    """What a process does now. How long each may last is the supervisor's judgement."""

    STARTING = 0  # importing, mapping; nothing served
    LOADING = 1  # loading or warming a model: may take minutes
    IDLE = 2  # waiting: it wakes at least once a second to beat
    RUNNING = 3  # computing a batch
    STOPPING = 4  # finishing what it has


@dataclass(frozen=True, slots=True)
class Pulse:
    """One reading of a heartbeat."""

    activity: Activity
    silent_ms: float
    """Since the last beat."""
    activity_ms: float
    """Since the activity began."""


ACTIVITIES: Final = frozenset(map(int, Activity))


class Heartbeat:
    """The heartbeat words of a process's block; one writer, any number of readers."""

    __slots__ = ("_words",)

    def __init__(self, block: Block) -> None:
        self._words = block.words

    def beat(self, now_ns: int) -> None:
        """Say that the process lives. `now_ns` is CLOCK_MONOTONIC, which all processes of a host share."""
        self._words[Word.HEARTBEAT_NS] = now_ns

    def enter(self, activity: Activity, now_ns: int) -> None:
        """Say what the process does from now on; a beat, too."""
        self._words[Word.ACTIVITY] = activity
        self._words[Word.ACTIVITY_SINCE_NS] = now_ns
        self._words[Word.HEARTBEAT_NS] = now_ns

    def read(self, now_ns: int) -> Pulse:
        """What the process last said."""
        words = self._words
        activity = words[Word.ACTIVITY]
        return Pulse(
            Activity(activity) if activity in ACTIVITIES else Activity.STARTING,  # a broken process writes anything
            max(0, now_ns - words[Word.HEARTBEAT_NS]) / 1e6,
            max(0, now_ns - words[Word.ACTIVITY_SINCE_NS]) / 1e6,
        )
