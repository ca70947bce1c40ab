"""The end of every backup: everything durable and proven, then the snapshot, which makes it real."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from node_agent.errors import LockRefused
from node_agent.items import Issue, Issues, Severity
from node_agent.progress import Progress
from node_agent.repository.immutable import NOT_IMMUTABLE, NOT_IMMUTABLE_TAG, secure, snapshot_held
from node_agent.repository.repository import Lock, Repository
from node_agent.repository.snapshot import PARTIAL_TAG, Snapshot, new_snapshot, prove_content, save_snapshot


@dataclass(slots=True)
class BackupResult:
    """What a backup did, or would do: then there is no ``snapshot_id``. Sizes in bytes; ``size_bytes`` is what a
    restore brings back."""

    snapshot_id: str
    tree_id: str
    parent_id: str | None
    size_bytes: int
    read_bytes: int
    new_bytes: int
    stored_bytes: int
    files: int
    compared_bytes: int = 0  # read though change tracking called it unchanged
    block_size: int | None = None
    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    dirs: int = 0
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What a snapshot says about itself besides its content."""

    host: str
    paths: Sequence[str]
    tags: Sequence[str]
    time: datetime
    parent: str | None = None
    excludes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Inherited:
    """Blobs of a parent, all of which the index listed in this epoch: so it does as long as the epoch is the same."""

    epoch: str
    ids: Iterable[bytes]


def publish(
    repo: Repository,
    lock: Lock,
    root: bytes,
    content: Iterable[bytes],
    facts: Facts,
    issues: Issues,
    inherited: Inherited | None = None,
    progress: Progress | None = None,
) -> str:
    """Prove that ``content`` and what is ``inherited`` is in the repository, write the snapshot, return its id.

    Everything must have been flushed. With anything left out, the snapshot carries the mark of a partial one.
    """
    prove_content(repo, content)
    if inherited is not None and repo.index.epoch != inherited.epoch:
        prove_content(repo, inherited.ids)  # something is listed no more: perhaps one of them
    tags = [tag for tag in facts.tags if tag != PARTIAL_TAG]
    if issues.left_out:
        tags.append(PARTIAL_TAG)
    snapshot = new_snapshot(
        time=facts.time,
        tree=root.hex(),
        hostname=facts.host,
        paths=facts.paths,
        tags=tags,
        excludes=facts.excludes,
        parent=facts.parent,
    )
    saved, reason = save_point(repo, lock, snapshot, progress or Progress())
    if reason:
        message = f"The snapshot is complete, but it is not immutable: {reason}"
        issues.add_first(Issue(f"snapshot {saved.short_id}", NOT_IMMUTABLE, message, Severity.NOTE))
    return saved.id


def save_point(repo: Repository, lock: Lock, snapshot: Snapshot, progress: Progress) -> tuple[Snapshot, str]:
    """Store a snapshot, immutable where the store was asked for that. Returns also why it is not; empty: it is.

    One that is not immutable is stored all the same, and says so in a tag.
    """
    tags = tuple(tag for tag in snapshot.tags if tag != NOT_IMMUTABLE_TAG)
    reason = secure(repo, bytes.fromhex(snapshot.tree), progress)
    if not reason:
        try:
            saved = save_snapshot(repo, lock, replace(snapshot, tags=tags))
        except LockRefused as error:  # nothing was stored
            reason = error.message
        else:
            return saved, snapshot_held(repo, saved.id)
    return save_snapshot(repo, lock, replace(snapshot, tags=(*tags, NOT_IMMUTABLE_TAG))), reason
