"""Trying again what a store could not do for a while: full jitter, a bound in time.

Only BackendUnavailable is tried again. All operations of a backend may be repeated: names are digests of
contents, a delete of what is gone succeeds. Two need care. A ``config`` whose put failed after its effect
is found there by the second attempt: it counts as ours if it holds our bytes. And a listing that broke off
goes on from its start, without naming anything twice.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from node_agent.errors import BackendUnavailable, RepositoryExists
from node_agent.repository.backend.base import CONFIG_NAME, Backend, Buffer, Kind, ObjectInfo

logger = logging.getLogger(__name__)

MAX_S = 300.0
FIRST_S = 20.0
_BASE_S = 0.25
_LONGEST_PAUSE_S = 30.0

T = TypeVar("T")


class RetryingBackend(Backend):
    """``max_s`` bounds one operation, waiting included; before the store ever answered, ``first_s`` does:
    a mistyped host name should be told soon."""

    def __init__(
        self,
        inner: Backend,
        *,
        max_s: float = MAX_S,
        first_s: float = FIRST_S,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.url = inner.url
        self.inner = inner
        self.object_lock = inner.object_lock
        if self.object_lock is not None:
            self.object_lock.attempt = self._try
        self._max_s = max_s
        self._first_s = min(first_s, max_s)
        self._clock = clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait  # true: closed meanwhile
        self._jitter = jitter
        self._answered = False

    def create(self) -> None:
        self._try(self.inner.create)

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        attempts = 0
        logger.debug("put %s %s", kind.value, name)

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            try:
                self.inner.put(kind, name, parts)
            except RepositoryExists:
                if attempts == 1 or self.inner.get(Kind.CONFIG, CONFIG_NAME) != b"".join(parts):
                    raise

        self._try(attempt)

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        logger.debug("get %s %s, %s bytes from %d", kind.value, name, "all" if length is None else length, offset)
        return self._try(lambda: self.inner.get(kind, name, offset, length))

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        logger.debug("stat %s %s", kind.value, name)
        return self._try(lambda: self.inner.stat(kind, name))

    def delete(self, kind: Kind, name: str) -> None:
        logger.debug("delete %s %s", kind.value, name)
        self._try(lambda: self.inner.delete(kind, name))

    def now(self) -> float:
        return self._try(self.inner.now)

    def remove_leftovers(self) -> int:
        return self._try(self.inner.remove_leftovers)

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        told: set[bytes] = set()  # 32 bytes a name
        logger.debug("list %s", kind.value)
        pauses = self._pauses()
        while True:
            try:
                for info in self.inner.list(kind):
                    key = info.name.encode() if kind is Kind.CONFIG else bytes.fromhex(info.name)
                    if key not in told:
                        told.add(key)
                        self._answered = True
                        yield info
                self._answered = True
                return
            except BackendUnavailable as error:
                self._pause(error, pauses)

    def close(self) -> None:
        self._closed.set()
        self.inner.close()

    def _try(self, operation: Callable[[], T]) -> T:
        pauses = self._pauses()
        while True:
            try:
                result = operation()
            except BackendUnavailable as error:
                self._pause(error, pauses)
                continue
            except Exception:
                self._answered = True  # a refusal is an answer
                raise
            self._answered = True
            return result

    def _pauses(self) -> Iterator[float]:
        """The pauses of one operation, ended when its time is used up."""
        began = self._clock()
        ceiling = _BASE_S
        while True:
            left = (self._max_s if self._answered else self._first_s) - (self._clock() - began)
            if left <= 0:
                return
            yield min(left, self._jitter(0, ceiling))
            ceiling = min(2 * ceiling, _LONGEST_PAUSE_S)

    def _pause(self, error: BackendUnavailable, pauses: Iterator[float]) -> None:
        pause = next(pauses, None)
        if pause is None:
            raise error
        logger.info("%s; tried again in %.1f s", error.message, pause)
        if self._wait(pause):
            raise error
