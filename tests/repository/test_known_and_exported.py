"""What this machine remembers of a repository, and the copy of keys and config that can be put back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from node_agent.errors import ConfigError, DamagedError, RepositoryError, RepositoryMissing, WrongPassword
from node_agent.repository.backend import open_backend
from node_agent.repository.check import CheckReport, check
from node_agent.repository.key_export import export_keys, restore_keys
from node_agent.repository.keys import change_password, open_master_key, remove_key
from node_agent.repository.known_objects import Known, KnownObjects
from node_agent.repository.maintenance import TagChange, forget_ids, tag_snapshots
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import Snapshot, save_snapshot
from tests.repository.cli_world import Cli
from tests.repository.core_world import NOON, PASSWORD, flip, make_snapshot, new_repo, open_repo, restic, stored


def _check(repo: Repository) -> CheckReport:
    with repo.lock(), KnownObjects(repo.cache_path("known")) as known:
        return check(repo, known=known)


@pytest.fixture
def world(tmp_path: Path) -> tuple[Repository, Path, Snapshot, Snapshot]:
    """Two snapshots of one workload, with a cache."""
    repo = new_repo(tmp_path / "repo", cache_dir=tmp_path / "cache")
    with repo.lock() as lock:
        old = make_snapshot(repo, lock, {b"f": [b"x"]})
        new = save_snapshot(repo, lock, replace(old, id="", time=NOON + timedelta(days=1)))
    return repo, tmp_path / "repo", old, new


def test_a_snapshot_deleted_by_a_stranger_is_missed(world) -> None:
    repo, folder, old, new = world
    (folder / "snapshots" / old.id).unlink()
    report = _check(repo)
    assert report.ok and old.id in report.notes[0]
    assert _check(repo).notes == []  # told once
    (folder / "snapshots" / new.id).unlink()
    for _ in range(2):  # until it is accepted
        (error,) = _check(repo).errors
        assert (error.kind, error.name) == ("gone", new.id) and "host /data" in error.message
    with repo.lock() as lock:
        make_snapshot(repo, lock, {b"f": [b"y"]}, time=NOON + timedelta(days=2))
    report = _check(repo)  # a newer one is there: what was lost is told for the last time
    assert report.ok and new.id in report.notes[0]


def test_a_snapshot_that_we_removed_is_not_missed_but_noticed_when_it_is_back(world) -> None:
    repo, folder, old, new = world
    kept = (folder / "snapshots" / new.id).read_bytes()
    with repo.lock(exclusive=True):
        forget_ids(repo, [new.id])
    assert _check(repo).notes == []
    (folder / "snapshots" / new.id).write_bytes(kept)
    report = _check(repo)
    assert report.ok and "here again" in report.notes[0] and new.id in report.notes[0]
    assert old.id not in " ".join(report.notes)


def test_what_a_rule_removed_is_not_missed_more_because_we_removed_the_newest_after_it(world) -> None:
    repo, folder, old, new = world
    (folder / "snapshots" / old.id).unlink()  # another program forgot it; we hear of that now
    with repo.lock(exclusive=True):
        forget_ids(repo, [new.id])
    report = _check(repo)
    assert report.ok and old.id in report.notes[0]


@pytest.mark.parametrize("by", ["us", "restic"])
def test_a_snapshot_whose_tags_changed_is_not_gone(world, by: str) -> None:
    repo, folder, _, new = world
    if by == "restic":
        restic(folder, "tag", "--add", "t", new.id)
    else:
        with repo.lock(exclusive=True) as lock:
            tag_snapshots(repo, lock, [new], TagChange(add=["t"]))
    report = _check(repo)
    assert report.ok
    assert len(report.notes) == (1 if by == "restic" else 0)  # restic does not tell us what it removes


def test_a_snapshot_that_another_machine_tagged_and_we_removed_is_not_missed(world) -> None:
    repo, folder, _, new = world
    with open_repo(folder) as other, other.lock(exclusive=True) as lock:
        other.load_index()
        ((_, tagged),) = tag_snapshots(other, lock, [new], TagChange(add=["t"]))
    with repo.lock(exclusive=True):
        forget_ids(repo, [tagged])
    report = _check(repo)
    assert report.ok and report.notes == []


def test_a_snapshot_that_we_tagged_and_a_stranger_deleted_is_missed(world) -> None:
    repo, folder, _, new = world
    with repo.lock(exclusive=True) as lock:
        repo.load_index()
        ((_, tagged),) = tag_snapshots(repo, lock, [new], TagChange(add=["t"]))
    (folder / "snapshots" / tagged).unlink()
    (error,) = _check(repo).errors
    assert (error.kind, error.name) == ("gone", tagged)


def test_keys_that_came_or_went_are_told(world) -> None:
    repo, *_ = world
    assert _check(repo).notes == []
    with repo.lock(exclusive=True):
        name = repo.add_key("other")
    (note,) = _check(repo).notes
    assert name in note and "added" in note
    with repo.lock(exclusive=True):
        remove_key(repo.backend, name, current="")
    (note,) = _check(repo).notes
    assert name in note and "gone" in note


def test_a_broken_memory_is_begun_anew_and_none_is_needed(world, tmp_path: Path) -> None:
    repo, _, old, _ = world
    path = repo.cache_path("known")
    assert path is not None
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(b"no database at all" * 500)
    assert _check(repo).ok
    with KnownObjects(path) as known:
        assert {one.id for one in known.gone(set())} >= {old.id}
    with KnownObjects(None) as known:
        known.saw([Known(old.id, "w", 1)])
        assert not known.remembers


def test_a_memory_that_cannot_be_kept_fails_no_backup(world, caplog: pytest.LogCaptureFixture) -> None:
    repo, *_ = world
    path = repo.cache_path("known")
    assert path is not None
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.mkdir()
    with repo.lock(exclusive=True) as lock:
        made = make_snapshot(repo, lock, {b"f": [b"z"]})
        forget_ids(repo, [made.id])
    assert str(path) in caplog.text


def test_exported_keys_bring_a_repository_back_that_lost_them(world, tmp_path: Path) -> None:
    repo, folder, *_ = world
    with repo.lock():
        repo.add_key("second")
    exported = export_keys(repo)
    assert PASSWORD.encode() not in exported
    backend = open_backend(str(folder))
    assert restore_keys(backend, exported, PASSWORD) == restore_keys(backend, exported, "second")
    for path in (*stored(folder, "keys"), folder / "config"):
        flip(path, path.stat().st_size // 2)
    with pytest.raises(DamagedError):
        open_repo(folder)
    for path in stored(folder, "keys")[:1]:
        path.unlink()
    put_back = restore_keys(backend, exported, "second")
    assert put_back.config and len(put_back.keys) == 2
    assert _check(open_repo(folder)).ok
    (folder / "config").unlink()
    with pytest.raises(RepositoryMissing):
        open_repo(folder)
    assert restore_keys(backend, exported, PASSWORD).config
    assert "no errors" in restic(folder, "check", "--read-data").stdout


def test_exported_keys_are_put_only_where_they_belong(world, tmp_path: Path) -> None:
    repo, folder, *_ = world
    exported = export_keys(repo)
    other = new_repo(tmp_path / "other")
    with other.lock() as lock:
        make_snapshot(other, lock, {b"f": [b"theirs"]})
    with pytest.raises(RepositoryError, match="Nothing in the store opens"):
        restore_keys(other.backend, exported, PASSWORD)
    assert open_repo(tmp_path / "other").id == other.id
    with pytest.raises(WrongPassword):
        restore_keys(open_backend(str(folder)), exported, "wrong")
    value = json.loads(exported)
    for bad in (b"", b"{}", json.dumps(value | {"keys": {}}).encode(), exported.replace(b'"ey', b'"ez', 1)):
        with pytest.raises(ConfigError):
            restore_keys(open_backend(str(folder)), bad, PASSWORD)


def test_an_export_from_before_a_change_of_password_still_helps(world) -> None:
    repo, folder, *_ = world
    exported = export_keys(repo)
    with repo.lock(exclusive=True):
        change_password(repo.backend, open_master_key(repo.backend, PASSWORD), "new")
    for path in stored(folder, "keys"):
        path.unlink()
    restore_keys(open_backend(str(folder)), exported, PASSWORD)
    assert open_repo(folder).id == repo.id


def test_the_commands(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.run("init")
    (tmp_path / "file").write_text("content")
    cli.run("backup", str(tmp_path / "file"))
    kept = tmp_path / "keys.json"
    cli.run("key", "export", str(kept))
    assert kept.stat().st_mode & 0o777 == 0o600
    for path in stored(cli.repo, "keys"):
        path.unlink()
    assert "no keys" in cli.error("snapshots", expect=10)
    assert cli.json("key", "restore", str(kept))["config"] is False
    assert "as it should be" in cli.run("key", "restore", str(kept)).stdout.decode()
    cli.run("check")
    for path in stored(cli.repo, "snapshots"):
        path.unlink()
    (problem,) = cli.json("check", expect=1)["errors"]
    assert problem["kind"] == "gone"
    assert "was here and is gone" in cli.error("check", "--accept-gone")
    cli.run("check")
    assert "cannot be read" in cli.error("key", "restore", str(tmp_path / "none"))
