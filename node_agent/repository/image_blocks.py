"""How a disk image is cut into blocks, and how a block list is read back.

Pure functions over sizes and ids. An image is cut into blocks of one size, the last may be shorter. A block is
one blob, except for the *mark*: the first full zeros that a whole number of 512 KiB and of blocks make up, from a place
that is a multiple of that, are stored as blobs of 512 KiB (see :mod:`node_agent.repository.zeros`). So a large block
may be several blobs, and of small blocks two may be one: a block's place in the list is not always its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from node_agent.errors import SourceError
from node_agent.items import Extent
from node_agent.repository.ids import Ids
from node_agent.repository.zeros import MARK_SIZE, zero_id

MIN_BLOCK = 256 << 10
MAX_BLOCK = 8 << 20
MAX_BLOCKS = 1 << 20
MAX_SMALL_BLOCKS = 1 << 18  # of less than 1 MiB: every point stores its whole list, 35 bytes for each block
READ_BYTES = 1 << 20
GROWTH = 4  # an inherited block size is given up when the image has this many times as many


def block_size_for(size: int, inherited: int | None = None) -> int:
    """The smallest power of two from 256 KiB to 8 MiB that keeps the list short enough.

    Small blocks are what makes increments quick, since a block is stored anew whole: so up to 64 GiB they have
    256 KiB. An inherited size stays until the image has grown past four times what it is for: a new one
    means that nothing of the old blocks is shared.
    """
    if inherited is not None and count_blocks(size, inherited) <= GROWTH * _most(inherited):
        return inherited
    chosen = MIN_BLOCK
    while chosen < MAX_BLOCK and count_blocks(size, chosen) > _most(chosen):
        chosen *= 2
    return chosen


def _most(block_size: int) -> int:
    return MAX_BLOCKS if block_size >= 1 << 20 else MAX_SMALL_BLOCKS


def mark_span(block_size: int) -> int:
    """How many blocks the mark is."""
    return max(1, MARK_SIZE // block_size)


def mark_blobs(block_size: int) -> int:
    """How many blobs the mark is."""
    return max(1, block_size // MARK_SIZE)


def count_blocks(size: int, block_size: int) -> int:
    return -(-size // block_size)


@dataclass(frozen=True, slots=True)
class BlockList:
    """A stored image. Each block is one id, but for the mark."""

    size: int
    block_size: int
    ids: Ids
    marked: int | None  # the number of the mark's first block

    def __len__(self) -> int:
        return count_blocks(self.size, self.block_size)

    def place(self, number: int) -> int:
        """Where a block's ids begin."""
        if self.marked is None or number <= self.marked:
            return number
        beyond = number - self.marked - mark_span(self.block_size)
        return self.marked + (mark_blobs(self.block_size) + beyond if beyond >= 0 else 0)

    def is_marked(self, number: int) -> bool:
        return self.marked is not None and self.marked <= number < self.marked + mark_span(self.block_size)

    def block(self, number: int) -> Sequence[bytes]:
        """Of a block outside of the mark its one id; of one in it all of the mark's."""
        if self.marked is not None and self.is_marked(number):
            return self.ids[self.marked : self.marked + mark_blobs(self.block_size)]
        return self.ids[self.place(number) : self.place(number) + 1]

    def length(self, number: int) -> int:
        return min(self.block_size, self.size - number * self.block_size)

    def is_zero(self, number: int) -> bool:
        return self.is_marked(number) or self.block(number) == [zero_id(self.length(number))]

    def same_length(self, size: int) -> int:
        """How many blocks, from the first on, have the length that they have in an image of ``size`` bytes."""
        return len(self) if size == self.size else min(self.size, size) // self.block_size


def cut(size: int, ids: Sequence[bytes], block_size: int) -> BlockList | None:
    """The blocks of an image whose blobs are known to have been cut by the rule; None if their number is wrong."""
    ids = Ids.of(ids)
    marks, span = mark_blobs(block_size), mark_span(block_size)
    surplus = len(ids) - count_blocks(size, block_size)
    if surplus == 0:
        return BlockList(size, block_size, ids, None)
    marked = ids.find(zero_id(MARK_SIZE))
    if surplus != marks - span or marked < 0 or marked % span or (marked + span) * block_size > size:
        return None
    if ids[marked : marked + marks] != [zero_id(MARK_SIZE)] * marks:
        return None
    return BlockList(size, block_size, ids, marked)


def read_block_list(size: int, ids: Sequence[bytes], sizes: Mapping[bytes, int]) -> BlockList | None:
    """The blocks of a stored image; None if it was not cut by the rule (another program stored it) or lacks a blob."""
    different = set(ids)
    if not different <= sizes.keys():
        return None
    largest = max((sizes[blob_id] for blob_id in different if blob_id != zero_id(MARK_SIZE)), default=0)
    plain = largest & (largest - 1) == 0 and MIN_BLOCK <= largest <= MAX_BLOCK
    blocks = cut(size, ids, largest if plain else block_size_for(size))
    return blocks if blocks is None or _fits(blocks, different, sizes) else None


def _fits(blocks: BlockList, different: set[bytes], sizes: Mapping[bytes, int]) -> bool:
    """Whether each blob has the length that its place asks for."""
    if not blocks:
        return True
    last = len(blocks) - 1
    if not blocks.is_marked(last) and sizes[blocks.ids[-1]] != blocks.length(last):
        return False
    for blob_id in different:
        if sizes[blob_id] == blocks.block_size:
            continue
        # Of another length are only the last block, and what makes up the mark.
        after = 0
        if blocks.marked is not None and blob_id == zero_id(MARK_SIZE):
            after = blocks.marked + mark_blobs(blocks.block_size)
        stray = blocks.ids.find(blob_id, after)
        if stray >= 0 and not (stray == len(blocks.ids) - 1 and not blocks.is_marked(last)):
            return False
    return True


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


def with_rest(runs: Iterable[tuple[int, int]], kept: int, count: int) -> list[tuple[int, int]]:
    """The runs, and all blocks from ``kept`` on."""
    result = [(first, min(end, kept)) for first, end in runs if first < kept]
    if kept < count:
        if result and result[-1][1] == kept:
            kept = result.pop()[0]
        result.append((kept, count))
    return result


def stretches(runs: Iterable[tuple[int, int]], block_size: int) -> Iterator[tuple[int, int]]:
    """The runs in pieces that are read at once, of a MiB or of one block: to ask for less costs time on a network."""
    step = max(1, READ_BYTES // block_size)
    for first, end in runs:
        for start in range(first, end, step):
            yield start, min(start + step, end)


def gaps(runs: Iterable[tuple[int, int]], count: int) -> Iterator[tuple[int, int]]:
    """The runs of blocks between the given ones."""
    position = 0
    for first, end in runs:
        if position < first:
            yield position, first
        position = end
    if position < count:
        yield position, count


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
