"""When a forwarded socket is ready: the file comes before whoever listens on it."""

from __future__ import annotations

import socket
from pathlib import Path

from node_agent.drivers.libvirt.tunnel import _listens


def test_a_socket_is_ready_when_somebody_listens_on_it(tmp_path: Path) -> None:
    path = tmp_path / "nbd"
    assert not _listens(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert path.exists()
        assert not _listens(path)
        listener.listen()
        assert _listens(path)
    assert not _listens(path)
