"""Ceilings: on how fast a task writes to a destination, and on how fast a host of machines is read or written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from node_agent.drivers.base import Disk, DiskContent, DiskReader
from node_agent.items import Extent
from node_agent.protocol import PlatformAccess
from node_agent.repository.backend.base import Backend, Buffer, Kind, ObjectInfo

SLICE_S = 0.2


class Pace:
    """Lets bytes pass at ``bytes_s``, averaged; may be shared by threads."""

    def __init__(self, bytes_s: int) -> None:
        self.bytes_s = bytes_s
        self._lock = threading.Lock()
        self._free_at = time.monotonic()  # when the line is free again

    def wait_for(self, size: int, check: Callable[[], None]) -> None:
        """``check`` raises when the run should stop."""
        with self._lock:
            start = max(time.monotonic(), self._free_at)
            self._free_at = start + size / self.bytes_s
        while (left := start - time.monotonic()) > 0:
            check()
            time.sleep(min(SLICE_S, left))


_PACES: dict[str, Pace] = {}  # of hosts of machines: what they may be burdened with is one for all tasks of this node
_PACES_LOCK = threading.Lock()


def pace_of(access: PlatformAccess, host: str) -> Pace | None:
    """The one pace of a host, at the rate that was told last; None without a limit."""
    if not access.bandwidth_bytes_s:
        return None
    place = access.burdened(host)
    with _PACES_LOCK:
        pace = _PACES.setdefault(place, Pace(access.bandwidth_bytes_s))
        pace.bytes_s = access.bandwidth_bytes_s
    return pace


class _PacedContent:
    """A disk that is read no faster than its host's pace."""

    def __init__(self, inner: DiskContent, pace: Pace, check: Callable[[], None]) -> None:
        self.size, self.format, self.damage = inner.size, inner.format, inner.damage
        self._inner, self._pace, self._check = inner, pace, check

    def extents(self) -> Iterator[Extent]:
        return self._inner.extents()

    def read(self, offset: int, length: int) -> bytes:
        self._pace.wait_for(length, self._check)
        return self._inner.read(offset, length)

    def changed(self) -> bool:
        return self._inner.changed()


class _PacedReader:
    """A disk out of the repository that goes to a host no faster than its pace; zeros are not sent."""

    def __init__(self, inner: DiskReader, pace: Pace, check: Callable[[], None]) -> None:
        self.size = inner.size
        self._inner, self._pace, self._check = inner, pace, check

    def read(self, offset: int, length: int) -> bytes:
        data = self._inner.read(offset, length)
        if data.count(0) != len(data):
            self._pace.wait_for(length, self._check)
        return data


def paced_disk(disk: Disk, pace: Pace | None, check: Callable[[], None]) -> Disk:
    return disk if pace is None else replace(disk, content=_PacedContent(disk.content, pace, check))


def paced_reader(reader: DiskReader, pace: Pace | None, check: Callable[[], None]) -> DiskReader:
    return reader if pace is None else _PacedReader(reader, pace, check)


class ThrottledBackend(Backend):
    """Passes everything on; ``put`` waits first until its bytes fit under ``bytes_s``, averaged over the run."""

    def __init__(self, inner: Backend, bytes_s: int, check: Callable[[], None]) -> None:
        self.url = inner.url
        self.object_lock = inner.object_lock
        self._inner = inner
        self._pace = Pace(bytes_s)
        self._check = check  # raises when the run should stop

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        if kind is not Kind.LOCK:  # a lock that is refreshed late would stop the run
            self._pace.wait_for(sum(len(part) for part in parts), self._check)
        self._inner.put(kind, name, parts)

    def create(self) -> None:
        self._inner.create()

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._inner.get(kind, name, offset, length)

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        return self._inner.list(kind)

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        return self._inner.stat(kind, name)

    def delete(self, kind: Kind, name: str) -> None:
        self._inner.delete(kind, name)

    def now(self) -> float:
        return self._inner.now()

    def remove_leftovers(self) -> int:
        return self._inner.remove_leftovers()

    def close(self) -> None:
        self._inner.close()
