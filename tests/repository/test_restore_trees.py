"""The trees of a restore: counted before, fetched together and kept, and never more than there is room for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository import restore_trees
from node_agent.repository.reader import BlobReader
from node_agent.repository.repository import Repository
from node_agent.repository.restore_trees import Trees
from node_agent.repository.snapshot import load_snapshot
from tests.repository.core_world import flip, new_repo, open_repo, stored
from tests.repository.data_world import back_up, bring_back, differences, fingerprint, restored


def make_tree(top: Path, *, alike: bool = True) -> tuple[int, int]:
    """(files, their bytes): folders deep and wide, some of them alike, and names that look like JSON."""
    files = size = 0
    for wide in range(90):
        deep = top / f"d{wide}" / "a" / "b" / "c"
        deep.mkdir(parents=True)
        if alike:
            (top / f"e{wide}" / "alike").mkdir(parents=True)  # one tree, met ninety times
        for folder in (deep, deep.parent.parent):
            (folder / f"f{wide}").write_bytes(os.urandom(100 + wide))
            files, size = files + 1, size + 100 + wide
    for name in ('"size":77,', '"type":"file"', '","subtree":"' + "0" * 64 + '"'):
        (top / name).write_bytes(b"123")
        files, size = files + 1, size + 3
    return files, size


def top_tree(repo: Repository, snapshot: str) -> bytes:
    return bytes.fromhex(load_snapshot(repo, snapshot).tree)


@pytest.mark.parametrize("room", [24 << 20, 3000, 0])
def test_everything_is_counted_and_restored_however_little_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    source = tmp_path / "source"
    files, size = make_tree(source)
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    monkeypatch.setattr(restore_trees, "HELD_BYTES", room)
    progress = Progress()
    bring_back(repo, snapshot, tmp_path / "out", progress=progress)
    counters = progress.counters
    assert (counters.total_files, counters.total_bytes) == (files, size)
    assert (counters.done_files, counters.done_bytes) == (files, size)
    assert differences(fingerprint(source), fingerprint(restored(tmp_path / "out", source))) == {}


def test_what_is_chosen_is_counted_by_its_paths(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_tree(source)
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    progress = Progress()
    chosen = [os.fsencode(source / "d3"), os.fsencode(source / "d4" / "a" / "b" / "c" / "f4")]
    bring_back(repo, snapshot, tmp_path / "out", include=chosen, progress=progress)
    assert (progress.counters.total_files, progress.counters.total_bytes) == (3, 2 * 103 + 104)


def test_trees_are_fetched_together_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    make_tree(source, alike=False)
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    fetches: list[int] = []
    load = BlobReader.load_fitting

    def noted(self: BlobReader, kind: object, ids: list[bytes], room: int) -> dict[bytes, bytes]:
        fetches.append(len(ids))
        return load(self, kind, ids, room)  # type: ignore[arg-type]

    monkeypatch.setattr(BlobReader, "load_fitting", noted)
    bring_back(repo, snapshot, tmp_path / "out")
    trees = 90 * 4 + len(source.parts)
    assert sum(fetches) <= 1.1 * trees
    assert len(fetches) <= trees // 10


def test_what_is_kept_stays_within_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    make_tree(source)
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    monkeypatch.setattr(restore_trees, "HELD_BYTES", 5000)
    with repo.lock():
        repo.load_index()
        trees = Trees(repo, whole=True)
        for _ in trees.count(top_tree(repo, snapshot)):
            assert sum(map(len, trees._held.values())) == trees._held_bytes <= 5000
        assert trees._held


def test_a_damaged_tree_is_not_counted_and_what_is_beside_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    files, _ = make_tree(source)
    repo = new_repo(tmp_path / "repo")
    back_up(repo, source / "d7")
    with repo.lock():
        repo.load_index()
        packs = {name for name, blobs in repo.index.packs() if blobs[0].kind == "tree"}
    (pack,) = [path for path in stored(tmp_path / "repo", "data") if path.name in packs]
    snapshot = back_up(repo, source).snapshot_id
    flip(pack, 10)  # the first blob: the deepest folder of d7, with one file
    progress, issues = Progress(), Issues()
    result = bring_back(open_repo(tmp_path / "repo"), snapshot, tmp_path / "out", progress=progress, issues=issues)
    assert progress.counters.total_files == files - 1
    assert (result.files, result.damaged, issues.left_out) == (files - 1, 1, 1)
