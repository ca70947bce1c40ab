"""Listings of the REST protocol, read piece by piece: a million packs take 40 MB, and what is no name takes none.

A listing is ``[{"name":"…","size":123},…]``, or null where there is nothing.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator

from node_agent.repository.backend.base import is_object_name
from node_agent.repository.strict_json import parse_json

MAX_OBJECTS = 10_000_000
_MAX_ODD = 1_000_000  # entries whose names are none of ours
_MAX_ENTRY = 1 << 20
_PLAIN = re.compile(rb'\s*([\[,])\s*\{"name":\s?"([0-9a-f]{64})",\s?"size":\s?(\d{1,18})\Z')


class Listing:
    """Names and sizes of objects; what has other names is left out. Raises ValueError: it is no listing."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._names = bytearray()
        self._sizes = array("Q")
        rest, before, odd = b"", b"[", 0
        for piece in pieces:
            *whole, rest = (rest + piece).split(b"}")
            for text in whole:
                odd += not self._take(text, before)
                before = b","
            if len(rest) > _MAX_ENTRY or odd > _MAX_ODD or len(self._sizes) > MAX_OBJECTS:
                raise ValueError("more than any repository has")
        if before == b"," and rest.strip() == b"]":
            return
        if before == b"[" and parse_json(rest) in ([], None):
            return
        raise ValueError("it does not end as a list")

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for number, size in enumerate(self._sizes):
            yield self._names[32 * number : 32 * number + 32].hex(), size

    def _take(self, text: bytes, before: bytes) -> bool:
        """An entry without its last brace, and what must stand before it."""
        if (plain := _PLAIN.match(text)) is not None and plain[1] == before:
            name, size = plain[2].decode(), int(plain[3])
        else:
            name, size = self._parsed(text.strip(), before)
        if not is_object_name(name):
            return False
        self._names += bytes.fromhex(name)
        self._sizes.append(size)
        return True

    @staticmethod
    def _parsed(text: bytes, before: bytes) -> tuple[str, int]:
        if not text.startswith(before):
            raise ValueError("no entry begins here")
        entry = parse_json(text[1:] + b"}")
        name, size = (entry.get("name"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or type(size) is not int or not 0 <= size < 1 << 63:
            raise ValueError("an entry without name and size")
        return name, size
