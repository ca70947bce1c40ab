"""Sizes: what snapshots would restore, and what they take in the repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node_agent.progress import Progress
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


@dataclass(slots=True)
class _TreeStats:
    entries: int = 0
    files: int = 0
    size: int = 0


def stats_of(repo: Repository, snapshots: Sequence[Snapshot], progress: Progress) -> Stats:
    """Reads every different tree once. Holds the ids of all blobs of the snapshots. Raises DamagedError."""
    stats = Stats(snapshots=len(snapshots))
    data: set[bytes] = set()
    known: dict[bytes, _TreeStats] = {}
    for snapshot in snapshots:
        total = _walk(repo, bytes.fromhex(snapshot.tree), known, data, progress)
        stats.entries += total.entries
        stats.files += total.files
        stats.restore_bytes += total.size
    for kind, ids in ((BlobKind.DATA, data), (BlobKind.TREE, set(known))):
        for places in repo.index.locate(kind, list(ids)).values():
            stats.blobs += 1
            stats.unique_bytes += places[0].blob.size
            stats.stored_bytes += places[0].blob.length
    return stats


def _walk(
    repo: Repository, root: bytes, known: dict[bytes, _TreeStats], data: set[bytes], progress: Progress
) -> _TreeStats:
    """Totals of a tree with all below it; an explicit stack, since trees may be deep."""
    stack: list[tuple[bytes, bool]] = [(root, False)]
    children: dict[bytes, list[bytes]] = {}
    while stack:
        tree_id, entered = stack.pop()
        if entered:
            total = known[tree_id]
            for child in children.pop(tree_id):
                below = known[child]
                total.entries += below.entries
                total.files += below.files
                total.size += below.size
            continue
        if tree_id in known:
            continue
        progress.check()
        total = known[tree_id] = _TreeStats()
        links: set[tuple[int, int]] = set()
        children[tree_id] = []
        stack.append((tree_id, True))
        for node in load_tree(repo, tree_id):
            total.entries += 1
            if node.is_file:
                total.files += 1
                data.update(node.content)
                key = (node.device_id, node.inode)
                total.size += 0 if node.links > 1 and key in links else node.size
                links.add(key)
            elif node.subtree is not None:
                children[tree_id].append(node.subtree)
                stack.append((node.subtree, False))
    return known[root]
