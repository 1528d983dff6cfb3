"""Small servers for the load generator: an echo that can lie, and HTTP with connections that stay open."""

import contextlib
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Final

from tensord.ipc.wire import HEADER, FrameType

Answer = Callable[[int, bytearray], bytes | bytearray]
"""From the number of a request on its connection, counted from 0, and the frame of its honest answer."""

AT_ID: Final = 8
"""Where a frame has its request id."""


@contextlib.contextmanager
def echo(path: Path, answer: Answer) -> Iterator[None]:
    """An echo whose answers go through `answer` first."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            number = 0
            while header := self.rfile.read(HEADER.size):
                _, _, _, meta_bytes, _, payload_bytes = HEADER.unpack(header)
                frame = bytearray(header + self.rfile.read(meta_bytes + payload_bytes))
                frame[2] = FrameType.RESULT
                self.wfile.write(answer(number, frame))
                number += 1

    with _serving(_UnixServer(str(path), Handler)):
        yield


@contextlib.contextmanager
def http(where: Path | None, status: Callable[[int], int] = lambda number: 200) -> Iterator[str]:
    """An HTTP server that returns bodies, on a path or on a port of 127.0.0.1; yields where it listens."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        number = 0

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status(self.number))
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.number += 1

        def address_string(self) -> str:
            return "somebody"

        def log_request(self, code: object = "", size: object = "") -> None:
            """Say nothing."""

    server = _TcpServer(("127.0.0.1", 0), Handler) if where is None else _UnixServer(str(where), Handler)
    with _serving(server):
        yield f"127.0.0.1:{server.socket.getsockname()[1]}" if where is None else str(where)


def stall_once(seconds: float) -> Answer:
    """Answers that are right; before the first, the server sleeps."""

    def answer(number: int, frame: bytearray) -> bytearray:
        if number == 0:
            time.sleep(seconds)
        return frame

    return answer


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


@contextlib.contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
