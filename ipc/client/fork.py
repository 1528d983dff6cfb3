"""What holds a connection must not use it in a forked child, where it is the parent's."""

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """Told in the child after each fork."""

    def reset_after_fork(self) -> None:
        """Drop what belongs to the parent; every lock may have been held by a thread that is not here."""


_aware: "weakref.WeakSet[ForkAware]" = weakref.WeakSet()


def reset_in_children(holder: ForkAware) -> None:
    """Have `holder.reset_after_fork()` called in every child that is forked while it lives."""
    _aware.add(holder)


def _reset_all() -> None:
    for holder in list(_aware):
        holder.reset_after_fork()


os.register_at_fork(after_in_child=_reset_all)
