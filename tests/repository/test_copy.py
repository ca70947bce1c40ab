from __future__ import annotations

import hashlib
import json
import os
import random
from datetime import timedelta
from pathlib import Path

import pytest

from node_agent.errors import BackendFull, ConfigError, DamagedError
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.check import check
from node_agent.repository.copy import CopyResult, copy_snapshots
from node_agent.repository.files_restore import dump
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import list_snapshots
from tests.repository.core_world import FAST, NOON, flip, make_snapshot, new_repo, open_repo, restic, stored

RNG = random.Random(8)
PARTS = [RNG.randbytes(60_000) for _ in range(6)]
OTHER_PASSWORD = "another key"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    repo = new_repo(tmp_path / "source")
    with repo.lock() as lock:
        for number in range(3):
            make_snapshot(
                repo,
                lock,
                {b"f": PARTS[number : number + 3], b"always": [b"the same"]},
                time=NOON + timedelta(days=number),
                tags=["t", "brs.point=1"],
            )
    Repository.init(open_backend(str(tmp_path / "target")), OTHER_PASSWORD, scrypt=FAST).close()
    return tmp_path / "source", tmp_path / "target"


def _open_target(folder: Path) -> Repository:
    return Repository.open(open_backend(str(folder)), OTHER_PASSWORD)


def _copy(source_folder: Path, target_folder: Path, *ids: str) -> CopyResult:
    source, target = open_repo(source_folder), _open_target(target_folder)
    with source.lock(), target.lock() as lock:
        source.load_index()
        target.load_index()
        found = [snapshot for snapshot in list_snapshots(source) if not ids or snapshot.id in ids]
        return copy_snapshots(source, target, lock, found)


def _prove(folder: Path, count: int) -> None:
    target = _open_target(folder)
    with target.lock():
        assert check(target, read_data=True).ok
    restic(folder, "check", "--read-data", password=OTHER_PASSWORD)
    found = list_snapshots(target)
    assert len(found) == count
    for snapshot in found:
        parts: list[bytes] = []
        dump(target, snapshot.id, b"/data/f", parts.append)
        number = (snapshot.time - NOON).days
        assert b"".join(parts) == b"".join(PARTS[number : number + 3])


def test_a_copy_is_whole_under_another_key_and_says_what_it_is_of(folders: tuple[Path, Path]) -> None:
    result = _copy(*folders)
    assert len(result.copied) == 3 and result.new_bytes > 5 * 60_000
    _prove(folders[1], 3)
    sources = {snapshot.id: snapshot for snapshot in list_snapshots(open_repo(folders[0]))}
    for snapshot in list_snapshots(_open_target(folders[1])):
        assert snapshot.original is not None
        origin = sources[snapshot.original]
        assert (snapshot.tree, snapshot.tags, snapshot.hostname) == (origin.tree, origin.tags, origin.hostname)


def test_a_second_run_copies_nothing_and_a_later_one_only_what_is_new(folders: tuple[Path, Path]) -> None:
    first = list_snapshots(open_repo(folders[0]))[0]
    assert [pair[0] for pair in _copy(*folders, first.id).copied] == [first.id]
    before = stored(folders[1], "data")
    result = _copy(*folders)
    assert [pair[0] for pair in result.skipped] == [first.id] and len(result.copied) == 2
    assert result.new_bytes < 2 * 60_000 + 5_000  # one new part for each, and trees
    assert set(before) < set(stored(folders[1], "data"))
    assert _copy(*folders).copied == []
    _prove(folders[1], 3)


def test_copies_of_copies_are_recognised(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _copy(*folders)
    source, target = open_repo(folders[0]), _open_target(folders[1])
    with source.lock() as lock, target.lock():
        source.load_index()
        target.load_index()
        back = copy_snapshots(target, source, lock, list_snapshots(target))
    assert back.copied == [] and len(back.skipped) == 3


def test_stock_restic_finds_our_copy_there_already(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _copy(*folders)
    (tmp_path / "password").write_text("correct horse")
    said = restic(
        folders[1],
        "copy",
        "--from-repo",
        str(folders[0]),
        "--from-password-file",
        str(tmp_path / "password"),
        password=OTHER_PASSWORD,
    ).stdout
    assert said.count("skipping") == 3
    _prove(folders[1], 3)


def test_what_stock_restic_wrote_in_version_1_is_copied(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "f").write_bytes(os.urandom(3 << 20))
    restic(tmp_path / "old", "init", "--repository-version", "1")
    restic(tmp_path / "old", "backup", str(tmp_path / "files"))
    assert len(_copy(tmp_path / "old", folders[1]).copied) == 1
    restic(folders[1], "check", "--read-data", password=OTHER_PASSWORD)
    (shown,) = json.loads(restic(folders[1], "snapshots", "--json", password=OTHER_PASSWORD).stdout)
    assert shown["paths"] == [str(tmp_path / "files")]


def test_damage_in_the_source_is_named_and_the_other_snapshots_are_there(folders: tuple[Path, Path]) -> None:
    repo = open_repo(folders[0])
    (place,) = repo.index.locations(BlobKind.DATA, hashlib.sha256(PARTS[4]).digest())
    flip(folders[0] / "data" / place.pack[:2] / place.pack, place.blob.offset + 9)
    with pytest.raises(DamagedError, match=place.pack):
        _copy(*folders)
    _prove(folders[1], 2)


def test_a_repository_is_not_copied_onto_itself(folders: tuple[Path, Path]) -> None:
    source = open_repo(folders[0])
    with source.lock() as lock, pytest.raises(ConfigError, match="same repository"):
        copy_snapshots(source, source, lock, list_snapshots(source))


def test_a_full_target_is_said_and_keeps_the_repository_good(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = LocalBackend.put

    def full(self: LocalBackend, kind: Kind, name: str, parts: object) -> None:
        if kind is Kind.PACK:
            raise BackendFull
        put(self, kind, name, parts)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "put", full)
        with pytest.raises(BackendFull):
            _copy(*folders)
    restic(folders[1], "check", "--read-data", password=OTHER_PASSWORD)
    assert len(_copy(*folders).copied) == 3
    _prove(folders[1], 3)
