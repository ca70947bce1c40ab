"""A disk of a machine as the engine reads it: an NBD export at the other end of a tunnel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from node_agent.drivers.nbd import NbdClient, NbdError
from node_agent.errors import BrsError
from node_agent.items import Extent

DIRTY = 1  # flag of qemu:dirty-bitmap


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

    def extents(self) -> Iterator[Extent]:
        try:
            yield from self._client.extents()
        except NbdError as error:
            raise self._broken(error) from error

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._client.read(offset, length)
        except NbdError as error:
            raise self._broken(error) from error

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
        return found
