"""What becomes of a hurt repository: by our check, by restoring all of it, by stock restic."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from node_agent.errors import BrsError
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository.check import CheckReport, check
from node_agent.repository.files_restore import restore
from node_agent.repository.known_objects import KnownObjects
from tests.flips.harm import Mutation
from tests.flips.world import World, write
from tests.repository.core_world import open_repo, restic

REFUSED, ERROR, NOTE, UNSEEN = "refused", "error", "note", "—"
WHOLE, LEFT_OUT = "whole", "left out"
EITHER = "error or —"


@dataclass
class Checked:
    verdict: str
    report: CheckReport | None = None


def check_by_us(world: World, mutation: Mutation, *, read_data: bool) -> Checked:
    """``error`` and ``note`` only if every hurt object is named."""
    try:
        with world.open() as repo, repo.lock(), KnownObjects(repo.cache_path("known")) as known:
            report = check(repo, read_data=read_data, known=known)
    except BrsError as error:  # of opening and locking; a check itself reports
        assert error.message and error.hint
        return Checked(REFUSED)
    told = " ".join(f"{problem.name} {problem.message}" for problem in report.errors)
    names = [path.name for path in mutation]
    if report.errors:
        assert any(name in told for name in names) or "index" in {path.parent.name for path in mutation}, told
        return Checked(ERROR, report)
    return Checked(NOTE if set(report.notes) - world.notes else UNSEEN, report)


@dataclass
class Restored:
    verdict: str
    hurt: dict[str, set[str]]  # snapshots that came back incomplete, and what of them did not


def restore_all(world: World, target: Path) -> Restored:
    """Every snapshot; what is put in place is what was backed up, and what is not is told."""
    hurt: dict[str, set[str]] = {}
    verdict = WHOLE
    for snapshot, files in world.files.items():
        shutil.rmtree(target, ignore_errors=True)
        missing, refused = _restore_one(world, snapshot, files, target)
        if missing:
            hurt[snapshot] = missing
        verdict = REFUSED if refused else LEFT_OUT if missing and verdict == WHOLE else verdict
    return Restored(verdict, hurt)


def _restore_one(world: World, snapshot: str, files: dict[str, bytes], target: Path) -> tuple[set[str], bool]:
    issues = Issues()
    try:
        with open_repo(world.folder) as repo, repo.lock():
            repo.load_index()
            restore(repo, snapshot, target, progress=Progress(), issues=issues)
    except BrsError as error:
        assert error.message and error.hint
        return {f"/{name}" for name in files}, True
    missing = set()
    for name, content in files.items():
        path = target / name
        if path.exists():
            assert path.read_bytes() == content, f"WRONG BYTES in {name} of {snapshot}"
        else:
            missing.add(f"/{name}")
    there = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file() and not path.is_symlink()}
    assert there <= set(files), f"{there} were not backed up"
    assert bool(missing) == bool(issues.left_out), "what is missing is told"
    return missing, False


def check_by_restic(world: World, *, read_data: bool) -> str:
    done = restic(world.folder, "check", "--no-lock", *(["--read-data"] if read_data else []), check=False)
    assert done.returncode in (0, 1), done.stderr
    return ERROR if done.returncode else UNSEEN


class Hurt:
    """A copy of the world with one mutation in it; undone at the end."""

    def __init__(self, world: World, pristine: World, mutation: Mutation) -> None:
        self._world, self._pristine, self._mutation = world, pristine, mutation
        self._before: Mutation = {}

    def __enter__(self) -> World:
        for path, content in self._mutation.items():
            self._before[path] = path.read_bytes() if path.exists() else None
            times = path.stat() if path.exists() else None
            _put(path, content)
            if times is not None and content is not None and path.parent.name != "locks":  # a flip changes no time
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return self._world

    def __exit__(self, *_: object) -> None:
        for path, content in self._before.items():
            _put(path, content)
            if path.parent.name == "locks" and content is not None:
                os.utime(path, (0, 0))
        shutil.rmtree(self._world.cache)
        shutil.copytree(self._pristine.cache, self._world.cache)


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write(path, content)
