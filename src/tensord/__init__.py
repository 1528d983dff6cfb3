"""tensord: one daemon owns the host's GPUs and models; every process infers through shared memory.

The folders `ipc`, `daemon`, `admin` and `configs` stand at the top of the repository and are linked
into this package, so that their import names are `tensord.ipc` and so on (see ARCHITECTURE.md).
"""

from importlib.metadata import version

from tensord.ipc import errors
from tensord.ipc.client import AsyncClient, Client
from tensord.ipc.errors import TensordError

__all__ = ["AsyncClient", "Client", "TensordError", "__version__", "errors"]

__version__ = version("tensord")
