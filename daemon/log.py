"""Logs of all processes of an instance: one line per event on standard error, key=value, never tensor contents."""

import logging
import sys
from typing import Any

import structlog


class _StandardError:
    """Writes to whatever standard error is at that moment; structlog's own keeps the one it was made with."""

    def msg(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    debug = info = warning = error = critical = msg


def configure(process: str, level: str = "info") -> None:
    """Log as this process, from this level on. May be called again to change the level."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=28, sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _StandardError(),
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(process=process)


def get_logger() -> Any:
    """The logger; its first argument is the event in a few words, the rest are its values."""
    return structlog.get_logger()
