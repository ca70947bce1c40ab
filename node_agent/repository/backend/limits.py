"""How much of the network a store may use: bytes a second in each direction, by the time of day, and connections.

A limit is kept on average: an object is sent at full speed once the line is free for it, and the next one
waits for as long as the last one was too quick. Locks never wait: one that is refreshed late stops a run.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from node_agent.errors import BackendUnavailable, ConfigError
from node_agent.repository.backend.base import Backend, Buffer, Kind, ObjectInfo
from node_agent.repository.backend.settings import Settings, parse_size

_LOOK_AGAIN_S = 1.0  # so that a window that opens or closes is noticed while somebody waits
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))?\s+)?(\d\d):(\d\d)-(\d\d):(\d\d)=([^/]+)(?:/(.+))?\Z")
_WINDOW_HINT = "Write for example: mon-fri 08:00-18:00=2M/10M, 22:00-06:00=0 (upload/download, 0 is unlimited)."


@dataclass(frozen=True, slots=True)
class Window:
    """A time of the week with limits of its own. One that ends before it begins reaches into the next day."""

    days: frozenset[int]
    begin: int  # minutes since midnight
    end: int
    upload: int
    download: int

    def covers(self, moment: datetime) -> bool:
        minute = moment.hour * 60 + moment.minute
        if self.begin < self.end:
            return moment.weekday() in self.days and self.begin <= minute < self.end
        if minute >= self.begin:
            return moment.weekday() in self.days
        return minute < self.end and (moment.weekday() - 1) % 7 in self.days


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second, 0 is unlimited; the first window that covers the moment goes before the general limits."""

    upload: int = 0
    download: int = 0
    windows: tuple[Window, ...] = ()

    def at(self, moment: datetime) -> tuple[int, int]:
        for window in self.windows:
            if window.covers(moment):
                return window.upload, window.download
        return self.upload, self.download

    @property
    def unlimited(self) -> bool:
        return not (self.upload or self.download or self.windows)


def bandwidth_of(settings: Settings) -> Bandwidth:
    """From ``limit-upload``, ``limit-download`` and ``limit-windows``."""
    try:
        return Bandwidth(
            parse_size(settings.text("limit-upload") or "0"),
            parse_size(settings.text("limit-download") or "0"),
            tuple(_window(part) for part in (settings.text("limit-windows") or "").split(",") if part.strip()),
        )
    except ValueError as error:
        raise ConfigError(f"The bandwidth limit is not understood: {error}.", hint=_WINDOW_HINT) from error


def _window(text: str) -> Window:
    match = _WINDOW.match(text.strip().lower())
    if match is None:
        raise ValueError(f"{text.strip()!r} is no window")
    first, last, *clock, up, down = match.groups()
    begin, end = (int(clock[i]) * 60 + int(clock[i + 1]) for i in (0, 2))
    if begin > 24 * 60 or end > 24 * 60 or int(clock[1]) > 59 or int(clock[3]) > 59:
        raise ValueError(f"{text.strip()!r} has no such time")
    return Window(_days(first, last), begin, end, parse_size(up), parse_size(down or up))


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    for day in (first, last or first):
        if day not in _DAYS:
            raise ValueError(f"{day!r} is no day")
    begin, end = _DAYS.index(first), _DAYS.index(last or first)
    return frozenset((begin + i) % 7 for i in range((end - begin) % 7 + 1))


class TokenBucket:
    """Debts are allowed: who takes more than there is goes on at once, and the next one waits for both."""

    def __init__(self, rate: Callable[[], int], clock: Callable[[], float], wait: Callable[[float], bool]) -> None:
        self._rate = rate
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._tokens = 0.0
        self._at = clock()

    def take(self, size: int, *, patient: bool = True) -> bool:
        """False: the wait was broken off. An impatient taker goes into debt without waiting."""
        while True:
            with self._lock:
                rate = self._refill()
                if not rate or self._tokens >= 0 or not patient:
                    self._tokens = self._tokens - size if rate else 0.0
                    return True
                pause = min(-self._tokens / rate, _LOOK_AGAIN_S)
            if self._wait(pause):
                return False

    def _refill(self) -> int:
        now, rate = self._clock(), self._rate()
        self._tokens = min(self._tokens + (now - self._at) * rate, rate / 4)  # a quarter of a second may be saved up
        self._at = now
        return rate


class LimitedBackend(Backend):
    def __init__(
        self,
        inner: Backend,
        *,
        connections: int,
        bandwidth: Bandwidth,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
        local_time: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.url = inner.url
        self.inner = inner
        self.object_lock = inner.object_lock  # a few small requests: neither counted nor waited for
        self._closed = threading.Event()
        self._slots = threading.BoundedSemaphore(connections)
        pause = wait or self._closed.wait
        self._up = TokenBucket(lambda: bandwidth.at(local_time())[0], clock, pause)
        self._down = TokenBucket(lambda: bandwidth.at(local_time())[1], clock, pause)

    def create(self) -> None:
        with self._slots:
            self.inner.create()

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        self._take(self._up, sum(memoryview(part).nbytes for part in parts), kind)
        with self._slots:
            self.inner.put(kind, name, parts)

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._take(self._down, 0, kind)  # what the last ones owe; what this one brings is known afterwards
        with self._slots:
            data = self.inner.get(kind, name, offset, length)
        self._down.take(len(data), patient=False)
        return data

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        """No slot is held between two objects: the caller may use the store meanwhile."""
        found = iter(self.inner.list(kind))
        while True:
            with self._slots:
                info = next(found, None)
            if info is None:
                return
            yield info

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        with self._slots:
            return self.inner.stat(kind, name)

    def delete(self, kind: Kind, name: str) -> None:
        with self._slots:
            self.inner.delete(kind, name)

    def now(self) -> float:
        with self._slots:
            return self.inner.now()

    def remove_leftovers(self) -> int:
        with self._slots:
            return self.inner.remove_leftovers()

    def close(self) -> None:
        self._closed.set()
        self.inner.close()

    def _take(self, bucket: TokenBucket, size: int, kind: Kind) -> None:
        if not bucket.take(size, patient=kind is not Kind.LOCK):
            raise BackendUnavailable("The destination was closed while a transfer waited for its bandwidth.")
