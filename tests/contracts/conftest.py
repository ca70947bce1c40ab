from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.backend_peers import Peers, Radosgw
from tests.contracts.lock_world import World


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    started = Peers(tmp_path_factory.mktemp("peers"))
    yield started
    started.stop()


@pytest.fixture
def gateway(peers: Peers) -> Radosgw:
    peer = peers["radosgw"]
    assert isinstance(peer, Radosgw)
    return peer


@pytest.fixture
def world(gateway: Radosgw) -> World:
    return World(gateway)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(20):
        (folder / f"file{number}").write_bytes(os.urandom(50_000))
    return folder
