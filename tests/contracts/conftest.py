from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.backend_peers import Peers


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    started = Peers(tmp_path_factory.mktemp("peers"))
    yield started
    started.stop()
