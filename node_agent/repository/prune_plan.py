"""The plan of a prune: what of each pack is needed, and what becomes of it.

A pack is *kept*, *removed* (nothing in it is needed, or all of it lies elsewhere too) or *rewritten* (what is needed of
it is stored anew). Of a blob that lies in several places one is its keeper, preferably in a pack without waste; the
other copies are waste. A pack leaves only when every blob of it that is needed was read and proven elsewhere in this
run.

Everything is decided by the database that holds the index beside what is needed: a blob costs a microsecond there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from operator import itemgetter
from typing import Any

from node_agent.errors import DamagedError
from node_agent.repository.backend.base import ObjectInfo
from node_agent.repository.pack import PackedBlob
from node_agent.repository.reachable import BATCH, KINDS, Reachable

_SORT_KIB = 16 << 10
_PIECE = 8 << 20  # bytes of a pack that are read at once

_SCHEMA = (
    # Those of the index have its numbers. "unused": needed by nobody; "twins": kept elsewhere; "moved": of "needed",
    # was stored anew.
    """CREATE TABLE reachable.plan (
        id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, size INTEGER, indexed INTEGER NOT NULL DEFAULT 0,
        blobs INTEGER NOT NULL DEFAULT 0,
        needed INTEGER NOT NULL DEFAULT 0, twins INTEGER NOT NULL DEFAULT 0, unused INTEGER NOT NULL DEFAULT 0,
        fate INTEGER NOT NULL DEFAULT 0, moved INTEGER NOT NULL DEFAULT 0, locked REAL NOT NULL DEFAULT 0
    )""",
    # Needed blobs that lie in several places; "rank" 1 is the keeper.
    """CREATE TABLE reachable.copies (
        id BLOB NOT NULL, kind INTEGER NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
        length INTEGER NOT NULL, raw_length INTEGER NOT NULL, rank INTEGER NOT NULL, proven INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (id, kind, pack, offset)
    ) WITHOUT ROWID""",
)
# The cross joins keep the order: the index is walked once, by id, and so is what is looked up.
_IS_USED = "CROSS JOIN used u ON u.id = b.id AND u.kind = b.kind"
_COUNT = """
INSERT INTO plan (id, name, indexed, blobs, needed, unused)
SELECT p.id, p.name, 1, s.blobs, s.needed, s.length - s.needed FROM packs p JOIN (
    SELECT b.pack, count(*) AS blobs, sum(b.length) AS length,
        sum(CASE WHEN u.id IS NULL THEN 0 ELSE b.length END) AS needed
    FROM blobs b LEFT JOIN used u ON u.id = b.id AND u.kind = b.kind GROUP BY b.pack
) s ON s.pack = p.id
"""
_FIND_COPIES = f"""
INSERT INTO copies SELECT b.id, b.kind, b.pack, b.offset, b.length, b.raw_length, row_number() OVER (
    PARTITION BY b.id, b.kind ORDER BY p.unused > 0, p.name, b.offset
), 0 FROM (
    SELECT b.id, b.kind FROM blobs b {_IS_USED} GROUP BY b.id, b.kind HAVING count(*) > 1
) t CROSS JOIN blobs b ON b.id = t.id AND b.kind = t.kind CROSS JOIN plan p ON p.id = b.pack
"""
_NOTE_TWINS = """
UPDATE plan SET needed = needed - w.length, twins = w.length
FROM (SELECT pack, sum(length) AS length FROM copies WHERE rank > 1 GROUP BY pack) w WHERE w.pack = plan.id
"""
_ABSENT = """
SELECT u.kind, u.id FROM used u WHERE u.round >= ?
AND NOT EXISTS (SELECT 1 FROM blobs b WHERE b.id = u.id AND b.kind = u.kind) LIMIT 1
"""
_TO_MOVE = f"""
SELECT p.name, b.kind, b.id, b.offset, b.length, b.raw_length
FROM blobs b CROSS JOIN plan p ON p.id = b.pack AND p.fate = ? {_IS_USED}
WHERE NOT EXISTS (
    SELECT 1 FROM copies c WHERE c.id = b.id AND c.kind = b.kind AND c.pack = b.pack AND c.offset = b.offset
    AND c.rank > 1
) ORDER BY p.name, b.offset
"""
# Copies that leave, with their keepers, where that is not proven by having been stored anew, or by having been read.
_UNPROVEN = """
copies w JOIN plan l ON l.id = w.pack AND l.fate != 0 JOIN copies k ON k.id = w.id AND k.kind = w.kind AND k.rank = 1
JOIN plan p ON p.id = k.pack WHERE w.rank > 1 AND k.proven = 0 AND p.moved < p.needed
"""


class Fate(IntEnum):
    KEEP = 0
    REMOVE = 1
    REWRITE = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_unused``: bytes of waste that may stay, from the bytes needed; None: any. ``max_repack``: of packs."""

    max_unused: Callable[[int], float] | None
    max_repack: int | None = None


class PrunePlan:
    def __init__(self, used: Reachable) -> None:
        """``used`` lies beside a private index, made ready for planning when :meth:`count` is called."""
        self._used = used
        self._db = used.db
        for statement in _SCHEMA:
            self._db.execute(statement)

    # --- made in this order ---

    def count(self) -> None:
        """What every pack of the index holds. Raises DamagedError if something needed is missing."""
        self._all_there(0)
        self._db.execute(_COUNT)
        self._db.execute(_FIND_COPIES)
        self._db.execute(_NOTE_TWINS)

    def take_stored(self, stored: Iterable[ObjectInfo]) -> None:
        """The packs that the store lists."""
        self._db.executemany(
            "INSERT INTO plan (name, size) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET size = excluded.size",
            [(bytes.fromhex(info.name), info.size) for info in stored],
        )

    def refuse_lost(self) -> None:
        """Raises DamagedError if a pack is not there that something needed lies in."""
        lost = self._db.execute("SELECT name FROM plan WHERE size IS NULL AND needed + twins > 0 LIMIT 1").fetchone()
        if lost is not None:
            raise DamagedError(f"pack {lost[0].hex()} is missing, so nothing is pruned; run a check.")

    def note_locked(self, pack: str, until: float) -> None:
        """The store does not give this pack up, or an index file that names it: it stays."""
        self._db.execute(
            "INSERT INTO plan (name, locked) VALUES (?, ?) ON CONFLICT (name) DO UPDATE"
            " SET locked = max(locked, excluded.locked), fate = 0",
            (bytes.fromhex(pack), until),
        )

    def dispensable(self) -> Iterator[str]:
        """Packs that would leave, or be rewritten, if nothing stood against it."""
        return self._names("locked = 0 AND size IS NOT NULL AND (NOT indexed OR needed = 0 OR unused + twins > 0)")

    def decide(self, limits: Limits) -> None:
        """Nothing needed: remove. Else the most wasteful are rewritten first, until little enough waste is left.

        What is locked stays: to rewrite it would cost space, not give any back.
        """
        self._db.execute("UPDATE plan SET fate = ? WHERE indexed AND needed = 0 AND locked = 0", (Fate.REMOVE,))
        if limits.max_unused is None:
            return
        used, waste = self._db.execute(
            "SELECT coalesce(sum(needed), 0), coalesce(sum(unused + twins), 0) FROM plan WHERE needed > 0"
        ).fetchone()
        allowed, budget = limits.max_unused(used), limits.max_repack
        rows = self._db.execute(
            "SELECT id, needed, unused + twins FROM plan WHERE needed > 0 AND unused + twins > 0 AND locked = 0"
            " ORDER BY CAST(unused + twins AS REAL) / (needed + unused + twins) DESC, id"
        )
        chosen: list[tuple[int, int]] = []
        for number, needed, unused in rows:
            if waste <= allowed:
                break
            if budget is not None and needed + unused > budget:
                continue
            budget = None if budget is None else budget - needed - unused
            waste -= unused
            chosen.append((Fate.REWRITE, number))
        rows.close()
        self._db.executemany("UPDATE plan SET fate = ? WHERE id = ?", chosen)

    # --- carried out ---

    def to_move(self) -> Iterator[tuple[str, list[PackedBlob]]]:
        """Packs to be rewritten, each with what it keeps, in pieces, ordered by offset; see :meth:`note_moved`."""
        self._db.execute(f"PRAGMA main.cache_size = -{_SORT_KIB}")  # it bounds what sorting holds; few look-ups follow
        for name, rows in groupby(self._db.execute(_TO_MOVE, (Fate.REWRITE,)), key=itemgetter(0)):
            for piece in _pieces(_blobs(row[1:] for row in rows)):
                yield name.hex(), piece

    def note_moved(self, pack: str, size: int) -> None:
        """That many bytes of what :meth:`to_move` told of it were read, proven and stored elsewhere."""
        self._db.execute("UPDATE plan SET moved = moved + ? WHERE name = ?", (size, bytes.fromhex(pack)))

    def keep_unmoved(self) -> None:
        """Packs stay that were to be rewritten and were not, or not wholly."""
        self._db.execute("UPDATE plan SET fate = 0 WHERE fate = ? AND moved < needed", (Fate.REWRITE,))

    def to_prove(self) -> Iterator[tuple[str, list[PackedBlob]]]:
        """What stays of copies that leave, and was not read yet, in pieces, by pack; see :meth:`note_proven`."""
        self._db.execute("DROP TABLE IF EXISTS reachable.proofs")
        self._db.execute(
            "CREATE TABLE reachable.proofs AS"
            " SELECT DISTINCT p.name AS name, k.kind AS kind, k.id AS id, k.offset AS offset, k.length AS length,"
            f" k.raw_length AS raw_length FROM {_UNPROVEN} ORDER BY p.name, k.offset"
        )
        last = 0
        while rows := self._db.execute(
            f"SELECT name, kind, id, offset, length, raw_length, rowid FROM proofs WHERE rowid > ? LIMIT {BATCH}",
            (last,),
        ).fetchall():
            for name, group in groupby(rows, key=itemgetter(0)):
                yield from ((name.hex(), piece) for piece in _pieces(_blobs(row[1:6] for row in group)))
            last = rows[-1][6]

    def bytes_to_prove(self) -> int:
        query = f"SELECT coalesce(sum(length), 0) FROM (SELECT DISTINCT k.id, k.kind, k.length FROM {_UNPROVEN})"
        return int(self._db.execute(query).fetchone()[0])

    def note_proven(self, blobs: Iterable[PackedBlob]) -> None:
        """These were read and proven in the packs that keep them."""
        self._db.executemany(
            "UPDATE copies SET proven = 1 WHERE id = ? AND kind = ?",
            [(blob.id, KINDS.index(blob.kind)) for blob in blobs],
        )

    # --- changes of mind ---

    def keep_unproven(self) -> int:
        """Packs stay whose needed blobs are not all proven elsewhere. Returns how many."""
        self.keep_unmoved()
        return self._db.execute(
            f"UPDATE plan SET fate = 0 WHERE fate != 0 AND id IN (SELECT w.pack FROM {_UNPROVEN})"
        ).rowcount

    def keep_newly_needed(self, since: int) -> int:
        """Packs stay that hold something which came to be needed in that round or later. Returns how many.

        Raises DamagedError if it is something that no index names.
        """
        self._all_there(since)
        return self._db.execute(
            "UPDATE plan SET fate = 0 WHERE fate != 0 AND name IN (SELECT p.name FROM used u"
            " CROSS JOIN blobs b ON b.id = u.id AND b.kind = u.kind CROSS JOIN packs p ON p.id = b.pack"
            " WHERE u.round >= ?)",
            (since,),
        ).rowcount

    def note_indexed(self, packs: Iterable[str]) -> None:
        """Packs that index files name which were written since the plan was made: something in them is needed."""
        self._db.executemany(
            "INSERT INTO plan (name, indexed, needed) VALUES (?, 1, 1) ON CONFLICT (name) DO UPDATE"
            " SET needed = CASE WHEN indexed THEN needed ELSE 1 END, indexed = 1",
            [(bytes.fromhex(pack),) for pack in packs],
        )

    # --- what it says ---

    def index_files(self, leaving: bool) -> set[str]:
        """Those all of whose packs leave, or those none of whose packs leaves. All others name some of both."""
        left = "SELECT count(*) FROM packs p JOIN plan l ON l.name = p.name AND l.fate != 0 WHERE p.file = f.id"
        named = "SELECT count(*) FROM packs p WHERE p.file = f.id"
        rows = self._db.execute(f"SELECT f.name, ({left}) AS leave, ({named}) AS named FROM files f")
        return {name for name, leave, named in rows if (0 < named == leave if leaving else leave == 0)}

    def leaves(self, pack: str) -> bool:
        return self.number_of("fate != 0 AND name = ?", bytes.fromhex(pack)) > 0

    def names_leaving(self) -> Iterator[str]:
        return self._names("fate != 0")

    def orphans(self) -> Iterator[str]:
        """Stored packs that no index names. True only while nobody writes."""
        return self._names("indexed = 0 AND size IS NOT NULL AND locked = 0")

    def total(self, column: str, where: str) -> int:
        return int(self._db.execute(f"SELECT coalesce(sum({column}), 0) FROM plan WHERE {where}").fetchone()[0])

    def locked_until(self, where: str) -> float:
        return float(self._db.execute(f"SELECT coalesce(max(locked), 0) FROM plan WHERE {where}").fetchone()[0])

    def number_of(self, where: str, *values: bytes) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM plan WHERE {where}", values).fetchone()[0])

    # --- inside ---

    def _names(self, where: str) -> Iterator[str]:
        last = b""
        while rows := self._db.execute(
            f"SELECT name FROM plan WHERE name > ? AND {where} ORDER BY name LIMIT 1000", (last,)
        ).fetchall():
            yield from (row[0].hex() for row in rows)
            last = rows[-1][0]

    def _all_there(self, since: int) -> None:
        absent = self._db.execute(_ABSENT, (since,)).fetchone()
        if absent is not None:
            kind, blob_id = absent
            raise DamagedError(f"{KINDS[kind]} {blob_id.hex()} is missing, so nothing is pruned; run a check.")


def _blobs(rows: Iterable[Sequence[Any]]) -> Iterator[PackedBlob]:
    return (PackedBlob(KINDS[kind], *place) for kind, *place in rows)


def _pieces(blobs: Iterable[PackedBlob]) -> Iterator[list[PackedBlob]]:
    """Of one pack, so that few bytes are in memory at once, however large packs are."""
    piece: list[PackedBlob] = []
    for blob in blobs:
        if piece and blob.offset + blob.length - piece[0].offset > _PIECE:
            yield piece
            piece = []
        piece.append(blob)
    if piece:
        yield piece
