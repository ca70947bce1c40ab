"""The disk is full, at any point: what is said, what is left, and that the same works once there is space."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.errors import BackendFull, ConfigError, RepositoryLocked, TargetFull
from node_agent.repository import pack as pack_module
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.keys import add_key
from node_agent.repository.lock import Locks
from node_agent.repository.prune import PruneOptions, prune
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from tests.repository.cli_world import PROJECT
from tests.repository.core_world import FAST, PASSWORD, make_snapshot, new_repo, open_repo, restic, stored
from tests.repository.cuts import Facts, Operation, facts_of
from tests.repository.data_world import back_up, bring_back, differences, fingerprint, mounted, restored
from tests.repository.power import TEMPORARY, Step, recording
from tests.repository.test_cuts import OPERATIONS

_TAKES_SPACE = ("mkdir", "create", "write")


@pytest.fixture
def in_memory() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="brs-full-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Locks.acquire, "__kwdefaults__", Locks.acquire.__kwdefaults__ | {"settle_s": 0})
    monkeypatch.setattr(add_key, "__defaults__", (FAST,))


# --- the disk of the repository, full from the n-th step on ---


class _FullFrom:
    """From the n-th step that needs space on, none has any; what removes still works."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.hit = False

    def __call__(self, step: Step) -> None:
        if step.call not in _TAKES_SPACE:
            return
        self.left -= 1
        if self.left < 0:
            self.hit = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


NAMES = (
    "backup of files, incremental",
    "backup of an image, incremental",
    "prune",
    "copy",
    "tag",
    "lock refresh",
    "key passwd",
    "repair index",
    "repair packs",
    "repair snapshots",
)


@pytest.mark.parametrize("name", NAMES)
def test_full_at_any_step_is_said_and_costs_nothing(name: str, in_memory: Path) -> None:
    operation = OPERATIONS[name]
    kept = in_memory / "kept"
    kept.mkdir()
    operation.prepare(kept)
    before = facts_of(kept / "repo", operation.passwords, strict=not operation.hurt)
    for number in range(300):
        world = shutil.copytree(kept, in_memory / str(number), symlinks=True)
        full = _FullFrom(number)
        try:
            with recording(world / "repo", full):
                operation.run(world)
        except BackendFull as error:
            assert str(world / "repo") in error.message and "space" in error.message and "Free space" in error.hint
        if not full.hit:
            break
        _judge(operation, world, before)
        shutil.rmtree(world)
    print(f"{name}: full at {number} points")
    assert number >= 4


def _judge(operation: Operation, world: Path, before: Facts) -> None:
    """Nothing of it is left but what the next run uses; no lock either, so stock restic needs no unlock."""
    files = [path for path in (world / "repo").rglob("*") if path.is_file()]
    assert not [path for path in files if TEMPORARY in path.name or path.parent.name == "locks"]
    found = facts_of(world / "repo", operation.passwords, strict=not operation.hurt)
    for point, digest in before.points.items():
        assert found.points.get(point) == digest or point[0] in operation.replaces
    operation.run(world)
    done = facts_of(world / "repo", operation.passwords)
    assert done.points.keys() >= before.points.keys()
    if operation.removes_blobs:
        assert not done.unnamed
    if operation.passwords == (PASSWORD,):
        restic(world / "repo", "check", "--read-data")


def test_a_lock_that_cannot_be_refreshed_stands_and_one_that_cannot_be_removed_is_cleared_soon(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_repo(in_memory / "repo").close()
    repo = open_repo(in_memory / "repo", cache_dir=in_memory / "cache")
    with recording(in_memory / "repo", full := _FullFrom(1 << 30)), repo.lock() as lock:
        full.left = 0
        with pytest.raises(BackendFull):
            lock.refresh()
        lock.prove()  # it holds as long as it would have without the attempt
        monkeypatch.setattr(LocalBackend, "delete", _full)
    assert [path.name for path in stored(in_memory / "repo", "locks")] == [lock.name]
    monkeypatch.undo()
    with pytest.raises(RepositoryLocked), repo.lock(exclusive=True):
        pass
    (entry,) = (path for path in (in_memory / "cache").rglob(lock.name))
    os.utime(entry, (0, 0))  # a minute later, though the process that held it is still there
    with repo.lock(exclusive=True):
        assert not entry.exists()


def _full(*_: object) -> None:
    raise BackendFull("The destination has no space left.")


# --- real file systems ---


def _room(disk: Path, free: int) -> None:
    """Leave so many bytes, in whole pages."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    found = os.statvfs(disk)
    ballast.write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - free)))


def _free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def test_a_backup_onto_a_disk_of_any_room_succeeds_or_says_so_and_a_prune_gives_the_space_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "TARGET_SIZE", 100_000)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(6):
        (source / f"f{number}").write_bytes(os.urandom(60_000))
    outcomes: list[str] = []
    with mounted(tmp_path / "disk", "tmpfs", "size=4m") as disk:
        make_snapshot_of(new_repo(disk / "repo"))
        shutil.copytree(disk / "repo", tmp_path / "kept")
        for free in range(0, 480_000, 16_384):
            (disk / "ballast").unlink(missing_ok=True)
            shutil.rmtree(disk / "repo")
            shutil.copytree(tmp_path / "kept", disk / "repo")
            _room(disk, free)
            try:
                back_up(open_repo(disk / "repo"), source, host="new")
                outcomes.append("done")
            except BackendFull as error:
                assert str(disk / "repo") in error.message
                outcomes.append("full")
            restic(disk / "repo", "check", "--read-data", "--no-lock")  # there may be no room for one
            _room(disk, _free(disk) + 65_536)  # a lock and an index file need some, even to give back more
            prune(open_repo(disk / "repo"), PruneOptions(max_unused="unlimited"))
            if outcomes[-1] == "full":
                assert _free(disk) >= free + 57_344
                _room(disk, 1 << 20)
                back_up(open_repo(disk / "repo"), source, host="new")
            restic(disk / "repo", "check", "--read-data")
            hosts = [snapshot.hostname for snapshot in list_snapshots(open_repo(disk / "repo"))]
            assert sorted(hosts) == ["host", "new"]
    assert outcomes.index("done") > 20 and "full" not in outcomes[outcomes.index("done") :], outcomes


def make_snapshot_of(repo: Repository) -> None:
    with repo.lock() as lock:
        make_snapshot(repo, lock, {b"f": [b"x" * 1000]})


def test_a_restore_into_any_room_succeeds_or_says_so_and_leaves_no_half_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(8):
        (source / f"f{number}").write_bytes(os.urandom(30_000 + number))
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    outcomes: list[str] = []
    with mounted(tmp_path / "disk", "tmpfs", "size=2m") as disk:
        for free in range(0, 330_000, 8192):
            _room(disk, free)
            try:
                bring_back(repo, snapshot, disk / "out")
                outcomes.append("done")
            except TargetFull as error:
                assert "space" in error.message and "Free space" in error.hint
                outcomes.append("full")
            for path in (disk / "out").rglob("f*"):
                assert path.read_bytes() == (source / path.name).read_bytes()  # whole or not there
            if outcomes[-1] == "done":
                assert differences(fingerprint(source), fingerprint(restored(disk / "out", source))) == {}
            shutil.rmtree(disk / "out", ignore_errors=True)
    assert outcomes.index("done") > 20 and "full" not in outcomes[outcomes.index("done") :], outcomes


def test_a_full_disk_of_the_cache_is_said_and_costs_no_backup_made_later(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    for number in range(300):
        (source / "below" / f"f{number}").write_bytes(os.urandom(50))
    new_repo(tmp_path / "repo").close()
    outcomes: list[str] = []
    with mounted(tmp_path / "disk", "tmpfs", "size=2m") as disk:
        for free in range(0, 400_000, 12_288):
            shutil.rmtree(disk / "cache", ignore_errors=True)
            _room(disk, free)
            try:
                with open_repo(tmp_path / "repo", cache_dir=disk / "cache") as repo:
                    back_up(repo, source)
                outcomes.append("done")
            except ConfigError as error:
                assert str(disk / "cache") in error.message and "--no-cache" in error.hint
                outcomes.append("full")
            assert stored(tmp_path / "repo", "locks") == []
            _room(disk, 1 << 20)
            with open_repo(tmp_path / "repo", cache_dir=disk / "cache") as repo:  # what is left of it serves, or goes
                back_up(repo, source)
    assert {"done", "full"} <= set(outcomes), outcomes
    restic(tmp_path / "repo", "check", "--read-data")


SMALL_CACHES = """
import sys
from pathlib import Path
from node_agent.errors import ConfigError
from node_agent.repository import index, reachable
from node_agent.repository.prune import PruneOptions, prune
from tests.repository.core_world import open_repo
index._CACHE_KIB = reachable._CACHE_KIB = 20
try:
    prune(open_repo(Path(sys.argv[1])), PruneOptions(max_unused="0"))
except ConfigError as error:
    print(error.message, error.hint)
"""


def test_a_full_disk_of_temporary_files_ends_a_prune_with_nothing_removed(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock() as lock:
        for number in range(3):
            files = {b"f%d" % n: [os.urandom(40)] for n in range(600)}
            make_snapshot(repo, lock, files, host=f"host{number}")
        remove_snapshot(repo, list_snapshots(repo)[0].id)
    before = stored(tmp_path / "repo", "data")
    with mounted(tmp_path / "disk", "tmpfs", "size=256k") as disk:
        (disk / "ballast").write_bytes(bytes(200_000))

        def pruned() -> str:
            done = subprocess.run(
                [sys.executable, "-c", SMALL_CACHES, str(tmp_path / "repo")],
                env=os.environ | {"SQLITE_TMPDIR": str(disk), "PYTHONPATH": str(PROJECT)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        said = pruned()
        assert str(disk) in said and "SQLITE_TMPDIR" in said and "Free space" in said
    assert stored(tmp_path / "repo", "data") == before and stored(tmp_path / "repo", "locks") == []
    restic(tmp_path / "repo", "check", "--read-data")
    with mounted(tmp_path / "disk", "tmpfs", "size=4m"):
        assert pruned() == ""
    assert stored(tmp_path / "repo", "data") != before
