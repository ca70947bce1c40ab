"""Which parent an image may inherit blocks from: the dangerous question of every increment.

Extents that changed since one state, put over the blocks of another, make a restore point that is wrong and that no
check can tell from a right one, since every blob of it is whole. So the parent must exist under our lock, be
complete, be of the same host and paths, and hold a disk of that name whose blocks lie as ours do; and where the change
tracking says what it is relative to, each of that must be so. Otherwise everything is read, and said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from node_agent.errors import DamagedError, SnapshotNotFound
from node_agent.items import TrackingBase
from node_agent.progress import Progress
from node_agent.repository.image_blocks import BlockList, cut, read_block_list
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import Snapshot, find_snapshot
from node_agent.repository.tree import Node, load_tree

DISKS = b"disks"


@dataclass(slots=True)
class Parent:
    """What an earlier snapshot holds. ``trusted`` when its blocks may be inherited; then without ``why``."""

    snapshot: Snapshot | None = None
    disks: dict[bytes, Node] = field(default_factory=dict)
    why: str = "there is no parent to go with its changed extents"
    block_sizes: dict[bytes, int] = field(default_factory=dict)  # of disks all of whose blobs are in the index now

    @property
    def id(self) -> str | None:
        return self.snapshot.id if self.snapshot is not None else None

    @property
    def trusted(self) -> bool:
        return not self.why

    @classmethod
    def find(
        cls, repo: Repository, wanted: str | None, host: str, paths: Sequence[str] | None, progress: Progress
    ) -> Parent:
        if wanted is None:
            return cls()
        try:
            snapshot = find_snapshot(repo, wanted)
            tree, disks = _disks_of(repo, snapshot)
        except SnapshotNotFound:
            progress.log("warning", f"The parent snapshot {wanted[:8]} is gone: everything is read.")
            return cls(why=f"the parent snapshot {wanted[:8]} is gone")
        except DamagedError as error:
            progress.log("warning", f"The parent snapshot {wanted[:8]} is damaged: everything is read. {error}")
            return cls(why=f"the parent snapshot {wanted[:8]} is damaged")
        if snapshot.partial:
            progress.log("warning", f"The parent snapshot {wanted[:8]} is partial: everything is read.")
            return cls(snapshot, disks, f"the parent snapshot {wanted[:8]} is partial")
        known = repo.index.proven(tree) if tree else {}
        return cls(snapshot, disks, _other_machine(snapshot, host, paths), known)

    def blocks(self, repo: Repository, name: bytes) -> BlockList | None:
        """The blocks of a disk, every blob of it in the index as it was loaded last; None if that is not so."""
        node = self.disks[name]
        if (block_size := self.block_sizes.get(name)) is not None:
            return cut(node.size, node.content, block_size)
        return read_block_list(node.size, node.content, repo.blob_sizes(BlobKind.DATA, node.content))

    def mismatch(self, repo: Repository, base: TrackingBase, disk: str, blocks: BlockList) -> str:
        """In what the stored state differs from the one that changes are relative to; empty if in nothing."""
        assert self.snapshot is not None
        facts = (
            ("repository", base.repository, repo.id),
            ("snapshot", base.snapshot, self.snapshot.id),
            ("tree", base.tree, self.snapshot.tree),
            ("disk", base.disk, disk),
            ("size", base.size, blocks.size),
            ("block size", base.block_size, blocks.block_size),
        )
        return "; ".join(
            f"its {what} is {_short(theirs)}, and that of the parent {_short(ours)}"
            for what, theirs, ours in facts
            if theirs != ours
        )


def _short(value: object) -> str:
    text = str(value) or "not named"
    return text[:8] if len(text) == 64 else text[:100]


def _other_machine(snapshot: Snapshot, host: str, paths: Sequence[str] | None) -> str:
    paths = snapshot.paths if paths is None else paths
    if snapshot.hostname == host and set(snapshot.paths) == set(paths):
        return ""
    theirs = f"{snapshot.hostname} ({', '.join(snapshot.paths)})"
    return f"the parent snapshot {snapshot.short_id} is of {theirs}, not of {host} ({', '.join(paths)})"


def _disks_of(repo: Repository, snapshot: Snapshot) -> tuple[bytes, dict[bytes, Node]]:
    root = load_tree(repo, bytes.fromhex(snapshot.tree))
    folder = next((node for node in root if node.name == DISKS and node.subtree is not None), None)
    if folder is None or folder.subtree is None:
        return b"", {}
    nodes = load_tree(repo, folder.subtree)
    return folder.subtree, {node.name: node for node in nodes if node.is_file}
