"""Progress of one run: counters that many threads add to, and the wish to stop.

A run calls :meth:`Progress.check` often (each block, each file); it raises ``Cancelled`` or
``Interrupted`` once somebody asked for that. Counters are bytes and items; totals may grow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from node_agent.errors import BrsError


@dataclass(frozen=True, slots=True)
class Counters:
    """A consistent look at a run. All sizes in bytes."""

    phase: str = ""
    total_bytes: int = 0  # 0 = unknown yet
    done_bytes: int = 0  # of total_bytes: read, skipped as hole, or known unchanged
    read_bytes: int = 0  # really read from the source
    new_bytes: int = 0  # content not in the repository before, uncompressed
    stored_bytes: int = 0  # what was added to the repository, compressed and sealed
    waiting_bytes: int = 0  # of done_bytes: in memory, on the way to the store
    total_files: int = 0
    done_files: int = 0
    left_out: int = 0
    whole: float = 0.0  # of the run with all its phases, 0 to 1; only grows; 0 where nobody says it
    current: str = ""  # printable name of what is at work
    parts: tuple[tuple[str, int], ...] = ()  # name and size of each disk, in the order they are worked on
    checks: tuple[tuple[str, bool, str, str], ...] = ()  # name, ok, detail, hint: of a connection test, so far

    @property
    def done_of_parts(self) -> list[int]:
        """Bytes done of each part: one after the other they make up total_bytes."""
        left, done = self.settled_bytes, []
        for _name, size in self.parts:
            done.append(min(left, size))
            left -= done[-1]
        return done

    @property
    def share(self) -> float:
        """Of this phase, 0 to 1; by bytes where their total is known, else by items."""
        done, total = (self.done_bytes, self.total_bytes) if self.total_bytes else (self.done_files, self.total_files)
        return max(0.0, min(1.0, done / total)) if total else 0.0

    @property
    def settled_bytes(self) -> int:
        """Of total_bytes: in the store, or known to be there. What a bar may show as done."""
        return max(0, self.done_bytes - self.waiting_bytes)


@dataclass(slots=True)
class Progress:
    """Shared by the threads of one run. ``log`` receives (level, message); levels as in logging."""

    log: Callable[[str, str], None] = lambda _level, _message: None
    watched: bool = True  # whether anybody looks at the counters; if not, nothing need be counted only for them
    _values: dict[str, Any] = field(default_factory=lambda: asdict(Counters()))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: BrsError | None = None
    _stretch: tuple[float, float] | None = None
    started: float = field(default_factory=time.monotonic)

    def add(self, **amounts: int) -> None:
        with self._lock:  # several times for each file: a plain dict, since a new Counters each time costs ten times
            values = self._values
            for name, amount in amounts.items():
                values[name] += amount

    def set(self, **values: Any) -> None:
        with self._lock:
            self._values.update(values)

    def begin(self, phase: str, stretch: tuple[float, float], *, total_bytes: int = 0, total_files: int = 0) -> None:
        """A phase that takes the run from one share of the whole to another; counted from zero."""
        with self._lock:
            self._advance()
            self._stretch = stretch
            counts = {"total_bytes": total_bytes, "done_bytes": 0, "total_files": total_files, "done_files": 0}
            self._values.update(counts, phase=phase, current="")

    @property
    def counters(self) -> Counters:
        with self._lock:
            self._advance()
            return Counters(**self._values)

    def _advance(self) -> None:
        """Never back: a plan that is made anew, or a total that grows, holds the bar where it is."""
        if self._stretch is not None:
            begin, end = self._stretch
            reached = begin + (end - begin) * Counters(**self._values).share
            self._values["whole"] = max(self._values["whole"], reached)

    def stop(self, why: BrsError) -> None:
        """Ask the run to end with ``why`` (the first wish counts)."""
        with self._lock:
            self._stop = self._stop or why

    @property
    def stopping(self) -> bool:
        return self._stop is not None

    def check(self) -> None:
        if self._stop is not None:
            raise self._stop

    def sleep(self, seconds: float) -> None:
        """Raises as check does, as soon as somebody asks."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))
        self.check()
