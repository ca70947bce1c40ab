"""Giving space back: packs, or parts of packs, that no snapshot needs any more. In two phases.

Under a *shared* lock, beside running backups, which takes as long as it takes:

1. What every snapshot needs is collected from all trees; one that cannot be read ends the prune before it began.
2. The plan: which packs leave (see :mod:`.prune_plan`).
3. What is still needed of them is read, proven, stored in new packs and named by new index files. Of what lies
   elsewhere too, that other copy is read and proven.

Then *alone*, which is short:

4. The index is loaded again. Trees of new snapshots are walked; a pack that holds something they need stays. If index
   files vanished meanwhile, somebody else pruned or repaired, and the plan is made anew.
5. Index files that name leaving packs are replaced: first the new ones are written, then the old ones go; so do those
   that were superseded while the store kept them locked.
6. Only now packs are deleted; also those that no index names: alone, they can be nobody's work in progress.

A kill at any instant loses nothing: it leaves blobs twice or packs that no index names, and the next prune goes on from
there. Memory stays flat: what is needed is kept in a temporary database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from math import inf
from operator import itemgetter
from typing import Any

from node_agent.errors import DamagedError, RepositoryLocked, SnapshotsMissing
from node_agent.progress import Progress
from node_agent.repository.backend.base import Buffer, Kind
from node_agent.repository.backend.settings import parse_size
from node_agent.repository.immutable import packs_of_locked_indexes
from node_agent.repository.index import Index
from node_agent.repository.index_file import PackEntry, load_index_file
from node_agent.repository.index_rewrite import rewrite_index
from node_agent.repository.pack import PackedBlob
from node_agent.repository.prover import Prover
from node_agent.repository.prune_plan import Fate, Limits, PrunePlan
from node_agent.repository.reachable import Reachable, batches
from node_agent.repository.reader import BlobReader
from node_agent.repository.repack import PackStore, Wanted, read_pack, read_packs
from node_agent.repository.repository import Lock, Repository
from node_agent.repository.snapshot import list_snapshots
from node_agent.repository.withdraw import withdraw

_ATTEMPTS = 3
_STEPS = 100  # of the bar while snapshots are walked


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """``max_unused``: waste that may stay, as text (``5%``, ``200M`` in bytes, ``unlimited``); see parse_max_unused."""

    max_unused: str = "5%"
    max_repack_bytes: int | None = None
    max_duration_s: float | None = None  # of rewriting; what is not reached stays for the next prune
    dry_run: bool = False
    wait_s: float = 0  # for the lock of the second phase
    expected: frozenset[str] = frozenset()  # snapshots that must be there, or nothing is removed


@dataclass(slots=True)
class PruneResult:
    """Sizes in bytes. After a dry run: what would be done."""

    kept_packs: int = 0
    removed_packs: int = 0  # nothing in them was needed, or all of it is kept elsewhere
    rewritten_packs: int = 0  # something was needed
    orphaned_packs: int = 0  # no index named them
    removed_bytes: int = 0  # of all three
    rewritten_bytes: int = 0  # stored anew
    unused_bytes: int = 0  # waste that stays
    locked_packs: int = 0  # nothing in them is needed, but the store keeps them
    locked_bytes: int = 0
    locked_until: float = 0.0  # the last of them; seconds since the epoch
    notes: list[str] = field(default_factory=list)

    @property
    def freed_bytes(self) -> int:
        return self.removed_bytes - self.rewritten_bytes

    def to_json(self) -> dict[str, Any]:
        names = ("kept_packs", "removed_packs", "rewritten_packs", "orphaned_packs", "removed_bytes")
        more = ("rewritten_bytes", "freed_bytes", "unused_bytes", "notes")
        locked = ("locked_packs", "locked_bytes", "locked_until")
        return {name: getattr(self, name) for name in (*names, *more, *locked)}


class _Overtaken(Exception):
    """Another program replaced index files between our two phases."""


def prune(repo: Repository, options: PruneOptions | None = None, *, progress: Progress | None = None) -> PruneResult:
    """Takes its locks itself, so none may be held by the caller.

    Raises DamagedError, nothing being removed then, if a snapshot, tree, index file or needed pack is damaged or
    missing; RepositoryLocked if others are at work when the second phase shall begin: what was done until then helps
    the next prune.
    """
    for _ in range(_ATTEMPTS):
        run = _Prune(repo, options or PruneOptions(), progress or Progress())
        try:
            return run.run()
        except _Overtaken:
            continue
        finally:
            run.close()
    raise RepositoryLocked(
        "Another program keeps replacing the repository's index files.",
        hint="Nothing was removed. Prune again when the other program has ended.",
    )


class _Prune:
    def __init__(self, repo: Repository, options: PruneOptions, progress: Progress) -> None:
        self.repo = repo
        self.options = options
        self.progress = progress
        self.limits = Limits(parse_max_unused(options.max_unused), options.max_repack_bytes)
        self.index = Index(repo.files, "prune")  # read anew and private: what is deleted must not rest on a cache
        self.used = Reachable(beside=self.index.private_db)
        self.plan = PrunePlan(self.used)
        self.result = PruneResult()
        self._walked: set[str] = set()  # trees of snapshots

    def close(self) -> None:
        self.index.close()

    def run(self) -> PruneResult:
        with self.repo.lock(wait_s=self.options.wait_s, read_only_ok=self.options.dry_run):
            self._make_plan()
            if self.options.dry_run:
                return self._planned()
            with Prover(self.repo.files.key) as prover:
                self._rewrite(prover)
                self._prove_the_rest(prover)
            files = self.index.file_names()
        with self.repo.lock(exclusive=True, wait_s=self.options.wait_s) as lock:
            self._look_again(files)
            self._remove(lock)
            if self.repo.index_is_open:
                self.repo.load_index()
        return self.result

    def _make_plan(self) -> None:
        if not self.options.dry_run:
            self.repo.guard(prove=True)
        self.progress.begin("prune: index", (0.0, 0.15))
        self.index.refresh(progress=self.progress)
        self._walk_snapshots((0.15, 0.25))
        self.progress.begin("prune: plan", (0.25, 0.3))
        self.index.merge_entries()
        self.plan.count()
        self.plan.take_stored(self.repo.backend.list(Kind.PACK))
        self.plan.refuse_lost()
        self._note_locked()
        self.plan.decide(self.limits)

    def _note_locked(self) -> None:
        """Where the store locks objects: packs that it keeps, and those that an index file names which it keeps."""
        lock = self.repo.backend.object_lock
        if lock is None:
            return
        for pack, until in packs_of_locked_indexes(self.repo, self.index).items():
            self.plan.note_locked(pack, until)
        for pack in self.plan.dispensable():
            self.progress.check()
            until = lock.locked_until(Kind.PACK, pack)
            if until:
                self.plan.note_locked(pack, until)

    def _walk_snapshots(self, stretch: tuple[float, float]) -> bool:
        """Returns whether there were any that had not been walked."""
        snapshots = list_snapshots(self.repo)
        self._refuse_missing({snapshot.id for snapshot in snapshots})
        trees = {snapshot.tree for snapshot in snapshots} - self._walked
        self.progress.begin("prune: snapshots", stretch, total_files=len(trees))
        reader = BlobReader(self.repo.files, self.index)
        # Together they cost fewer requests, one by one they can be counted.
        for some in batches(sorted(trees), max(1, len(trees) // _STEPS)):
            self.used.walk(reader, map(bytes.fromhex, some), self.progress)
            self.progress.add(done_files=len(some))
        self._walked |= trees
        return bool(trees)

    def _refuse_missing(self, there: set[str]) -> None:
        missing = sorted(self.options.expected - there)
        if missing:
            shown = ", ".join(name[:8] for name in missing[:5]) + (" …" if len(missing) > 5 else "")
            raise SnapshotsMissing(
                f"{len(missing)} of {len(self.options.expected)} snapshots that should be in the repository are"
                f" missing ({shown}). Nothing was removed."
            )

    # --- beside others ---

    def _rewrite(self, prover: Prover) -> None:
        """Store what is needed of leaving packs anew; packs that the time is too short for stay."""
        total = self.plan.total("needed", f"fate = {Fate.REWRITE}")
        prover.expect(self.plan.total("blobs", f"fate = {Fate.REWRITE}"), total)
        self.progress.begin("prune: rewrite", (0.3, 0.8), total_bytes=total)
        with (
            PackStore(self.repo.files, self.repo.guard, self._note_written, self.repo.pack_size) as store,
            closing(read_packs(self.repo.files, self._in_time(self.plan.to_move()), prover)) as packs,
        ):
            for read in packs:
                self.progress.check()
                for blob, error in read.bad:
                    store.add(*self._other_copy(read.pack, blob, error))
                for run in read.good:
                    store.add_run(run)
                self.plan.note_moved(read.pack, read.wanted_bytes)
                self.progress.add(done_bytes=read.wanted_bytes)
            store.flush()
        self.plan.keep_unmoved()
        self.result.rewritten_bytes = store.stored_bytes

    def _note_written(self, name: str, packs: Sequence[PackEntry]) -> None:
        self.index.add_file(name, ())  # what is in it need not be found: nothing is read from there in this run
        self.plan.note_indexed(pack for pack, _ in packs)

    def _in_time(self, pieces: Iterator[Wanted]) -> Iterator[Wanted]:
        """No pack is begun when the time is over."""
        deadline = time.monotonic() + (inf if self.options.max_duration_s is None else self.options.max_duration_s)
        for _, pack in groupby(pieces, key=itemgetter(0)):
            if time.monotonic() >= deadline:
                return
            yield from pack

    def _other_copy(self, pack: str, blob: PackedBlob, error: DamagedError) -> tuple[PackedBlob, Buffer]:
        """Another good copy of a blob that is damaged where it was to be kept, as it is stored there: its length may
        differ, since another program or level compressed it. Raises ``error`` if there is none.
        """
        for place in self.index.locations(blob.kind, blob.id):
            if place.pack != pack:
                for found in read_pack(self.repo.files, place.pack, [place.blob]).blobs():
                    return found
        raise error

    def _prove_the_rest(self, prover: Prover) -> None:
        """Read the copies that stay of what else leaves; a pack stays if the other copy is not good."""
        total = self.plan.bytes_to_prove()
        self.progress.begin("prune: prove copies", (0.8, 0.85), total_bytes=total)
        with closing(read_packs(self.repo.files, self.plan.to_prove(), prover)) as packs:
            for read in packs:
                self.progress.check()
                self.plan.note_proven(blob for run in read.good for blob in run.blobs)
                self.progress.add(done_bytes=read.wanted_bytes)
                self.result.notes += [
                    f"{error.message} A good copy may lie elsewhere and is kept; run a repair of the pack."
                    for _, error in read.bad
                ]
        kept = self.plan.keep_unproven()
        if kept:
            self.result.notes.append(f"{kept} packs stay, because what they hold is not proven to be good elsewhere.")

    # --- alone ---

    def _look_again(self, before: set[str]) -> None:
        """What happened since the plan was made. Raises _Overtaken."""
        self.repo.guard(prove=True)
        self.index.refresh()
        now = self.index.file_names()
        if before - now:
            raise _Overtaken
        for name in now - before:
            self.plan.note_indexed(pack for pack, _ in load_index_file(self.repo.files, name))
        self.used.round += 1
        if self._walk_snapshots((0.85, 0.87)):
            self.plan.keep_newly_needed(self.used.round)
        self.plan.take_stored(self.repo.backend.list(Kind.PACK))
        self._note_locked()  # backups that ran since may have extended them

    def _remove(self, lock: Lock) -> None:
        self.progress.begin("prune: index files", (0.87, 0.92))
        self._count()
        if self.plan.number_of("fate != 0"):
            staying, leaving = (self.plan.index_files(leaving=which) for which in (False, True))
            rewrite_index(
                self.repo, lock, self.index, self._without_leaving, but=staying, gone=leaving, progress=self.progress
            )
        self._remove_superseded(lock)
        lock.prove()
        total = self.result.removed_packs + self.result.rewritten_packs + self.result.orphaned_packs
        self.progress.begin("prune: remove", (0.92, 1.0), total_files=total)
        for names in (self.plan.names_leaving(), self.plan.orphans()):
            for pack in names:
                lock.check()
                self.repo.backend.delete(Kind.PACK, pack)
                self.progress.add(done_files=1)
        self.repo.backend.remove_leftovers()

    def _remove_superseded(self, lock: Lock) -> None:
        superseded = self.index.marks().superseded
        if superseded:
            listed = {info.name for info in self.repo.backend.list(Kind.INDEX)}
            withdraw(self.repo.backend, Kind.INDEX, sorted(superseded & listed), lock.check)

    def _without_leaving(self, entry: PackEntry) -> PackEntry | None:
        return None if self.plan.leaves(entry[0]) else entry

    # --- figures ---

    def _planned(self) -> PruneResult:
        self._count()
        self.result.rewritten_bytes = self.plan.total("needed", f"fate = {Fate.REWRITE}")
        return self.result

    def _count(self) -> None:
        result, plan = self.result, self.plan
        result.kept_packs = plan.number_of("fate = 0 AND indexed")
        result.removed_packs = plan.number_of(f"fate = {Fate.REMOVE}")
        result.rewritten_packs = plan.number_of(f"fate = {Fate.REWRITE}")
        result.orphaned_packs = plan.number_of("indexed = 0 AND size IS NOT NULL AND locked = 0")
        result.removed_bytes = plan.total("size", "size IS NOT NULL AND locked = 0 AND (fate != 0 OR indexed = 0)")
        wasted = "locked > 0 AND size IS NOT NULL AND (indexed = 0 OR needed = 0)"
        result.locked_packs = plan.number_of(wasted)
        result.locked_bytes = plan.total("size", wasted)
        result.locked_until = plan.locked_until(wasted)
        result.unused_bytes = plan.total("unused + twins", "fate = 0 AND indexed")


def parse_max_unused(text: str) -> Callable[[int], float] | None:
    """How much waste may stay, from the bytes that are needed; None: any. As restic: ``5%`` is of the whole afterwards.

    Raises ValueError.
    """
    if text == "unlimited":
        return None
    if not text.endswith("%"):
        size = parse_size(text)
        return lambda _used: float(size)
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ValueError(f"{text!r} is not a share from 0% to below 100%")
    return lambda used: share / (1 - share) * used
