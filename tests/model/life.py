"""One repository, its copy elsewhere, a tree and a disk that change, and everybody who works with them.

Every step is one verb below. After each, the repository lists exactly the snapshots that the memory holds; when a life
ends (:meth:`Life.judge`) all of them restore to what they were made of, and stock restic finds no error.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from node_agent.errors import RepositoryError, RepositoryLocked
from node_agent.items import Extent, Issues
from node_agent.progress import Progress
from node_agent.repository import maintenance
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.check import check
from node_agent.repository.copy import copy_snapshots
from node_agent.repository.files_restore import restore
from node_agent.repository.image import ImageBackup
from node_agent.repository.keys import change_password, open_master_key
from node_agent.repository.known_objects import KnownObjects
from node_agent.repository.prune import PruneOptions, prune
from node_agent.repository.repair_index import repair_index
from node_agent.repository.repair_packs import repair_packs
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import Snapshot, list_snapshots
from tests.repository.core_world import FAST, restic, stored
from tests.repository.data_world import MIB, back_up, back_up_images

IMAGE_BLOCKS = 4
Content = dict[str, bytes]


class PowerCut(BaseException):
    """No Exception: nobody catches it on the way."""


class Disk:
    """An image in memory; remembers what was written since :meth:`tracked`."""

    def __init__(self, rng: random.Random) -> None:
        self.content = bytearray(IMAGE_BLOCKS * MIB)
        self.content[:MIB] = rng.randbytes(MIB)
        self.size = len(self.content)
        self.changed: list[Extent] = []

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        self.changed.append(Extent(offset, len(data)))


@dataclass
class Life:
    """``folder`` should lie in memory. ``log`` holds the steps, for who must find out what went wrong."""

    folder: Path
    rng: random.Random
    memory: dict[str, Content] = field(default_factory=dict)  # snapshot to what it holds
    copied: dict[str, Content] = field(default_factory=dict)  # the same of the copy
    log: list[str] = field(default_factory=list)
    hurt: bool = False  # a pack is damaged, and the copy has all of it

    def __post_init__(self) -> None:
        self.password = "first password"
        self.clock = datetime(2026, 1, 1, tzinfo=UTC)
        self.source = self.folder / "source"
        self.source.mkdir(parents=True)
        self.disk = Disk(self.rng)
        self.tracked: str | None = None  # the image's snapshot that the changes are relative to
        for name in ("repo", "copy"):
            Repository.init(open_backend(str(self.folder / name)), self.password, scrypt=FAST).close()
        self.change_files()

    # --- what changes ---

    def change_files(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            path = self.source / self.rng.choice(("a", "b", "c", "sub/a", "sub/b", "deep/er/a"))
            match self.rng.randrange(5):
                case 0:
                    path.unlink(missing_ok=True)
                case 1:
                    self._write(path, self.rng.choice((b"", b"same in every life", bytes(700_000))))
                case _:
                    self._write(path, self.rng.randbytes(self.rng.choice((1, 100, 5_000, 100_000))))

    def change_disk(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            length = self.rng.choice((512, 4096, 70_000))
            data = bytes(length) if self.rng.random() < 0.3 else self.rng.randbytes(length)
            self.disk.write(self.rng.randrange(self.disk.size - length), data)

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    # --- backups ---

    def backup_files(self) -> None:
        with self._open() as repo:
            self._remember(back_up(repo, self.source, time=self._now()).snapshot_id, self._files())

    def backup_image(self) -> None:
        """With the changes that were tracked, if their base is still there; a full read otherwise."""
        parent = self.tracked if self.tracked in self.memory else None
        changed = self.disk.changed if parent else None
        with self._open() as repo:
            made = back_up_images(repo, ImageBackup("d", self.disk, changed), parent=parent, time=self._now())
        self._remember(made.snapshot_id, {"disks/d.raw": bytes(self.disk.content)})
        self.tracked, self.disk.changed = made.snapshot_id, []

    def two_at_once(self) -> None:
        """Both hold their lock and index before either writes."""
        with self._open("one") as one, self._open("two") as two, one.lock(), two.lock():
            one.load_index()
            two.load_index()
            first = back_up(one, self.source, time=self._now(), host="one")
            second = back_up(two, self.source, time=self._now(), host="two")
        for made in (first, second):
            self._remember(made.snapshot_id, self._files())

    def backup_by_restic(self) -> None:
        if not self._files():
            return  # stock restic stores no empty folder
        done = self._restic("backup", "--json", "--host", "restic", "--time", f"{self._now():%Y-%m-%d %H:%M:%S}", ".")
        summary = next(json.loads(line) for line in done.splitlines() if '"summary"' in line)
        (name,) = [path.name for path in stored(self.folder / "repo", "snapshots") if path.name not in self.memory]
        assert name.startswith(summary["snapshot_id"])
        self._remember(name, self._files(""))

    # --- keeping ---

    def forget_one(self) -> None:
        if not self.memory:
            return
        name = self.rng.choice(sorted(self.memory))
        with self._open(cached=True) as repo, repo.lock(exclusive=True):  # it must not alarm this machine's check
            maintenance.forget_ids(repo, [name])
        del self.memory[name]

    def forget_by_policy(self) -> None:
        policy = maintenance.KeepPolicy(last=self.rng.randint(1, 3), daily=self.rng.randint(0, 2))
        with self._open() as repo, repo.lock(exclusive=True):
            for name in maintenance.forget(repo, policy, now=self._now()).removed:
                del self.memory[name]

    def prune(self) -> None:
        if self.hurt:
            return  # it would refuse
        with self._open() as repo:
            prune(repo, PruneOptions(max_unused=self.rng.choice(("0", "5%", "unlimited"))))

    def prune_by_restic(self) -> None:
        if not self.hurt:
            self._restic("prune", "--max-unused", "0")

    def tag(self) -> None:
        if not self.memory:
            return
        name = self.rng.choice(sorted(self.memory))
        change = maintenance.TagChange(add=[f"t{self.rng.randrange(3)}"], remove=[f"t{self.rng.randrange(3)}"])
        with self._open() as repo, repo.lock(exclusive=True) as lock:
            repo.load_index()
            chosen = [snapshot for snapshot in list_snapshots(repo) if snapshot.id == name]
            for old, new in maintenance.tag_snapshots(repo, lock, chosen, change):
                self.memory[new] = self.memory.pop(old)
                self.tracked = new if self.tracked == old else self.tracked

    def change_key(self) -> None:
        new = f"password {self.rng.randrange(1 << 30)}"
        with self._open() as repo, repo.lock(exclusive=True), pytest.MonkeyPatch.context() as patch:
            patch.setattr("node_agent.repository.keys.OWN_SCRYPT", FAST)
            patch.setattr("node_agent.repository.keys.add_key.__defaults__", (FAST,))
            change_password(repo.backend, open_master_key(repo.backend, self.password), new)
        self.password = new

    def copy_away(self) -> None:
        if self.hurt:
            return
        with self._open() as repo, self._open(place="copy") as other, repo.lock(), other.lock() as lock:
            repo.load_index()
            other.load_index()
            snapshots = list_snapshots(repo)
            result = copy_snapshots(repo, other, lock, snapshots, progress=Progress())
            for ours, theirs in (*result.copied, *result.skipped):
                self.copied[theirs] = self.memory[ours]

    # --- harm ---

    def damage_and_heal(self) -> None:
        """A bit of a pack falls over, or the pack or an index file is lost; the copy has all that it held."""
        self.copy_away()
        if not self.memory:
            return
        folder = self.folder / "repo"
        match self.rng.randrange(3):
            case 0:
                for path in stored(folder, "index"):
                    path.unlink()
                with self._open() as repo, repo.lock(exclusive=True) as lock:
                    repair_index(repo, lock)
            case how:
                path = self.rng.choice(stored(folder, "data"))
                path.chmod(0o600)
                content = bytearray(path.read_bytes())
                content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
                path.unlink() if how == 1 else path.write_bytes(content)
                self._heal()
        self._whole()

    def _heal(self) -> None:
        with self._open() as repo, self._open(place="copy") as other, other.lock():
            other.load_index()
            with repo.lock(exclusive=True) as lock:
                report = check(repo, read_data=True)
                packs = sorted({problem.name for problem in report.errors if problem.kind == "pack"})
                result = repair_packs(repo, lock, packs, sources=[other], progress=Progress())
                repo.load_index()
                lost = check(repo, read_data=True)
            assert lost.ok, (result, [problem.message for problem in lost.errors])

    def power_cut(self) -> None:
        """A backup, a prune or a policy is cut at one of its changes. What it did not acknowledge does not count."""
        operation: Callable[[], None] = self.rng.choice(
            (self.backup_files, self.backup_image, self.prune, self.forget_by_policy, self.tag, self.two_at_once)
        )
        before = set(self.memory)
        with self._cut_after(self.rng.randrange(12)), contextlib.suppress(PowerCut):
            operation()
        self._settle(before)

    def _settle(self, before: set[str]) -> None:
        """Locks are cleared; what the cut left of new or removed snapshots becomes known."""
        with self._open() as repo:
            repo.unlock(everything=True)
            there = {snapshot.id: snapshot for snapshot in list_snapshots(repo)}
        for name in set(self.memory) - there.keys():
            del self.memory[name]  # forget and tag remove one after the other
        for name, snapshot in there.items():
            if name not in self.memory:
                self.memory[name] = self._content_of(snapshot)
        assert before - there.keys() <= before

    def _content_of(self, snapshot: Snapshot) -> Content:
        """Of a snapshot that was stored but not acknowledged: nothing changed since, or it is one that was tagged."""
        if list(snapshot.paths) == ["/vm"]:
            return {"disks/d.raw": self._image_as_of(snapshot)}
        return self._restored(snapshot.id) if snapshot.original else self._files()

    def _image_as_of(self, snapshot: Snapshot) -> bytes:
        if snapshot.original:
            return self._restored(snapshot.id)["disks/d.raw"]
        return bytes(self.disk.content)

    # --- judges ---

    def look(self) -> None:
        """The list is right, and one of the snapshots is what it was."""
        with self._open() as repo, repo.lock():
            assert {snapshot.id for snapshot in list_snapshots(repo)} == set(self.memory)
        if self.memory:
            name = self.rng.choice(sorted(self.memory))
            self._same(name, self.memory[name])

    def judge(self, *, by_restic: bool = True) -> None:
        self.look()
        self._whole()
        for name, content in self.memory.items():
            self._same(name, content)
        for name, content in self.copied.items():
            self._same(name, content, place="copy")
        if by_restic:
            self._restic("check", "--read-data")

    def _whole(self) -> None:
        with self._open() as repo, repo.lock(), KnownObjects(repo.cache_path("known")) as known:
            report = check(repo, read_data=True, known=known)
        assert report.ok, [problem.message for problem in report.errors]

    def _same(self, name: str, content: Content, place: str = "repo") -> None:
        found = self._restored(name, place)
        assert found.keys() == content.keys(), (name, sorted(found), sorted(content))
        wrong = [path for path in content if found[path] != content[path]]
        assert not wrong, f"snapshot {name} restores {wrong} wrongly"

    def _restored(self, name: str, place: str = "repo") -> Content:
        target = self.folder / "target"
        shutil.rmtree(target, ignore_errors=True)
        issues = Issues()
        with self._open(place=place) as repo, repo.lock():
            repo.load_index()
            restore(repo, name, target, progress=Progress(), issues=issues)
        assert not issues.left_out, issues.items
        return _contents(target)

    # --- underneath ---

    def _open(self, node: str = "one", *, place: str = "repo", cached: bool = False) -> Repository:
        password = self.password if place == "repo" else "first password"
        cache = self.folder / "caches" / node if cached or self.rng.random() < 0.8 else None
        return Repository.open(open_backend(str(self.folder / place)), password, cache_dir=cache)

    def _now(self) -> datetime:
        self.clock += timedelta(hours=self.rng.choice((1, 5, 30)))
        return self.clock

    def _files(self, below: str | None = None) -> Content:
        base = str(self.source).lstrip("/") if below is None else below
        return {os.path.join(base, path): content for path, content in _contents(self.source).items()}

    def _remember(self, name: str, content: Content) -> None:
        self.memory[name] = content

    def _restic(self, *args: str) -> str:
        here = os.getcwd()
        os.chdir(self.source)
        try:
            return restic(self.folder / "repo", *args, password=self.password).stdout
        finally:
            os.chdir(here)

    @contextlib.contextmanager
    def _cut_after(self, changes: int) -> Iterator[None]:
        """The store takes so many changes, locks not counted, and then none ever again."""
        left = changes
        put, delete = LocalBackend.put, LocalBackend.delete

        def count(kind: Kind) -> None:
            nonlocal left
            left -= kind is not Kind.LOCK
            if left < 0:
                raise PowerCut

        def cut_put(backend: LocalBackend, kind: Kind, name: str, parts: Sequence[Any]) -> None:
            count(kind)
            put(backend, kind, name, parts)

        def cut_delete(backend: LocalBackend, kind: Kind, name: str) -> None:
            count(kind)
            delete(backend, kind, name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalBackend, "put", cut_put)
            patch.setattr(LocalBackend, "delete", cut_delete)
            yield


def _contents(folder: Path) -> Content:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


STEPS: dict[str, float] = {  # and how often each is taken
    "change_files": 5,
    "change_disk": 4,
    "backup_files": 5,
    "backup_image": 4,
    "two_at_once": 2,
    "forget_one": 2,
    "forget_by_policy": 1,
    "prune": 2,
    "tag": 1,
    "change_key": 0.5,
    "copy_away": 1,
    "damage_and_heal": 1,
    "power_cut": 3,
    "look": 2,
    "backup_by_restic": 0.3,
    "prune_by_restic": 0.15,
}
REFUSALS = (RepositoryLocked, RepositoryError)  # a policy that would empty a group is refused
