"""Snapshots: one file each, names a tree and what it is of. It is written last, after all that it needs.

What BRS means by a snapshot lies in ``tags`` (``brs.…``) and in the tree, never in further fields: stock restic drops
fields it does not know when it rewrites a snapshot. ``hostname`` and ``paths`` identify the workload, because restic's
forget groups by them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from node_agent import __version__
from node_agent.errors import ConfigError, DamagedError, ObjectLocked, ObjectMissing, SnapshotNotFound
from node_agent.repository.backend.base import Kind
from node_agent.repository.identity import username
from node_agent.repository.known_objects import Known, KnownObjects
from node_agent.repository.repository import BlobKind, Lock, Repository
from node_agent.repository.rfc3339 import format_datetime, parse_datetime
from node_agent.repository.sealed import describe
from node_agent.repository.tree import walk

logger = logging.getLogger(__name__)

PARTIAL_TAG = "brs.partial"
_PROVEN_AT_ONCE = 100_000
PROGRAM_VERSION = f"brs {__version__}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    time: datetime  # aware
    tree: str  # hex, as all ids of files
    paths: Sequence[str]
    hostname: str = ""
    username: str = ""
    uid: int = 0
    gid: int = 0
    tags: Sequence[str] = ()
    excludes: Sequence[str] = ()
    parent: str | None = None
    original: str | None = None
    program_version: str = ""
    summary: dict[str, Any] = field(default_factory=dict)  # restic's own statistics, read only
    id: str = ""  # the file's name; empty before it is saved

    @property
    def short_id(self) -> str:
        return self.id[:8]

    @property
    def partial(self) -> bool:
        return PARTIAL_TAG in self.tags

    def to_json(self) -> dict[str, Any]:
        """The fields of restic's file, in its order, those that are empty left out."""
        value: dict[str, Any] = {"time": format_datetime(self.time)}
        if self.parent:
            value["parent"] = self.parent
        value |= {"tree": self.tree, "paths": list(self.paths)}
        optional = {
            "hostname": self.hostname,
            "username": self.username,
            "uid": self.uid,
            "gid": self.gid,
            "excludes": list(self.excludes),
            "tags": list(self.tags),
            "original": self.original,
            "program_version": self.program_version,
            "summary": self.summary,
        }
        return value | {name: content for name, content in optional.items() if content}

    def describe_json(self) -> dict[str, Any]:
        """As ``restic snapshots --json`` shows one."""
        return self.to_json() | {"id": self.id, "short_id": self.short_id}


def new_snapshot(
    *,
    time: datetime,
    tree: str,
    hostname: str,
    paths: Sequence[str],
    tags: Sequence[str] = (),
    excludes: Sequence[str] = (),
    parent: str | None = None,
) -> Snapshot:
    """A snapshot made by this process's user."""
    return Snapshot(
        time=time,
        tree=tree,
        paths=tuple(paths),
        hostname=hostname,
        username=username(),
        uid=os.getuid(),
        gid=os.getgid(),
        tags=tuple(tags),
        excludes=tuple(excludes),
        parent=parent,
        program_version=PROGRAM_VERSION,
    )


def identity_of(snapshot: Snapshot) -> tuple[str, str, datetime, tuple[str, ...]]:
    """What two rewritten snapshots have in common when one run was killed and another did the same again."""
    return snapshot.original or snapshot.id, snapshot.tree, snapshot.time, tuple(snapshot.tags)


def prove_content(repo: Repository, ids: Iterable[bytes], kind: BlobKind = BlobKind.DATA) -> None:
    """Every id is listed by the store's index files as they are now. Raises DamagedError.

    For block lists with inherited ids: a parent that was pruned meanwhile must not become a point with holes.
    """
    repo.load_index()
    absent = repo.missing(kind, ids)
    if absent:
        raise DamagedError(
            f"{len(absent)} {kind} blobs of the new snapshot are not in the repository, such as {min(absent).hex()}.",
            hint="Run the backup again without a parent; it then reads everything.",
        )


def prove_tree(repo: Repository, tree: bytes) -> None:
    """Everything below a tree is listed by the index as it is now. Reads every tree. Raises DamagedError."""
    wanted: list[bytes] = []
    for _, node in walk(repo, tree):
        wanted += node.content
        if len(wanted) >= _PROVEN_AT_ONCE:
            prove_content(repo, wanted)
            wanted.clear()
    prove_content(repo, wanted)


def save_snapshot(repo: Repository, lock: Lock, snapshot: Snapshot) -> Snapshot:
    """Store a snapshot whose data were flushed; durable on return. Returns it with its id.

    Proves before: the lock is still in the store and fresh, the root tree is in the store's index as it is now.
    """
    repo.guard()
    prove_content(repo, [bytes.fromhex(snapshot.tree)], BlobKind.TREE)
    lock.prove()
    content = json.dumps(snapshot.to_json(), separators=(",", ":"), ensure_ascii=False)
    name = repo.files.save(Kind.SNAPSHOT, content.encode("utf-8", "replace"))
    saved = replace(snapshot, id=name)
    _remember(repo, lambda known: known.saw([_known(saved)]))
    return saved


def load_snapshot(repo: Repository, name: str) -> Snapshot:
    """By its whole id. Raises SnapshotNotFound, DamagedError."""
    try:
        value = repo.files.load_json(Kind.SNAPSHOT, name)
    except ObjectMissing as error:
        raise SnapshotNotFound(f"There is no snapshot {name} in the repository.") from error
    try:
        return _decode(name, value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{describe(Kind.SNAPSHOT, name)} is damaged: {error!r}.") from error


def list_snapshots(
    repo: Repository,
    *,
    hosts: Sequence[str] = (),
    paths: Sequence[str] = (),
    tags: Sequence[Sequence[str]] = (),
    damaged: Callable[[DamagedError], None] | None = None,
) -> list[Snapshot]:
    """The snapshots that match, oldest first. Raises DamagedError for one that cannot be read.

    ``hosts``: any of them; ``paths``: all of them; ``tags``: at least one of the lists wholly. With ``damaged``, those
    that cannot be read are told to it and passed over: for who must not be stopped by one, and removes nothing.
    """
    found = []
    for info in list(repo.backend.list(Kind.SNAPSHOT)):
        try:
            snapshot = load_snapshot(repo, info.name)
        except SnapshotNotFound:
            continue  # forgotten just now
        except DamagedError as error:
            if damaged is None:
                raise
            damaged(error)
            continue
        if matches(snapshot, hosts=hosts, paths=paths, tags=tags):
            found.append(snapshot)
    return sorted(found, key=lambda snapshot: (snapshot.time, snapshot.id))


def matches(
    snapshot: Snapshot, *, hosts: Sequence[str] = (), paths: Sequence[str] = (), tags: Sequence[Sequence[str]] = ()
) -> bool:
    if hosts and snapshot.hostname not in hosts:
        return False
    if not set(paths) <= set(snapshot.paths):
        return False
    return not tags or any(set(wanted) <= set(snapshot.tags) for wanted in tags)


def find_snapshot(
    repo: Repository,
    spec: str,
    *,
    hosts: Sequence[str] = (),
    paths: Sequence[str] = (),
    tags: Sequence[Sequence[str]] = (),
    damaged: Callable[[DamagedError], None] | None = None,
) -> Snapshot:
    """``latest`` (of those that match the filters), a whole id, or the beginning of one. Raises SnapshotNotFound.

    ``damaged``: see :func:`list_snapshots`; it matters for ``latest`` only.
    """
    if spec == "latest":
        found = list_snapshots(repo, hosts=hosts, paths=paths, tags=tags, damaged=damaged)
        if not found:
            raise SnapshotNotFound("The repository holds no snapshot that matches.")
        return found[-1]
    names = [info.name for info in repo.backend.list(Kind.SNAPSHOT) if spec and info.name.startswith(spec)]
    if not names:
        raise SnapshotNotFound(f"There is no snapshot {spec} in the repository.")
    if len(names) > 1:
        raise SnapshotNotFound(f"{spec} is the beginning of {len(names)} snapshots' ids; give more of it.")
    return load_snapshot(repo, names[0])


def prove_removable(repo: Repository, name: str) -> None:
    """Raises ObjectLocked for one that the store does not give up yet: before another one is put in its place."""
    lock = repo.backend.object_lock
    until = lock.locked_until(Kind.SNAPSHOT, name) if lock is not None else 0.0
    if until:
        when = format_datetime(datetime.fromtimestamp(until, UTC))
        raise ObjectLocked(f"snapshot {name} is locked until {when} and cannot be replaced.")


def remove_snapshot(repo: Repository, name: str, *, replaced: bool = False) -> None:
    """Forget one; its data stay until they are pruned. Raises SnapshotNotFound, and RepositoryLocked if unlocked.

    ``replaced``: another one has taken its place.
    """
    repo.guard(prove=True)
    try:
        gone = _known(load_snapshot(repo, name))
    except DamagedError:
        gone = Known(name)  # it may go all the same
    repo.backend.delete(Kind.SNAPSHOT, name)
    _remember(repo, lambda known: known.removed(gone, replaced=replaced))


def _known(snapshot: Snapshot) -> Known:
    return Known.of(snapshot.id, snapshot.hostname, snapshot.paths, snapshot.time)


def _remember(repo: Repository, note: Callable[[KnownObjects], None]) -> None:
    """On this machine; that it cannot is no reason to fail."""
    try:
        with KnownObjects(repo.cache_path("known")) as known:
            note(known)
    except ConfigError as error:
        logger.warning("%s", error)


def _decode(name: str, value: dict[str, Any]) -> Snapshot:
    tree = str(value["tree"])
    if len(bytes.fromhex(tree)) != 32:
        raise ValueError("the tree's id is not 32 bytes")
    lists = {key: value.get(key) or [] for key in ("paths", "tags", "excludes")}
    texts = {key: value.get(key) or "" for key in ("hostname", "username", "program_version", "parent", "original")}
    numbers = {key: value.get(key, 0) for key in ("uid", "gid")}
    for key, entries in [*lists.items(), *((key, [text]) for key, text in texts.items())]:
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"{key} is no text")
    if not all(type(number) is int and 0 <= number < 1 << 32 for number in numbers.values()):
        raise ValueError("uid or gid is impossible")
    summary = dict(value.get("summary") or {})
    return Snapshot(
        id=name,
        time=parse_datetime(value["time"]),
        tree=tree,
        paths=tuple(lists["paths"]),
        hostname=texts["hostname"],
        username=texts["username"],
        uid=numbers["uid"],
        gid=numbers["gid"],
        tags=tuple(lists["tags"]),
        excludes=tuple(lists["excludes"]),
        parent=texts["parent"] or None,
        original=texts["original"] or None,
        program_version=texts["program_version"],
        summary=summary,
    )
