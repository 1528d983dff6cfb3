"""Entry of the front end.

python -P -m tensord.daemon.frontend CONTROL_FD PARENT_PID
"""

import gc
import socket
import sys

import uvloop

from ..child import tie_to_parent
from ..messages import Link
from .server import FrontEnd


def main(arguments: list[str]) -> None:
    """Run the front end until its supervisor says stop or ends."""
    control_fd, parent_pid = arguments
    tie_to_parent(int(parent_pid))
    gc.freeze()  # what was imported stays: the collector need not look at it again
    uvloop.run(FrontEnd(Link(socket.socket(fileno=int(control_fd)))).run())


if __name__ == "__main__":
    main(sys.argv[1:])
