"""A stream's snapshot rests on what the store lists when it is written, and on nothing else."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from node_agent.errors import DamagedError
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository.publish import BackupResult
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import list_snapshots
from node_agent.repository.stream import backup_stream
from node_agent.repository.writer import BlobWriter
from tests.repository.core_world import new_repo

CONTENT = os.urandom(1 << 20)


class Bytes(io.BytesIO):
    def readinto(self, b: memoryview, /) -> int:  # type: ignore[override]
        return super().readinto(b)


def _store(repo: Repository, name: str) -> BackupResult:
    with repo.lock() as lock:
        repo.load_index()
        return backup_stream(
            repo,
            lock,
            Bytes(CONTENT),
            name,
            host="h",
            progress=Progress(),
            issues=Issues(),
            time=datetime.now(UTC),
        )


@pytest.mark.parametrize("which", ["content", "tree"])
def test_a_stream_whose_blobs_are_not_listed_any_more_makes_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    repo, index = new_repo(tmp_path / "repo"), tmp_path / "repo" / "index"
    _store(repo, "first")
    old = set(index.iterdir())
    flush: Callable[[BlobWriter], None] = BlobWriter.flush

    def flush_and_lose(writer: BlobWriter) -> None:
        flush(writer)
        for path in old if which == "content" else set(index.iterdir()) - old:
            path.unlink()

    monkeypatch.setattr(BlobWriter, "flush", flush_and_lose)
    with pytest.raises(DamagedError, match="data blobs" if which == "content" else "tree blobs"):
        _store(repo, "second")
    assert len(list_snapshots(repo)) == 1
