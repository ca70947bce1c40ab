"""Proving blobs on all processors: whoever moves or checks many of them asks this.

The libraries prove a large blob without the interpreter's lock, so threads are enough for those. Of a small one the
interpreter's own share is half, and threads take turns at it: once that many were met, worker processes take over
(:mod:`.prove_worker`). The run reads, from whatever store it is, and copies what is to be proven into memory that it
shares with a process; the answer is only what is wrong. Where no process can be started, threads go on.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from node_agent.errors import DamagedError, WorkerDied
from node_agent.repository import prove_worker
from node_agent.repository.backend.base import Buffer
from node_agent.repository.channel import ChannelClosed
from node_agent.repository.crypto import Key
from node_agent.repository.heap import share_heaps
from node_agent.repository.pack import PackedBlob, damaged_blob
from node_agent.repository.processes import WorkerProcess
from node_agent.repository.proving import Places, faults
from node_agent.repository.writer import usable_processors

logger = logging.getLogger(__name__)

PROCESSES = 4  # at most
PROCESSES_AFTER = 10_000  # small blobs: proving them takes about as long as the start of two processes
SMALL = 64 << 10
WINDOW = 4 << 20  # bytes shared with each process

T = TypeVar("T")
Bad = list[tuple[PackedBlob, DamagedError]]


class Prover:
    """A context manager. :meth:`prove` may be called from several threads, at best from :attr:`threads`."""

    def __init__(self, key: Key, *, processes: int = PROCESSES) -> None:
        """``processes``: at most; with none of them it need not be closed."""
        share_heaps()
        self._key = key
        processors = usable_processors()
        self._wanted = min(processes, processors) if processors > 1 else 0
        self.threads = max(2, self._wanted + 1)  # one reads while each process is busy
        self._changed = threading.Condition()  # over all below
        self._small = 0
        self._starting: list[_Process] = []
        self._idle: list[_Process] = []
        self._all: list[_Process] = []
        self._died: WorkerDied | None = None

    def __enter__(self) -> Prover:
        return self

    def expect(self, count: int, size: int) -> None:
        """So many blobs of so many bytes will come: processes begin before memory is full of them."""
        with self._changed:
            if count >= PROCESSES_AFTER and size <= count * SMALL and self._wanted:
                self._start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nobody may be proving any more."""
        for process in self._all:
            process.close()

    def prove(self, pack: str, blobs: Sequence[PackedBlob], content: Buffer, start: int = 0) -> Bad:
        """Those of ``blobs``, ordered by offset, that are not whole in ``content``, the pack's bytes from ``start`` on.

        Raises WorkerDied.
        """
        view, bad = memoryview(content), Bad()
        for piece, end in _pieces(blobs):
            part = view[piece[0].offset - start : end - start]  # shorter in a pack that was cut
            found = self._faults(part, Places.of(piece, piece[0].offset, len(part)), len(piece))
            bad += [(piece[number], damaged_blob(pack, piece[number], what)) for number, what in found]
        return bad

    def _faults(self, content: memoryview, places: Places, count: int) -> list[tuple[int, str]]:
        process = self._take(count) if len(content) <= min(WINDOW, count * SMALL) else None
        if process is None:
            return faults(self._key, content, places)
        try:
            found = process.faults(content, places)
        except ChannelClosed:
            error = process.died()
            with self._changed:
                self._died = self._died or error
                self._changed.notify_all()
            raise error from None
        with self._changed:
            self._idle.append(process)
            self._changed.notify()
        return found

    def _take(self, count: int) -> _Process | None:
        """A process that has nothing to do, waited for; None while there is none that could be."""
        with self._changed:
            self._small += count
            if self._small >= PROCESSES_AFTER and self._wanted:
                self._start()
            self._welcome()
            while True:
                if self._died is not None:
                    raise WorkerDied(self._died.message)
                if self._idle:
                    return self._idle.pop()
                if len(self._all) == len(self._starting):
                    return None
                self._changed.wait()

    def _start(self) -> None:
        """Once. They come up beside the work."""
        try:
            for _ in range(self._wanted):
                process = _Process()
                self._all.append(process)
                self._starting.append(process)
                process.send_key(self._key)
        except (OSError, ChannelClosed) as error:
            _without(str(error) or type(error).__name__)
        self._wanted = 0

    def _welcome(self) -> None:
        for process in [process for process in self._starting if process.answers()]:
            self._starting.remove(process)
            try:
                process.ready()
            except ChannelClosed:
                self._all.remove(process)
                process.close()
                _without(str(process.died()))
            else:
                self._idle.append(process)


def _without(reason: str) -> None:
    logger.warning("a worker process could not be started, threads prove instead: %s", reason)


def _pieces(blobs: Sequence[PackedBlob]) -> Iterator[tuple[Sequence[PackedBlob], int]]:
    """Neighbours that fit into the window, and each blob alone that does not; with where in the pack they end."""
    first, end = 0, 0
    for number, blob in enumerate(blobs):
        if number > first and max(end, blob.offset + blob.length) - blobs[first].offset > WINDOW:
            yield blobs[first:number], end
            first, end = number, 0
        end = max(end, blob.offset + blob.length)
    if blobs:
        yield blobs[first:], end


def side_by_side(works: Iterable[tuple[int, Callable[[], T]]], threads: int, limit: int) -> Generator[T]:
    """The results in order of works done ahead, that each hold so many bytes: no more than ``limit`` of them at once,
    unless one is larger. Whoever leaves it early closes it, so that nothing goes on behind his back."""
    with ThreadPoolExecutor(threads, thread_name_prefix="prove") as pool:
        pending: deque[tuple[int, Future[T]]] = deque()
        held = 0
        try:
            for size, work in works:
                while pending and (held + size > limit or len(pending) > threads):
                    held -= pending[0][0]
                    yield pending.popleft()[1].result()
                pending.append((size, pool.submit(work)))
                held += size
            while pending:
                yield pending.popleft()[1].result()
        finally:
            for _, future in pending:
                future.cancel()


class _Process:
    """One worker process and the memory shared with it. For one thread at a time. Raises OSError, ChannelClosed."""

    def __init__(self) -> None:
        self._shared = os.memfd_create("brs-prove", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._shared, WINDOW)
            self._window = mmap.mmap(self._shared, WINDOW)
            self._worker = WorkerProcess(prove_worker.__name__)
        except BaseException:
            os.close(self._shared)
            raise

    def send_key(self, key: Key) -> None:
        self._worker.channel.send((key.encrypt, key.mac_k, key.mac_r), descriptors=[self._shared])

    def answers(self) -> bool:
        """Whether it says something, or has gone."""
        look = select.poll()
        look.register(self._worker.channel, select.POLLIN)
        return bool(look.poll(0))

    def ready(self) -> None:
        self._worker.channel.receive()

    def faults(self, content: memoryview, places: Places) -> list[tuple[int, str]]:
        self._window[: len(content)] = content
        self._worker.channel.send(tuple(places))
        found: list[tuple[int, str]] = self._worker.channel.receive()[0]
        return found

    def died(self) -> WorkerDied:
        return self._worker.died()

    def close(self) -> None:
        self._worker.close()
        self._window.close()
        os.close(self._shared)
