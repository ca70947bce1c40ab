"""A ceiling on how fast a task writes to a destination."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from node_agent.repository.backend.base import Backend, Buffer, Kind, ObjectInfo

SLICE_S = 0.2


class ThrottledBackend(Backend):
    """Passes everything on; ``put`` waits first until its bytes fit under ``bytes_s``, averaged over the run."""

    def __init__(self, inner: Backend, bytes_s: int, check: Callable[[], None]) -> None:
        self.url = inner.url
        self.object_lock = inner.object_lock
        self._inner = inner
        self._bytes_s = bytes_s
        self._check = check  # raises when the run should stop
        self._lock = threading.Lock()
        self._free_at = time.monotonic()  # when the line is free again

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        if kind is not Kind.LOCK:  # a lock that is refreshed late would stop the run
            self._wait_for(sum(len(part) for part in parts))
        self._inner.put(kind, name, parts)

    def _wait_for(self, size: int) -> None:
        with self._lock:
            start = max(time.monotonic(), self._free_at)
            self._free_at = start + size / self._bytes_s
        while (left := start - time.monotonic()) > 0:
            self._check()
            time.sleep(min(SLICE_S, left))

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
