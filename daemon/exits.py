"""The exit codes of `tensord`: what a script, a unit file or a person may conclude from them."""

from enum import IntEnum


class Exit(IntEnum):
    """Why the command or the daemon ended. Numbers are never reused: scripts test for them."""

    OK = 0
    """It did what was asked; the daemon stopped because it was told to, after draining or, told twice, at once."""

    FAILED = 1
    """A request or command failed; the sentence on standard error says whose fault it is."""

    USAGE = 2
    """The command line makes no sense; nothing was done."""

    CONFIG = 3
    """The configuration file is broken, or a setting in it has a value that is not allowed."""

    MODELS = 4
    """A required model is missing, malformed, or did not give its expected answer."""

    RUNNING = 5
    """Another instance runs in this runtime directory, or something else holds its socket."""

    DEVICE = 6
    """A device that the configuration names does not exist, or none can be used."""

    RESOURCES = 7
    """The kernel refused shared memory, file descriptors or processes."""

    UNREACHABLE = 8
    """No daemon answers on the socket."""

    INTERRUPTED = 130
    """Control-C ended the command (128 + SIGINT, as shells report it)."""
