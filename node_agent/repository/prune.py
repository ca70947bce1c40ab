"""Giving space back: packs, or parts of packs, that no snapshot needs any more.

Alone in the repository from beginning to end. Order, so that a kill at any instant loses nothing:

1. What every snapshot needs is collected from all trees; one that cannot be read ends the prune before it began.
2. What is still needed of packs with much waste is read, proven, stored in new packs and named by new index files.
3. Index files that name a pack to be removed are replaced: first the new ones are written, then the old ones go.
4. Only now, when no index names them, packs are deleted; also those that no index named to begin with.

A blob that lies in two packs counts as needed in both: the second copy of something is never thrown away. Memory grows
with the number of blobs, some 100 bytes for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from node_agent.errors import DamagedError, RepositoryError
from node_agent.progress import Progress
from node_agent.repository.backend.base import Kind
from node_agent.repository.index import Index
from node_agent.repository.index_file import MAX_BLOBS, PackEntry, load_index_file, save_index_file
from node_agent.repository.pack import BlobKind, PackedBlob
from node_agent.repository.reader import BlobReader
from node_agent.repository.repository import Lock, Repository
from node_agent.repository.snapshot import list_snapshots
from node_agent.repository.tree import load_tree
from node_agent.repository.writer import BlobWriter

_Needed = set[tuple[BlobKind, bytes]]


@dataclass(slots=True)
class PruneResult:
    """Sizes in bytes. After a dry run: what would be done, ``rewritten_bytes`` then being an estimate."""

    kept_packs: int = 0
    removed_packs: int = 0  # nothing in them was needed
    rewritten_packs: int = 0  # something was
    orphaned_packs: int = 0  # no index named them
    removed_bytes: int = 0  # of all three
    rewritten_bytes: int = 0  # stored anew

    @property
    def freed_bytes(self) -> int:
        return self.removed_bytes - self.rewritten_bytes

    def to_json(self) -> dict[str, Any]:
        names = ("kept_packs", "removed_packs", "rewritten_packs", "orphaned_packs", "removed_bytes", "rewritten_bytes")
        return {name: getattr(self, name) for name in names} | {"freed_bytes": self.freed_bytes}


@dataclass(slots=True)
class _Plan:
    sizes: dict[str, int]  # of all stored packs
    remove: set[str] = field(default_factory=set)
    rewrite: dict[str, list[PackedBlob]] = field(default_factory=dict)  # with what is needed of each
    kept: int = 0
    orphans: set[str] = field(default_factory=set)

    @property
    def leaving(self) -> set[str]:
        return self.remove | self.rewrite.keys()


def prune(
    repo: Repository,
    lock: Lock,
    *,
    max_unused: float = 0.05,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PruneResult:
    """``lock`` must be exclusive. Packs whose share of waste is above ``max_unused`` are rewritten.

    Raises DamagedError, having changed nothing, if a snapshot, tree, index file or pack is damaged or missing.
    """
    if not lock.exclusive:
        raise RepositoryError("Pruning needs the repository alone: an exclusive lock.")
    repo.guard(prove=True)
    progress = progress or Progress()
    index = Index(repo.files, "prune")  # read anew and private: what is deleted must not rest on a cache
    try:
        index.refresh()
        plan = _plan(repo, index, _needed(repo, progress), max_unused)
        result = _result(plan)
        if not dry_run:
            result.rewritten_bytes = _rewrite(repo, index, plan, progress)
            _replace_index(repo, lock, plan.leaving)
            _delete_packs(repo, lock, plan.leaving | plan.orphans)
            repo.backend.remove_leftovers()
    finally:
        index.close()
    if not dry_run:
        repo.load_index()
    return result


def _needed(repo: Repository, progress: Progress) -> _Needed:
    progress.set(phase="prune: snapshots")
    needed: _Needed = set()
    pending = [bytes.fromhex(snapshot.tree) for snapshot in list_snapshots(repo)]
    while pending:
        progress.check()
        tree_id = pending.pop()
        if (BlobKind.TREE, tree_id) in needed:
            continue
        needed.add((BlobKind.TREE, tree_id))
        for node in load_tree(repo, tree_id):
            needed.update((BlobKind.DATA, blob_id) for blob_id in node.content)
            if node.subtree is not None:
                pending.append(node.subtree)
    return needed


def _plan(repo: Repository, index: Index, needed: _Needed, max_unused: float) -> _Plan:
    for kind in BlobKind:
        absent = index.missing(kind, (blob_id for blob_kind, blob_id in needed if blob_kind is kind))
        if absent:
            raise DamagedError(f"{kind} {min(absent).hex()} is missing, so nothing is pruned; run a check.")
    plan = _Plan({info.name: info.size for info in repo.backend.list(Kind.PACK)})
    named: set[str] = set()
    for pack, blobs in index.packs():
        named.add(pack)
        used = [blob for blob in blobs if (blob.kind, blob.id) in needed]
        if used and pack not in plan.sizes:
            raise DamagedError(f"pack {pack} is missing, so nothing is pruned; run a check.")
        if not used:
            plan.remove.add(pack)
        elif sum(blob.length for blob in used) < (1 - max_unused) * sum(blob.length for blob in blobs):
            plan.rewrite[pack] = used
        else:
            plan.kept += 1
    plan.orphans = plan.sizes.keys() - named
    return plan


def _result(plan: _Plan) -> PruneResult:
    return PruneResult(
        kept_packs=plan.kept,
        removed_packs=len(plan.remove),
        rewritten_packs=len(plan.rewrite),
        orphaned_packs=len(plan.orphans),
        removed_bytes=sum(plan.sizes.get(pack, 0) for pack in plan.leaving | plan.orphans),
        rewritten_bytes=sum(blob.length for blobs in plan.rewrite.values() for blob in blobs),
    )


def _rewrite(repo: Repository, index: Index, plan: _Plan, progress: Progress) -> int:
    """Store what is needed of wasteful packs anew, every new blob opened again. Returns the bytes stored."""
    progress.set(phase="prune: rewrite", total_bytes=sum(len(blobs) for blobs in plan.rewrite.values()), done_bytes=0)
    if not plan.rewrite:
        return 0
    reader = BlobReader(repo.files, repo.index)  # still knows the old places
    repo.load_index()
    index.drop_packs(plan.leaving)  # so that the writer takes for unknown what only lies there
    with BlobWriter(repo.files, index, repo.guard, progress, verify_write=True) as writer:
        for blobs in plan.rewrite.values():
            for kind in BlobKind:
                for _, content in reader.load_many(kind, [blob.id for blob in blobs if blob.kind is kind]):
                    writer.submit(kind, content)
    return writer.stored_bytes


def _replace_index(repo: Repository, lock: Lock, leaving: set[str]) -> None:
    """New index files without the leaving packs, then the end of the old ones that named them."""
    old: list[str] = []
    waiting: list[PackEntry] = []
    for info in list(repo.backend.list(Kind.INDEX)):
        packs = list(load_index_file(repo.files, info.name))
        if any(pack in leaving for pack, _ in packs):
            old.append(info.name)
            waiting += [(pack, blobs) for pack, blobs in packs if pack not in leaving]
    lock.prove()
    for batch in _index_sized(waiting):
        save_index_file(repo.files, batch)
    for name in old:
        lock.check()
        repo.backend.delete(Kind.INDEX, name)


def _index_sized(packs: list[PackEntry]) -> Iterator[list[PackEntry]]:
    batch: list[PackEntry] = []
    count = 0
    for pack, blobs in packs:
        if batch and count + len(blobs) > MAX_BLOBS:
            yield batch
            batch, count = [], 0
        batch.append((pack, blobs))
        count += len(blobs)
    if batch:
        yield batch


def _delete_packs(repo: Repository, lock: Lock, packs: set[str]) -> None:
    lock.prove()
    for pack in sorted(packs):
        lock.check()
        repo.backend.delete(Kind.PACK, pack)
