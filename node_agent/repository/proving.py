"""Whether many blobs are what the index says, at once: the part of it that needs nothing but the key and the bytes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from node_agent.repository.backend.base import Buffer
from node_agent.repository.compression import NotCompressed
from node_agent.repository.crypto import Key, Unauthenticated
from node_agent.repository.pack import PackedBlob, open_content

_ID = 32


class Places(NamedTuple):
    """Of blobs in a piece of memory, as it goes over a channel: numbers in this machine's own order of bytes."""

    size: int  # of the piece
    ids: bytes  # 32 each
    offsets: bytes  # uint32 each, as all below
    lengths: bytes
    raw_lengths: bytes

    @classmethod
    def of(cls, blobs: Sequence[PackedBlob], start: int, size: int) -> Places:
        """``start``: where in the pack the piece begins."""
        return cls(
            size,
            b"".join([blob.id for blob in blobs]),
            array("I", [blob.offset - start for blob in blobs]).tobytes(),
            array("I", [blob.length for blob in blobs]).tobytes(),
            array("I", [blob.raw_length for blob in blobs]).tobytes(),
        )


def faults(key: Key, content: Buffer, places: Places) -> list[tuple[int, str]]:
    """The numbers of those that are not whole, and what is wrong with each. ``content`` may go on behind the piece."""
    found: list[tuple[int, str]] = []
    view, ids = memoryview(content)[: places.size], places.ids
    numbers = (array("I", column) for column in places[2:])
    for number, (offset, length, raw_length) in enumerate(zip(*numbers, strict=True)):
        blob_id = ids[number * _ID : number * _ID + _ID]
        try:
            open_content(key, blob_id, length, raw_length, view[offset : offset + length])
        except (Unauthenticated, NotCompressed) as error:
            found.append((number, str(error)))
    return found
