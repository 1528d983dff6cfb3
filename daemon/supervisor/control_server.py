"""The control socket's serving end: reads requests, checks who asks, and answers from the supervisor's state."""

import asyncio
import os
import socket
import struct
from typing import Final, Protocol

import msgspec

from .. import control
from ..exits import Exit

UCRED: Final = struct.Struct("iII")
REQUEST_BYTES_MAX: Final = 256 * 1024
IDLE_TIMEOUT_S: Final = 10.0
CONNECTIONS_MAX: Final = 64


class Operations(Protocol):
    """What the supervisor does for an operator."""

    def status(self) -> control.InstanceStatus: ...
    def get(self, addresses: list[str]) -> control.Values | control.Refused: ...
    async def set(self, request: control.Set, who: str) -> control.Applied | control.Refused: ...
    async def record(self, request: control.Record) -> control.Recorded | control.Refused: ...


class ControlServer:
    """Serves operators; a slow or silent one costs nobody anything but one of CONNECTIONS_MAX places."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._server: asyncio.Server
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Accept from now on."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_BYTES_MAX)

    def close(self) -> None:
        """Stop accepting and cut off who is connected."""
        self._server.close()
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= CONNECTIONS_MAX:
            writer.write(control.encode(control.Refused(f"{CONNECTIONS_MAX} others are connected: try again")) + b"\n")
            writer.close()
            return
        self._open.add(task)
        uid = _uid(writer)
        try:
            while line := await asyncio.wait_for(reader.readline(), IDLE_TIMEOUT_S):
                answer = await self._answer(line, uid)
                writer.write(control.encode(answer) + b"\n")
                await asyncio.wait_for(writer.drain(), IDLE_TIMEOUT_S)
        except (TimeoutError, ValueError, OSError, asyncio.CancelledError):
            writer.transport.abort()  # silent, too long a line, gone, or the instance ends: whatever is unread is lost
        finally:
            self._open.discard(task)
            writer.close()

    async def _answer(self, line: bytes, uid: int) -> control.Answer:
        try:
            request = control.decode_request(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return control.Refused(f"the request is malformed: {error}", Exit.USAGE)
        match request:
            case control.Status():
                return self._operations.status()
            case control.Get():
                return self._operations.get(request.addresses)
        if uid not in (0, os.getuid()):
            return control.Refused(f"uid {uid} may read knobs, not set them: use the daemon's user, or root")
        if isinstance(request, control.Record):
            return await self._operations.record(request)
        return await self._operations.set(request, f"uid {uid}")


def _uid(writer: asyncio.StreamWriter) -> int:
    sock = writer.get_extra_info("socket")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    uid: int = UCRED.unpack(credentials)[1]
    return uid
