"""Sizes: what snapshots would restore, and what they take in the repository."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from node_agent.progress import Progress
from node_agent.repository.id_set import IdSet
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import Snapshot
from node_agent.repository.tree import load_tree


@dataclass(slots=True)
class Stats:
    snapshots: int = 0
    entries: int = 0  # files, folders and all else, in all snapshots
    files: int = 0
    restore_bytes: int = 0  # of all snapshots together; hard links once in each folder
    blobs: int = 0  # different ones that the snapshots need
    unique_bytes: int = 0  # of those, uncompressed
    stored_bytes: int = 0  # of those, as they lie in packs

    @property
    def ratio(self) -> float:
        return self.restore_bytes / self.stored_bytes if self.stored_bytes else 1.0


def stats_of(repo: Repository, snapshots: Sequence[Snapshot], progress: Progress) -> Stats:
    """Reads every different tree once. Memory does not grow with the snapshots. Raises DamagedError."""
    stats = Stats(snapshots=len(snapshots))
    with closing(IdSet()) as data, closing(IdSet(numbers=3)) as known:
        for snapshot in snapshots:
            entries, files, size = _walk(repo, bytes.fromhex(snapshot.tree), known, data, progress)
            stats.entries += entries
            stats.files += files
            stats.restore_bytes += size
        for kind, ids in ((BlobKind.DATA, data), (BlobKind.TREE, known)):
            for batch in ids.batches():
                for places in repo.index.locate(kind, batch).values():
                    stats.blobs += 1
                    stats.unique_bytes += places[0].blob.size
                    stats.stored_bytes += places[0].blob.length
    return stats


@dataclass(slots=True)
class _Open:
    """A tree whose subtrees are being counted."""

    id: bytes
    waiting: list[bytes]  # its subtrees; one that occurs twice counts twice
    entries: int
    files: int
    size: int


def _walk(repo: Repository, root: bytes, known: IdSet, data: IdSet, progress: Progress) -> tuple[int, ...]:
    """Entries, files and size of a tree with all below it; an explicit stack, since trees may be deep."""
    counted = known.numbers(root)
    if counted is not None:
        return counted
    stack = [_look(repo, root, data)]
    while True:
        progress.check()
        top = stack[-1]
        if top.waiting:
            child = known.numbers(top.waiting[-1])
            if child is None:
                stack.append(_look(repo, top.waiting[-1], data))
                continue
            top.waiting.pop()
            top.entries, top.files, top.size = top.entries + child[0], top.files + child[1], top.size + child[2]
            continue
        known.add(top.id, top.entries, top.files, top.size)
        stack.pop()
        if not stack:
            return top.entries, top.files, top.size


def _look(repo: Repository, tree_id: bytes, data: IdSet) -> _Open:
    found = _Open(tree_id, [], 0, 0, 0)
    links: set[tuple[int, int]] = set()
    for node in load_tree(repo, tree_id):
        found.entries += 1
        if node.is_file:
            found.files += 1
            data.update(node.content)
            key = (node.device_id, node.inode)
            found.size += 0 if node.links > 1 and key in links else node.size
            links.add(key)
        elif node.subtree is not None:
            found.waiting.append(node.subtree)
    return found
