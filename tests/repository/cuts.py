"""Operations on a small repository that are cut at every step, and the judges of what each cut leaves.

An operation runs once in a process of its own, recorded (see :mod:`tests.repository.power`). Every state that a cut may
leave is laid out, and then: ``restic unlock`` clears the locks, ``restic check --read-data`` ends 0, every point that
was there is there with the same content (unless the operation removes it), no index file names a pack that is
gone, and the operation, run again, gives what it gives uncut.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from node_agent.errors import DamagedError, WrongPassword
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.index_file import load_index_file
from node_agent.repository.keys import open_master_key
from node_agent.repository.pack import pack_size
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import Snapshot, list_snapshots
from node_agent.repository.tree import walk
from tests.repository.core_world import PASSWORD, restic, stored
from tests.repository.power import TEMPORARY, Model, Remains, Step, contents, lay_out, recording, remains

_JUDGES = 3  # threads: stock restic is a process of its own

Point = tuple[str, datetime]


@dataclass(frozen=True)
class Operation:
    """``run`` gets the folder that holds ``repo``; opens the repository itself, and may run again."""

    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    passwords: Collection[str] = (PASSWORD,)
    replaces: Collection[str] = ()  # hosts whose points may go, or change
    adds: bool = False  # run again, it adds a snapshot again
    removes_blobs: bool = False  # and leaves exactly the same ones, whenever it was cut
    hurt: bool = False  # stock restic finds fault until it got through
    makes: bool = False  # there may be no repository yet


@dataclass
class Facts:
    """What a repository holds, read without any cache; ``strict`` says whether damage is an error."""

    points: dict[Point, str]  # and the digest of all that a restore would bring back
    snapshots: int
    blobs: set[bytes]
    unnamed: set[str]  # packs that no index file names


def facts_of(folder: Path, passwords: Collection[str], *, strict: bool = True) -> Facts:
    with Repository.open(open_backend(str(folder)), opens_with(folder, passwords)) as repo:
        packs = {path.name: path.stat().st_size for path in stored(folder, "data") if TEMPORARY not in path.name}
        try:
            named = set(_named(repo, packs, strict))
            snapshots = list_snapshots(repo)
            digests = {(s.hostname, s.time): _digest(repo, s, strict) for s in snapshots}
            blobs = {blob.id for _, found in repo.index.packs() for blob in found}
        except DamagedError:
            if strict:
                raise
            return Facts({}, 0, set(), set())
    return Facts(
        {point: digest for point, digest in digests.items() if digest}, len(snapshots), blobs, packs.keys() - named
    )


def _named(repo: Repository, packs: Mapping[str, int], strict: bool) -> Iterator[str]:
    """Packs that index files name, proven to be there and long enough."""
    for info in repo.backend.list(Kind.INDEX):
        for pack, blobs in load_index_file(repo.files, info.name):
            assert not strict or packs.get(pack, 0) >= pack_size(blobs), (
                f"index {info.name} names {pack}, which is gone"
            )
            yield pack


def _digest(repo: Repository, snapshot: Snapshot, strict: bool) -> str:
    """Of everything in a snapshot; nothing if some of it is lost, and that was to be expected."""
    digest = hashlib.sha256()
    try:
        for path, node in walk(repo, bytes.fromhex(snapshot.tree)):
            digest.update(repr((path, node.type, node.mode, node.size, node.mtime)).encode())
            for blob_id in node.content:
                digest.update(repo.load_blob(BlobKind.DATA, blob_id))
    except DamagedError:
        if strict:
            raise
        return ""
    return digest.hexdigest()


def opens_with(folder: Path, passwords: Collection[str]) -> str:
    for password in passwords:
        try:
            open_master_key(open_backend(str(folder)), password)
        except WrongPassword:
            continue
        return password
    raise AssertionError("no password opens the repository any more")


# --- cutting ---


@dataclass(frozen=True)
class Judged:
    """``states`` are all different ones that cuts may leave, ``judged`` those that differ in more than locks."""

    steps: int
    states: dict[Model, int]
    distinct: int
    judged: int


def cut_everywhere(operation: Operation, folder: Path) -> Judged:
    """Prepare, record, cut and judge. A ``folder`` in memory makes it quick."""
    world, kept = folder / "world", folder / "kept"
    world.mkdir(parents=True)
    operation.prepare(world)
    _drop_empty_folders(world / "repo")
    shutil.copytree(world, kept, symlinks=True)
    start = contents(world / "repo")
    steps = run_recorded(operation, world, folder / "steps")
    states = remains(start, steps)
    judge = Judge(operation, kept, world, folder / "states")
    with ThreadPoolExecutor(_JUDGES) as pool:
        list(pool.map(judge.judge, states))
    return Judged(len(steps), {m: sum(m in state.models for state in states) for m in Model}, len(states), judge.judged)


def run_recorded(operation: Operation, world: Path, out: Path) -> list[Step]:
    """In a process of its own, as every killed program was; its locks are then those of a dead process."""
    child = os.fork()
    if child == 0:
        try:
            with recording(world / "repo") as steps:
                operation.run(world)
            out.write_bytes(pickle.dumps(steps))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - told here; the parent sees the exit code
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the operation failed before it was cut; its traceback is in the captured output"
    steps: list[Step] = pickle.loads(out.read_bytes())
    return steps


class Judge:
    def __init__(self, operation: Operation, kept: Path, done: Path, scratch: Path) -> None:
        self.judged = 0
        self._failed = False
        self._operation = operation
        self._kept = kept
        self._scratch = scratch
        self._pool = scratch / "pool"
        self._pool.mkdir(parents=True)
        self._before = (
            self._facts(kept, strict=not operation.hurt) if not operation.makes else Facts({}, 0, set(), set())
        )
        self._after = self._facts(done)
        self._guard = threading.Lock()
        self._unlocked: set[frozenset[tuple[str, bytes]]] = set()
        self._seen: set[frozenset[tuple[str, bytes]]] = set()
        self._number = 0

    def judge(self, state: Remains) -> None:
        if self._failed:
            return  # one is enough
        try:
            self._judge(state)
        except Exception as error:
            self._failed = True
            raise AssertionError(f"cut after {state.after} ({state.models}): {error}") from error

    def _judge(self, state: Remains) -> None:
        locks = {path: data for path, data in state.files.items() if path.startswith("locks/")}
        rest = {path: data for path, data in state.files.items() if path not in locks}
        if self._is_new(self._unlocked, locks):
            self._unlock(state)
        if self._is_new(self._seen, rest):
            self._judge_unlocked(rest)

    def _is_new(self, known: set[frozenset[tuple[str, bytes]]], files: dict[str, bytes]) -> bool:
        with self._guard:
            key = frozenset(files.items())
            new = key not in known
            known.add(key)
            return new

    def _unlock(self, state: Remains) -> None:
        world = self._lay_out(state.files)
        if any(TEMPORARY not in path and path.startswith("locks/") for path in state.files):
            restic(world / "repo", "unlock", password=opens_with(world / "repo", self._operation.passwords))
        left = [path.name for path in stored(world / "repo", "locks") if TEMPORARY not in path.name]
        assert not left, f"restic unlock leaves the locks {left}"
        shutil.rmtree(world)

    def _judge_unlocked(self, files: dict[str, bytes]) -> None:
        operation, world = self._operation, self._lay_out(files)
        with self._guard:
            self.judged += 1
        if not operation.makes:
            found = self._facts(world, strict=not operation.hurt)
            for point, digest in self._before.points.items():
                if point not in found.points:
                    assert point[0] in operation.replaces, f"the point {point} is gone"
                elif point[0] not in operation.replaces:
                    assert found.points[point] == digest, f"the point {point} has changed"
        if not (operation.hurt or operation.makes):
            self._stock_check(world)  # after ours, which is quick to fail: stock restic tries again for a minute
        operation.run(world)
        self._stock_check(world)
        self._compare(self._facts(world))
        shutil.rmtree(world)

    def _compare(self, found: Facts) -> None:
        """What the operation makes of what a cut left, with what it makes uncut."""
        assert found.points == self._after.points
        if not self._operation.adds:
            assert found.snapshots == self._after.snapshots
        if self._operation.removes_blobs:
            assert found.blobs == self._after.blobs and not found.unnamed

    def _facts(self, world: Path, *, strict: bool = True) -> Facts:
        return facts_of(world / "repo", self._operation.passwords, strict=strict)

    def _stock_check(self, world: Path) -> None:
        restic(world / "repo", "check", "--read-data", password=opens_with(world / "repo", self._operation.passwords))

    def _lay_out(self, files: dict[str, bytes]) -> Path:
        with self._guard:
            self._number += 1
            world = self._scratch / str(self._number)
        ignore = lambda folder, _: ["repo"] if folder == str(self._kept) else []  # noqa: E731
        shutil.copytree(self._kept, world, symlinks=True, ignore=ignore)
        (world / "repo").mkdir()
        lay_out(files, world / "repo", self._pool)
        for kind in Kind:
            if kind is not Kind.CONFIG and not self._operation.makes:
                (world / "repo" / kind.value).mkdir(exist_ok=True)
        return world


def _drop_empty_folders(repo: Path) -> None:
    """Of packs: so that each state is made quickly, and making one is a step that is cut, too."""
    for folder in (repo / "data").glob("??"):
        if not any(folder.iterdir()):
            folder.rmdir()
