"""What folders looked like when they were stored: a local database that spares reading an unchanged tree.

A row says: the tree with this id was made of a folder whose entries had the stats of this digest
(:mod:`node_agent.repository.files_listing`), and every blob that it names was listed by the index in this epoch
(:attr:`node_agent.repository.index.Index.epoch`). So a folder of the parent snapshot that still has that digest has
that tree, without the tree, its files or its attributes being read. Its folders are looked at for themselves.

Rows are kept only once the snapshot that holds them was written. The epoch alone would trust the index's own database,
which may be an older one than this (after a power cut, or brought back from somewhere): so the index files that rows
rest on are kept here too, and if one of them is not listed any more, all rows go. The database is a cache and nothing
else: bound to the repository, thrown away when it is damaged, and a run goes on without it.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_VERSION = 2
_WAIT_S = 60.0
_KEEP_DAYS = 60  # rows that no run met for so long belong to forgotten snapshots
_TOUCH_DAYS = 7
_SCHEMA = """
CREATE TABLE meta (binding TEXT NOT NULL, files TEXT NOT NULL);
CREATE TABLE folders (
    tree BLOB PRIMARY KEY, digest BLOB NOT NULL, epoch TEXT NOT NULL, subtrees BLOB NOT NULL, day INTEGER NOT NULL
) WITHOUT ROWID;
"""
_FRESH = "CREATE TEMP TABLE fresh (tree BLOB PRIMARY KEY, digest BLOB, subtrees BLOB, day INTEGER) WITHOUT ROWID"


@dataclass(frozen=True, slots=True)
class CachedFolder:
    """``subtrees``: the trees of its folders, in the order of their names."""

    tree: bytes
    digest: bytes
    subtrees: Sequence[bytes]


class FolderCache:
    """For one run and one thread. Never raises what is the database's fault: it then knows nothing."""

    def __init__(self, path: Path, binding: str, epoch: str, files: Collection[str] = ()) -> None:
        """``files`` are the index files that the store lists now."""
        self._epoch = epoch
        self._day = int(time.time() // 86400)
        self._db: sqlite3.Connection | None = None
        try:
            self._db = _open(path, binding)
            if not _files(self._db) <= set(files):
                self._db.executescript("BEGIN; DELETE FROM folders; UPDATE meta SET files = ''; COMMIT")
        except (sqlite3.Error, OSError) as error:
            logger.warning("the cache of folders %s cannot be used: %s", path, error)

    def find(self, tree: bytes) -> CachedFolder | None:
        """What is known of a tree, if every blob it names is still listed."""
        if self._db is None:
            return None
        try:
            row = self._db.execute(
                "SELECT digest, subtrees, day FROM folders WHERE tree = ? AND epoch = ?", (tree, self._epoch)
            ).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        if row is None:
            return None
        digest, joined, day = row
        found = CachedFolder(tree, digest, [joined[i : i + 32] for i in range(0, len(joined), 32)])
        if day < self._day - _TOUCH_DAYS:
            self.add(found)
        return found

    def add(self, folder: CachedFolder) -> None:
        """Kept by :meth:`commit`."""
        if self._db is None:
            return
        row = (folder.tree, folder.digest, b"".join(folder.subtrees), self._day)
        try:
            self._db.execute("INSERT OR REPLACE INTO temp.fresh VALUES (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            self._give_up(error)

    def forget(self, tree: bytes) -> None:
        """At once, whatever becomes of the run."""
        if self._db is None:
            return
        try:
            self._db.execute("DELETE FROM folders WHERE tree = ?", (tree,))
        except sqlite3.Error as error:
            self._give_up(error)

    def commit(self, epoch: str, files: Collection[str] = ()) -> None:
        """After the snapshot was written, with the index's epoch as it was proven then, and its files."""
        if self._db is None:
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT OR REPLACE INTO folders SELECT tree, digest, ?, subtrees, day FROM temp.fresh", (epoch,)
            )
            # Together with what others rest on: another process may have kept rows of its own meanwhile.
            self._db.execute("UPDATE meta SET files = ?", (" ".join(sorted(_files(self._db) | set(files))),))
            self._db.execute("DELETE FROM folders WHERE day < ?", (self._day - _KEEP_DAYS,))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _give_up(self, error: sqlite3.Error) -> None:
        logger.warning("the cache of folders is not used any more: %s", error)
        self.close()


def _files(db: sqlite3.Connection) -> set[str]:
    return set(str(db.execute("SELECT files FROM meta").fetchone()[0]).split())


def _open(path: Path, binding: str) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _connect(path, binding)
    except sqlite3.OperationalError:
        raise  # locked, full, not to be written: nothing that deleting it would mend
    except (sqlite3.DatabaseError, _Stale):
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        return _connect(path, binding)


class _Stale(Exception):
    """It belongs to another repository or to another version of this program."""


def _connect(path: Path, binding: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("BEGIN IMMEDIATE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _SCHEMA.strip().split(";"):
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES (?, '')", (binding,))
            db.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION or db.execute("SELECT binding FROM meta").fetchone() != (binding,):
            raise _Stale
        db.execute("COMMIT")
        db.execute(_FRESH)
    except BaseException:
        db.close()
        raise
    return db
