"""Making the index true again: from the index files that can be read, and from the headers of packs that they miss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from node_agent.errors import DamagedError, ObjectMissing, RepositoryError
from node_agent.progress import Progress
from node_agent.repository.backend.base import Kind
from node_agent.repository.index_file import PackEntry, load_index_file, marks_of
from node_agent.repository.index_rewrite import replace_index
from node_agent.repository.pack import pack_size, read_header
from node_agent.repository.repack import read_pack
from node_agent.repository.repository import Lock, Repository
from node_agent.repository.withdraw import StillLocked


@dataclass(slots=True)
class RepairIndexResult:
    added_packs: list[str] = field(default_factory=list)  # were stored, and named by no index file that can be read
    missing_packs: list[str] = field(default_factory=list)  # were named, and are not stored
    corrected_packs: list[str] = field(default_factory=list)  # their header says otherwise than the index did
    unreadable_packs: list[str] = field(default_factory=list)  # neither index nor header says what they hold
    damaged_files: list[str] = field(default_factory=list)  # index files
    removed_files: int = 0
    written_files: int = 0
    still_locked: list[StillLocked] = field(default_factory=list)  # index files out of use, which the store keeps

    @property
    def changed(self) -> bool:
        return bool(self.added_packs or self.missing_packs or self.corrected_packs or self.damaged_files)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {
            "changed": self.changed,
            "still_locked": [one.to_json() for one in self.still_locked],
        }


def repair_index(
    repo: Repository,
    lock: Lock,
    *,
    read_all: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RepairIndexResult:
    """``lock`` must be exclusive unless it is a dry run. ``read_all`` reads every pack's header anyway.

    Index files that are right stay. New ones are durable before the first old one goes. Packs that a repair dropped
    stay out, unless with ``read_all`` they prove to be whole. Holds the names of all packs.
    """
    if not (lock.exclusive or dry_run):
        raise RepositoryError("Repairing the index needs the repository alone: an exclusive lock.")
    run = _RepairIndex(repo, read_all, progress or Progress())
    if dry_run:
        for _ in run.entries():
            pass
        return run.result
    repo.guard(prove=True)
    replaced = replace_index(repo, lock, run.entries(), run.old, run.marks)
    run.result.written_files, run.result.removed_files = len(replaced.written), replaced.removed
    run.result.still_locked = replaced.still_locked
    repo.load_index()
    return run.result


class _RepairIndex:
    def __init__(self, repo: Repository, read_all: bool, progress: Progress) -> None:
        self.repo = repo
        self.result = RepairIndexResult()
        self.old: list[str] = []  # index files that shall go
        self._read_all = read_all
        self._progress = progress
        self._stored = {info.name: info.size for info in repo.backend.list(Kind.PACK)}
        self._named: set[str] = set()
        self._listed = sorted(info.name for info in repo.backend.list(Kind.INDEX))
        self.marks = marks_of(repo.files, self._listed)

    def entries(self) -> Iterator[PackEntry]:
        """What new index files shall say."""
        files = [name for name in self._listed if name not in self.marks.superseded]
        self._progress.begin("repair: index files", (0.0, 0.5), total_files=len(files))
        for name in files:
            self._progress.check()
            yield from self._from_file(name)
            self._progress.add(done_files=1)
        unnamed = sorted(self._stored.keys() - self._named)
        self._progress.begin("repair: packs without index", (0.5, 1.0), total_files=len(unnamed))
        for pack in unnamed:
            self._progress.check()
            self._progress.add(done_files=1)
            if pack in self.marks.dropped and not (self._read_all and self._whole(pack)):
                continue
            if (entry := self._from_header(pack)) is not None:
                self.result.added_packs.append(pack)
                yield entry

    def _from_file(self, name: str) -> list[PackEntry]:
        """Nothing for an index file that is right as it is."""
        try:
            before: list[PackEntry] = list(load_index_file(self.repo.files, name))
        except DamagedError:
            self.result.damaged_files.append(name)
            self.old.append(name)
            return []
        after = [new for entry in before if (new := self._correct(entry)) is not None]
        if after == before:
            return []
        self.old.append(name)
        return after

    def _correct(self, entry: PackEntry) -> PackEntry | None:
        pack, blobs = entry
        size = self._stored.get(pack)
        if size is None:
            self.result.missing_packs.append(pack)
            return None
        self._named.add(pack)
        # A pack may hold more than its index says: entries of damaged blobs are taken out by repair packs.
        if size >= pack_size(blobs) and (not self._read_all or pack in self.marks.dropped):
            return entry
        found = self._from_header(pack)
        if found is None or set(found[1]) == set(blobs):
            return entry  # the index knows better than a header that cannot be read
        self.result.corrected_packs.append(pack)
        return found

    def _whole(self, pack: str) -> bool:
        try:
            blobs = read_header(self.repo.backend, self.repo.files.key, pack, self._stored[pack])
        except (DamagedError, ObjectMissing):
            return False
        return not read_pack(self.repo.files, pack, blobs).bad

    def _from_header(self, pack: str) -> PackEntry | None:
        try:
            return pack, read_header(self.repo.backend, self.repo.files.key, pack, self._stored[pack])
        except (DamagedError, ObjectMissing):  # the latter: damaged, locked, and out of sight
            self.result.unreadable_packs.append(pack)
            return None
