"""The table: what is hurt, how, and the verdict of each judge. docs/format.md shows it; the tests hold it to reality.

Verdicts of a check: ``error`` (ends 1), ``note`` (told, nothing is lost), ``refused`` (the repository or snapshot
cannot be opened: an error of its own), ``—`` (not seen). Of a restore of all snapshots: ``whole``, ``left out`` (what
is hurt is left out and named, everything else comes back), ``refused`` (a snapshot at least, or all until the repair).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.flips import harm
from tests.flips.harm import Mutation
from tests.flips.judge import EITHER, ERROR, LEFT_OUT, NOTE, REFUSED, UNSEEN, WHOLE
from tests.flips.world import World

HARMS: dict[str, Callable[[World, str], Iterator[Mutation]]] = {
    "flipped": harm.flips,
    "deleted": harm.deletes,
    "truncated": harm.truncations,
    "cut by a byte": harm.cuts,
    "extended": harm.extensions,
    "swapped": harm.swaps,
    "duplicated": harm.duplicates,
    "put back": harm.replays,
    "rolled back": harm.deletes_together,
}
CONTENT = ("flipped", "truncated", "extended")


@dataclass(frozen=True)
class Class:
    """``quick`` is ``check``, ``full`` is ``check --read-data``; the same of restic 0.14."""

    place: str  # a name of world.places; for "put back" of world.replays
    harm: str
    quick: str
    full: str
    restored: str
    restic_quick: str
    restic_full: str

    @property
    def name(self) -> str:
        return f"{self.place}, {self.harm}"


def _rows(place: str, harms: tuple[str, ...], *verdicts: str) -> list[Class]:
    return [Class(place, how, *verdicts) for how in harms]


def _parts(place: str, *verdicts: str) -> list[Class]:
    return [row for part in ("nonce", "text", "tag") for row in _rows(f"{place}: {part}", ("flipped",), *verdicts)]


CLASSES: list[Class] = [
    *_rows("config", (*CONTENT, "deleted"), REFUSED, REFUSED, REFUSED, ERROR, ERROR),
    *(
        row
        for secret in ("data", "salt", "N", "r", "p", "kdf", "punctuation")
        for row in _rows(f"key: {secret}", ("flipped",), REFUSED, REFUSED, REFUSED, ERROR, ERROR)
    ),
    *_rows("key: comments", ("flipped",), ERROR, ERROR, WHOLE, UNSEEN, UNSEEN),
    *_rows("key", ("deleted", "truncated", "extended"), REFUSED, REFUSED, REFUSED, ERROR, ERROR),
    *_rows("another key", ("truncated", "extended"), ERROR, ERROR, WHOLE, EITHER, EITHER),
    *_rows("another key", ("deleted",), NOTE, NOTE, WHOLE, UNSEEN, UNSEEN),
    *_rows("keys", ("swapped", "duplicated"), ERROR, ERROR, WHOLE, UNSEEN, UNSEEN),
    *_rows("key", ("put back",), NOTE, NOTE, WHOLE, UNSEEN, UNSEEN),
    *_rows("index", (*CONTENT, "swapped", "duplicated"), ERROR, ERROR, REFUSED, ERROR, ERROR),
    *_rows("unneeded index", ("deleted",), NOTE, NOTE, WHOLE, UNSEEN, UNSEEN),
    *_rows("index", ("deleted",), ERROR, ERROR, LEFT_OUT, ERROR, ERROR),
    *_rows("index", ("put back",), ERROR, ERROR, WHOLE, ERROR, ERROR),
    *_rows("snapshot", (*CONTENT, "swapped"), ERROR, ERROR, REFUSED, ERROR, ERROR),
    *_rows("snapshot", ("deleted",), ERROR, ERROR, REFUSED, UNSEEN, UNSEEN),
    *_rows("older snapshot", ("deleted",), NOTE, NOTE, REFUSED, UNSEEN, UNSEEN),
    *_rows("snapshot", ("duplicated",), ERROR, ERROR, WHOLE, ERROR, ERROR),
    *_rows("snapshot", ("put back",), NOTE, NOTE, WHOLE, UNSEEN, UNSEEN),
    *_rows("newest backup", ("rolled back",), ERROR, ERROR, REFUSED, UNSEEN, UNSEEN),
    *_parts("tree blob", ERROR, ERROR, LEFT_OUT, ERROR, ERROR),
    *_parts("data blob", UNSEEN, ERROR, LEFT_OUT, UNSEEN, ERROR),
    *_parts("shared data blob", UNSEEN, ERROR, LEFT_OUT, UNSEEN, ERROR),
    *_rows("copy that is read", ("flipped",), UNSEEN, ERROR, WHOLE, UNSEEN, ERROR),
    *_rows("copy that is not read", ("flipped",), UNSEEN, ERROR, WHOLE, UNSEEN, ERROR),
    *_parts("pack header", ERROR, ERROR, WHOLE, UNSEEN, ERROR),
    *_rows("pack header: length", ("flipped",), ERROR, ERROR, WHOLE, UNSEEN, ERROR),
    *_rows("pack", ("deleted", "truncated", "swapped"), ERROR, ERROR, LEFT_OUT, ERROR, ERROR),
    *_rows("pack", ("cut by a byte", "extended"), ERROR, ERROR, WHOLE, ERROR, ERROR),
    *_rows("pack", ("duplicated",), NOTE, NOTE, WHOLE, UNSEEN, UNSEEN),
    *_rows("lock", CONTENT, REFUSED, REFUSED, REFUSED, UNSEEN, UNSEEN),
    *_rows("lock", ("deleted",), UNSEEN, UNSEEN, WHOLE, UNSEEN, UNSEEN),
    *_rows("orphan pack", CONTENT, UNSEEN, NOTE, WHOLE, UNSEEN, UNSEEN),
    *_rows("orphan pack", ("deleted",), UNSEEN, UNSEEN, WHOLE, UNSEEN, UNSEEN),
    *_rows("temporary file", (*CONTENT, "deleted"), UNSEEN, UNSEEN, WHOLE, UNSEEN, UNSEEN),
]
HARMLESS = {  # what may go unseen, since no program reads it
    *(f"temporary file, {how}" for how in (*CONTENT, "deleted")),
    *("lock, deleted", "orphan pack, deleted"),
}
BEGIN, END = "<!-- classes of damage: begin -->", "<!-- classes of damage: end -->"


def as_markdown() -> str:
    """One line for all classes with the same verdicts."""
    head = ["what", "how", "`check`", "`check --read-data`", "restore", "restic `check`", "restic `check --read-data`"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    grouped: dict[tuple[str, ...], list[Class]] = {}
    for row in CLASSES:
        verdicts = (row.quick, row.full, row.restored, row.restic_quick, row.restic_full)
        grouped.setdefault((row.place, *verdicts), []).append(row)
    merged: dict[tuple[str, ...], list[str]] = {}
    for (place, *verdicts), rows in grouped.items():
        merged.setdefault((", ".join(row.harm for row in rows), *verdicts), []).append(place)
    for (how, *verdicts), places in merged.items():
        lines.append(" | ".join([_joined(places), how, *verdicts]))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _joined(places: list[str]) -> str:
    """``key: a``, ``key: b`` as ``key: a, b``."""
    topics: dict[str, list[str]] = {}
    for place in places:
        topic, _, part = place.partition(": ")
        topics.setdefault(topic, []).extend([part] if part else [])
    return "; ".join(f"{topic}: {', '.join(parts)}" if parts else topic for topic, parts in topics.items())
