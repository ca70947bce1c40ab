"""Changed blocks of an image, read, hashed and compressed while the repository is still being opened.

A cold start waits for scrypt, which takes one core, and for the second look of the lock, which takes none. Neither
what a block holds nor how it compresses depends on the repository, so that time need not be lost. Whether a block is
known, sealing and storing come later, under the lock, as for any other block.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from node_agent.errors import BrsError
from node_agent.items import Extent
from node_agent.repository.compression import level_of
from node_agent.repository.image_blocks import block_size_for, changed_blocks, stretches
from node_agent.repository.sealing import Prepared
from node_agent.repository.zeros import is_zero

LIMIT = 96 << 20  # bytes held
_WORKERS = 2


class Readable(Protocol):
    size: int

    def read(self, offset: int, length: int) -> bytes: ...


class Ahead:
    """Until :meth:`stop` the source is this object's alone. What could not be read is left to who reads it later.

    ``block_size``: the parent's, where that is known already.
    """

    def __init__(
        self,
        source: Readable,
        changed: Sequence[Extent],
        compression: str,
        limit: int = LIMIT,
        block_size: int | None = None,
    ) -> None:
        self.block_size = block_size or block_size_for(source.size)
        self._source = source
        self._level = level_of(compression)
        self._limit = limit
        self._wanted = stretches(changed_blocks(changed, source.size, self.block_size), self.block_size)
        self._ready: dict[int, Prepared] = {}
        self._held = 0
        self._stopped = False
        self._reading = threading.Lock()  # one thread at a time asks the source
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="ahead")
        for _ in range(_WORKERS):
            self._workers.submit(self._work)

    def stop(self) -> None:
        """The source is the caller's again. Idempotent."""
        self._stopped = True
        self._workers.shutdown(wait=True)

    def holds(self, number: int, block_size: int) -> bool:
        """After :meth:`stop`."""
        return block_size == self.block_size and number in self._ready

    def take(self, number: int) -> Prepared:
        """A block that it holds, once."""
        return self._ready.pop(number)

    def _work(self) -> None:
        with contextlib.suppress(BrsError):  # raised again to who reads the block later
            while (read := self._read_next()) is not None:
                first, data = read
                for start in range(0, len(data), self.block_size):
                    block = data[start : start + self.block_size]
                    if is_zero(block):
                        continue
                    prepared = Prepared.of(block, self._level)
                    with self._reading:
                        self._ready[first + start // self.block_size] = prepared
                        self._held += len(prepared.plain)

    def _read_next(self) -> tuple[int, bytes] | None:
        with self._reading:
            if self._stopped or self._held >= self._limit:
                return None
            first, end = next(self._wanted, (0, 0))
            if first == end:
                return None
            start, stop = first * self.block_size, min(end * self.block_size, self._source.size)
            return first, self._source.read(start, stop - start)
