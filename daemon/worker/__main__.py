"""Entry of a worker: pins itself to its cores before torch is imported, then runs the loop.

    python -P -m tensord.daemon.worker CONTROL_FD PARENT_PID DEVICE [CORE,CORE,…]

Thread counts and CUDA_VISIBLE_DEVICES are already in the environment: libraries read them when they load.
"""

import os
import socket
import sys

from ..child import tie_to_parent
from .heap import keep_freed


def main(arguments: list[str]) -> None:
    """Run a worker until its supervisor says stop or ends."""
    control_fd, parent_pid, device_name, *cores = arguments
    tie_to_parent(int(parent_pid))
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores[0].split(",")})

    keep_freed()

    # torch sizes its thread pools when it is imported: not before the affinity is set.
    from ..messages import DeviceBroken, Link
    from .device import DeviceLost, DeviceUnusable, open_device
    from .loop import Worker

    link = Link(socket.socket(fileno=int(control_fd)))
    try:
        device = open_device(device_name)
    except DeviceUnusable as error:
        link.send(DeviceBroken(str(error)))
        sys.exit(str(error))
    try:
        Worker(link, device).run()
    except DeviceLost as error:
        sys.exit(str(error))  # the supervisor starts a successor


if __name__ == "__main__":
    main(sys.argv[1:])
