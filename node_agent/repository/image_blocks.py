"""How a disk image is cut into blocks, and how a block list is read back.

Pure functions over sizes and ids. An image is cut into blocks of one size, the last may be shorter. A block is
one blob, except that the first full block of zeros is several of 512 KiB (see
:mod:`node_agent.repository.zeros`); so a block's place in the list follows from the blobs' sizes, not from its number.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from node_agent.errors import SourceError
from node_agent.items import Extent

MIN_BLOCK = 1 << 20
MAX_BLOCK = 8 << 20
MAX_BLOCKS = 1 << 20
GROWTH = 4  # an inherited block size is given up when the image has this many times MAX_BLOCKS


def block_size_for(size: int, inherited: int | None = None) -> int:
    """The smallest power of two from 1 to 8 MiB that keeps the list at or under 1,048,576 blocks.

    An inherited size stays until the image has grown past four times that: a new one means that nothing of
    the old blocks is shared.
    """
    if inherited is not None and count_blocks(size, inherited) <= GROWTH * MAX_BLOCKS:
        return inherited
    chosen = MIN_BLOCK
    while chosen < MAX_BLOCK and count_blocks(size, chosen) > MAX_BLOCKS:
        chosen *= 2
    return chosen


def count_blocks(size: int, block_size: int) -> int:
    return -(-size // block_size)


@dataclass(frozen=True, slots=True)
class BlockList:
    """A stored image. Block ``i`` is ``ids[starts[i]:starts[i + 1]]``."""

    size: int
    block_size: int
    ids: Sequence[bytes]
    starts: array[int]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def block(self, number: int) -> Sequence[bytes]:
        return self.ids[self.starts[number] : self.starts[number + 1]]

    def length(self, number: int) -> int:
        return min(self.block_size, self.size - number * self.block_size)


def read_block_list(size: int, ids: Sequence[bytes], sizes: Mapping[bytes, int]) -> BlockList | None:
    """The blocks of a stored image; None if it was not cut by the rule (another program stored it) or lacks a blob."""
    if any(blob_id not in sizes for blob_id in set(ids)):
        return None
    largest = max((sizes[blob_id] for blob_id in set(ids)), default=0)
    plain = largest & (largest - 1) == 0 and MIN_BLOCK <= largest <= MAX_BLOCK
    block_size = largest if plain else block_size_for(size)
    starts = array("Q", [0])
    offset, boundary = 0, min(block_size, size)
    for number, blob_id in enumerate(ids):
        offset += sizes[blob_id]
        if offset > boundary:
            return None
        if offset == boundary:
            starts.append(number + 1)
            boundary = min(boundary + block_size, size)
    if offset != size or len(starts) - 1 != count_blocks(size, block_size):
        return None
    return BlockList(size, block_size, ids, starts)


def changed_blocks(changed: Iterable[Extent], size: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Runs (first block, end) that the extents touch, in order and apart. Raises SourceError for an extent outside."""
    first = end = 0
    for extent in sorted(changed, key=lambda e: e.offset):
        if extent.offset < 0 or extent.length < 0 or extent.end > size:
            raise SourceError(
                f"A changed extent ({extent.offset}, {extent.length} bytes) lies outside of the image of {size} bytes.",
                hint="The change list belongs to another image, or to another size of it; back up without it.",
            )
        if not extent.length:
            continue
        low, high = extent.offset // block_size, count_blocks(extent.end, block_size)
        if low > end or end == 0:
            if end:
                yield first, end
            first = low
        end = max(end, high)
    if end:
        yield first, end


class ZeroCover:
    """Answers, for ranges in rising order, whether a range lies in zero extents. Reads the extents as it goes."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._zeros = (extent for extent in extents if extent.zero)
        self._next: Extent | None = None
        self._start = self._end = 0

    def covers(self, start: int, end: int) -> bool:
        while self._end < end:
            self._next = self._next or next(self._zeros, None)
            if self._next is None:
                break
            if self._next.offset <= self._end:
                self._end = max(self._end, self._next.end)
            elif self._end <= start:
                self._start, self._end = self._next.offset, self._next.end
            else:
                break
            self._next = None
        return self._start <= start and end <= self._end
