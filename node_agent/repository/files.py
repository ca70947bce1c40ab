"""Backup of folder trees as restic stores them: metadata in trees, content in chunks, each stored once.

One item's failure is not the run's: what cannot be read is left out and listed, and the snapshot is marked
partial. The walk itself is in :mod:`node_agent.repository.files_walk`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from node_agent.errors import SnapshotNotFound
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository.excludes import Excludes
from node_agent.repository.files_estimate import estimated
from node_agent.repository.files_frames import WalkOptions
from node_agent.repository.files_roots import plan_roots
from node_agent.repository.files_walk import Walk
from node_agent.repository.folder_cache import FolderCache
from node_agent.repository.lock import Lock
from node_agent.repository.publish import BackupResult, Facts, publish
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import Snapshot, find_snapshot, prove_tree

__all__ = ["BackupResult", "backup_files"]


def backup_files(
    repo: Repository,
    lock: Lock,
    roots: Sequence[Path],
    *,
    found_at: Mapping[Path, Path] | None = None,
    owners: Mapping[bytes, tuple[int, int]] | None = None,
    host: str,
    paths: Sequence[str],
    tags: Sequence[str] = (),
    excludes: Sequence[str] | Excludes = (),
    parent: str | None = None,
    progress: Progress,
    issues: Issues,
    time: datetime,
    one_file_system: bool = False,
    compression: str = "auto",
    dry_run: bool = False,
) -> BackupResult:
    """Store the trees below ``roots`` as one snapshot; with ``dry_run`` only find out what that would add.

    The index must have been loaded. Roots themselves may be links and are followed; nothing below them is.
    With a ``parent`` (a snapshot id), files whose size, times and inode are as they were there are not read.
    ``found_at``: where a root's content lies if not at its own path (a staged copy); ``owners``: user and group ids
    of paths whose copy could not be given them.
    Raises SourceMissing when a root does not exist and SourceError when one cannot be read at all.
    """
    plan = plan_roots(roots, found_at)
    if not dry_run:
        repo.settle()  # before anything rests on what the index says
    before = _find_parent(repo, parent, progress)
    rules = excludes if isinstance(excludes, Excludes) else Excludes(excludes)
    options = WalkOptions(rules, before, one_file_system, owners or {})
    with (
        _folder_cache(repo) as cache,
        repo.writer(progress, compression=compression, dry_run=dry_run) as writer,
    ):
        walk = Walk(repo, writer, options, progress, issues, cache)
        epoch = repo.index.epoch
        with estimated([(found_at or {}).get(root, root) for root in roots], options.excludes, progress):
            tree_id = walk.store(plan)
        writer.flush()
        facts = Facts(host, paths, tags, time, before.id if before is not None else None, rules.patterns)
        snapshot_id = ""
        if not dry_run:
            repo.load_index()
            if repo.index.epoch != epoch:  # what was taken over unread may be gone
                prove_tree(repo, tree_id)
            snapshot_id = publish(repo, lock, tree_id, (), facts, issues, progress=progress)
            if cache is not None:
                cache.commit(epoch, repo.index.file_names())
        stats = walk.stats
        return BackupResult(
            snapshot_id=snapshot_id,
            tree_id=tree_id.hex(),
            parent_id=facts.parent,
            size_bytes=stats.size_bytes,
            read_bytes=stats.read_bytes,
            new_bytes=writer.new_bytes,
            stored_bytes=writer.stored_bytes,
            files=stats.files,
            files_new=stats.new,
            files_changed=stats.changed,
            files_unmodified=stats.unmodified,
            dirs=stats.dirs,
            partial=issues.left_out > 0,
        )


@contextmanager
def _folder_cache(repo: Repository) -> Iterator[FolderCache | None]:
    path = repo.cache_path("folders")
    if path is None:
        yield None
        return
    cache = FolderCache(path, repo.binding, repo.index.epoch, repo.index.file_names())
    try:
        yield cache
    finally:
        cache.close()


def _find_parent(repo: Repository, parent: str | None, progress: Progress) -> Snapshot | None:
    if parent is None:
        return None
    try:
        return find_snapshot(repo, parent)
    except SnapshotNotFound:
        progress.log("warning", f"The parent snapshot {parent[:8]} is gone: all files are read.")
        return None
