"""Which files of which snapshots are hurt; and snapshots without what is lost, for those who want what is left.

A file that lost blobs keeps its length where the lengths of the lost pieces are certain: zeros stand in their place, so
that everything else stays where it was (which a disk image needs). Otherwise the file is left out. A folder whose list
is lost becomes empty. A repaired snapshot is marked as partial and names its original.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from node_agent.errors import DamagedError
from node_agent.items import printable
from node_agent.progress import Progress
from node_agent.repository.repository import BlobKind, BlobWriter, Lock, Repository
from node_agent.repository.snapshot import (
    PARTIAL_TAG,
    Snapshot,
    identity_of,
    list_snapshots,
    remove_snapshot,
    save_snapshot,
)
from node_agent.repository.tree import Node, encode_tree, load_tree

BlobKey = tuple[BlobKind, bytes]

_MAX_FILL = 64 << 20  # a longer gap is no chunk of anybody


@dataclass(frozen=True, slots=True)
class HurtFile:
    """``lost`` are the ranges (offset, length) that zeros replace; empty if the whole entry is lost."""

    path: bytes
    message: str
    lost: tuple[tuple[int, int], ...] = ()

    def below(self, name: bytes) -> HurtFile:
        return replace(self, path=b"/" + name + self.path)

    def to_json(self) -> dict[str, Any]:
        return {"path": printable(self.path), "message": self.message, "lost": [list(part) for part in self.lost]}


@dataclass(slots=True)
class HurtSnapshot:
    snapshot: Snapshot
    files: list[HurtFile]
    repaired: str | None = None  # id of the snapshot that was written
    forgotten: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot.describe_json(),
            "files": [file.to_json() for file in self.files],
            "repaired": self.repaired,
            "forgotten": self.forgotten,
        }


def find_hurt(
    repo: Repository, snapshots: Sequence[Snapshot], lost: Collection[BlobKey], progress: Progress
) -> list[HurtSnapshot]:
    """The hurt ones of ``snapshots``, with every file. ``lost`` are blobs that the index names but nobody can read."""
    repair = _Repair(repo, lost, progress, None)
    found = [HurtSnapshot(snapshot, repair.hurt_files(snapshot)) for snapshot in snapshots]
    return [hurt for hurt in found if hurt.files]


def repair_snapshots(
    repo: Repository,
    lock: Lock,
    snapshots: Sequence[Snapshot],
    lost: Collection[BlobKey],
    *,
    forget: bool = False,
    progress: Progress,
) -> list[HurtSnapshot]:
    """Write a snapshot without what is lost for each hurt one; with ``forget`` the hurt one goes (exclusive lock).

    One of which nothing can be had is neither replaced nor removed.
    """
    found: list[HurtSnapshot] = []
    there = {identity_of(one): one.id for one in list_snapshots(repo, damaged=lambda _: None)}
    for snapshot in snapshots:
        with repo.writer(progress) as writer:
            repair = _Repair(repo, lost, progress, writer)
            hurt = HurtSnapshot(snapshot, repair.hurt_files(snapshot))
            tree = repair.new_root(snapshot)
        if not hurt.files:
            continue
        found.append(hurt)
        if tree is None:
            continue
        tags = (*(tag for tag in snapshot.tags if tag != PARTIAL_TAG), PARTIAL_TAG)
        original = snapshot.original or snapshot.id
        new = replace(snapshot, id="", tree=tree.hex(), tags=tags, original=original)
        # A run that was killed, or another before this one, may have written it already.
        hurt.repaired = there.get(identity_of(new)) or save_snapshot(repo, lock, new).id
        if forget:
            remove_snapshot(repo, snapshot.id, replaced=True)
            hurt.forgotten = True
    return found


@dataclass(slots=True)
class _Fixed:
    """A tree that suffers, itself or below: what is wrong, and its replacement (None: nothing of it can be had)."""

    hurt: list[HurtFile] = field(default_factory=list)
    tree: bytes | None = None


class _Repair:
    def __init__(
        self, repo: Repository, lost: Collection[BlobKey], progress: Progress, writer: BlobWriter | None
    ) -> None:
        self._repo = repo
        self._lost = {blob_id for kind, blob_id in lost if kind is BlobKind.DATA}
        self._lost_trees = {blob_id for kind, blob_id in lost if kind is BlobKind.TREE}
        self._progress = progress
        self._writer = writer
        self._whole: set[bytes] = set()
        self._fixed: dict[bytes, _Fixed] = {}

    def hurt_files(self, snapshot: Snapshot) -> list[HurtFile]:
        root = bytes.fromhex(snapshot.tree)
        self._walk(root)
        return self._fixed[root].hurt if root in self._fixed else []

    def new_root(self, snapshot: Snapshot) -> bytes | None:
        fixed = self._fixed.get(bytes.fromhex(snapshot.tree))
        return fixed.tree if fixed is not None else None

    def _walk(self, root: bytes) -> None:
        """Depth first with a stack of its own: trees may be deeper than Python's."""
        stack = [root]
        while stack:
            tree_id = stack[-1]
            if tree_id in self._whole or tree_id in self._fixed:
                stack.pop()
                continue
            self._progress.check()
            try:
                if tree_id in self._lost_trees:
                    raise DamagedError(f"tree {tree_id.hex()} is lost.")
                nodes = load_tree(self._repo, tree_id)
            except DamagedError as error:
                self._fixed[tree_id] = _Fixed([HurtFile(b"", f"the folder's list is lost: {error.message}")])
                stack.pop()
                continue
            below = [node.subtree for node in nodes if node.subtree is not None]
            waiting = [tree for tree in below if tree not in self._whole and tree not in self._fixed]
            if waiting:
                stack += waiting
                continue
            self._judge(tree_id, nodes)
            stack.pop()

    def _judge(self, tree_id: bytes, nodes: list[Node]) -> None:
        hurt: list[HurtFile] = []
        missing = self._repo.missing(BlobKind.DATA, {blob_id for node in nodes for blob_id in node.content})
        left = [node for node in nodes if self._fix(node, missing, hurt)]
        if not hurt:
            self._whole.add(tree_id)
            return
        tree = self._writer.save(BlobKind.TREE, encode_tree(left)).id if self._writer else None
        self._fixed[tree_id] = _Fixed(hurt, tree)

    def _fix(self, node: Node, missing: set[bytes], hurt: list[HurtFile]) -> bool:
        """Correct an entry in place and note what is wrong with it; False if nothing of it can be kept."""
        if node.subtree in self._fixed:
            below = self._fixed[node.subtree]
            hurt += [file.below(node.name) for file in below.hurt]
            if self._writer is not None:
                node.subtree = below.tree or self._writer.save(BlobKind.TREE, encode_tree([])).id
            return True
        gone = {blob_id for blob_id in node.content if blob_id in missing or blob_id in self._lost}
        if not gone:
            return True
        pieces = self._pieces(node, gone, missing)
        if pieces is None:
            hurt.append(HurtFile(b"/" + node.name, f"{len(gone)} of its blobs are lost; the file is left out"))
            return False
        lost = tuple((offset, length) for offset, length, blob_id in pieces if blob_id in gone)
        message = f"{sum(length for _, length in lost)} bytes are lost; zeros are in their place"
        hurt.append(HurtFile(b"/" + node.name, message, lost))
        if self._writer is not None:
            node.content = [self._filled(length, blob_id, gone) for _, length, blob_id in pieces]
            node.error = message
        return True

    def _filled(self, length: int, blob_id: bytes, gone: set[bytes]) -> bytes:
        assert self._writer is not None
        return self._writer.save(BlobKind.DATA, bytes(length)).id if blob_id in gone else blob_id

    def _pieces(self, node: Node, gone: set[bytes], missing: set[bytes]) -> list[tuple[int, int, bytes]] | None:
        """(offset, length, id) of the whole content; None if the lengths of lost pieces are not certain."""
        sizes = self._repo.blob_sizes(BlobKind.DATA, set(node.content) - missing)
        unknown = [blob_id for blob_id in node.content if blob_id not in sizes]
        if unknown:
            rest = node.size - sum(sizes[blob_id] for blob_id in node.content if blob_id in sizes)
            length = self._equal_length(node, sizes, unknown, rest)
            if length is None:
                return None
            sizes |= dict.fromkeys(unknown, length)
        pieces = list(_places(node.content, sizes))
        end = pieces[-1][0] + pieces[-1][1]
        return pieces if end == node.size and all(sizes[blob_id] <= _MAX_FILL for blob_id in gone) else None

    def _equal_length(self, node: Node, sizes: dict[bytes, int], unknown: list[bytes], rest: int) -> int | None:
        """The length of each unknown piece: certain for one alone, and for blocks of an image."""
        length, odd = divmod(rest, len(unknown))
        if odd or length <= 0:
            return None
        if len(set(unknown)) == 1:
            return length
        known = {sizes[blob_id] for blob_id in node.content[:-1] if blob_id in sizes}
        return length if known == {length} else None


def _places(content: Sequence[bytes], sizes: dict[bytes, int]) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    for blob_id in content:
        yield offset, sizes[blob_id], blob_id
        offset += sizes[blob_id]
