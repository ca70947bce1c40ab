"""A disk of a machine as the engine reads it: an NBD export at the other end of a tunnel."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from node_agent.drivers.libvirt.ahead import Ahead
from node_agent.drivers.nbd import NbdClient, NbdError
from node_agent.errors import BrsError
from node_agent.items import Extent

DIRTY = 1  # flag of qemu:dirty-bitmap
_BLOCK = 1 << 20  # reads of this and more are the engine's blocks, one after the other
_IN_A_ROW = 32  # blocks that are not said to have changed: so everything is being read


def dirty_context(bitmap: str) -> str:
    return f"qemu:dirty-bitmap:{bitmap}"


class NbdContent:
    """``broken``: asked when the connection breaks off: the reason, where the hypervisor knows one.

    ``moved``: asked at the end; raises where what was read cannot be trusted to be of one instant.
    """

    damage = ""

    def __init__(
        self,
        client: NbdClient,
        format: str,
        broken: Callable[[NbdError], BrsError],
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.format = format
        self.size = client.size
        self._client = client
        self._broken = broken
        self._moved = moved
        self._changed: list[Extent] | None = None
        self._ahead: Ahead | None = None
        self._end = self._in_a_row = 0

    def close(self) -> None:
        self._stop_ahead()
        self._client.close()

    def extents(self) -> Iterator[Extent]:
        try:
            yield from self._client.extents()
        except NbdError as error:
            raise self._broken(error) from error

    def read(self, offset: int, length: int) -> bytes:
        if (data := self._read_ahead(offset, length)) is not None:
            return data
        try:
            return self._client.read(offset, length)
        except NbdError as error:
            raise self._broken(error) from error

    def _read_ahead(self, offset: int, length: int) -> bytes | None:
        if length < _BLOCK or offset % length:
            return None
        self._in_a_row = self._in_a_row + 1 if offset == self._end else 0
        self._end = offset + length
        if self._changed is not None and not _touches(self._changed, offset, length):
            if self._in_a_row < _IN_A_ROW:
                return None
            self._changed = None
            self._stop_ahead()
        if self._ahead is None:
            if self._changed is None and not self._in_a_row:
                return None
            self._ahead = Ahead(self._client.another(), self._changed, offset, length)
        return self._ahead.take(offset, length)

    def _stop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.stop()

    def changed(self) -> bool:
        self._moved()
        return False

    def dirty(self, context: str) -> Sequence[Extent]:
        """What the bitmap says has changed, neighbours joined."""
        found: list[Extent] = []
        try:
            for offset, length, flags in self._client.status(context):
                if not flags & DIRTY:
                    continue
                if found and found[-1].end == offset:
                    found[-1] = Extent(found[-1].offset, found[-1].length + length)
                else:
                    found.append(Extent(offset, length))
        except NbdError as error:
            raise self._broken(error) from error
        self._changed = found
        return found


def _touches(runs: Sequence[Extent], offset: int, length: int) -> bool:
    number = bisect_right(runs, offset, key=lambda run: run.offset)
    return any(run.offset < offset + length and run.end > offset for run in runs[max(0, number - 1) : number + 1])
