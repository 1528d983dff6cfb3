"""Options that several commands share, and where the daemon is."""

from pathlib import Path
from typing import Annotated

import typer

from tensord.ipc.client.discovery import find_socket

Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="FILE",
        help="The daemon's socket. Default: $TENSORD_SOCKET, /run/tensord/tensord.sock, "
        "$XDG_RUNTIME_DIR/tensord/tensord.sock, whichever comes first.",
        show_default=False,
    ),
]


def control_socket(path: Path | None) -> Path:
    """The control socket beside the data socket. Raises DaemonNotFound when there is none."""
    return Path(find_socket(None if path is None else str(path))).parent / "control.sock"
