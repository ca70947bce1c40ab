"""An ASGI application behind the real server (uvicorn, TLS) in a thread of the test, and a raw client for it."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from brs import pki
from brs.limits import Application

READY_S = 20.0


@dataclass(frozen=True)
class Address:
    port: int
    trusting: ssl.SSLContext

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return self.trusting.wrap_socket(plain, server_hostname="localhost")


@contextmanager
def serving(application: Application) -> Iterator[Address]:
    """Serves ``application`` with certificates of ``settings.PKI_DIR`` until the block ends."""
    pki.ensure()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            application,
            log_config=None,
            lifespan="off",
            http="h11",
            timeout_graceful_shutdown=1,
            ssl_context_factory=lambda *_: pki.RunningContext().context,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + READY_S
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        try:
            yield Address(
                listener.getsockname()[1], ssl.create_default_context(cafile=str(pki.server_file().with_name("ca.pem")))
            )
        finally:
            server.should_exit = True
            thread.join(READY_S)


def read_response(connection: ssl.SSLSocket) -> tuple[int, bytes]:
    """Status and body of one HTTP/1.1 response with a Content-Length."""
    head, body = b"", b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(65536)
        assert piece, f"the connection ended after {head!r}"
        head += piece
    head, _, body = head.partition(b"\r\n\r\n")
    lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    length = int(lengths[0].partition(b":")[2])
    while len(body) < length:
        piece = connection.recv(65536)
        assert piece, "the body was cut off"
        body += piece
    return int(head.split()[1]), body
