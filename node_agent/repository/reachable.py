"""Which blobs trees need: walked once each, the ids kept in a temporary database, so that memory stays flat.

The database is a file without a name that ends with this process; SQLite takes the folder from ``SQLITE_TMPDIR`` or
``TMPDIR``, else ``/var/tmp``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from node_agent.errors import DamagedError
from node_agent.progress import Progress
from node_agent.repository.ids import SIZE, Ids, lift
from node_agent.repository.local_db import LocalDatabase, open_database
from node_agent.repository.pack import BlobKind
from node_agent.repository.reader import BlobReader
from node_agent.repository.strict_json import parse_json

BATCH = 1000  # keys in one statement
_ADDED_AT_ONCE = 50_000
_TREES_AT_ONCE = 256
_CACHE_KIB = 96 << 10
_SCHEMA = """
CREATE TABLE reachable.used (
    id BLOB NOT NULL, kind INTEGER NOT NULL, round INTEGER NOT NULL, PRIMARY KEY (id, kind)
) WITHOUT ROWID
"""
T = TypeVar("T")

DATA, TREE = 0, 1  # as the index numbers them
KINDS = (BlobKind.DATA, BlobKind.TREE)


class Reachable:
    """A growing set of blobs. The table ``used`` is open to those who plan with it (see prune_plan). One thread."""

    def __init__(self, beside: LocalDatabase | None = None) -> None:
        """``beside``: the connection of a private index, so that both can be asked together."""
        self.round = 0  # noted with each blob that comes in
        self._own = beside is None
        self.db = open_database("", wait_s=0) if beside is None else beside
        self.db.execute("ATTACH '' AS reachable")
        self.db.execute(f"PRAGMA reachable.cache_size = -{_CACHE_KIB}")
        self.db.execute("PRAGMA reachable.journal_mode = OFF")  # nothing of it outlives the process
        self.db.execute(_SCHEMA)

    def close(self) -> None:
        if self._own:
            self.db.close()

    def __len__(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM used").fetchone()[0])

    def walk(self, reader: BlobReader, roots: Iterable[bytes], progress: Progress) -> None:
        """Take in the trees and all that they need; those that are in already are not read again.

        Raises DamagedError for a tree that is missing or cannot be read: what it needs is then unknown.
        """
        stack = self._take_trees(roots)
        while stack:
            progress.check()
            batch = stack[-_TREES_AT_ONCE:]
            del stack[-_TREES_AT_ONCE:]
            for tree_id, content in reader.load_many(BlobKind.TREE, batch):
                data, trees = references(tree_id, content)
                for many in batches(data, _ADDED_AT_ONCE):
                    self._add(DATA, many)
                stack += self._take_trees(trees)

    def batches(self, since: int = 0) -> Iterator[tuple[BlobKind, list[bytes]]]:
        """All that came in since a round, in order of their ids, a thousand at most of one kind at a time.

        Read in pieces, so that the table may be changed meanwhile.
        """
        for number, kind in enumerate(KINDS):
            last = b""
            while rows := self.db.execute(
                f"SELECT id FROM used WHERE id > ? AND kind = ? AND round >= ? ORDER BY id LIMIT {BATCH}",
                (last, number, since),
            ).fetchall():
                yield kind, [row[0] for row in rows]
                last = rows[-1][0]

    def _take_trees(self, ids: Iterable[bytes]) -> list[bytes]:
        """Those that were not in before."""
        new: list[bytes] = []
        for batch in batches(set(ids)):
            found = self.db.execute(f"SELECT id FROM used WHERE id IN ({marks(batch)}) AND kind = {TREE}", batch)
            fresh = list(set(batch).difference(row[0] for row in found))
            self._add(TREE, fresh)
            new += fresh
        return new

    def _add(self, kind: int, ids: Iterable[bytes]) -> None:
        rows = [(blob_id,) for blob_id in sorted(set(ids))]
        with at_once(self.db):
            self.db.executemany(f"INSERT OR IGNORE INTO used VALUES (?, {kind}, {self.round})", rows)


@contextlib.contextmanager
def at_once(db: LocalDatabase) -> Iterator[None]:
    """One transaction for many rows. It is only for speed: the tables of this module cannot be rolled back."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:  # a full disk has ended it already
            db.execute("COMMIT")


def references(tree_id: bytes, content: bytes) -> tuple[Sequence[bytes], list[bytes]]:
    """Ids of the data and of the trees that a tree names. Raises DamagedError."""
    data: list[bytes] = []
    many: list[bytes] = []  # of long lists, all ids of one together
    trees: list[bytes] = []
    try:
        small, lists = lift(content)
        for node in parse_json(small)["nodes"] or ():
            ids = node.get("content")
            if type(ids) is int and 0 <= ids < len(lists):
                many.append(lists[ids].raw)
            else:
                data += map(bytes.fromhex, ids or ())
            if subtree := node.get("subtree"):
                trees.append(bytes.fromhex(subtree))
        if any(len(blob_id) != SIZE for ids in (data, trees) for blob_id in ids):
            raise ValueError("an id is not 32 bytes")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"tree {tree_id.hex()} is damaged: {error}.") from error
    return Ids(b"".join([*data, *many])) if many else data, trees


def batches(keys: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    iterator = iter(keys)
    while batch := list(islice(iterator, size)):
        yield batch


def marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
