"""What programs hold in their hands: `Client` for threads, `AsyncClient` for asyncio, over one shared session."""

from .aio import AsyncClient
from .sync import Client

__all__ = ["AsyncClient", "Client"]
