"""Who does the pieces of a restore: two threads at first, worker processes once it is a long one.

Small files are mostly interpreter and system calls, and need processes to use more than one core. Blobs of a large
file are mostly work of libraries that do not hold the interpreter's lock, but two threads wait for it between any two
calls. Starting processes costs as much as writing two thousand small files or 256 MiB, so that much is written first.
A store that is no local folder, or whose bandwidth is limited, is read by this process alone: its threads do the work
then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from node_agent.repository import restore_worker
from node_agent.repository.backend.base import Backend, Kind
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.backend.retry import RetryingBackend
from node_agent.repository.channel import ChannelClosed
from node_agent.repository.crypto import Key
from node_agent.repository.processes import WorkerProcess
from node_agent.repository.restore_write import Answer, Part, Performer, Small
from node_agent.repository.writer import usable_processors

logger = logging.getLogger(__name__)

THREADS = 2
PROCESSES = 4  # at most; not more than there are cores
THREADS_FAR = 4  # they wait for the network most of the time
PER_THREAD = 3  # pieces given out at a time
PER_PROCESS = 3
PROCESSES_AFTER = 64  # pieces of large files; one of small files counts as four of them
_SMALL_COUNTS = 4
_LARGE_PIECE = 4 << 20  # bytes: as much as is read at once


class Task(NamedTuple):
    """``descriptors`` stay the caller's, and open until ``done`` was called."""

    work: Small | Part
    descriptors: Sequence[int]
    done: Callable[[Answer], None]


@dataclass(slots=True)
class _Member:
    process: WorkerProcess
    prefix: bytes = b""  # of its temporary names; empty until it is ready
    tasks: deque[Task] = field(default_factory=deque)


class Crew:
    """A context manager, for one thread. ``done`` of a task is called from within :meth:`submit` and :meth:`drain`."""

    def __init__(self, key: Key, backend: Backend, *, verify: bool = False, expected: int = 0) -> None:
        """``expected``: pieces, if they were counted as above; the processes are ready sooner then."""
        self._key = key
        self._backend = backend
        self._verify = verify
        self._root = _folder_of(backend)
        threads = THREADS if self._root is not None else THREADS_FAR
        self._room = threads * PER_THREAD
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="restore")
        self._own = threading.local()
        self._futures: deque[tuple[Task, Future[Answer]]] = deque()
        self._members: list[_Member] = []
        self._answers = selectors.DefaultSelector()
        self._given = 0  # pieces
        if expected >= PROCESSES_AFTER and self._root is not None:
            self._start(self._root)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        """What was begun is finished (no descriptor is used after this), what was not is not begun."""
        for _task, future in self._futures:
            future.cancel()
        self._pool.shutdown()
        for member in self._members:
            self._answers.unregister(member.process.channel)
            member.process.close()
        self._answers.close()

    @staticmethod
    def pieces(small: int, large_bytes: int) -> int:
        """How many pieces so many of small files, and so many bytes of large ones, are."""
        return small * _SMALL_COUNTS + large_bytes // _LARGE_PIECE

    def submit(self, task: Task) -> None:
        """Waits while there is much to do. Raises WorkerDied, and what ``done`` raises."""
        self._given += _SMALL_COUNTS if isinstance(task.work, Small) else 1
        if self._given >= PROCESSES_AFTER and not self._members and self._root is not None:
            self._start(self._root)
        while True:
            self._collect(0)
            ready = [member for member in self._members if member.prefix]
            if not ready:
                self._give_to_threads(task)
                return
            member = min(ready, key=lambda m: len(m.tasks))
            if len(member.tasks) < PER_PROCESS:
                self._send(member, task)
                return
            self._wait()

    def drain(self) -> None:
        while self._futures:
            self._finish_oldest()
        while any(member.tasks for member in self._members):
            self._collect(None)

    # --- threads ---

    def _give_to_threads(self, task: Task) -> None:
        if len(self._futures) >= self._room:
            self._finish_oldest()
        self._futures.append((task, self._pool.submit(self._perform, task)))

    def _perform(self, task: Task) -> Answer:
        performer = getattr(self._own, "performer", None)
        if performer is None:
            performer = self._own.performer = Performer(self._key, self._get, verify=self._verify)
        if isinstance(task.work, Small):
            return performer.small(task.work, task.descriptors)
        return performer.part(task.work, task.descriptors[0])

    def _get(self, pack: str, offset: int, length: int) -> bytes:
        return self._backend.get(Kind.PACK, pack, offset, length)

    def _finish_oldest(self) -> None:
        task, future = self._futures[0]
        answer = future.result()
        self._futures.popleft()
        task.done(answer)

    # --- processes ---

    def _start(self, root: Path) -> None:
        for _ in range(min(PROCESSES, usable_processors())):
            try:
                process = WorkerProcess(restore_worker.__name__)
            except OSError as error:
                self._without(str(error))
                return
            member = _Member(process)
            self._members.append(member)
            self._answers.register(process.channel, selectors.EVENT_READ, member)
            key = self._key
            try:
                process.channel.send((key.encrypt, key.mac_k, key.mac_r, os.fsencode(root), self._verify))
            except ChannelClosed:
                self._dismiss(member)

    def _dismiss(self, member: _Member) -> None:
        """It ended before it was ready, so nothing was given to it."""
        self._members.remove(member)
        self._answers.unregister(member.process.channel)
        member.process.close()
        self._without(str(member.process.died()))

    def _without(self, reason: str) -> None:
        self._root = None  # it is not tried again
        logger.warning("a worker process could not be started, threads write instead: %s", reason)

    def _send(self, member: _Member, task: Task) -> None:
        kind = restore_worker.SMALL if isinstance(task.work, Small) else restore_worker.PART
        member.tasks.append(task)
        try:
            member.process.channel.send((kind, *task.work), descriptors=task.descriptors)
        except ChannelClosed:
            raise self._died(member) from None

    def _wait(self) -> None:
        """Until somebody can take more."""
        if self._futures:
            self._finish_oldest()  # still running on threads from before the processes were started
        else:
            self._collect(None)

    def _collect(self, timeout_s: float | None) -> None:
        """Take the answers that are there; without a bound, wait for one."""
        for selected, _ in self._answers.select(timeout_s):
            member: _Member = selected.data
            try:
                answer, _, _ = member.process.channel.receive()
            except ChannelClosed:
                if member.prefix:
                    raise self._died(member) from None
                self._dismiss(member)
                continue
            if not member.prefix:
                member.prefix = answer
                continue
            member.tasks.popleft().done(Answer(*answer))

    def _died(self, member: _Member) -> Exception:
        error = member.process.died()
        for task in member.tasks:
            if isinstance(task.work, Small):
                for folder in set(task.descriptors):
                    _remove_leftovers(folder, member.prefix)
        return error


def _remove_leftovers(folder: int, prefix: bytes) -> None:
    """What a killed process had begun in a folder."""
    with contextlib.suppress(OSError):  # the run fails already, with a better reason
        for name in os.listdir(folder):
            if prefix and os.fsencode(name).startswith(prefix):
                os.unlink(name, dir_fd=folder)


def _folder_of(backend: Backend) -> Path | None:
    """Where a worker process may read packs by itself."""
    inner = backend.inner if isinstance(backend, RetryingBackend) else backend
    return inner.root if type(inner) is LocalBackend else None
