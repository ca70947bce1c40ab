"""TLS before a server that has none."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

from tests.listener import Listener


class TlsFront:
    def __init__(self, port: int, certificate: Path, key: Path) -> None:
        self._target = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = Listener(self._serve)
        self.port, self.close = self._listener.port, self._listener.close

    def _serve(self, client: socket.socket) -> None:
        """Whole requests of one after the other: each waits for its answer, so one thread for each way will do."""
        with contextlib.suppress(OSError):
            inside = self._context.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(inside, server), daemon=True).start()
            self._pump(server, inside)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
