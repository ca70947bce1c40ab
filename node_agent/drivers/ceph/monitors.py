"""Which monitors answer, and in which of Ceph's two protocols, found out before librados is asked.

librados says of a name that nobody knows, of a port where nobody listens and (where it may try the old protocol too)
of a wrong key the same: that it timed out. A monitor introduces itself, so it need not be guessed.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence

from node_agent.errors import BrsError

WAIT_S = 5.0
PORTS = (3300, 6789)
_BANNERS = {b"ceph v2\n": "v2", b"ceph v02": "v1"}
_PART = re.compile(r"(?:v[12]:)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+|[0-9A-Fa-f:]+?)(?::(\d+))?(?:/\d+)?")


def answering(hosts: Sequence[str], refused: type[BrsError]) -> str:
    """The ``mon_host`` of those that answer. Raises ``refused``, which says of each address why, if none does."""
    good: list[str] = []
    bad: list[str] = []
    for host, port in _addresses(hosts):
        try:
            good += _ask(host, port)
        except OSError as error:
            reason = "takes too long" if isinstance(error, TimeoutError) else error.strerror or str(error)
            bad.append(f"{host} port {port}: {reason}")
    if not good:
        raise refused(f"No monitor of the Ceph cluster answers ({'; '.join(dict.fromkeys(bad))}).")
    return ",".join(dict.fromkeys(good))


def _addresses(hosts: Sequence[str]) -> Iterator[tuple[str, int]]:
    for text in hosts:
        inner = text[1:-1].split(",") if text.startswith("[") and ":" in text[:4] else [text]
        for part in inner:
            found = _PART.fullmatch(part.strip())
            if found is None:
                continue
            for port in (int(found[2]),) if found[2] else PORTS:
                yield found[1].strip("[]"), port


def _ask(host: str, port: int) -> list[str]:
    with socket.create_connection((host, port), WAIT_S) as connection:
        connection.settimeout(WAIT_S)
        banner = b""
        while len(banner) < 8 and (piece := connection.recv(8 - len(banner))):
            banner += piece
        protocol = _BANNERS.get(banner)
        if protocol is None:
            raise OSError("what listens there is no Ceph monitor")
        address = connection.getpeername()[0]
    shown = f"[{address}]" if ":" in address else address
    return [f"[{protocol}:{shown}:{port}]"]
