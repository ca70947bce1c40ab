"""Many ids in one piece of memory: the list of a disk of 1 TiB is 32 MiB then, and not a million objects."""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import overload

SIZE = 32
LARGE = 4096  # ids; shorter lists are quicker as a list

_BEGIN = b'"content":["'
_STEP = 2 * SIZE + 3  # an id in hex, and what stands between two: ","
_PIECE = 2048  # ids that are made to JSON, or of it, at once


class Ids(Sequence[bytes]):
    """An unchanging sequence of ids; equal to any other sequence of the same."""

    __slots__ = ("raw",)
    __hash__ = None  # type: ignore[assignment]  # as a list

    def __init__(self, raw: bytes = b"") -> None:
        if len(raw) % SIZE:
            raise ValueError("an id is not 32 bytes")
        self.raw = raw

    @classmethod
    def of(cls, ids: Sequence[bytes]) -> Ids:
        return ids if isinstance(ids, cls) else cls(b"".join(ids))

    def __len__(self) -> int:
        return len(self.raw) // SIZE

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            first, end, step = place.indices(len(self))
            if step != 1:
                return [self[number] for number in range(first, end, step)]
            return Ids(self.raw[first * SIZE : max(first, end) * SIZE])
        number = range(len(self))[place]
        return self.raw[number * SIZE : number * SIZE + SIZE]

    def __iter__(self) -> Iterator[bytes]:
        raw = self.raw
        for at in range(0, len(raw), SIZE):
            yield raw[at : at + SIZE]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return self.raw == other.raw
        if isinstance(other, Sequence) and not isinstance(other, str | bytes):
            return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))
        return NotImplemented

    def __repr__(self) -> str:
        return f"<{len(self)} ids>"

    def find(self, wanted: bytes, start: int = 0, end: int | None = None) -> int:
        """The place of the first that is ``wanted`` from ``start`` on and before ``end``; -1 if there is none."""
        stop = len(self.raw) if end is None else end * SIZE
        at = self.raw.find(wanted, start * SIZE, stop)
        while at >= 0 and at % SIZE:
            at = self.raw.find(wanted, at + 1, stop)
        return at // SIZE if at >= 0 else -1


def to_json(ids: Ids) -> Iterator[bytes]:
    """The parts of a JSON array of hex strings: all of them at once would be there three times while they are made."""
    raw = ids.raw
    if not raw:
        yield b"[]"
        return
    between = b'["'
    for start in range(0, len(raw), _PIECE * SIZE):
        piece = binascii.hexlify(raw[start : start + _PIECE * SIZE], ",", SIZE)
        yield between + piece.replace(b",", b'","')
        between = b'","'
    yield b'"]'


def lift(tree: bytes) -> tuple[bytes, list[Ids]]:
    """A tree's JSON in which each long list of ids is replaced by its number, and those lists.

    JSON alone would make two objects of each id. What does not look exactly as restic and we write it is left in place.
    An unescaped quote cannot stand inside a JSON string, so what begins as such a list is one.
    """
    parts: list[bytes] = []
    lists: list[Ids] = []
    done = 0
    while (begin := tree.find(_BEGIN, done)) >= 0:
        first = begin + len(_BEGIN)
        end = tree.find(b'"]', first)
        ids = _from_json(tree, first, end) if end - first > LARGE * _STEP else None
        if ids is None:
            parts.append(tree[done:first])
            done = first
        else:
            parts += [tree[done : first - 2], b"%d" % len(lists)]
            lists.append(ids)
            done = end + 2
    return b"".join([*parts, tree[done:]]) if lists else tree, lists


def _from_json(tree: bytes, first: int, end: int) -> Ids | None:
    """In pieces, so that little more is in memory than the list itself."""
    if (end - first + 3) % _STEP:
        return None
    raw = BytesIO()
    for start in range(first, end, _PIECE * _STEP):
        text = tree[start : min(end, start + _PIECE * _STEP)]
        count = (len(text) + 3) // _STEP
        between = count if start + len(text) < end else count - 1  # after each but the last of all
        if any(text[2 * SIZE + at :: _STEP] != mark * between for at, mark in enumerate((b'"', b",", b'"'))):
            return None
        try:
            ids = binascii.unhexlify(text.translate(None, b'",'))
        except ValueError:
            return None
        if len(ids) != count * SIZE:
            return None
        raw.write(ids)
    return Ids(raw.getvalue())
