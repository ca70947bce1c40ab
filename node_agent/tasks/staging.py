"""Disk staging: folders below the node's staging space that live from one task to the next.

    <staging>/<name>/meta.json   facts; written last: a folder without it is a leftover, as one from before a restart
    <staging>/<name>/data/       what was exported or fetched
    <staging>/<name>/owners      owners that the copies could not be given: the node's user is not root

The second task removes the folder when it succeeded or failed for good; :func:`sweep` removes at the
node's start what nobody will come back for.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from node_agent.errors import BrsError, Interrupted, LeaseLost, RefusedError, SourceMissing, TargetError, TargetFull
from node_agent.items import Issue, Issues, Severity
from node_agent.repository.lock_journal import boot_id
from node_agent.state import replace_file

log = logging.getLogger("brs.node.staging")

META = "meta.json"
DATA = "data"
OWNERS = "owners"
KEEP_S = 7 * 24 * 3600.0  # a staged export whose Store never came
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_RESERVE = 64 * 1024 * 1024  # left free on the staging file system


@dataclass
class Facts:
    """What the second task needs to know of the first. Nothing secret."""

    task_id: str
    driver: str
    paths: list[str]
    started_at: float
    size_bytes: int = 0
    files: int = 0
    format: str = ""
    left_out: int = 0
    notes: int = 0
    issues: list[dict[str, str]] = field(default_factory=list)

    def take(self, issues: Issues) -> None:
        self.left_out, self.notes = issues.left_out, issues.notes
        self.issues = [asdict(issue) for issue in issues.items]

    def give(self, issues: Issues) -> None:
        """What the first task left out is missing from the second's result as well."""
        for raw in self.issues:
            issues.add(Issue(raw["path"], raw["code"], raw["message"], Severity(raw["severity"])))
        issues.left_out += self.left_out - sum(raw["severity"] == Severity.LEFT_OUT for raw in self.issues)
        issues.notes += self.notes - sum(raw["severity"] == Severity.NOTE for raw in self.issues)


class Staged:
    """One staging folder."""

    def __init__(self, space: Path, name: str) -> None:
        if not _NAME.match(name):
            raise RefusedError(f"{name!r} is not a name for a staging folder.", hint="This is an error of the server.")
        self.folder = space / name

    @property
    def data(self) -> Path:
        return self.folder / DATA

    def facts(self) -> Facts | None:
        """None while nothing complete is staged here."""
        try:
            value = json.loads((self.folder / META).read_text())
            boot = value.pop("boot", "")
            facts = Facts(**value)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError) as error:
            log.warning("staging folder %s is damaged: %s", self.folder, error)
            return None
        if boot != boot_id():
            log.warning("staging folder %s is from before this machine was started; its data may be torn", self.folder)
            return None
        return facts

    def required(self) -> Facts:
        found = self.facts()
        if found is None:
            raise SourceMissing(
                "What the first step staged is not on this node any more, or the machine was started anew since.",
                hint="Start the run again from the start.",
            )
        return found

    def begin(self) -> None:
        """Empty, ready to be filled."""
        self.remove()
        try:
            self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700)
            self.data.mkdir(mode=0o700)
        except OSError as error:
            raise TargetError(
                f"The staging folder {self.folder} cannot be made: {error.strerror}.",
                hint="Check the entry staging in node.toml and the rights of the node's user.",
            ) from error

    def finish(self, facts: Facts) -> None:
        """What was staged is not synced, so it counts until this machine is started anew: after a power cut files may
        be there by half."""
        replace_file(self.folder / META, json.dumps({"boot": boot_id(), **asdict(facts)}).encode())

    def keep_owners(self, owners: Mapping[bytes, tuple[int, int]]) -> None:
        """A path holds any byte but zero, which therefore ends an entry."""
        with (self.folder / OWNERS).open("wb") as out:
            out.writelines(b"%d %d %s\0" % (uid, gid, path) for path, (uid, gid) in owners.items())

    def owners(self) -> dict[bytes, tuple[int, int]]:
        found = {}
        for entry in (self.folder / OWNERS).read_bytes().split(b"\0")[:-1]:
            uid, gid, path = entry.split(b" ", 2)
            found[path] = (int(uid), int(gid))
        return found

    def remove(self) -> None:
        remove_tree(self.folder)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """The first task: what does not finish is removed."""
        self.begin()
        try:
            yield
        except BaseException:
            self.remove()
            raise

    @contextmanager
    def emptying(self) -> Iterator[None]:
        """The second task: removed after success and after final failure, kept for another attempt."""
        try:
            yield
        except (Interrupted, LeaseLost):
            raise
        except BrsError as error:
            if not error.retryable:
                self.remove()
            raise
        self.remove()


def require_space(space: Path, needed: int, max_bytes: int) -> None:
    """Raises TargetFull when ``needed`` bytes do not fit into the staging space."""
    space.mkdir(mode=0o700, parents=True, exist_ok=True)
    free = shutil.disk_usage(space).free - _RESERVE
    if max_bytes:
        free = min(free, max_bytes - used_bytes(space))
    if needed > free:
        raise TargetFull(
            f"The staging space {space} has {max(0, free)} bytes left, and {needed} are needed.",
            hint="Free space there, give the node another staging folder, or use the staging 'stream'.",
        )


def used_bytes(folder: Path, skip: Callable[[bytes, bool], bool] = lambda _path, _is_dir: False) -> int:
    """What a tree takes on disk; what cannot be looked at counts nothing."""
    total = 0
    pending = [os.fsencode(folder)]
    while pending:
        path = pending.pop()
        try:
            st = os.lstat(path)
            if skip(path, stat.S_ISDIR(st.st_mode)):
                continue
            total += st.st_blocks * 512
            if stat.S_ISDIR(st.st_mode):
                pending.extend(os.path.join(path, name) for name in os.listdir(path))
        except OSError as error:
            log.debug("not measured: %r %s", path, error)
    return total


def sweep(space: Path) -> int:
    """At the node's start, when no task runs: remove unfinished folders and forgotten ones. Returns how many."""
    removed = 0
    for folder in space.iterdir() if space.is_dir() else ():
        if not folder.is_dir() or folder.is_symlink() or not _NAME.match(folder.name):
            continue
        meta = folder / META
        if meta.exists() and time.time() - meta.stat().st_mtime < KEEP_S:
            continue
        remove_tree(folder)
        removed += 1
    return removed


def remove_tree(folder: Path) -> None:
    """Copies keep the modes of their originals: a folder without w or x for us is opened up first."""

    def open_up(function: Callable[..., object], path: str, _error: object) -> None:
        Path(path).parent.chmod(0o700)
        if Path(path).is_dir() and not Path(path).is_symlink():
            Path(path).chmod(0o700)
            shutil.rmtree(path, ignore_errors=True)
        else:
            function(path)

    if os.path.lexists(folder):
        shutil.rmtree(folder, onerror=open_up)
