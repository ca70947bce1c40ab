"""The server's time on this node: what snapshots and locks are stamped with.

A node's own clock may be an hour off; a lock stamped by it would look stale to everybody else. Each
reply of the server tells its time; between replies the monotonic clock counts on.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime


class Clock:
    """Wall time, corrected by the server's replies. Thread-safe; local time until the first reply."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._base = time.time()
        self._at = time.monotonic()
        self.offset_s: float | None = None  # server minus local, as of the last reply

    def learn(self, server_time: datetime) -> None:
        """Take over ``server_time``, which was written into a reply that has just arrived."""
        if server_time.tzinfo is None:
            server_time = server_time.replace(tzinfo=UTC)
        with self._lock:
            self._base, self._at = server_time.timestamp(), time.monotonic()
            self.offset_s = self._base - time.time()

    def now(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        with self._lock:
            if self.offset_s is None:
                return time.time()
            return self._base + (time.monotonic() - self._at)

    def utc(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)
