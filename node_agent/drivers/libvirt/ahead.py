"""Blocks of a disk, read before they are asked for: the tunnel is not idle while a block is hashed and stored.

A thread with a connection of its own asks for the blocks that whoever reads on is going to want, several at once, and
keeps as many ready as :data:`HELD`. What it guesses wrong costs the reading of it, nothing else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator

from node_agent.drivers.nbd import ALLOCATION, MAX_STATUS, ZERO, NbdClient, NbdError
from node_agent.items import Extent

HELD = 8 << 20  # bytes


def data_of(client: NbdClient, start: int) -> Iterator[Iterable[Extent]]:
    """What is allocated from ``start`` on, window by window: between two of them the connection is free."""
    while start < client.size:
        length = min(MAX_STATUS, client.size - start)
        runs = client.status(ALLOCATION, start, length)
        yield [Extent(offset, size) for offset, size, flags in runs if not flags & ZERO]
        start += length


def blocks_of(runs: Iterable[Extent], first: int, block: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the blocks that the runs touch, from the offset ``first`` on, each once."""
    for run in runs:
        for start in range(max(first, run.offset // block * block), run.end, block):
            yield start, min(block, size - start)
            first = start + block


class Ahead:
    """From ``first`` on. ``wanted``: what will be read; None for all that is allocated."""

    def __init__(self, client: NbdClient, wanted: Iterable[Extent] | None, first: int, block: int) -> None:
        self._client = client
        self._windows = data_of(client, first) if wanted is None else iter([wanted])
        self._first, self._block = first, block
        self._ready: deque[tuple[int, bytearray]] = deque()
        self._changed = threading.Condition()
        self._stopped = self._ended = False
        self._thread = threading.Thread(target=self._work, name="libvirt-ahead", daemon=True)
        self._thread.start()

    def take(self, offset: int, length: int) -> bytes | None:
        """The block if it is among those that are read, which is waited for. What lies before it is forgotten."""
        with self._changed:
            while True:
                while self._ready and self._ready[0][0] < offset:
                    self._ready.popleft()
                    self._changed.notify_all()
                if self._ready or self._ended:
                    break
                self._changed.wait()
            if not self._ready or self._ready[0][0] != offset or len(self._ready[0][1]) != length:
                return None
            self._changed.notify_all()
            return bytes(self._ready.popleft()[1])

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        try:
            self._client.connect()
            for window in self._windows:
                blocks = blocks_of(window, self._first, self._block, self._client.size)
                for offset, data in self._client.read_many(blocks):
                    if not self._keep(offset, data):
                        return
        except NbdError:
            return  # whoever reads the block meets it again, and asks what is behind it
        finally:
            self._client.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _keep(self, offset: int, data: bytearray) -> bool:
        with self._changed:
            while len(self._ready) * self._block >= HELD and not self._stopped:
                self._changed.wait()
            self._ready.append((offset, data))
            self._changed.notify_all()
            return not self._stopped
