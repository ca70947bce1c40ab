"""The cache databases are cut, torn and replaced by older ones: what a backup makes is whole all the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.repository import local_db
from node_agent.repository.index import Index
from node_agent.repository.lock import Locks
from node_agent.repository.prune import PruneOptions, prune
from node_agent.repository.repair_packs import repair_packs
from node_agent.repository.repository import BlobKind
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from tests.repository.core_world import flip, new_repo, open_repo, restic
from tests.repository.data_world import back_up, bring_back, differences, fingerprint, restored

RNG = random.Random(31)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Locks.acquire, "__kwdefaults__", Locks.acquire.__kwdefaults__ | {"settle_s": 0})


class World:
    """A repository, the cache of one machine, and a tree of files that changes in turns."""

    def __init__(self, folder: Path) -> None:
        self.repo, self.cache, self.source = folder / "repo", folder / "cache", folder / "source"
        (self.source / "same").mkdir(parents=True)
        for number in range(5):
            (self.source / "same" / f"f{number}").write_bytes(RNG.randbytes(300))
        new_repo(self.repo).close()

    def change(self, name: str) -> Path:
        path = self.source / name / "file"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(RNG.randbytes(500))
        return path

    def back_up(self) -> str:
        with open_repo(self.repo, cache_dir=self.cache) as repo:
            parents = list_snapshots(repo)
            return back_up(repo, self.source, parent=parents[-1].id if parents else None).snapshot_id

    def prove(self, out: Path) -> None:
        """The next backup with this cache is whole, for stock restic and by its content; the index is the store's."""
        snapshot = self.back_up()
        restic(self.repo, "check", "--read-data")
        with open_repo(self.repo, cache_dir=self.cache) as repo, contextlib.closing(Index(repo.files, "anew")) as anew:
            bring_back(repo, snapshot, out)
            assert differences(fingerprint(self.source), fingerprint(restored(out, self.source))) == {}
            anew.refresh()
            assert list(repo.index.packs()) == list(anew.packs())
            assert repo.index.file_names() == anew.file_names()
            assert repo.index.blob_count() == anew.blob_count()
        shutil.rmtree(out)

    def databases(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.cache.glob("*.sqlite*")}

    def put_back(self, databases: dict[str, bytes]) -> None:
        for name, content in databases.items():
            for suffix in ("-wal", "-shm"):
                if f"{name}{suffix}" not in databases:
                    (self.cache / f"{name}{suffix}").unlink(missing_ok=True)
            (self.cache / name).write_bytes(content)


# --- killed between any two statements ---


class _Killing(local_db.LocalDatabase):
    left = 0

    def execute(self, *args: Any) -> sqlite3.Cursor:
        self._count()
        return super().execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        self._count()
        return super().executemany(*args)

    @classmethod
    def _count(cls) -> None:
        cls.left -= 1
        if cls.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _killed_at(statement: int, action: Callable[[], object]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            _Killing.left = statement
            connect = sqlite3.connect
            sqlite3.connect = lambda *a, **o: connect(*a, **o | {"factory": _Killing})  # type: ignore[assignment]
            action()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.slow
def test_a_backup_killed_at_any_statement_of_its_databases_spoils_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.back_up()
    world.change("new")
    shutil.copytree(world.repo, tmp_path / "kept repo")
    kept = world.databases()
    for statement in range(0, 400, 2):  # odd ones lie within the same transactions
        shutil.rmtree(world.repo)
        shutil.copytree(tmp_path / "kept repo", world.repo)
        world.put_back(kept)
        if not _killed_at(statement, world.back_up):
            break
        restic(world.repo, "unlock")
        world.prove(tmp_path / "out")
    print(f"killed at {statement // 2} statements")
    assert statement > 30


# --- torn ---


def _while_open(world: World) -> dict[str, bytes]:
    """The databases as a kill leaves them after a backup: with their logs, which nothing has emptied."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _back_up_and_hold(world)
            os.write(writer, b"done")
            signal.pause()
        except Exception:  # noqa: BLE001 - told here; the parent sees that nothing was done
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 4) == b"done"
    found = world.databases()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return found


def _back_up_and_hold(world: World) -> None:
    """Second connections that are reading keep SQLite from emptying the logs."""
    connect, held = sqlite3.connect, []

    def holding(path: str, **options: Any) -> sqlite3.Connection:
        db = connect(path, **options)
        if str(path).endswith(".sqlite"):
            held.append(connect(path))
            held[-1].execute("BEGIN")
            held[-1].execute("SELECT count(*) FROM sqlite_master").fetchone()
        return db

    sqlite3.connect = holding  # type: ignore[assignment]
    repo = open_repo(world.repo, cache_dir=world.cache)
    back_up(repo, world.source, parent=list_snapshots(repo)[-1].id)
    _HELD.extend([repo, *held])


_HELD: list[object] = []  # until the process is killed


def _torn(databases: dict[str, bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Logs that end within any frame, or hold a false one: what a power cut may leave of what was not synced."""
    for name in [name for name in databases if name.endswith("-wal")]:
        log = databases[name]
        rest = {other: content for other, content in databases.items() if not other.endswith("-shm")}
        frame = 24 + int.from_bytes(log[8:12], "big")
        for start in range(32, len(log) + 1, frame):
            yield f"{name} ends at {start}", rest | {name: log[:start]}
            yield f"{name} ends within a frame at {start}", rest | {name: log[: start + frame // 2]}
            yield f"{name} holds zeros from {start}", rest | {name: log[:start] + bytes(len(log) - start)}
        yield f"{name} is gone", {other: content for other, content in rest.items() if other != name}
        yield f"{name} is empty", rest | {name: b""}


def test_databases_with_torn_logs_serve_or_are_made_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.back_up()
    world.change("new")
    databases = _while_open(world)
    restic(world.repo, "unlock")
    assert any(name.endswith("-wal") and content for name, content in databases.items())
    count = 0
    for what, torn in _torn(databases):
        world.put_back(torn)
        try:
            world.prove(tmp_path / "out")
        except Exception as error:
            raise AssertionError(what) from error
        count += 1
    print(f"torn in {count} ways")
    assert count > 10


@pytest.mark.parametrize("topic", ["index", "folders"])
@pytest.mark.parametrize("harm", ["empty", "half", "zeros", "noise", "a folder's text"])
def test_a_spoilt_database_is_made_again(tmp_path: Path, topic: str, harm: str) -> None:
    world = World(tmp_path)
    world.back_up()
    (path,) = world.cache.glob(f"*.{topic}.sqlite")
    content = path.read_bytes()
    spoilt = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "zeros": bytes(len(content)),
        "noise": content[:100] + RNG.randbytes(len(content) - 100),
        "a folder's text": b"not a database\n" * 300,
    }[harm]
    world.change("new")
    world.put_back({path.name: spoilt})
    world.prove(tmp_path / "out")


# --- older than the repository, or than each other ---


@pytest.mark.parametrize("which", ["index", "folders", "both"])
@pytest.mark.parametrize("age", [0, 1, 2])
def test_databases_from_before_a_prune_beside_a_newer_repository(tmp_path: Path, which: str, age: int) -> None:
    world = World(tmp_path)
    versions = []
    for name in ("one", "two", "three"):
        world.change(name)
        world.back_up()
        versions.append(world.databases())
    shutil.rmtree(world.source / "two")
    world.back_up()
    with open_repo(world.repo) as other:  # another machine: this one's cache hears nothing of it
        with other.lock(exclusive=True):
            for snapshot in list_snapshots(other)[:-1]:
                remove_snapshot(other, snapshot.id)
        prune(other, PruneOptions(max_unused="0"))
    world.put_back({name: content for name, content in versions[age].items() if which in (name.split(".")[1], "both")})
    (world.source / "two").mkdir()
    (world.source / "two" / "file").write_bytes(b"back again")
    world.prove(tmp_path / "out")


def test_an_index_database_older_than_a_repair_does_not_make_folders_pass_that_lost_something(tmp_path: Path) -> None:
    """The power went after a backup, and its index database came back as it was before; the one of folders did not."""
    world = World(tmp_path)
    world.back_up()
    index = {name: content for name, content in world.databases().items() if ".index." in name}
    path = world.change("new")
    os.utime(path.parent, (1, 1))
    world.back_up()
    world.back_up()  # now all folders are known as unchanged
    with open_repo(world.repo) as other:
        (place,) = other.index.locations(BlobKind.DATA, hashlib.sha256(path.read_bytes()).digest())
        flip(world.repo / "data" / place.pack[:2] / place.pack, place.blob.offset + 30)
        with other.lock(exclusive=True) as lock:
            assert repair_packs(other, lock, [place.pack]).lost_blobs  # out of the index, so that it is stored again
    world.put_back(index)
    snapshot = world.back_up()
    with open_repo(world.repo) as repo:
        bring_back(repo, snapshot, tmp_path / "out")
    assert restored(tmp_path / "out", path).read_bytes() == path.read_bytes()
