"""Ports for servers that tests start, and start again after they were killed."""

from __future__ import annotations

import random
import socket

# Below those that the kernel gives to whoever asks for any port (32768 to 60999), and not the usual ones: nobody takes
# such a port while its server is down for a moment.
_RANGE = range(12_000, 32_000)


def port_of_its_own() -> int:
    while True:
        port = random.SystemRandom().choice(_RANGE)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
