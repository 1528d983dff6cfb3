"""Where a client finds the daemon's socket, told or looked for where services put it, and how it connects."""

import os
import socket
from collections.abc import Mapping
from typing import Final

from ..errors import DaemonNotFound
from ..limits import SOCKET_BUFFER_BYTES, SOCKET_PATH_BYTES_MAX

ENVIRONMENT_VARIABLE: Final = "TENSORD_SOCKET"
SYSTEM_SOCKET: Final = "/run/tensord/tensord.sock"

FULL_BACKLOG_RETRY_MS: Final = 5


def find_socket(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Path of the first socket that exists among `candidates`. Raises DaemonNotFound, which lists them.

    That it exists does not mean that somebody listens there: connecting tells.
    """
    tried = candidates(path, environ)
    for candidate in tried:
        path_bytes = len(os.fsencode(candidate))
        if path_bytes > SOCKET_PATH_BYTES_MAX:
            reason = f"the path has {path_bytes} bytes, a Unix socket's has at most {SOCKET_PATH_BYTES_MAX}"
            raise DaemonNotFound(tried, reason)
        if os.path.exists(candidate):
            return candidate
    raise DaemonNotFound(tried, "no such file" if len(tried) == 1 else "none of them exists")


def candidates(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> list[str]:
    """The paths to try, best first.

    What somebody has set, as an argument or in $TENSORD_SOCKET, is the only candidate: a mistyped
    path must not lead to another instance.
    """
    told = path if path is not None else environ.get(ENVIRONMENT_VARIABLE)
    if told:
        return [os.fspath(told)]
    runtime_dir = environ.get("XDG_RUNTIME_DIR")
    return [SYSTEM_SOCKET, *([os.path.join(runtime_dir, "tensord", "tensord.sock")] if runtime_dir else [])]


def connect_socket(path: str) -> socket.socket:
    """A connected, non-blocking socket. Raises DaemonNotFound, with `retry_after_ms` if somebody is listening."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        connected.connect(path)
    except OSError as error:
        connected.close()
        if isinstance(error, BlockingIOError):  # non-blocking, so that a full backlog does not hang us for ever
            full = DaemonNotFound([path], "too many others are connecting")
            full.retry_after_ms = FULL_BACKLOG_RETRY_MS
            raise full from None
        raise DaemonNotFound([path], (error.strerror or str(error)).lower()) from None
    return connected
