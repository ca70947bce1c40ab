"""Which blobs trees need: walked once each, the ids kept in a temporary database, so that memory stays flat.

A key is a blob's id and one byte for its kind. The database is a file without a name that ends with this process;
SQLite takes the folder from ``SQLITE_TMPDIR`` or ``TMPDIR``, else ``/var/tmp``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from node_agent.errors import DamagedError
from node_agent.progress import Progress
from node_agent.repository.ids import SIZE, Ids, lift
from node_agent.repository.local_db import open_database
from node_agent.repository.pack import BlobKind
from node_agent.repository.reader import BlobReader
from node_agent.repository.strict_json import parse_json

BATCH = 1000  # keys in one statement
_ADDED_AT_ONCE = 50_000
_TREES_AT_ONCE = 256
_CACHE_KIB = 96 << 10
_SCHEMA = """
CREATE TABLE used (
    key BLOB PRIMARY KEY,
    copies INTEGER NOT NULL DEFAULT 0,
    keeper INTEGER,
    proven INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID
"""
_KIND_BYTE = {BlobKind.DATA: b"\0", BlobKind.TREE: b"\1"}
_BYTE_KIND = {0: BlobKind.DATA, 1: BlobKind.TREE}


def key_of(kind: BlobKind, blob_id: bytes) -> bytes:
    return blob_id + _KIND_BYTE[kind]


def from_key(key: bytes) -> tuple[BlobKind, bytes]:
    return _BYTE_KIND[key[32]], key[:32]


class Reachable:
    """A growing set of blobs. The table ``used`` is open to those who plan with it (see prune_plan). One thread."""

    def __init__(self) -> None:
        self.db = open_database("", wait_s=0)
        self.db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self.db.execute("PRAGMA journal_mode = OFF")  # nothing of it outlives the process
        self.db.execute(_SCHEMA)
        self.db.execute("BEGIN")

    def close(self) -> None:
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
                    self._add([key_of(BlobKind.DATA, blob_id) for blob_id in many])
                stack += self._take_trees(trees)

    def keys(self, where: str = "1") -> Iterator[bytes]:
        """All keys in order, read in pieces, so that the table may be changed meanwhile."""
        last = b""
        while rows := self.db.execute(
            f"SELECT key FROM used WHERE key > ? AND {where} ORDER BY key LIMIT {BATCH}", (last,)
        ).fetchall():
            for (key,) in rows:
                yield key
            last = rows[-1][0]

    def _take_trees(self, ids: Iterable[bytes]) -> list[bytes]:
        """Those that were not in before."""
        new: list[bytes] = []
        for batch in batches({key_of(BlobKind.TREE, blob_id) for blob_id in ids}):
            known = self.db.execute(f"SELECT key FROM used WHERE key IN ({marks(batch)})", batch).fetchall()
            fresh = set(batch).difference(row[0] for row in known)
            self._add(fresh)
            new += [key[:32] for key in fresh]
        return new

    def _add(self, keys: Iterable[bytes]) -> None:
        self.db.executemany("INSERT OR IGNORE INTO used (key) VALUES (?)", [(key,) for key in sorted(set(keys))])


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


def batches(keys: Iterable[bytes], size: int = BATCH) -> Iterator[list[bytes]]:
    iterator = iter(keys)
    while batch := list(islice(iterator, size)):
        yield batch


def marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
