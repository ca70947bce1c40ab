"""What changed between two snapshots; signs and figures as ``restic diff`` has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from node_agent.items import printable
from node_agent.progress import Progress
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import Snapshot
from node_agent.repository.tree import Node, load_tree

BlobKey = tuple[BlobKind, bytes]

ADDED, REMOVED, MODIFIED, TYPE, METADATA = "+", "-", "M", "T", "U"


@dataclass(frozen=True, slots=True)
class Change:
    """``sign``: + added, - removed, M content, T type, U metadata; a folder's path ends with a slash."""

    path: bytes
    sign: str

    def to_json(self) -> dict[str, Any]:
        return {"message_type": "change", "path": printable(self.path), "modifier": self.sign}


@dataclass(slots=True)
class Side:
    files: int = 0
    dirs: int = 0
    others: int = 0
    data_blobs: int = 0
    tree_blobs: int = 0
    bytes: int = 0  # of the blobs, uncompressed

    def count(self, node: Node) -> None:
        if node.is_file:
            self.files += 1
        elif node.is_dir:
            self.dirs += 1
        else:
            self.others += 1

    def to_json(self) -> dict[str, int]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(slots=True)
class DiffStats:
    changed_files: int = 0
    added: Side = field(default_factory=Side)
    removed: Side = field(default_factory=Side)


def diff(
    repo: Repository,
    before: Snapshot,
    after: Snapshot,
    show: Callable[[Change], None],
    *,
    metadata: bool = False,
    progress: Progress | None = None,
) -> DiffStats:
    """Changes go to ``show`` in the order of paths. Folders that are the same are not entered.

    With ``metadata`` a folder counts as changed when anything below it is.

    Memory grows with the number of blobs in folders that differ.
    """
    run = _Diff(repo, show, metadata, progress or Progress())
    run.trees(b"/", bytes.fromhex(before.tree), bytes.fromhex(after.tree))
    run.count_blobs()
    return run.stats


class _Diff:
    def __init__(self, repo: Repository, show: Callable[[Change], None], metadata: bool, progress: Progress) -> None:
        self.stats = DiffStats()
        self._repo = repo
        self._show = show
        self._metadata = metadata
        self._progress = progress
        self._before: set[BlobKey] = set()
        self._after: set[BlobKey] = set()

    def trees(self, prefix: bytes, before: bytes, after: bytes) -> None:
        self._before.add((BlobKind.TREE, before))
        self._after.add((BlobKind.TREE, after))
        stack = [iter([])] if before == after else [self._pairs(prefix, before, after)]
        while stack:
            pair = next(stack[-1], None)
            if pair is None:
                stack.pop()
                continue
            self._progress.check()
            path, old, new = pair
            self._compare(path, old, new)
            if (below := self._below(path, old, new)) is not None:
                stack.append(below)

    def count_blobs(self) -> None:
        self._count(self._after - self._before, self.stats.added)
        self._count(self._before - self._after, self.stats.removed)

    def _pairs(
        self, prefix: bytes, before: bytes | None, after: bytes | None
    ) -> Iterator[tuple[bytes, Node | None, Node | None]]:
        old = {node.name: node for node in load_tree(self._repo, before)} if before else {}
        new = {node.name: node for node in load_tree(self._repo, after)} if after else {}
        for name in sorted(old.keys() | new.keys()):
            yield prefix + name, old.get(name), new.get(name)

    def _compare(self, path: bytes, old: Node | None, new: Node | None) -> None:
        node = new or old
        assert node is not None
        sign = self._sign(old, new)
        if old is None:
            self.stats.added.count(node)
        if new is None:
            self.stats.removed.count(node)
        self._note(self._before, old)
        self._note(self._after, new)
        if sign:
            self._show(Change(path + b"/" if node.is_dir else path, sign))

    def _sign(self, old: Node | None, new: Node | None) -> str:
        if old is None:
            return ADDED
        if new is None:
            return REMOVED
        sign = TYPE if old.type != new.type else ""
        if old.is_file and new.is_file and old.content != new.content:
            self.stats.changed_files += 1
            return sign + MODIFIED
        return sign + (METADATA if self._metadata and old != new else "")

    def _below(
        self, path: bytes, old: Node | None, new: Node | None
    ) -> Iterator[tuple[bytes, Node | None, Node | None]] | None:
        """What lies below, unless it is the same on both sides."""
        before = old.subtree if old is not None else None
        after = new.subtree if new is not None else None
        return None if before == after else self._pairs(path + b"/", before, after)

    def _note(self, blobs: set[BlobKey], node: Node | None) -> None:
        if node is None:
            return
        blobs.update((BlobKind.DATA, blob_id) for blob_id in node.content)
        if node.subtree is not None:
            blobs.add((BlobKind.TREE, node.subtree))

    def _count(self, blobs: set[BlobKey], side: Side) -> None:
        for kind in BlobKind:
            ids = [blob_id for blob_kind, blob_id in blobs if blob_kind is kind]
            side.bytes += sum(self._repo.blob_sizes(kind, ids).values())
            if kind is BlobKind.DATA:
                side.data_blobs += len(ids)
            else:
                side.tree_blobs += len(ids)
