"""Content-defined chunks of files: FastCDC (W. Xia et al., 2020), keyed for each repository.

The cut points depend on a seed derived from the master key, so that the lengths of chunks, which the operator
of a store can see, do not tell which known file was stored. The seed changes the library's gear table by XOR:
enough against a table of known lengths, not a cryptographic promise. Chunks of stock restic (Rabin, own
polynomial) are cut elsewhere: what it stored of the same files is not shared with ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pyfastcdc import FastCDC

MIN_SIZE = 512 << 10
AVG_SIZE = 1 << 20
MAX_SIZE = 8 << 20


class Readable(Protocol):
    def readinto(self, b: memoryview, /) -> int: ...


class Chunker:
    """Cuts streams. One object may serve many threads: each cut has its own state."""

    def __init__(self, secret: bytes) -> None:
        self._seed = int.from_bytes(secret[:8], "big") >> 1 or 1  # the library takes 63 bits, and 0 means its own table

    def cut(self, stream: Readable) -> Iterator[bytes]:
        """The chunks of a stream, in order; nothing for an empty one. A content below 512 KiB is one chunk."""
        cutter = FastCDC(AVG_SIZE, min_size=MIN_SIZE, max_size=MAX_SIZE, seed=self._seed)
        for chunk in cutter.cut_stream(stream):
            yield bytes(chunk.data)
