"""How much may be in memory at once, of whatever is on its way."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ByteBudget:
    """Counts bytes in flight; blocks at the limit. One piece larger than the limit may pass alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    def acquire(self, count: int, still_wanted: Callable[[], None]) -> None:
        with self._changed:
            while self._used and self._used + count > self._limit:
                self._changed.wait(1.0)
                still_wanted()
            self._used += count

    def release(self, count: int) -> None:
        with self._changed:
            self._used -= count
            self._changed.notify_all()

    def wait_empty(self) -> None:
        with self._changed:
            while self._used:
                self._changed.wait()
