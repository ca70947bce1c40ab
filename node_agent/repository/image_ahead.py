"""Changed blocks of an image, read, hashed and compressed while the repository is still being opened.

A cold start waits for scrypt, which takes one core, and for the second look of the lock, which takes none. Neither
what a block holds nor how it compresses depends on the repository, so that time need not be lost. Whether a block is
known, sealing and storing come later, under the lock, as for any other block.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from node_agent.errors import BrsError
from node_agent.items import Extent
from node_agent.repository.backend.base import Buffer
from node_agent.repository.compression import level_of
from node_agent.repository.image_blocks import block_size_for, changed_blocks
from node_agent.repository.sealing import compressed
from node_agent.repository.zeros import is_zero

LIMIT = 96 << 20  # bytes held
_WORKERS = 2


class Readable(Protocol):
    size: int

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    id: bytes
    plain: Buffer
    raw_length: int
    size: int


class Ahead:
    """Until :meth:`stop` the source is this object's alone. What could not be read is left to who reads it later."""

    def __init__(self, source: Readable, changed: Sequence[Extent], compression: str, limit: int = LIMIT) -> None:
        self.block_size = block_size_for(source.size)
        self._source = source
        self._level = level_of(compression)
        self._limit = limit
        self._wanted = self._numbers(changed)
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

    def take(self, number: int, block_size: int) -> Prepared | None:
        """After :meth:`stop`: a block, once."""
        return self._ready.pop(number, None) if block_size == self.block_size else None

    def _numbers(self, changed: Sequence[Extent]) -> Iterator[int]:
        for first, end in changed_blocks(changed, self._source.size, self.block_size):
            yield from range(first, end)

    def _work(self) -> None:
        with contextlib.suppress(BrsError):  # raised again to who reads the block later
            while (read := self._read_next()) is not None:
                number, data = read
                if is_zero(data):
                    continue
                plain, raw_length = compressed(data, self._level)
                prepared = Prepared(hashlib.sha256(data).digest(), plain, raw_length, len(data))
                with self._reading:
                    self._ready[number] = prepared
                    self._held += len(plain)

    def _read_next(self) -> tuple[int, bytes] | None:
        with self._reading:
            if self._stopped or self._held >= self._limit:
                return None
            number = next(self._wanted, None)
            if number is None:
                return None
            start = number * self.block_size
            return number, self._source.read(start, min(self.block_size, self._source.size - start))
