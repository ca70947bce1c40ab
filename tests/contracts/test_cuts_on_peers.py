"""Operations that are cut at real servers: see peer_cuts.py, and docs/engine-maintenance.md for the counts.

BRS_ALL_CUTS=1: each operation, cut at each step; otherwise a share of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.backend_peers import Peers
from tests.contracts.peer_cuts import cut_at
from tests.repository.test_cuts import PAGE, in_memory, no_waiting, small_packs

__all__ = ["in_memory", "no_waiting", "small_packs"]  # fixtures

ALL = bool(os.environ.get("BRS_ALL_CUTS"))
CUT = ("backup of files, incremental", "forget", "prune", "copy", "key passwd", "repair index")


@pytest.fixture
def row() -> Iterator[list[str]]:
    cells: list[str] = []
    yield cells
    print(f"| {' | '.join(cells)} |")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sftp", "rest", "s3"])
@pytest.mark.parametrize("name", CUT if ALL else CUT[:1])
def test_cut_at_a_real_server_nothing_is_lost(
    name: str,
    kind: str,
    peers: Peers,
    in_memory: Path,
    row: list[str],
) -> None:
    steps, count, judged = cut_at(peers[kind], name, in_memory, every=1 if ALL else 5)
    row += [name, kind, str(steps), str(count), str(judged)]
    assert count >= (steps if ALL else 2) - 2 and judged
    assert f"| {name} |" in PAGE.read_text()
