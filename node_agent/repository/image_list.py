"""The list of an image's blocks while it grows: new blocks, some still being stored, and runs of inherited ones."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

from node_agent.repository.backend.base import Buffer
from node_agent.repository.ids import SIZE, Ids
from node_agent.repository.image_blocks import BlockList, mark_blobs, mark_span
from node_agent.repository.repository import BlobKind, BlobWriter
from node_agent.repository.sealing import Prepared
from node_agent.repository.writer import Saved
from node_agent.repository.zeros import MARK_SIZE, ZeroBlobs, is_zero, zero_bytes, zero_id

_RUN_BYTES = 1 << 20  # stored together, so that small blocks cost no more than large ones
_MAX_PENDING = 64
_NOT_YET = bytes(SIZE)


class ListBuilder:
    """Sees to the mark: the first zeros that may be it are, as in every list."""

    def __init__(self, writer: BlobWriter, block_size: int, *, keep_fresh: bool) -> None:
        self.fresh: set[bytes] = set()  # ids that this run stored or found, as opposed to inherited ones, if wanted
        self._keep_fresh = keep_fresh
        self._block_size = block_size
        self._writer = writer
        self._raw = bytearray()
        self._count = 0  # blocks
        self._zero_id = zero_id(block_size)
        self._zero_lengths: set[int] = set()
        self._marked = False
        self._run: list[Buffer | Prepared] = []
        self._run_places: list[int] = []
        self._run_size = 0
        self._pending: deque[tuple[list[int], Future[list[Saved]]]] = deque()

    def data(self, stretch: bytes) -> None:
        """Blocks as they lie on the disk, the last perhaps shorter."""
        size = self._block_size
        whole = memoryview(stretch)
        for start in range(0, len(stretch), size):
            block = whole[start : start + size]
            # Whole blocks are compared where they are, and up to the first difference only.
            if stretch.startswith(zero_bytes(size), start) if len(block) == size else is_zero(bytes(block)):
                self.zero(len(block))
            else:
                self._add(stretch if len(block) == len(stretch) else block)

    def prepared(self, block: Prepared) -> None:
        """A block that was hashed and compressed before."""
        self._add(block)

    def zero(self, length: int) -> None:
        self._zero_lengths.add(length)
        self._raw += zero_id(length)
        self._count += 1
        if length == self._block_size and not self._marked:
            self._mark()

    def inherit(self, old: BlockList, first: int, end: int) -> None:
        """Blocks of the parent, which have the same length here."""
        while first < end:
            zero = self._next_zero(old, first, end)
            self._raw += old.ids.raw[old.place(first) * SIZE : old.place(zero) * SIZE]
            self._count += zero - first
            if zero < end:  # it may be the mark here and not there, or the other way round
                self.zero(self._block_size)
            first = zero + 1

    def _next_zero(self, old: BlockList, first: int, end: int) -> int:
        """The next block that may not be taken over as it is; ``end`` if there is none."""
        found = end
        if old.marked is not None and max(first, old.marked) < min(end, old.marked + mark_span(self._block_size)):
            found = max(first, old.marked)
        if not self._marked:
            place = old.ids.find(self._zero_id, old.place(first), old.place(found))
            if place >= 0:
                found = first + place - old.place(first)
        return found

    def ids(self) -> Ids:
        """Waits for what is being stored. Zeros come last: now it is certain of which lengths there are any."""
        self._send()
        while self._pending:
            self._settle_one()
        ids, zeros = Ids(bytes(self._raw)), ZeroBlobs(self._writer)
        for length in self._zero_lengths:
            if ids.find(zero_id(length)) >= 0:
                self._note(zeros.id(length))
        return ids

    def _mark(self) -> None:
        """Make the last blocks the mark, if they may be: all full, zeros, and as a whole in its place."""
        span = mark_span(self._block_size)
        if self._count % span or self._raw[-span * SIZE :] != self._zero_id * span:
            return
        del self._raw[-span * SIZE :]
        self._zero_lengths.add(MARK_SIZE)
        self._raw += zero_id(MARK_SIZE) * mark_blobs(self._block_size)
        self._marked = True

    def _add(self, block: Buffer | Prepared) -> None:
        self._run.append(block)
        self._run_places.append(len(self._raw))
        self._run_size += len(block)
        self._raw += _NOT_YET
        self._count += 1
        if self._run_size >= _RUN_BYTES:
            self._send()

    def _send(self) -> None:
        if not self._run:
            return
        self._pending.append((self._run_places, self._writer.submit_run(BlobKind.DATA, self._run)))
        self._run, self._run_places, self._run_size = [], [], 0
        if len(self._pending) > _MAX_PENDING:
            self._settle_one()

    def _settle_one(self) -> None:
        places, pending = self._pending.popleft()
        for at, saved in zip(places, pending.result(), strict=True):
            self._note(saved.id)
            self._raw[at : at + SIZE] = saved.id

    def _note(self, blob_id: bytes) -> None:
        if self._keep_fresh:
            self.fresh.add(blob_id)
