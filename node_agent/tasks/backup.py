"""Export and Store in one: read a source and put it into the repository as one snapshot.

The snapshot carries the task's id. A retry that finds it there adopts it: a run whose *complete* was
lost, or whose node was killed after the last write, makes exactly one restore point.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from node_agent.drivers.base import Disk, FileTree
from node_agent.errors import LeaseLost, ServerError, SnapshotNotFound
from node_agent.items import Issue, printable
from node_agent.protocol import BackupResult, BackupSpec
from node_agent.repository.files import backup_files
from node_agent.repository.image import ImageBackup, backup_images
from node_agent.repository.image_parent import DISKS
from node_agent.repository.lock import Lock
from node_agent.repository.publish import BackupResult as Stored
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import Snapshot, find_snapshot, list_snapshots
from node_agent.repository.tree import load_tree, walk
from node_agent.tasks.commands import around
from node_agent.tasks.context import TaskContext
from node_agent.tasks.directories import send_directories
from node_agent.tasks.opening import open_repository
from node_agent.tasks.sources import driver_for

IMAGE_META = "image.json"


def run(context: TaskContext, spec: BackupSpec) -> BackupResult:
    context.phase("export")
    driver = driver_for(spec.source.driver, context.guard)
    for path in spec.source.paths:
        context.guard.read(path)  # a refusal comes before anything is opened
    opened = open_repository(context, spec.repository, bandwidth_bytes_s=spec.bandwidth_bytes_s, early=True)
    with opened as (repo, lock):
        result = adopted(context, repo, spec)
        if result is None:
            with around(context, spec), driver.open(spec.source.paths, format=spec.source.format) as source:
                result = store(context, spec, repo, lock, source, context.utc())
        tell_directories(context, spec, repo, result.tree_id)
    return result


def store(
    context: TaskContext, spec: BackupSpec, repo: Repository, lock: Lock, source: FileTree | Disk, instant: datetime
) -> BackupResult:
    """Put an open source into the repository. ``instant`` is when its data were as they are."""
    context.phase("store")
    parent = usable_parent(context, repo, spec)
    if isinstance(source, Disk):
        stored = _store_disk(context, spec, repo, lock, source, instant, parent)
    else:
        stored = _store_files(context, spec, repo, lock, source, instant, parent)
    context.info(f"Snapshot {stored.snapshot_id[:8]} is in the repository.")
    return BackupResult(
        snapshot_id=stored.snapshot_id,
        tree_id=stored.tree_id,
        parent_id=stored.parent_id or "",
        size_bytes=stored.size_bytes,
        read_bytes=stored.read_bytes,
        new_bytes=stored.new_bytes,
        stored_bytes=stored.stored_bytes,
        files=stored.files,
        started_age_s=max(0.0, context.now() - instant.timestamp()),
        block_size=stored.block_size or 0,
    )


def _store_files(
    context: TaskContext,
    spec: BackupSpec,
    repo: Repository,
    lock: Lock,
    source: FileTree,
    instant: datetime,
    parent: str | None,
) -> Stored:
    return backup_files(
        repo,
        lock,
        [Path(known) for _, known in source.roots],
        found_at={Path(known): real for real, known in source.roots},
        owners=source.owners,
        host=spec.host,
        paths=spec.snapshot_paths,
        tags=tags_of(context, spec),
        excludes=[*spec.source.excludes, *_private(context, source)],
        parent=parent,
        progress=context.progress,
        issues=context.issues,
        time=instant,
        one_file_system=spec.source.one_file_system,
    )


def _store_disk(
    context: TaskContext,
    spec: BackupSpec,
    repo: Repository,
    lock: Lock,
    source: Disk,
    instant: datetime,
    parent: str | None,
) -> Stored:
    name = spec.source.disk
    if source.content.damage:
        context.issues.add(Issue(source.path, "image-damaged", source.content.damage))
    facts = {
        "version": 1,
        "name": name,
        "path": source.path,
        "format": source.format,
        "size": source.content.size,
    }
    return backup_images(
        repo,
        lock,
        [
            ImageBackup(
                name,
                source.content,
                source.changes.extents if source.changes is not None else None,
                source.content.changed,
                source.changes.base if source.changes is not None else None,
                source.identity,
            )
        ],
        host=spec.host,
        paths=spec.snapshot_paths,
        tags=tags_of(context, spec),
        metadata={IMAGE_META: json.dumps(facts, indent=1).encode()},
        parent=parent,
        progress=context.progress,
        issues=context.issues,
        time=instant,
    )


def tags_of(context: TaskContext, spec: BackupSpec) -> list[str]:
    ours = [task_tag(context), f"brs.point={spec.point}", f"brs.workload={spec.workload}"]
    return list(dict.fromkeys([*spec.tags, *ours]))


def task_tag(context: TaskContext) -> str:
    return f"brs.task={context.task_id}"


def _private(context: TaskContext, source: FileTree) -> Sequence[str]:
    """The node's own token lies under a root sometimes (``/``): it is no part of any backup."""
    inside = [path for path in context.private for real, _ in source.roots if path.resolve().is_relative_to(real)]
    return [re.sub(r"[*?\[\]]", "?", str(path)) for path in dict.fromkeys(inside)]


def usable_parent(context: TaskContext, repo: Repository, spec: BackupSpec) -> str | None:
    """The parent's id if it is there, whole and the one that is meant; else everything is read, and said so."""
    if spec.parent is None or spec.full:
        return None
    try:
        snapshot = find_snapshot(repo, spec.parent.snapshot_id)
    except SnapshotNotFound:
        context.warn("The restore point before this one is not in the repository: everything is read.")
        return None
    if snapshot.tree != spec.parent.tree_id or snapshot.id != spec.parent.snapshot_id:
        context.warn("The restore point before this one is not as the server knows it: everything is read.")
        return None
    if snapshot.partial:
        context.warn("The restore point before this one is partial: everything is read.")
        return None
    return snapshot.id


def adopted(context: TaskContext, repo: Repository, spec: BackupSpec) -> BackupResult | None:
    """The facts of a snapshot that a forerunner of this very task finished."""
    # A damaged snapshot of another point is for the next verification to judge, and no reason for having no backup.
    found = list_snapshots(repo, tags=[[task_tag(context)]], damaged=lambda error: context.warn(error.message))
    mine = [s for s in found if s.hostname == spec.host]
    if not mine:
        return None
    snapshot = mine[-1]
    context.info(f"An earlier attempt had finished snapshot {snapshot.id[:8]}: it is taken over.")
    if snapshot.partial:
        text = "An earlier attempt left items out; which ones is in the log of that attempt."
        context.issues.add(Issue(printable(spec.snapshot_paths[0]), "left-out-before", text))
    files, size = _measure(context, spec, repo, snapshot)
    return BackupResult(
        snapshot_id=snapshot.id,
        tree_id=snapshot.tree,
        parent_id=snapshot.parent or "",
        adopted=True,
        size_bytes=size,
        read_bytes=0,
        new_bytes=0,
        stored_bytes=0,
        files=files,
        started_age_s=max(0.0, context.now() - snapshot.time.timestamp()),
        block_size=0,
    )


def _measure(context: TaskContext, spec: BackupSpec, repo: Repository, snapshot: Snapshot) -> tuple[int, int]:
    """Number and size of what a restore brings back, without the facts beside disks."""
    root = bytes.fromhex(snapshot.tree)
    disks_only = spec.source.driver != "files" and any(n.name == DISKS and n.subtree for n in load_tree(repo, root))
    files = size = 0
    for path, node in walk(repo, root):
        context.progress.check()
        if node.is_file and (not disks_only or path.startswith(b"/" + DISKS + b"/")):
            files += 1
            size += node.size
    return files, size


def tell_directories(context: TaskContext, spec: BackupSpec, repo: Repository, tree_id: str) -> None:
    """The list of files for the server. The point is good without: browsing it then takes a task of its own."""
    if not spec.send_directories:
        return
    context.phase("index")
    try:
        sent = send_directories(context, repo, tree_id)
    except LeaseLost:
        raise
    except ServerError as error:
        context.warn(f"The list of files was not taken by the server: {error.message}")
    else:
        context.info(f"{sent} folders were new to the server's list of files.")
