"""What a client waits for: tickets, and calls, which are tickets with an answer."""

from collections.abc import Callable
from typing import Any

from ..errors import TensordError
from ..wire import FrameType
from .arrays import Array
from .model import Form, RequestPlan


class Ticket:
    """Something that somebody waits for."""

    __slots__ = ("done", "hook")

    def __init__(self) -> None:
        self.done = False
        self.hook: Callable[[], object] | None = None
        """Called once when it is done. Who sets it later than the frame is sent looks at `done` afterwards."""

    def finish(self) -> None:
        """It has happened."""
        self.done = True
        hook = self.hook
        if hook is not None:
            hook()


class RoomTicket(Ticket):
    """A ticket that any thread may finish, without a frame from the daemon: by giving back a slot."""

    __slots__ = ()


class Call(Ticket):
    """One request id: what kind of answer it waits for, and the answer."""

    __slots__ = (
        "abandoned",
        "arrays",
        "error",
        "expects",
        "forms",
        "plan",
        "request_id",
        "result_bytes",
        "result_headers",
        "returned",
        "shapes",
        "value",
    )

    def __init__(self, request_id: int, expects: FrameType) -> None:
        super().__init__()
        self.request_id = request_id
        self.expects = expects
        self.abandoned = False
        self.value: Any = None
        self.error: TensordError | None = None
        self.arrays: list[Array] = []
        """Inline outputs, filled when done; empty in the arena lane."""
        self.shapes: list[tuple[int, ...]] = []
        """Shapes of the outputs in the arena, where their sizes came from the data."""
        self.plan: RequestPlan | None = None
        """Of an inference: what was asked for."""
        self.forms: list[Form] = []
        """What `arrays` are to be."""
        self.result_headers = b""
        """The tensor headers of the RESULT that the specification lets expect."""
        self.result_bytes = 0
        """The bytes of its payload."""
        self.returned: Callable[[], object] | None = None
        """Called when the final frame is here, before `hook`: nobody writes into the call's slot any more."""

    def outcome(self) -> Any:
        """The answer of a call that is done. Raises its error."""
        if self.error is not None:
            raise self.error
        return self.value


def copy_error(error: TensordError) -> TensordError:
    """The same error for another caller: what is raised twice would mix two tracebacks."""
    own = type(error)(*error.data().values())
    own.retry_after_ms = error.retry_after_ms
    return own
