"""Making a point immutable on a store that locks objects, and knowing what is locked. Where none is asked for: nothing.

Before its snapshot is written, everything that a point needs is locked for as long as the point shall last, by the
store's clock: packs with its data and trees (new ones were locked as they were put, older ones are extended and read
back), for each of these packs an index file that names it, config and keys. An index file is never extended: packs
whose index file is free sooner are named by one more, so that an old index file can go one day although a few of its
packs are still needed. If anything of that fails, the point is kept and marked: it is not immutable.

The dates are remembered in a local database, and a sample of them is compared with the store each time; a date that
the store does not confirm empties the database, and all dates are asked for anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from node_agent.errors import BackendError, ConfigError, DamagedError, LockRefused, ObjectMissing
from node_agent.progress import Progress
from node_agent.repository.backend.base import CONFIG_NAME, Held, Kind, ObjectLock
from node_agent.repository.index import Index
from node_agent.repository.index_file import MAX_BLOBS, PackEntry, load_index_file, save_index_file
from node_agent.repository.local_memory import LocalMemory
from node_agent.repository.reachable import Reachable
from node_agent.repository.reader import BlobReader
from node_agent.repository.repository import Repository

NOT_IMMUTABLE_TAG = "brs.not-immutable"
NOT_IMMUTABLE = "not-immutable"  # the code of the note
_SAMPLE = 16
_AT_ONCE = 8


def secure(repo: Repository, root: bytes, progress: Progress) -> str:
    """Lock what the tree ``root`` needs. Returns why the point is not immutable; empty: it is, or need not be.

    Under the repository's lock, everything flushed; the snapshot comes after it.
    """
    lock = repo.backend.object_lock
    if lock is None:
        return ""
    try:
        if lock.refusal is not None:
            raise lock.refusal
        with _Dates(repo.cache_path("object-lock")) as dates:
            dates.note(lock.taken())
            _Securing(repo, lock, dates, progress).run(root)
    except (BackendError, DamagedError, ConfigError) as error:  # the last: the database of dates cannot be used
        return error.message
    return ""


def snapshot_held(repo: Repository, name: str) -> str:
    """After a snapshot was written with a lock: why it is not there; empty: it is."""
    lock = repo.backend.object_lock
    if lock is None:
        return ""
    try:
        for kind, _, held in lock.taken():
            if kind is Kind.SNAPSHOT and lock.held(kind, name, held.version).until < held.until - 1:
                return f"The lock of snapshot {name[:8]} is not there when it is read back."
    except BackendError as error:
        return error.message
    return ""


def packs_of_locked_indexes(repo: Repository, index: Index) -> dict[str, float]:
    """Packs that index files name which cannot be removed yet, with the time from which they can be.

    ``index`` is up to date: what was superseded counts no longer, and is hidden from other programs.
    """
    lock = repo.backend.object_lock
    if lock is None:
        return {}
    found: dict[str, float] = {}
    for name in sorted(index.file_names()):
        until = lock.locked_until(Kind.INDEX, name)
        if until:
            for pack, _ in load_index_file(repo.files, name):
                found[pack] = max(until, found.get(pack, 0.0))
    return found


class _Securing:
    def __init__(self, repo: Repository, lock: ObjectLock, dates: _Dates, progress: Progress) -> None:
        self._repo = repo
        self._lock = lock
        self._dates = dates
        self._progress = progress
        self._wanted = lock.wanted(lock.now())

    def run(self, root: bytes) -> None:
        self._progress.set(phase="immutability")
        packs = self._packs(root)
        if not self._confirmed(Kind.PACK, packs) or not self._confirmed(Kind.INDEX, self._repo.index.file_names()):
            self._dates.clear()
        self._extend(Kind.PACK, packs)
        self._name_again(packs)
        keys = {info.name for info in self._repo.backend.list(Kind.KEY)}
        self._extend(Kind.KEY, keys)
        self._extend(Kind.CONFIG, {CONFIG_NAME})

    def _packs(self, root: bytes) -> set[str]:
        """All that hold something the tree needs; of what lies in several each, since any may be read."""
        index, packs = self._repo.index, set[str]()
        reachable = Reachable()
        try:
            reachable.walk(BlobReader(self._repo.files, index), [root], self._progress)
            for kind, ids in reachable.batches():
                places = index.locate(kind, ids)
                packs |= {place.pack for copies in places.values() for place in copies}
            return packs
        finally:
            reachable.close()

    def _confirmed(self, kind: Kind, names: Iterable[str]) -> bool:
        """A sample of the dates that are relied on is what the store says."""
        known = self._dates.lasting(kind, self._wanted)
        relied_on = [(name, known[name]) for name in names if name in known and known[name].version]
        for name, held in random.sample(relied_on, min(_SAMPLE, len(relied_on))):
            try:
                if self._lock.held(kind, name, held.version).until < held.until - 1:
                    return False
            except ObjectMissing:
                return False
        return True

    def _extend(self, kind: Kind, names: set[str]) -> None:
        due = sorted(names - self._dates.lasting(kind, self._wanted).keys())
        known = self._dates.all(kind)

        def extend(name: str) -> tuple[Kind, str, Held]:
            held = known.get(name)
            try:
                return kind, name, self._lock.lock(kind, name, self._wanted, held.version if held else "")
            except ObjectMissing:
                if held is None:
                    raise
                return kind, name, self._lock.lock(kind, name, self._wanted)  # that version is no more

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="object-lock") as pool:
            for start in range(0, len(due), 1000):
                self._progress.check()
                self._repo.guard()
                self._dates.note(list(pool.map(extend, due[start : start + 1000])))

    def _name_again(self, packs: set[str]) -> None:
        """Packs that no index file names which is locked as long: one more index file, locked, names them."""
        self._learn_indexes()
        lasting = self._dates.lasting(Kind.INDEX, self._wanted).keys()
        absent = packs - self._repo.index.packs_of(lasting & self._repo.index.file_names())
        if not absent:
            return
        for batch in _index_sized((pack, blobs) for pack, blobs in self._repo.index.packs() if pack in absent):
            self._repo.guard()
            name = save_index_file(self._repo.files, batch)
            self._repo.index.add_file(name, batch)
        if self._lock.refusal is not None:
            raise self._lock.refusal
        taken = self._lock.taken()
        for kind, name, held in taken:
            if self._lock.held(kind, name, held.version).until < held.until - 1:
                raise LockRefused(f"The lock of index {name[:10]} is not there when it is read back.")
        self._dates.note(taken)

    def _learn_indexes(self) -> None:
        """The dates of index files that are not known here: written by others, or long ago."""
        unknown = sorted(self._repo.index.file_names() - self._dates.all(Kind.INDEX).keys())
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="object-lock") as pool:
            dates = pool.map(lambda name: self._lock.locked_until(Kind.INDEX, name), unknown)
            self._dates.note([(Kind.INDEX, name, Held("", until)) for name, until in zip(unknown, dates, strict=True)])


def _index_sized(packs: Iterable[PackEntry]) -> Iterator[list[PackEntry]]:
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


class _Dates(LocalMemory):
    """What is known of locks. Only a cache: without it more is asked of the store."""

    table = "held"
    columns = "name TEXT, kind TEXT, version TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (name, kind)"

    def note(self, found: Sequence[tuple[Kind, str, Held]]) -> None:
        self._change(
            "INSERT OR REPLACE INTO held (kind, name, version, until) VALUES (?, ?, ?, ?)",
            [(kind.value, name, held.version, held.until) for kind, name, held in found],
        )

    def all(self, kind: Kind) -> dict[str, Held]:
        return self.lasting(kind, 0.0)

    def lasting(self, kind: Kind, until: float) -> dict[str, Held]:
        """Those that are locked at least until then."""
        query = "SELECT name, version, until FROM held WHERE kind = ? AND until >= ?"
        return {name: Held(version, at) for name, version, at in self._rows(query, (kind.value, until))}

    def clear(self) -> None:
        self._begin_anew()
