"""Which blob lies where: the repository's index files, kept in a local database so that memory stays bounded.

The database is only a cache. It is bound to the repository (id and digest of its config), each row belongs to
one index file, and :meth:`Index.refresh` makes it equal to the index files that the store lists now: rows of files
that vanished are dropped and new files are read, in one transaction. A file that another one supersedes counts as
vanished: a store that locks objects lists it as long as its lock lasts. Whoever works with the answers holds a
repository lock, so that no index file vanishes meanwhile. Several processes may share one database.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

from node_agent.errors import ConfigError, DamagedError, ObjectMissing
from node_agent.progress import Progress
from node_agent.repository.backend.base import Kind
from node_agent.repository.index_file import NO_MARKS, Marks, PackEntry, open_index_file
from node_agent.repository.local_db import LocalDatabase, open_database
from node_agent.repository.pack import BlobKind, PackedBlob
from node_agent.repository.sealed import SealedFiles

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SCHEMA_VERSION = 4
_SCHEMA = """
CREATE TABLE meta (binding TEXT NOT NULL, epoch TEXT NOT NULL);
CREATE TABLE files (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE packs (id INTEGER PRIMARY KEY, file INTEGER NOT NULL, name BLOB NOT NULL);
CREATE INDEX packs_file ON packs (file);
CREATE TABLE marks (file INTEGER NOT NULL, superseded INTEGER NOT NULL, name TEXT NOT NULL);
CREATE TABLE blobs (
    id BLOB NOT NULL, kind INTEGER NOT NULL, pack INTEGER NOT NULL,
    offset INTEGER NOT NULL, length INTEGER NOT NULL, raw_length INTEGER NOT NULL,
    PRIMARY KEY (id, kind, pack, offset)
) WITHOUT ROWID;
CREATE TABLE proven (tree BLOB PRIMARY KEY, epoch TEXT NOT NULL, block_sizes TEXT NOT NULL);
"""
_TWICE_NAMED = """
CREATE TABLE twice AS SELECT p.id AS pack, f.first AS first FROM packs p
    JOIN (SELECT name, min(id) AS first FROM packs GROUP BY name HAVING count(*) > 1) f ON f.name = p.name
    WHERE p.id != f.first
"""
_KINDS = (BlobKind.DATA, BlobKind.TREE)
_TREE = BlobKind.TREE  # its number is 1
_NUMBER = {kind: number for number, kind in enumerate(_KINDS)}
_BATCH = 500
_SORTED_AT_ONCE = 1 << 17  # neighbours in the table are looked up one after the other
_CACHE_KIB = 64 << 10
_WAIT_S = 600.0  # another process may be loading a large index into the same database


@dataclass(frozen=True, slots=True)
class Location:
    pack: str
    blob: PackedBlob


Place = tuple[str, int, int, int]  # a blob's pack, offset, sealed length, and uncompressed length or 0


class Index:
    """All methods may be called from several threads."""

    def __init__(self, files: SealedFiles, binding: str, cache: Path | None = None) -> None:
        """Without ``cache`` the database is a temporary file of this process."""
        self._files = files
        self._binding = binding
        self._cache = cache
        self._lock = threading.RLock()
        self._db = self._open()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def refresh(
        self, on_damaged: Callable[[DamagedError], None] | None = None, progress: Progress | None = None
    ) -> None:
        """Become equal to the index files in the store. Raises DamagedError naming one that cannot be read.

        ``on_damaged`` hears of such files instead, and they are skipped: for a check, never for a backup.
        ``progress`` counts the files that are read, and may end it.
        """
        with self._lock:
            try:
                self._refresh(on_damaged, progress or Progress())
            except sqlite3.DatabaseError:
                if self._cache is None:
                    raise
                self._forget_cache()  # a broken cache is no news: what it held is in the repository
                self._refresh(on_damaged, progress or Progress())

    def has(self, kind: BlobKind, blob_id: bytes) -> bool:
        with self._lock:
            found = self._db.execute(
                "SELECT 1 FROM blobs WHERE id = ? AND kind = ? LIMIT 1", (blob_id, _NUMBER[kind])
            ).fetchone()
        return found is not None

    def missing(self, kind: BlobKind, ids: Iterable[bytes]) -> set[bytes]:
        """Those of ``ids`` that no index file lists. The quick way for many: about 100,000 a second."""
        absent: set[bytes] = set()
        for many in _batches(ids, _SORTED_AT_ONCE):
            for batch in _batches(sorted(set(many))):
                marks = ",".join("?" * len(batch))
                with self._lock:
                    found = self._db.execute(
                        f"SELECT id FROM blobs WHERE id IN ({marks}) AND kind = ?",
                        (*batch, _NUMBER[kind]),
                    ).fetchall()
                absent.update(set(batch).difference(row[0] for row in found))
        return absent

    def locations(self, kind: BlobKind, blob_id: bytes) -> list[Location]:
        """All copies of a blob."""
        return self.locate(kind, [blob_id]).get(blob_id, [])

    def locate(self, kind: BlobKind, ids: Sequence[bytes]) -> dict[bytes, list[Location]]:
        """All copies of several blobs (at most a few thousand at a time); unknown ones are left out."""
        found: dict[bytes, list[Location]] = {}
        for batch in _batches(ids):
            marks = ",".join("?" * len(batch))
            with self._lock:
                rows = self._db.execute(
                    "SELECT DISTINCT b.id, b.kind, b.offset, b.length, b.raw_length, p.name"
                    " FROM blobs b JOIN packs p ON p.id = b.pack"
                    f" WHERE b.id IN ({marks}) AND b.kind = ?",
                    (*batch, _NUMBER[kind]),
                ).fetchall()
            for row in rows:
                found.setdefault(row[0], []).append(_location(row))
        return found

    def places(self, kind: BlobKind, ids: Sequence[bytes]) -> dict[bytes, Place]:
        """One copy of each of these blobs (at most a few thousand); unknown ones are left out. Quicker than locate."""
        found: dict[bytes, Place] = {}
        for batch in _batches(ids):
            marks = ",".join("?" * len(batch))
            with self._lock:
                rows = self._db.execute(
                    "SELECT b.id, p.name, b.offset, b.length, b.raw_length"
                    f" FROM blobs b JOIN packs p ON p.id = b.pack WHERE b.id IN ({marks}) AND b.kind = ?",
                    (*batch, _NUMBER[kind]),
                ).fetchall()
            for blob_id, pack, offset, length, raw_length in rows:
                found[blob_id] = (pack.hex(), offset, length, raw_length)
        return found

    def add_file(self, name: str, packs: Iterable[PackEntry]) -> None:
        """Take in an index file that was just written, so that it need not be read again."""
        with self._lock, self._transaction():
            self._insert(name, packs)

    def drop_packs(self, names: Iterable[str]) -> None:
        """Forget what these packs hold, here only; for a private index while packs are rewritten."""
        with self._lock, self._transaction():
            for name in names:
                self._db.execute("DELETE FROM packs WHERE name = ?", (bytes.fromhex(name),))
            self._db.execute("DELETE FROM blobs WHERE pack NOT IN (SELECT id FROM packs)")
            self._new_epoch()

    @property
    def private_db(self) -> LocalDatabase:
        """The database of an index without a cache, to be asked together with other tables. For one thread."""
        assert self._cache is None
        return self._db

    def merge_entries(self) -> None:
        """What several index files say of one pack becomes one entry, in a private index.

        It may take in more index files after that, but serves no more once one has vanished.
        """
        with self._lock, self._transaction():
            self._db.execute(_TWICE_NAMED)
            if self._db.execute("SELECT 1 FROM twice LIMIT 1").fetchone():
                self._db.execute(
                    "INSERT OR IGNORE INTO blobs SELECT b.id, b.kind, t.first, b.offset, b.length, b.raw_length"
                    " FROM blobs b JOIN twice t ON t.pack = b.pack"
                )
                self._db.execute("DELETE FROM blobs WHERE pack IN (SELECT pack FROM twice)")
            self._db.execute("DROP TABLE twice")

    def marks(self) -> Marks:
        """What the index files say of others that are superseded, and of packs that were dropped."""
        with self._lock:
            rows = self._db.execute("SELECT superseded, name FROM marks").fetchall()
        superseded, dropped = (frozenset(name for kind, name in rows if kind == wanted) for wanted in (1, 0))
        return Marks(superseded, dropped)

    def file_names(self) -> set[str]:
        with self._lock:
            return {row[0] for row in self._db.execute("SELECT name FROM files")}

    def packs_of(self, files: Iterable[str]) -> set[str]:
        """The packs that these index files name."""
        query = "SELECT DISTINCT p.name FROM packs p JOIN files f ON f.id = p.file WHERE f.name IN"
        found: set[str] = set()
        for batch in _batches(files):
            with self._lock:
                rows = self._db.execute(f"{query} ({','.join('?' * len(batch))})", batch).fetchall()
            found.update(row[0].hex() for row in rows)
        return found

    @property
    def epoch(self) -> str:
        """Another one whenever something that was listed is listed no more; as long as it stays, nothing has gone."""
        with self._lock:
            return str(self._db.execute("SELECT epoch FROM meta").fetchone()[0])

    def proven(self, tree: bytes) -> dict[bytes, int]:
        """Disks of a tree (name, block size) all of whose blobs were listed in the present epoch, so still are."""
        with self._lock:
            row = self._db.execute(
                "SELECT block_sizes FROM proven WHERE tree = ? AND epoch = (SELECT epoch FROM meta)", (tree,)
            ).fetchone()
        return {bytes.fromhex(name): int(size) for name, size in json.loads(row[0]).items()} if row else {}

    def set_proven(self, tree: bytes, epoch: str, block_sizes: Mapping[bytes, int]) -> None:
        """Note that every blob of these disks of a tree was proven, if nothing has gone since ``epoch`` was read."""
        value = json.dumps({name.hex(): size for name, size in block_sizes.items()})
        try:
            with self._lock, self._transaction():
                self._db.execute("DELETE FROM proven WHERE epoch <> (SELECT epoch FROM meta)")
                self._db.execute(
                    "INSERT OR REPLACE INTO proven SELECT ?, epoch, ? FROM meta WHERE epoch = ?", (tree, value, epoch)
                )
        except (
            sqlite3.Error,
            ConfigError,
        ) as error:  # the snapshot stands; without the note the next run proves everything itself
            logger.warning("what was proven could not be noted in %s: %s", self._cache, error)

    def packs(self) -> Iterator[tuple[str, list[PackedBlob]]]:
        """Every pack with all its blobs, ordered by offset; what several index files say alike comes once."""
        query = (
            "SELECT DISTINCT b.id, b.kind, b.offset, b.length, b.raw_length, p.name"
            " FROM packs p JOIN blobs b ON b.pack = p.id ORDER BY p.name, b.offset, b.id"
        )
        cursor = self._db.execute(query)  # sqlite serialises by itself; look-ups go on between the rows
        for pack, group in groupby(map(_location, cursor), key=lambda location: location.pack):
            yield pack, [location.blob for location in group]

    def blob_count(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM blobs").fetchone()[0])

    def _refresh(self, on_damaged: Callable[[DamagedError], None] | None, progress: Progress) -> None:
        for attempt in range(3):
            try:
                with self._transaction():
                    # Listed inside: else rows that another process adds meanwhile would be taken for vanished ones.
                    listed = {info.name for info in self._files.backend.list(Kind.INDEX)}
                    self._drop(self.file_names() - listed)
                    self._load(listed - self.file_names(), on_damaged, progress)
                return
            except ObjectMissing as error:  # listed and gone: somebody replaced index files; look again
                if attempt == 2:
                    raise DamagedError(f"{error.message} It is listed, but cannot be read.") from error

    def _load(self, names: set[str], on_damaged: Callable[[DamagedError], None] | None, progress: Progress) -> None:
        damaged: dict[str, DamagedError] = {}
        wanted = sorted(names - self.marks().superseded)
        progress.set(total_files=len(wanted), done_files=0)
        for name in wanted:
            progress.check()
            try:
                found = open_index_file(self._files, name)
            except DamagedError as error:
                damaged[name] = error
            else:
                self._insert(name, found.packs, found.marks)
            progress.add(done_files=1)
        superseded = self.marks().superseded
        self._drop(self.file_names() & superseded)
        for name in damaged.keys() - superseded:
            if on_damaged is None:
                raise damaged[name]
            on_damaged(damaged[name])

    def _drop(self, names: set[str]) -> None:
        for name in names:
            # Through the packs of the file: an own column would cost five million rows a fifth of their size.
            self._db.execute("DELETE FROM packs WHERE file = (SELECT id FROM files WHERE name = ?)", (name,))
            self._db.execute("DELETE FROM marks WHERE file = (SELECT id FROM files WHERE name = ?)", (name,))
            self._db.execute("DELETE FROM files WHERE name = ?", (name,))
        if names:
            self._db.execute("DELETE FROM blobs WHERE pack NOT IN (SELECT id FROM packs)")
            self._new_epoch()

    def _new_epoch(self) -> None:
        self._db.execute("UPDATE meta SET epoch = ?", (secrets.token_hex(8),))

    def _insert(self, name: str, packs: Iterable[PackEntry], marks: Marks = NO_MARKS) -> None:
        cursor = self._db.execute("INSERT OR IGNORE INTO files (name) VALUES (?)", (name,))
        if not cursor.rowcount:
            return  # another process was quicker
        file_id = cursor.lastrowid
        rows: list[tuple[bytes, int, int, int, int, int]] = []
        for pack, blobs in packs:
            pack_id = self._db.execute(
                "INSERT INTO packs (file, name) VALUES (?, ?)", (file_id, bytes.fromhex(pack))
            ).lastrowid
            assert pack_id is not None
            # Not by _NUMBER: to hash a member of an enumeration takes longer than all the rest.
            rows.extend((b.id, int(b.kind is _TREE), pack_id, b.offset, b.length, b.raw_length) for b in blobs)
        noted = [(file_id, 1, name) for name in marks.superseded] + [(file_id, 0, name) for name in marks.dropped]
        self._db.executemany("INSERT INTO marks VALUES (?, ?, ?)", noted)
        rows.sort()  # the table is ordered by id: sorted rows touch each page once
        self._db.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?, ?)", rows)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has ended it already, or left it open at the commit
                self._db.execute("ROLLBACK")
            raise

    def _open(self) -> LocalDatabase:
        if self._cache is None:
            return self._connect("")
        try:
            self._cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"The cache folder {self._cache.parent} cannot be used: {error.strerror}.") from error
        try:
            return self._connect(str(self._cache))
        except (sqlite3.DatabaseError, _Stale):
            self._remove_files()
            return self._connect(str(self._cache))

    def _connect(self, path: str) -> LocalDatabase:
        db = open_database(path, wait_s=_WAIT_S)
        try:
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _SCHEMA.strip().split(";"):
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES (?, ?)", (self._binding, secrets.token_hex(8)))
            db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        elif version != _SCHEMA_VERSION or db.execute("SELECT binding FROM meta").fetchone() != (self._binding,):
            raise _Stale
        db.execute("COMMIT")

    def _forget_cache(self) -> None:
        self._db.close()
        self._remove_files()
        self._db = self._open()

    def _remove_files(self) -> None:
        assert self._cache is not None
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._cache}{suffix}").unlink(missing_ok=True)


class _Stale(Exception):
    """The cache belongs to another repository or to another version of this program."""


def _location(row: tuple[bytes, int, int, int, int, bytes]) -> Location:
    blob_id, kind, offset, length, raw_length, pack = row
    return Location(pack.hex(), PackedBlob(_KINDS[kind], blob_id, offset, length, raw_length))


def _batches(ids: Iterable[T], size: int = _BATCH) -> Iterator[list[T]]:
    iterator = iter(ids)
    while batch := list(islice(iterator, size)):
        yield batch
