"""Which GPUs does this host have? Asked in a child with a time limit, because a hung driver hangs its callers.

python -P -m tensord.daemon.supervisor.discovery      prints a JSON list of GPUs
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

TIME_LIMIT_S: Final = 20.0


class Gpu(msgspec.Struct, frozen=True):
    """One GPU."""

    index: int
    uuid: str
    name: str
    memory_bytes: int


def discover() -> list[Gpu]:
    """The GPUs, in the order of their PCI addresses; none without a driver, or without a sensible answer in time."""
    if not Path("/proc/driver/nvidia").exists():
        return []
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-m", __spec__.name if __spec__ else __name__],
            capture_output=True,
            timeout=TIME_LIMIT_S,
            check=True,
        )
        return msgspec.json.decode(answer.stdout, type=list[Gpu])
    except (subprocess.SubprocessError, OSError, ValueError):
        return []


def main() -> None:
    """Print what NVML says."""
    import pynvml

    pynvml.nvmlInit()
    gpus = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        gpus.append(Gpu(index, pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle), memory.total))
    sys.stdout.buffer.write(msgspec.json.encode(gpus))


if __name__ == "__main__":
    main()
