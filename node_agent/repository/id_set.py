"""A growing set of ids in a temporary database, so that memory stays flat however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from node_agent.repository.local_db import open_database

_CACHE_KIB = 32 << 10
_BATCH = 1000
_SORTED_AT_ONCE = 50_000  # neighbours in the table are met one after the other


class IdSet:
    """One thread. Each id may carry some whole numbers."""

    def __init__(self, numbers: int = 0) -> None:
        self._db = open_database("", wait_s=0)
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._db.execute("PRAGMA journal_mode = OFF")  # nothing of it outlives the process
        columns = "".join(f", n{number} INTEGER NOT NULL" for number in range(numbers))
        self._db.execute(f"CREATE TABLE ids (id BLOB PRIMARY KEY{columns}) WITHOUT ROWID")
        self._db.execute("BEGIN")
        self._insert = f"INSERT OR IGNORE INTO ids VALUES (?{', ?' * numbers})"

    def close(self) -> None:
        self._db.close()

    def add(self, blob_id: bytes, *numbers: int) -> bool:
        """Whether it is new."""
        return self._db.execute(self._insert, (blob_id, *numbers)).rowcount == 1

    def update(self, ids: Iterable[bytes]) -> None:
        iterator = iter(ids)
        while many := set(islice(iterator, _SORTED_AT_ONCE)):  # a list of a disk names its block of zeros often
            self._db.executemany(self._insert, ((blob_id,) for blob_id in sorted(many)))

    def numbers(self, blob_id: bytes) -> tuple[int, ...] | None:
        """None for an id that is not in."""
        row = self._db.execute("SELECT * FROM ids WHERE id = ?", (blob_id,)).fetchone()
        return tuple(row[1:]) if row is not None else None

    def __contains__(self, blob_id: bytes) -> bool:
        return self.numbers(blob_id) is not None

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM ids").fetchone()[0])

    def batches(self) -> Iterator[list[bytes]]:
        """All, in order, a thousand at a time."""
        last = b""
        while rows := self._db.execute(
            f"SELECT id FROM ids WHERE id > ? ORDER BY id LIMIT {_BATCH}", (last,)
        ).fetchall():
            yield [row[0] for row in rows]
            last = rows[-1][0]
