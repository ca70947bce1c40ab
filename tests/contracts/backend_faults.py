"""Stores that go wrong on purpose: a wrapper around any backend, and a TCP proxy that cuts real connections."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum

from node_agent.errors import BackendUnavailable
from node_agent.repository.backend import Backend, Kind, ObjectInfo
from node_agent.repository.backend.base import Buffer
from tests.listener import Listener


class Fault(StrEnum):
    BEFORE = "error before the effect"
    AFTER = "error after the effect"
    THROTTLED = "refused for now"
    LOST = "connection lost while answering"
    SLOW = "slow"
    TORN = "half of the object written, then an error"  # only where the crash model lets an object be torn


class FaultyBackend(Backend):
    """``plan`` says what goes wrong with which operation, in order; without a plan left all goes well.

    ``hidden`` names are left out of listings: a store whose listing is stale.
    """

    def __init__(self, inner: Backend, plan: Iterator[Fault | None], *, slow_s: float = 0.05) -> None:
        self.url = inner.url
        self.inner = inner
        self.hidden: set[str] = set()
        self.happened: list[tuple[str, Fault]] = []
        self._plan = plan
        self._slow_s = slow_s
        self._lock = threading.Lock()

    def create(self) -> None:
        with _Step(self, "create"):
            self.inner.create()

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        with _Step(self, "put") as step:
            if step.fault is Fault.TORN and kind is not Kind.CONFIG:  # a config is created whole or not at all
                content = b"".join(parts)
                self.inner.put(kind, name, [content[: len(content) // 2]])
                raise BackendUnavailable("torn")
            self.inner.put(kind, name, parts)

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with _Step(self, "get"):
            return self.inner.get(kind, name, offset, length)

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        with _Step(self, "list") as step:
            found = [info for info in self.inner.list(kind) if info.name not in self.hidden]
            if step.fault in (Fault.LOST, Fault.AFTER):  # in the middle of it
                yield from found[: len(found) // 2]
                raise BackendUnavailable(step.fault.value)
        yield from found

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        with _Step(self, "stat"):
            return self.inner.stat(kind, name)

    def delete(self, kind: Kind, name: str) -> None:
        with _Step(self, "delete"):
            self.inner.delete(kind, name)

    def now(self) -> float:
        with _Step(self, "now"):
            return self.inner.now()

    def remove_leftovers(self) -> int:
        return self.inner.remove_leftovers()

    def close(self) -> None:
        self.inner.close()

    def next_fault(self, operation: str) -> Fault | None:
        with self._lock:
            fault = next(self._plan, None)
            if fault is not None:
                self.happened.append((operation, fault))
            return fault


class _Step:
    def __init__(self, backend: FaultyBackend, operation: str) -> None:
        self.fault = backend.next_fault(operation)
        self._slow_s = backend._slow_s

    def __enter__(self) -> _Step:
        if self.fault is Fault.SLOW:
            time.sleep(self._slow_s)
        if self.fault in (Fault.BEFORE, Fault.THROTTLED):
            raise BackendUnavailable(self.fault.value)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.fault in (Fault.AFTER, Fault.LOST):
            raise BackendUnavailable(self.fault.value)


def random_plan(seed: int, share: float, faults: Sequence[Fault]) -> Iterator[Fault | None]:
    """For ever: with probability ``share`` one of the faults."""
    chance = random.Random(seed)
    while True:
        yield chance.choice(faults) if chance.random() < share else None


class CuttingProxy:
    """Forwards to a port of this machine; the next ``cuts`` connections are reset after so many bytes upwards
    or downwards, whichever comes first."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._budgets: list[int] = []
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.cut = 0
        self._listener = Listener(self._join, each=False)  # in order, as the budgets are
        self.port = self._listener.port

    def cut_next(self, *after_bytes: int) -> None:
        """Also ends the connections that are open now, so that the next request needs a new one."""
        with self._lock:
            self._budgets = list(after_bytes)
            for connection in self._open:
                _reset(connection)
            self._open = []

    def close(self) -> None:
        self._listener.close()
        self.cut_next()

    def _join(self, client: socket.socket) -> None:
        with self._lock:
            budget = [self._budgets.pop(0) if self._budgets else 1 << 60]
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                _reset(client)
                return
            self._open += [client, server]
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, sink, budget), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, budget: list[int]) -> None:
        try:
            while data := source.recv(1 << 14):
                budget[0] -= len(data)
                if budget[0] < 0:
                    self.cut += 1
                    break
                sink.sendall(data)
            else:
                sink.shutdown(socket.SHUT_WR)
                return
        except OSError:
            pass
        _reset(source)
        _reset(sink)


def _reset(connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()
