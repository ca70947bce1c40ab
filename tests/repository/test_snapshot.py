from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from node_agent.errors import DamagedError, RepositoryLocked, SnapshotNotFound
from node_agent.repository.backend import Kind
from node_agent.repository.repository import BlobKind
from node_agent.repository.snapshot import (
    find_snapshot,
    list_snapshots,
    load_snapshot,
    new_snapshot,
    prove_content,
    remove_snapshot,
    save_snapshot,
)
from node_agent.repository.tree import load_tree, walk
from tests.repository.core_world import NOON, flip, make_snapshot, new_repo, open_repo, stored

FILES = {b"a": [b"one", b"two"], b"empty": []}


@pytest.fixture
def repo(tmp_path: Path):
    return new_repo(tmp_path / "repo")


def test_a_snapshot_is_read_as_it_was_saved(repo) -> None:
    with repo.lock() as lock:
        saved = make_snapshot(repo, lock, FILES, tags=["brs.task=1", "ü"])
    assert load_snapshot(repo, saved.id) == saved
    assert [path for path, _ in walk(repo, bytes.fromhex(saved.tree))] == [b"/data", b"/data/a", b"/data/empty"]


def test_a_snapshot_whose_tree_is_not_stored_is_never_written(repo, tmp_path: Path) -> None:
    with repo.lock() as lock, pytest.raises(DamagedError, match="ab" * 32):
        save_snapshot(repo, lock, new_snapshot(time=NOON, tree="ab" * 32, hostname="h", paths=["/x"]))
    assert stored(tmp_path / "repo", "snapshots") == []


def test_content_is_proven_against_the_store_and_not_the_memory_of_it(repo, tmp_path: Path) -> None:
    with repo.lock() as lock:
        saved = make_snapshot(repo, lock, FILES)
        ids = [i for _, node in walk(repo, bytes.fromhex(saved.tree)) for i in node.content]
        prove_content(repo, ids)
        for path in stored(tmp_path / "repo", "index"):  # as if somebody had pruned meanwhile
            path.unlink()
        with pytest.raises(DamagedError, match="2 data blobs"):
            prove_content(repo, ids)
        with pytest.raises(DamagedError):
            save_snapshot(repo, lock, saved)


def test_a_snapshot_is_refused_once_the_lock_file_is_gone(repo, tmp_path: Path) -> None:
    with repo.lock() as lock:
        saved = make_snapshot(repo, lock, FILES)
        repo.backend.delete(Kind.LOCK, lock.name)
        with pytest.raises(RepositoryLocked):
            save_snapshot(repo, lock, saved)
    assert len(stored(tmp_path / "repo", "snapshots")) == 1


def test_snapshots_are_found_by_latest_id_and_filters(repo) -> None:
    with repo.lock() as lock:
        old = make_snapshot(repo, lock, FILES, host="a", tags=["x", "y"])
        new = make_snapshot(repo, lock, FILES, host="b", time=NOON + timedelta(hours=1), tags=["x"])
    assert [s.id for s in list_snapshots(repo)] == [old.id, new.id]
    assert find_snapshot(repo, "latest") == new
    assert find_snapshot(repo, "latest", hosts=["a"]) == old
    assert find_snapshot(repo, "latest", tags=[["x", "y"]]) == old
    assert find_snapshot(repo, old.id) == find_snapshot(repo, old.id[:20]) == old
    assert list_snapshots(repo, paths=["/data"]) == [old, new]
    assert list_snapshots(repo, paths=["/data", "/other"]) == []
    for spec in ("zz", "", "0" * 64):
        with pytest.raises(SnapshotNotFound):
            find_snapshot(repo, spec)
    with pytest.raises(SnapshotNotFound, match="no snapshot that matches"):
        find_snapshot(repo, "latest", hosts=["nobody"])


def test_the_beginning_of_two_ids_is_ambiguous(repo) -> None:
    for first in ("ab", "ac"):
        repo.backend.put(Kind.SNAPSHOT, first * 32, [b"x"])
    with pytest.raises(SnapshotNotFound, match="2 snapshots"):
        find_snapshot(repo, "a")


def test_a_removed_snapshot_is_gone_and_removing_it_again_says_so(repo) -> None:
    with repo.lock(exclusive=True) as lock:
        saved = make_snapshot(repo, lock, FILES)
        remove_snapshot(repo, saved.id)
        assert list_snapshots(repo) == []
        with pytest.raises(SnapshotNotFound):
            remove_snapshot(repo, saved.id)


def test_a_flipped_snapshot_is_named(repo, tmp_path: Path) -> None:
    with repo.lock() as lock:
        saved = make_snapshot(repo, lock, FILES)
    flip(tmp_path / "repo" / "snapshots" / saved.id, 40)
    with pytest.raises(DamagedError, match=saved.id):
        list_snapshots(repo)


def test_a_damaged_snapshot_does_not_hide_the_others_from_who_asks_so(repo, tmp_path: Path) -> None:
    with repo.lock() as lock:
        bad, good = make_snapshot(repo, lock, FILES), make_snapshot(repo, lock, FILES, host="other")
    flip(tmp_path / "repo" / "snapshots" / bad.id, 40)
    told: list[DamagedError] = []
    assert [snapshot.id for snapshot in list_snapshots(repo, damaged=told.append)] == [good.id]
    assert find_snapshot(repo, "latest", damaged=told.append).id == good.id
    assert [bad.id in str(error) for error in told] == [True, True]


@pytest.mark.parametrize("fields", [{"paths": [5]}, {"tags": [1]}, {"hostname": 5}, {"paths": 5}])
def test_a_snapshot_whose_texts_are_none_is_damaged(repo, fields: dict) -> None:
    content = {"time": "2026-01-01T00:00:00Z", "tree": "0" * 64, "paths": ["/x"]} | fields
    name = repo.files.save(Kind.SNAPSHOT, json.dumps(content).encode())
    with pytest.raises(DamagedError, match=name):
        load_snapshot(repo, name)


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"time":"x","tree":"' + b"0" * 64 + b'"}', b"nonsense{"])
def test_a_sealed_file_that_is_no_snapshot_is_named(repo, content: bytes) -> None:
    name = repo.files.save(Kind.SNAPSHOT, b"[" + content + b"]" if content == b"nonsense{" else content)
    with pytest.raises(DamagedError, match=name):
        load_snapshot(repo, name)


def test_a_tree_that_is_none_is_named(repo) -> None:
    from node_agent.progress import Progress

    with repo.lock(), repo.writer(Progress()) as writer:
        bad = writer.save(BlobKind.TREE, b"no tree")
    with pytest.raises(DamagedError, match=bad.id.hex()):
        load_tree(open_repo(Path(repo.backend.url.removeprefix("local:"))), bad.id)
