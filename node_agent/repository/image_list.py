"""The list of an image's blocks while it grows: new blocks, some still being stored, and runs of inherited ones."""

from __future__ import annotations

from collections import deque

from node_agent.repository.ids import SIZE, Ids
from node_agent.repository.image_ahead import Prepared
from node_agent.repository.image_blocks import BlockList
from node_agent.repository.repository import BlobKind, BlobWriter
from node_agent.repository.writer import Pending
from node_agent.repository.zeros import MARK_SIZE, ZeroBlobs, is_zero, zero_id

MAX_PENDING = 64
_NOT_YET = bytes(SIZE)


class ListBuilder:
    """Knows which block of zeros is the marked one: the first full one, as in every list."""

    def __init__(self, writer: BlobWriter, block_size: int, *, keep_fresh: bool) -> None:
        self.fresh: set[bytes] = set()  # ids that this run stored or found, as opposed to inherited ones, if wanted
        self._keep_fresh = keep_fresh
        self._block_size = block_size
        self._writer = writer
        self._zeros = ZeroBlobs(writer)
        self._raw = bytearray()
        self._marked = False
        self._pending: deque[tuple[int, Pending]] = deque()

    def data(self, block: bytes) -> None:
        if is_zero(block):
            self.zero(len(block))
            return
        self._pending.append((len(self._raw), self._writer.submit(BlobKind.DATA, block)))
        self._raw += _NOT_YET
        if len(self._pending) > MAX_PENDING:
            self._settle_one()

    def prepared(self, block: Prepared) -> None:
        """A block that was hashed and compressed before."""
        if self._writer.claim(BlobKind.DATA, [block.id]):
            sealed = self._writer.sealer.seal_plain(BlobKind.DATA, block.id, block.plain, block.raw_length, block.size)
            self._writer.add_sealed(BlobKind.DATA, [sealed[0]], sealed[1])
        self._note(block.id)
        self._raw += block.id

    def zero(self, length: int) -> None:
        size, times = length, 1
        if length == self._block_size and not self._marked:
            self._marked = True
            size, times = MARK_SIZE, length // MARK_SIZE
        blob_id = self._zeros.id(size)
        self._note(blob_id)
        self._raw += blob_id * times

    def inherit(self, old: BlockList, first: int, end: int) -> None:
        """Blocks of the parent, which have the same length here."""
        while first < end:
            stop = end
            special = old.marked if old.marked is not None and first <= old.marked < end else None
            if not self._marked:  # the first block of zeros may be another one than in the parent
                before = end if special is None else special
                place = old.ids.find(zero_id(self._block_size), old.place(first), old.place(before))
                if place >= 0:
                    special = first + place - old.place(first)
            if special is not None:
                stop = special
            self._raw += old.ids.raw[old.place(first) * SIZE : old.place(stop) * SIZE]
            if special is not None:
                self.zero(self._block_size)
                stop += 1
            first = stop

    def ids(self) -> Ids:
        """Waits for what is being stored."""
        while self._pending:
            self._settle_one()
        return Ids(bytes(self._raw))

    def _settle_one(self) -> None:
        at, pending = self._pending.popleft()
        blob_id = pending.result().id
        self._note(blob_id)
        self._raw[at : at + SIZE] = blob_id

    def _note(self, blob_id: bytes) -> None:
        if self._keep_fresh:
            self.fresh.add(blob_id)
