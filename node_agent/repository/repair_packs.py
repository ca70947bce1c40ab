"""Healing: damaged packs are replaced by new ones, what is lost is fetched from other repositories that have it.

A blob's id is the SHA-256 of its content, so another repository's copy of it is as good as ours, whatever its key.
Alone in the repository from beginning to end; order, so that a kill at any instant loses nothing that could be had:

1. Damaged entries leave the index, so that nobody deduplicates against them, and no prune prefers them.
2. What is good in the damaged packs, and what other repositories have of the rest, is stored in new packs, named by new
   index files, and read back from the store.
3. The damaged packs leave the index.
4. They are deleted, unless something is still lost: then they stay, named by no index, for a later attempt.

Where the store locks objects, new packs and index files are locked as long as those that they stand in for, before
anything goes; what cannot be deleted yet is put out of sight and named in the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from node_agent.errors import BrsError, DamagedError, RepositoryError
from node_agent.progress import Progress
from node_agent.repository.backend.base import Kind
from node_agent.repository.index import Index
from node_agent.repository.index_file import PackEntry
from node_agent.repository.index_rewrite import Change, rewrite_index
from node_agent.repository.pack import BlobKind, PackedBlob
from node_agent.repository.prover import Prover
from node_agent.repository.reachable import references
from node_agent.repository.reader import BlobReader
from node_agent.repository.repack import PackStore, ReadPack, read_pack, read_packs
from node_agent.repository.repository import Lock, Repository
from node_agent.repository.snapshot import list_snapshots
from node_agent.repository.withdraw import StillLocked, inherit, longest, withdraw

_DATA_AT_ONCE = 10_000


@dataclass(slots=True)
class RepairPacksResult:
    healthy_packs: list[str] = field(default_factory=list)  # nothing is wrong with them; they stay
    replaced_packs: list[str] = field(default_factory=list)
    kept_aside_packs: list[str] = field(default_factory=list)  # out of the index, not deleted: something is still lost
    unknown_packs: list[str] = field(default_factory=list)  # named by no index: a repair before may have taken them out
    moved_blobs: int = 0  # good ones of damaged packs
    healed_blobs: int = 0  # fetched from another repository
    lost_blobs: list[str] = field(default_factory=list)  # "data 0a1b…": needed, and nobody has them
    still_locked: list[StillLocked] = field(default_factory=list)  # out of use, but the store keeps it

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {
            "still_locked": [one.to_json() for one in self.still_locked]
        }


def repair_packs(
    repo: Repository,
    lock: Lock,
    packs: Iterable[str],
    *,
    sources: Sequence[Repository] = (),
    progress: Progress | None = None,
) -> RepairPacksResult:
    """``lock`` must be exclusive; ``sources`` are open, locked, their indexes loaded.

    Heals the named packs, and everything that snapshots need and the index does not name. Raises DamagedError if an
    index file is damaged (repair the index first) or what was stored does not read back.
    """
    if not lock.exclusive:
        raise RepositoryError("Repairing packs needs the repository alone: an exclusive lock.")
    repo.guard(prove=True)
    run = _RepairPacks(repo, lock, sources, progress or Progress())
    try:
        with run.store, run.prover:
            run.run(set(packs))
    finally:
        run.index.close()
    repo.load_index()
    return run.result


class _RepairPacks:
    def __init__(self, repo: Repository, lock: Lock, sources: Sequence[Repository], progress: Progress) -> None:
        self.repo = repo
        self.lock = lock
        self.sources = sources
        self.progress = progress
        self.result = RepairPacksResult()
        self.index = Index(repo.files, "repair")
        self.prover = Prover(repo.files.key)
        self._written: list[PackEntry] = []
        self._written_indexes: list[str] = []
        self.store = PackStore(repo.files, repo.guard, self._note_written, repo.pack_size)
        self._damaged: set[str] = set()
        self._bad: set[tuple[str, BlobKind, bytes]] = set()
        self._fetched: set[tuple[BlobKind, bytes]] = set()

    def run(self, packs: set[str]) -> None:
        self.index.refresh()
        self._examine(packs)
        if self._bad:
            self._rewrite(self._without_bad)
        self._move_good()
        self._heal_missing()
        self.store.flush()
        self._prove_written()
        until = longest(self.repo.backend, Kind.PACK, sorted(self._damaged))
        inherit(self.repo.backend, Kind.PACK, [pack for pack, _ in self._written], until)
        inherit(self.repo.backend, Kind.INDEX, self._written_indexes, until)
        if self._damaged:
            self._rewrite(lambda entry: None if entry[0] in self._damaged else entry)
            self._drop()

    def _note_written(self, name: str, packs: Sequence[PackEntry]) -> None:
        self._written_indexes.append(name)
        self._written.extend(packs)

    def _rewrite(self, change: Change) -> None:
        """Twice in a run; what the second time finds still locked holds what the first did."""
        self.index.refresh()
        replaced = rewrite_index(self.repo, self.lock, self.index, change, self._damaged)
        self.result.still_locked = replaced.still_locked or self.result.still_locked
        self.index.refresh()

    def _examine(self, packs: set[str]) -> None:
        unknown = set(packs)
        wanted = (entry for entry in self.index.packs() if entry[0] in packs)
        for read in self._read("repair: read packs", (0.0, 0.3), wanted, len(packs)):
            unknown.discard(read.pack)
            if not read.bad and self._named_rightly(read.pack):
                self.result.healthy_packs.append(read.pack)
                continue
            self._damaged.add(read.pack)
            self._bad.update((read.pack, blob.kind, blob.id) for blob, _ in read.bad)
        self.result.unknown_packs = sorted(unknown)

    def _read(
        self, phase: str, stretch: tuple[float, float], wanted: Iterable[PackEntry], count: int
    ) -> Iterator[ReadPack]:
        """Packs of the index, read and proven, and counted."""
        self.progress.begin(phase, stretch, total_files=count)
        with closing(read_packs(self.repo.files, wanted, self.prover)) as packs:
            for read in packs:
                self.progress.check()
                yield read
                self.progress.add(done_files=1)

    def _named_rightly(self, pack: str) -> bool:
        """Also the header, which the index does not need, must be whole: stock restic reads it."""
        return hashlib.sha256(self.repo.backend.get(Kind.PACK, pack)).hexdigest() == pack

    def _without_bad(self, entry: PackEntry) -> PackEntry | None:
        pack, blobs = entry
        if pack not in self._damaged:
            return entry
        good = [blob for blob in blobs if (pack, blob.kind, blob.id) not in self._bad]
        return (pack, good) if good else None

    def _move_good(self) -> None:
        wanted = (entry for entry in self.index.packs() if entry[0] in self._damaged)
        for read in self._read("repair: move blobs", (0.3, 0.5), wanted, len(self._damaged)):
            self._move(read)

    def _move(self, read: ReadPack) -> None:
        for _, error in read.bad:
            raise error  # it was good a moment ago: the store cannot be trusted now
        for blob, sealed in read.blobs():
            if not self._kept_elsewhere(blob):
                self.store.add(blob, sealed)
                self.result.moved_blobs += 1

    def _kept_elsewhere(self, blob: PackedBlob) -> bool:
        places = self.index.locations(blob.kind, blob.id)
        others = [place for place in places if place.pack not in self._damaged]
        return any(not read_pack(self.repo.files, place.pack, [place.blob]).bad for place in others)

    def _heal_missing(self) -> None:
        """Walk all snapshots and fetch what the index does not name; trees that are fetched are walked as well."""
        reader = BlobReader(self.repo.files, self.index)
        roots = sorted({bytes.fromhex(snapshot.tree) for snapshot in list_snapshots(self.repo)})
        self.progress.begin("repair: fetch what is missing", (0.5, 0.8), total_files=len(roots))
        seen: set[bytes] = set()
        for root in roots:
            self._heal_below(root, reader, seen)
            self.progress.add(done_files=1)

    def _heal_below(self, root: bytes, reader: BlobReader, seen: set[bytes]) -> None:
        stack = [root]
        data: set[bytes] = set()
        while stack:
            self.progress.check()
            tree_id = stack.pop()
            if tree_id in seen:
                continue
            seen.add(tree_id)
            content = self._tree(reader, tree_id)
            if content is None:
                continue
            wanted, below = references(tree_id, content)
            data.update(wanted)
            stack += below
            if len(data) >= _DATA_AT_ONCE:
                self._fetch_data(data)
                data = set()
        self._fetch_data(data)

    def _tree(self, reader: BlobReader, tree_id: bytes) -> bytes | None:
        try:
            return reader.load(BlobKind.TREE, tree_id)
        except DamagedError:
            return self._fetch(BlobKind.TREE, tree_id)

    def _fetch_data(self, ids: set[bytes]) -> None:
        for blob_id in sorted(self.index.missing(BlobKind.DATA, ids)):
            self.progress.check()
            self._fetch(BlobKind.DATA, blob_id)

    def _fetch(self, kind: BlobKind, blob_id: bytes) -> bytes | None:
        """From the first source that has it and can read it; stored once."""
        if (kind, blob_id) in self._fetched:
            return None
        self._fetched.add((kind, blob_id))
        for source in self.sources:
            try:
                content = source.load_blob(kind, blob_id)
            except BrsError as error:
                self.progress.log("debug", f"{source.backend.url}: {error}")
                continue
            self.store.add_content(kind, content)
            self.result.healed_blobs += 1
            return content
        self.result.lost_blobs.append(f"{kind} {blob_id.hex()}")
        return None

    def _prove_written(self) -> None:
        for read in self._read("repair: prove what was stored", (0.8, 1.0), self._written, len(self._written)):
            for _, error in read.bad:
                raise error

    def _drop(self) -> None:
        self.lock.prove()
        if self.result.lost_blobs:
            self.result.kept_aside_packs = sorted(self._damaged)
            return
        self.result.replaced_packs = sorted(self._damaged)
        self.result.still_locked += withdraw(self.repo.backend, Kind.PACK, self.result.replaced_packs, self.lock.check)
