"""A task's log lines on their way to the server: numbered, kept until a report that held them was answered."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Literal, cast

from node_agent.protocol import LogEntry

Level = Literal["debug", "info", "warning", "error"]
KEEP = 2000  # lines that wait while the server is away; then the oldest are let go, and that is said
A_REPORT = 200
MESSAGE_CHARS = 4000


class TaskLog:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[tuple[int, Level, str, float]] = deque()
        self._next = 1
        self._dropped = 0

    def add(self, level: str, message: str) -> None:
        """Debug lines stay on the node."""
        if level == "debug":
            return
        known = cast(Level, level if level in ("info", "warning", "error") else "info")
        with self._lock:
            self._lines.append((self._next, known, message[:MESSAGE_CHARS], time.monotonic()))
            self._next += 1
            if len(self._lines) > KEEP:
                self._lines.popleft()
                self._dropped += 1

    @property
    def waiting(self) -> int:
        with self._lock:
            return len(self._lines)

    def pending(self, limit: int = A_REPORT) -> list[LogEntry]:
        """The oldest lines that are not acknowledged, in order."""
        now = time.monotonic()
        with self._lock:
            lines = list(self._lines)[:limit]
            dropped = self._dropped
        entries = [LogEntry(seq=s, level=lv, message=text, age_s=now - at) for s, lv, text, at in lines]
        if dropped and entries:
            first = entries[0]
            text = f"({dropped} older lines were dropped while the server was away) {first.message}"[:MESSAGE_CHARS]
            entries[0] = first.model_copy(update={"message": text})
        return entries

    def acknowledged(self, entries: list[LogEntry]) -> None:
        if not entries:
            return
        with self._lock:
            while self._lines and self._lines[0][0] <= entries[-1].seq:
                self._lines.popleft()
            self._dropped = 0
