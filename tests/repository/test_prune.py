from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from node_agent.errors import DamagedError, RepositoryError
from node_agent.repository.backend import Kind
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.check import check
from node_agent.repository.prune import prune
from node_agent.repository.repository import BlobKind
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from node_agent.repository.tree import walk
from tests.repository.core_world import flip, make_snapshot, new_repo, open_repo, restic, store, stored

RNG = random.Random(11)
KEPT = [RNG.randbytes(50_000) for _ in range(3)]
GONE = [RNG.randbytes(50_000) for _ in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One snapshot that stays; of what others needed some lies beside its data, some in packs of its own."""
    repo = new_repo(tmp_path / "repo")
    with repo.lock(exclusive=True) as lock:
        store(repo, [KEPT[0], GONE[0], KEPT[1]])  # one pack that holds both
        make_snapshot(repo, lock, {b"f": KEPT})
        other = make_snapshot(repo, lock, {b"g": GONE}, host="other")
        remove_snapshot(repo, other.id)
    orphan = b"named by nobody" * 100
    repo.backend.put(Kind.PACK, hashlib.sha256(orphan).hexdigest(), [orphan])
    return tmp_path / "repo"


def _prove_kept(folder: Path) -> None:
    """The snapshot that stays is whole: for us by its bytes, for stock restic by its own check."""
    repo = open_repo(folder)
    with repo.lock():
        (snapshot,) = list_snapshots(repo)
        (node,) = [node for path, node in walk(repo, bytes.fromhex(snapshot.tree)) if path == b"/data/f"]
        assert [repo.load_blob(BlobKind.DATA, blob_id) for blob_id in node.content] == KEPT
        assert check(repo, read_data=True).ok
    restic(folder, "check", "--read-data")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in stored(folder, "data"))


def test_what_no_snapshot_needs_is_gone_and_the_rest_is_whole(folder: Path) -> None:
    before = _size(folder)
    repo = open_repo(folder)
    with repo.lock(exclusive=True) as lock:
        planned = prune(repo, lock, dry_run=True)
        assert _size(folder) == before
        result = prune(repo, lock)
    assert (planned.removed_packs, planned.rewritten_packs, planned.orphaned_packs) == (
        result.removed_packs,
        result.rewritten_packs,
        result.orphaned_packs,
    )
    assert result.rewritten_packs == 1 and result.orphaned_packs == 1 and result.removed_packs >= 2
    assert _size(folder) < 160_000 < before
    assert abs(before - _size(folder) - result.freed_bytes) < 2000  # but for headers
    _prove_kept(folder)
    assert not open_repo(folder).has(BlobKind.DATA, hashlib.sha256(GONE[0]).digest())


def test_pruning_again_finds_nothing(folder: Path) -> None:
    repo = open_repo(folder)
    with repo.lock(exclusive=True) as lock:
        prune(repo, lock)
        before = stored(folder, "data") + stored(folder, "index")
        assert prune(repo, lock).to_json()["freed_bytes"] == 0
    assert stored(folder, "data") + stored(folder, "index") == before


def test_without_being_alone_nothing_is_pruned(folder: Path) -> None:
    repo = open_repo(folder)
    before = stored(folder, "data")
    with repo.lock() as lock, pytest.raises(RepositoryError, match="alone"):
        prune(repo, lock)
    assert stored(folder, "data") == before


@pytest.mark.parametrize("kind", ["snapshots", "index", "data"])
def test_a_damaged_repository_is_left_as_it_is(folder: Path, kind: str) -> None:
    repo = open_repo(folder)
    if kind == "data":
        (tree,) = [bytes.fromhex(snapshot.tree) for snapshot in list_snapshots(repo)]
        (place,) = repo.index.locations(BlobKind.TREE, tree)
        flip(folder / "data" / place.pack[:2] / place.pack, place.blob.offset + 20)
    else:
        flip(stored(folder, kind)[0], 40)
    before = stored(folder, "data") + stored(folder, "index")
    repo = open_repo(folder)
    with repo.lock(exclusive=True) as lock, pytest.raises(DamagedError):
        prune(repo, lock)
    assert stored(folder, "data") + stored(folder, "index") == before


def test_needed_data_that_is_damaged_ends_a_rewrite_with_nothing_removed(folder: Path) -> None:
    repo = open_repo(folder)
    (place,) = repo.index.locations(BlobKind.DATA, hashlib.sha256(KEPT[0]).digest())
    flip(folder / "data" / place.pack[:2] / place.pack, place.blob.offset + 20)
    before = stored(folder, "data")
    with repo.lock(exclusive=True) as lock, pytest.raises(DamagedError, match=place.pack):
        prune(repo, lock)
    assert set(before) <= set(stored(folder, "data"))


class _Cut(Exception):
    """The power went."""


def test_cut_before_any_write_or_delete_nothing_needed_is_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops at the first change to the store, then at the second, and so on until it gets through."""
    put, delete = LocalBackend.put, LocalBackend.delete
    left = 0

    def count(kind: Kind) -> None:
        nonlocal left
        if kind is not Kind.LOCK:
            left -= 1
            if left < 0:
                raise _Cut

    def cut_put(self: LocalBackend, kind: Kind, name: str, parts: object) -> None:
        count(kind)
        put(self, kind, name, parts)  # type: ignore[arg-type]

    def cut_delete(self: LocalBackend, kind: Kind, name: str) -> None:
        count(kind)
        delete(self, kind, name)

    for steps in range(100):
        left = steps
        repo = open_repo(folder)
        with monkeypatch.context() as patch:
            patch.setattr(LocalBackend, "put", cut_put)
            patch.setattr(LocalBackend, "delete", cut_delete)
            try:
                with repo.lock(exclusive=True) as lock:
                    prune(repo, lock)
                break
            except _Cut:
                pass
        _prove_kept(folder)
    assert 3 < steps < 99
    _prove_kept(folder)
    assert _size(folder) < 160_000
