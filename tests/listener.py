"""A server of tests on a port of its own: one thread accepts, until it is closed."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class Listener:
    """``taken`` is called for each connection, on the accepting thread unless ``each`` gets a thread of its own."""

    def __init__(self, taken: Callable[[socket.socket], object], *, each: bool = True) -> None:
        self._taken = taken
        self._each = each
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, which would take one more
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            if self._each:
                threading.Thread(target=self._taken, args=(client,), daemon=True).start()
            else:
                self._taken(client)
