"""The cache of folders: an unchanged tree costs a look at it, and a changed one is never taken for unchanged."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from node_agent.errors import DamagedError
from node_agent.repository import files_walk
from node_agent.repository.backend import open_backend
from node_agent.repository.files_browse import find_node
from node_agent.repository.publish import BackupResult
from node_agent.repository.repository import Repository
from tests.repository.core_world import FAST, PASSWORD
from tests.repository.data_world import MIB, back_up, bring_back

SETTLED_S = 2 * files_walk.TICK_NS / 1e9


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree old enough that nothing in it can have changed in the last tick."""
    source = tmp_path / "source"
    for folder in ("a/deep/er", "b", "empty"):
        (source / folder).mkdir(parents=True)
        (source / folder / "file").write_bytes(folder.encode())
    (source / "empty" / "file").unlink()
    (source / "large").write_bytes(os.urandom(2 * MIB))
    (source / "link").symlink_to("b")
    time.sleep(SETTLED_S)
    return source


def opened(tmp_path: Path) -> Repository:
    path = tmp_path / "repo"
    if not path.exists():
        Repository.init(open_backend(str(path)), PASSWORD, scrypt=FAST)
    return Repository.open(open_backend(str(path)), PASSWORD, cache_dir=tmp_path / "cache")


def run(tmp_path: Path, source: Path, parent: BackupResult | None = None) -> BackupResult:
    with opened(tmp_path) as repo:
        return back_up(repo, source, parent=parent.snapshot_id if parent is not None else None)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The trees that the walk reads from the repository."""
    seen: list[bytes] = []
    honest = files_walk.load_tree

    def load(repo: Repository, tree: bytes) -> object:
        seen.append(tree)
        return honest(repo, tree)

    monkeypatch.setattr(files_walk, "load_tree", load)
    return seen


def tree_of(tmp_path: Path, source: Path, result: BackupResult) -> bytes | None:
    with opened(tmp_path) as repo, repo.lock():
        repo.load_index()
        return find_node(repo, result.snapshot_id, os.fsencode(source)).subtree


def test_an_unchanged_tree_is_not_read_from_the_repository_either(
    tmp_path: Path, source: Path, loaded: list[bytes]
) -> None:
    first = run(tmp_path, source)
    second = run(tmp_path, source, first)
    assert tree_of(tmp_path, source, first) == tree_of(tmp_path, source, second)
    above = len(source.parts)  # the folders above the root are always read
    assert len(loaded) <= above
    assert (second.files, second.dirs, second.size_bytes) == (first.files, first.dirs, first.size_bytes)
    assert (second.files_unmodified, second.read_bytes) == (first.files, 0)


@pytest.mark.parametrize("change", ["content", "mode", "xattr", "new", "gone", "renamed", "touched back"])
def test_a_change_deep_below_is_found(tmp_path: Path, source: Path, change: str) -> None:
    file = source / "a" / "deep" / "er" / "file"
    first = run(tmp_path, source)
    before = file.stat()
    if change == "content":
        file.write_bytes(b"A/DEEP/ER")
    elif change == "mode":
        file.chmod(0o640)
    elif change == "xattr":
        os.setxattr(file, "user.brs", b"1")
    elif change == "new":
        (file.parent / "more").write_bytes(b"more")
    elif change == "gone":
        file.unlink()
    elif change == "renamed":
        file.rename(file.with_name("other"))
    else:
        file.write_bytes(b"a/dEEp/er")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and mtime as before, ctime not
    second = run(tmp_path, source, first)
    with opened(tmp_path) as repo:
        bring_back(repo, second.snapshot_id, tmp_path / "out")
    out = tmp_path / "out" / source.relative_to("/")
    kept = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert kept == {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert tree_of(tmp_path, source, first) != tree_of(tmp_path, source, second)
    assert second.files_unmodified == first.files - (change not in ("new",))


def test_the_tree_is_the_same_with_and_without_the_cache(tmp_path: Path, source: Path) -> None:
    first = run(tmp_path, source)
    (source / "b" / "file").write_bytes(b"other")
    with_cache = run(tmp_path, source, first)
    for path in (tmp_path / "cache").glob("*.folders.sqlite*"):
        path.unlink()
    without = run(tmp_path, source, first)
    assert tree_of(tmp_path, source, with_cache) == tree_of(tmp_path, source, without)


def test_once_the_index_lost_something_everything_is_looked_at_again(tmp_path: Path, source: Path) -> None:
    first = run(tmp_path, source)
    for path in (tmp_path / "repo" / "index").iterdir():
        path.unlink()
    second = run(tmp_path, source, first)
    assert second.files_unmodified == 0
    with opened(tmp_path) as repo:
        assert bring_back(repo, second.snapshot_id, tmp_path / "out").files == second.files


def test_an_index_that_loses_something_meanwhile_leaves_no_snapshot_with_holes(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, source)
    honest = files_walk.Walk.store

    def store(self: files_walk.Walk, plan: object) -> bytes:
        tree = honest(self, plan)  # type: ignore[arg-type]
        for path in (tmp_path / "repo" / "index").iterdir():
            path.unlink()
        return tree

    monkeypatch.setattr(files_walk.Walk, "store", store)
    with pytest.raises(DamagedError):
        run(tmp_path, source, first)
    assert len(list((tmp_path / "repo" / "snapshots").iterdir())) == 1


def test_what_was_left_out_is_tried_again(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = files_walk.open_regular

    def refuse(name: bytes, folder_fd: int) -> int:
        raise PermissionError(13, "refused") if name == b"large" else AssertionError

    def open_others(name: bytes, folder_fd: int) -> int:
        return refuse(name, folder_fd) if name == b"large" else honest(name, folder_fd)

    with monkeypatch.context() as patch:
        patch.setattr(files_walk, "open_regular", open_others)
        first = run(tmp_path, source)
    assert first.partial
    second = run(tmp_path, source, first)
    assert not second.partial
    assert second.files == first.files + 1


def test_a_damaged_cache_is_thrown_away(tmp_path: Path, source: Path) -> None:
    first = run(tmp_path, source)
    (path,) = (tmp_path / "cache").glob("*.folders.sqlite")
    path.write_bytes(b"no database" * 1000)
    second = run(tmp_path, source, first)
    assert tree_of(tmp_path, source, first) == tree_of(tmp_path, source, second)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM folders").fetchone()[0] >= second.dirs
