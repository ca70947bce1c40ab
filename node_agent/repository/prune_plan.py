"""The plan of a prune, in the database of :class:`Reachable`: what of each pack is needed, and what becomes of it.

A pack is *kept*, *removed* (nothing in it is needed, or all of it lies elsewhere too) or *rewritten* (what is needed of
it is stored anew). Of a blob that lies in several packs one is its keeper, preferably one without waste; the other
copies are waste. A pack leaves only when every blob of it that is needed was read and proven elsewhere in this run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby

from node_agent.errors import DamagedError
from node_agent.repository.backend.base import ObjectInfo
from node_agent.repository.index import Index
from node_agent.repository.pack import PackedBlob
from node_agent.repository.reachable import BATCH, Reachable, batches, from_key, key_of, marks

_SCHEMA = (
    """CREATE TABLE packs (
        id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, size INTEGER, indexed INTEGER NOT NULL DEFAULT 0,
        needed INTEGER NOT NULL DEFAULT 0, twins INTEGER NOT NULL DEFAULT 0, unused INTEGER NOT NULL DEFAULT 0,
        fate INTEGER NOT NULL DEFAULT 0, locked REAL NOT NULL DEFAULT 0
    )""",
    "CREATE TABLE moved (key BLOB NOT NULL, pack INTEGER NOT NULL, PRIMARY KEY (key, pack)) WITHOUT ROWID",
)
_HAS_TWINS = "SELECT 1 FROM used WHERE copies > 1 LIMIT 1"


class Fate(IntEnum):
    KEEP = 0
    REMOVE = 1
    REWRITE = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_unused``: bytes of waste that may stay, from the bytes needed; None: any. ``max_repack``: of packs."""

    max_unused: Callable[[int], float] | None
    max_repack: int | None = None


@dataclass(frozen=True, slots=True)
class Leaving:
    """One pack that shall leave, with its blobs that are needed: to be stored anew, or to be proven elsewhere."""

    id: int
    pack: str
    fate: Fate
    move: Sequence[PackedBlob]
    elsewhere: Sequence[PackedBlob]


class PrunePlan:
    def __init__(self, used: Reachable) -> None:
        self.used = used
        self._db = used.db
        for statement in _SCHEMA:
            self._db.execute(statement)

    # --- made in this order ---

    def take_stored(self, stored: Iterable[ObjectInfo]) -> None:
        """The packs that the store lists."""
        self._db.executemany(
            "INSERT INTO packs (name, size) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET size = excluded.size",
            ((bytes.fromhex(info.name), info.size) for info in stored),
        )

    def count(self, index: Index) -> None:
        """What every pack of the index holds. Raises DamagedError if something needed is missing."""
        for pack, blobs in index.packs():
            needed, lengths = 0, _lengths(blobs)
            for batch in batches(lengths):
                rows = self._db.execute(
                    f"UPDATE used SET copies = copies + 1 WHERE key IN ({marks(batch)}) RETURNING key", batch
                ).fetchall()
                needed += sum(lengths[row[0]] for row in rows)
            self._note(pack, needed, sum(blob.length for blob in blobs) - needed)
        absent = self._db.execute("SELECT key FROM used WHERE copies = 0 LIMIT 1").fetchone()
        if absent is not None:
            kind, blob_id = from_key(absent[0])
            raise DamagedError(f"{kind} {blob_id.hex()} is missing, so nothing is pruned; run a check.")
        lost = self._db.execute("SELECT name FROM packs WHERE size IS NULL AND needed > 0 LIMIT 1").fetchone()
        if lost is not None:
            raise DamagedError(f"pack {lost[0].hex()} is missing, so nothing is pruned; run a check.")
        self._choose_keepers(index)

    def note_locked(self, pack: str, until: float) -> None:
        """The store does not give this pack up, or an index file that names it: it stays."""
        self._db.execute(
            "INSERT INTO packs (name, locked) VALUES (?, ?) ON CONFLICT (name) DO UPDATE"
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
        self._db.execute("UPDATE packs SET fate = ? WHERE indexed AND needed = 0 AND locked = 0", (Fate.REMOVE,))
        if limits.max_unused is None:
            return
        used, waste = self._db.execute(
            "SELECT coalesce(sum(needed), 0), coalesce(sum(unused + twins), 0) FROM packs WHERE needed > 0"
        ).fetchone()
        allowed, budget = limits.max_unused(used), limits.max_repack
        rows = self._db.execute(
            "SELECT id, needed, unused + twins FROM packs WHERE needed > 0 AND unused + twins > 0 AND locked = 0"
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
        self._db.executemany("UPDATE packs SET fate = ? WHERE id = ?", chosen)

    def leaving(self, index: Index) -> Iterator[Leaving]:
        """All packs that shall leave; what is needed of each is noted, and must be proven (see :meth:`mark_proven`)."""
        for pack, blobs in index.packs():
            number, fate = self._row(pack)
            if fate is Fate.KEEP:
                continue
            here, elsewhere = self._divide(number, blobs)
            self._db.executemany(
                "INSERT OR IGNORE INTO moved VALUES (?, ?)",
                sorted((key_of(blob.kind, blob.id), number) for blob in (*here, *elsewhere)),
            )
            yield Leaving(number, pack, fate, here, elsewhere)

    def mark_proven(self, blobs: Iterable[PackedBlob]) -> None:
        """These were read and proven in a pack that stays."""
        for batch in batches(key_of(blob.kind, blob.id) for blob in blobs):
            self._db.execute(f"UPDATE used SET proven = 1 WHERE key IN ({marks(batch)})", batch)

    def unproven(self) -> Iterator[tuple[str, list[bytes]]]:
        """Keys that leaving packs hold and nothing proves yet, in pieces, by the pack that keeps them."""
        self._db.execute("DROP TABLE IF EXISTS proofs")
        self._db.execute(
            "CREATE TABLE proofs AS SELECT DISTINCT p.name AS name, u.key AS key FROM moved m"
            " JOIN used u ON u.key = m.key JOIN packs p ON p.id = u.keeper JOIN packs l ON l.id = m.pack"
            " WHERE u.proven = 0 AND l.fate != 0 ORDER BY p.name, u.key"
        )
        last = 0
        while rows := self._db.execute(
            f"SELECT rowid, name, key FROM proofs WHERE rowid > ? ORDER BY rowid LIMIT {BATCH}", (last,)
        ).fetchall():
            for name, group in groupby(rows, key=lambda row: bytes(row[1])):
                yield name.hex(), [row[2] for row in group]
            last = rows[-1][0]

    # --- changes of mind ---

    def keep(self, number: int) -> None:
        self._db.execute("UPDATE packs SET fate = 0 WHERE id = ?", (number,))

    def keep_unproven(self) -> int:
        """Packs stay whose needed blobs are not all proven elsewhere. Returns how many."""
        return self._db.execute(
            "UPDATE packs SET fate = 0 WHERE fate != 0 AND id IN"
            " (SELECT m.pack FROM moved m JOIN used u ON u.key = m.key WHERE u.proven = 0)"
        ).rowcount

    def keep_newly_needed(self, index: Index) -> int:
        """Packs stay that hold something which was not needed when the plan was made. Returns how many.

        Raises DamagedError if a new snapshot needs what no index names.
        """
        kept = 0
        for batch in batches(self.used.keys("copies = 0")):
            for kind in {from_key(key)[0] for key in batch}:
                ids = [blob_id for blob_kind, blob_id in map(from_key, batch) if blob_kind is kind]
                found = index.locate(kind, ids)
                if absent := set(ids) - found.keys():
                    raise DamagedError(f"{kind} {min(absent).hex()} is missing, so nothing is pruned; run a check.")
                for name in {place.pack for places in found.values() for place in places}:
                    kept += self._db.execute(
                        "UPDATE packs SET fate = 0 WHERE name = ? AND fate != 0", (bytes.fromhex(name),)
                    ).rowcount
        return kept

    def note_indexed(self, packs: Iterable[str]) -> None:
        """Packs that index files name which were written since the plan was made: something in them is needed."""
        for pack in packs:
            self._db.execute(
                "INSERT INTO packs (name, indexed, needed) VALUES (?, 1, 1) ON CONFLICT (name) DO UPDATE"
                " SET needed = CASE WHEN indexed THEN needed ELSE 1 END, indexed = 1",
                (bytes.fromhex(pack),),
            )

    # --- what it says ---

    def leaves(self, pack: str) -> bool:
        return self._row(pack)[1] is not Fate.KEEP

    def names_leaving(self) -> Iterator[str]:
        return self._names("fate != 0")

    def orphans(self) -> Iterator[str]:
        """Stored packs that no index names. True only while nobody writes."""
        return self._names("indexed = 0 AND size IS NOT NULL AND locked = 0")

    def total(self, column: str, where: str) -> int:
        return int(self._db.execute(f"SELECT coalesce(sum({column}), 0) FROM packs WHERE {where}").fetchone()[0])

    def locked_until(self, where: str) -> float:
        return float(self._db.execute(f"SELECT coalesce(max(locked), 0) FROM packs WHERE {where}").fetchone()[0])

    def number(self, where: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM packs WHERE {where}").fetchone()[0])

    # --- inside ---

    def _names(self, where: str) -> Iterator[str]:
        last = b""
        while rows := self._db.execute(
            f"SELECT name FROM packs WHERE name > ? AND {where} ORDER BY name LIMIT 1000", (last,)
        ).fetchall():
            yield from (row[0].hex() for row in rows)
            last = rows[-1][0]

    def _row(self, pack: str) -> tuple[int, Fate]:
        row = self._db.execute("SELECT id, fate FROM packs WHERE name = ?", (bytes.fromhex(pack),)).fetchone()
        return (row[0], Fate(row[1])) if row else (0, Fate.KEEP)

    def _note(self, pack: str, needed: int, unused: int) -> None:
        self._db.execute(
            "INSERT INTO packs (name, indexed, needed, unused) VALUES (?, 1, ?, ?) ON CONFLICT (name) DO UPDATE"
            " SET indexed = 1, needed = excluded.needed, unused = excluded.unused",
            (bytes.fromhex(pack), needed, unused),
        )

    def _choose_keepers(self, index: Index) -> None:
        """For what lies in several packs: first the packs without other waste may keep, then the others."""
        if self._db.execute(_HAS_TWINS).fetchone() is None:
            return
        for wasteful in (0, 1):
            for pack, blobs in index.packs():
                number, waste = self._db.execute(
                    "SELECT id, unused > 0 FROM packs WHERE name = ?", (bytes.fromhex(pack),)
                ).fetchone()
                if waste == wasteful:
                    self._keep_twins_of(number, _lengths(blobs))

    def _keep_twins_of(self, number: int, lengths: dict[bytes, int]) -> None:
        twins = 0
        for batch in batches(lengths):
            where = f"key IN ({marks(batch)}) AND copies > 1"
            self._db.execute(f"UPDATE used SET keeper = ? WHERE {where} AND keeper IS NULL", (number, *batch))
            others = self._db.execute(f"SELECT key FROM used WHERE {where} AND keeper != ?", (*batch, number))
            twins += sum(lengths[row[0]] for row in others)
        if twins:
            self._db.execute("UPDATE packs SET needed = needed - ?, twins = ? WHERE id = ?", (twins, twins, number))

    def _divide(self, number: int, blobs: Sequence[PackedBlob]) -> tuple[list[PackedBlob], list[PackedBlob]]:
        """The needed blobs of a pack: those that it keeps itself, and those that are kept elsewhere."""
        places = {key_of(blob.kind, blob.id): blob for blob in reversed(blobs)}
        here: list[PackedBlob] = []
        elsewhere: list[PackedBlob] = []
        for batch in batches(places):
            rows = self._db.execute(f"SELECT key, keeper FROM used WHERE key IN ({marks(batch)})", batch).fetchall()
            for key, keeper in rows:
                (here if keeper in (None, number) else elsewhere).append(places[key])
        return sorted(here, key=_offset), sorted(elsewhere, key=_offset)


def _offset(blob: PackedBlob) -> int:
    return blob.offset


def _lengths(blobs: Sequence[PackedBlob]) -> dict[bytes, int]:
    """By key; of a blob that lies in a pack twice the first one counts."""
    return {key_of(blob.kind, blob.id): blob.length for blob in reversed(blobs)}
