"""Copying snapshots into another repository with another key: what it has not got is opened, proven and sealed anew.

Trees go over as they are, so ids of trees and data stay the same, and each repository can heal the other. The copy says
in ``original`` which snapshot it is of; by that a second run knows what is there already. Memory stays flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from node_agent.errors import ConfigError, DamagedError
from node_agent.progress import Progress
from node_agent.repository.publish import save_point
from node_agent.repository.reachable import KINDS, Reachable, at_once
from node_agent.repository.reader import BlobReader
from node_agent.repository.repository import BlobKind, BlobWriter, Lock, Repository
from node_agent.repository.snapshot import Snapshot, list_snapshots

_AT_ONCE = 4096
_WALK = 0.1  # the share of walking trees in the copy of a snapshot


@dataclass(slots=True)
class CopyResult:
    copied: list[tuple[str, str]] = field(default_factory=list)  # (source's id, id of the copy)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # the same of what was there already
    new_blobs: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        pairs = {
            name: [{"source": source, "target": target} for source, target in getattr(self, name)]
            for name in ("copied", "skipped")
        }
        return pairs | {name: getattr(self, name) for name in ("new_blobs", "new_bytes", "stored_bytes", "notes")}


def copy_snapshots(
    source: Repository,
    target: Repository,
    lock: Lock,
    snapshots: Sequence[Snapshot],
    *,
    compression: str = "auto",
    progress: Progress | None = None,
) -> CopyResult:
    """Both are locked (``lock`` is the target's), both indexes loaded. Oldest snapshot first; each is whole on its own.

    Everything that is stored is opened again before it leaves memory, and every blob of a copy is proven in the
    target's index before its snapshot is written. Raises DamagedError naming what cannot be read in the source.
    """
    if source.id == target.id:
        raise ConfigError("Source and target are the same repository.", hint="Give two different repositories.")
    target.guard()
    run = _Copy(source, target, lock, compression, progress or Progress())
    try:
        run.run(sorted(snapshots, key=lambda snapshot: (snapshot.time, snapshot.id)))
    finally:
        run.used.close()
    return run.result


class _Copy:
    def __init__(
        self, source: Repository, target: Repository, lock: Lock, compression: str, progress: Progress
    ) -> None:
        self.source = source
        self.target = target
        self.lock = lock
        self.compression = compression
        self.progress = progress
        self.result = CopyResult()
        self.used = Reachable()
        self.used.db.execute("CREATE TABLE reachable.todo (pack BLOB, offset INTEGER, kind INTEGER, id BLOB)")

    def run(self, snapshots: Sequence[Snapshot]) -> None:
        there = {_identity(snapshot): snapshot.id for snapshot in list_snapshots(self.target)}
        for number, snapshot in enumerate(snapshots):
            if (found := there.get(_identity(snapshot))) is not None:
                self.result.skipped.append((snapshot.id, found))
            else:
                copy = self._copy(snapshot, number, len(snapshots))
                there[_identity(snapshot)] = copy
                self.result.copied.append((snapshot.id, copy))

    def _copy(self, snapshot: Snapshot, number: int, of: int) -> str:
        """The number-th of so many; all count alike, since how much is missing of one is not known before its turn."""
        walked = (number + _WALK) / of
        self.progress.begin("copy: trees", (number / of, walked))
        self.progress.set(current=f"snapshot {snapshot.short_id}, {number + 1} of {of}")
        reader = BlobReader(self.source.files, self.source.index)
        self.used.walk(reader, [bytes.fromhex(snapshot.tree)], self.progress)
        total = self._find_todo()
        self.progress.begin("copy: data", (walked, (number + 1) / of), total_bytes=total)
        self.progress.set(current=f"snapshot {snapshot.short_id}, {number + 1} of {of}")
        with self.target.writer(self.progress, compression=self.compression, verify_write=True) as writer:
            for kind in BlobKind:
                self._copy_blobs(reader, writer, kind)
        self.result.new_blobs += writer.new_blobs
        self.result.new_bytes += writer.new_bytes
        self.result.stored_bytes += writer.stored_bytes
        self._prove()
        # The parent has another id over there; it is only information.
        copy = replace(snapshot, id="", parent=None, original=snapshot.original or snapshot.id)
        saved, reason = save_point(self.target, self.lock, copy, self.progress)
        if reason:
            self.result.notes.append(f"snapshot {saved.short_id} is not immutable: {reason}")
        return saved.id

    def _find_todo(self) -> int:
        """What the target misses of the trees just walked, noted by its place in the source; its bytes there."""
        self.used.db.execute("DELETE FROM todo")
        total = 0
        for kind, ids in self.used.batches(self.used.round):
            self.progress.check()
            missing = sorted(self.target.missing(kind, ids))
            found = self.source.index.locate(kind, missing)
            if absent := set(missing) - found.keys():
                raise DamagedError(f"{kind} blob {min(absent).hex()} is missing in the source.")
            places = [copies[0] for copies in found.values()]
            with at_once(self.used.db):
                self.used.db.executemany(
                    "INSERT INTO todo VALUES (?, ?, ?, ?)",
                    [(bytes.fromhex(p.pack), p.blob.offset, KINDS.index(kind), p.blob.id) for p in places],
                )
            total += sum(place.blob.size for place in places)
        return total

    def _copy_blobs(self, reader: BlobReader, writer: BlobWriter, kind: BlobKind) -> None:
        ids = self._todo(kind)
        while batch := list(islice(ids, _AT_ONCE)):
            for _, content in reader.load_many(kind, batch):
                self.progress.check()
                writer.submit(kind, content)
                self.progress.add(done_bytes=len(content))

    def _todo(self, kind: BlobKind) -> Iterator[bytes]:
        """In the order of the source's packs, so that neighbours are read together."""
        rows = self.used.db.execute("SELECT id FROM todo WHERE kind = ? ORDER BY pack, offset", (KINDS.index(kind),))
        return (row[0] for row in rows)

    def _prove(self) -> None:
        """Every blob of the snapshot is named by the target's index as the store has it now."""
        self.target.load_index()
        for kind, ids in self.used.batches(self.used.round):
            if absent := self.target.missing(kind, ids):
                raise DamagedError(f"{kind} blob {min(absent).hex()} did not arrive in the target.")
        self.used.round += 1


def _identity(snapshot: Snapshot) -> tuple[str, str, str]:
    """What a snapshot and its copies have in common."""
    return snapshot.original or snapshot.id, snapshot.tree, snapshot.time.isoformat()
