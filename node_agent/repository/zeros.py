"""Zeros are stored once and cost nothing: their ids are known by length.

Stock restic restores a file sparsely when one of its blobs is 512 KiB of zeros (the smallest chunk of
its chunker; it compares the id) and writes every zero otherwise. So the first stretch of zeros in a
file is stored in pieces of that size; all others in whole blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache

from node_agent.repository.repository import BlobKind, BlobWriter

MARK_SIZE = 512 << 10  # what stock restic recognises
MAX_ZERO_BLOB = 8 << 20
_LEAST = 256 << 10  # the smallest block of an image


@cache
def zero_bytes(size: int) -> bytes:
    """Not for large numbers of different sizes: kept for ever."""
    return bytes(size)


@cache
def zero_id(size: int) -> bytes:
    return hashlib.sha256(zero_bytes(size) if _is_usual(size) else bytes(size)).digest()


def is_zero_id(blob_id: bytes, size: int) -> bool:
    """Whether a blob of this length is known to be zeros: of the mark, or of a whole block."""
    return size >= _LEAST and _is_usual(size) and blob_id == zero_id(size)


def _is_usual(size: int) -> bool:
    return size <= MAX_ZERO_BLOB and size & (size - 1) == 0


def is_zero(data: bytes) -> bool:
    """Ends at the first byte that is not zero; about memory speed for zeros. bytes only: a view compares slowly."""
    size = len(data)
    if _is_usual(size):
        return data == zero_bytes(size)
    return not any(data[:64]) and data == bytes(size)


class ZeroBlobs:
    """Stores the zero blobs of one run, each length once."""

    def __init__(self, writer: BlobWriter) -> None:
        self._writer = writer
        self._saved: dict[int, bytes] = {}

    def id(self, size: int) -> bytes:
        known = self._saved.get(size)
        if known is None:
            known = self._writer.save(BlobKind.DATA, bytes(size)).id
            self._saved[size] = known
        return known

    def run(self, length: int, marked: bool) -> Iterator[tuple[bytes, int]]:
        """(id, size) of the blobs for a hole. ``marked``: the file already holds a blob that restic recognises."""
        if not marked and length >= MARK_SIZE:
            yield self.id(MARK_SIZE), MARK_SIZE
            length -= MARK_SIZE
        while length >= MAX_ZERO_BLOB:
            yield self.id(MAX_ZERO_BLOB), MAX_ZERO_BLOB
            length -= MAX_ZERO_BLOB
        if length:
            yield self.id(length), length
