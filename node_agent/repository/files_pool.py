"""Who does the work on small files: threads at first, worker processes once a run is large enough for them.

The walk hands files over as it meets them and takes what became of each when the folder is stored. Starting a process
costs a tenth of a second of a processor, so it is done only when :data:`ENOUGH_FILES` were met, and beside the work:
the threads go on until a process says that it is ready. Where no process can be started, they go on for good.

A process that dies fails the run: batches that it had may have claimed blobs that are nowhere now.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from node_agent.errors import WorkerDied
from node_agent.progress import Progress
from node_agent.repository.files_process import Process
from node_agent.repository.files_small import Outcome, Owner, SmallReader, Work
from node_agent.repository.repository import BlobKind, BlobWriter
from node_agent.repository.writer import usable_processors

ENOUGH_FILES = 3000
MAX_PROCESSES = 4  # the walk cannot feed more, and each has its interpreter in memory
_THREADS = 2
_BATCH_FILES = 128
_BATCH_BYTES = 1 << 20
_BATCH_FOLDERS = 32  # each is held open until its batch is done
_BATCH_NAMES = 16 << 10  # bytes; what lies between us and a process must never fill its socket
_QUEUE = 4
_IN_PROCESS = 3  # batches of one process: one that it works on, one whose ids are asked for, one to go on with

Grown = Callable[[int, bytes, Owner | None], Outcome]


@dataclass(slots=True)
class Part:
    """A batch's files of one folder, and once ``done`` what became of each; the batch itself is not kept alive."""

    done: Future[None]
    names: list[bytes] = field(default_factory=list)
    known: list[bool] = field(default_factory=list)  # whether the parent snapshot has it, as another one
    outcomes: Sequence[Outcome] = ()


@dataclass(slots=True)
class Batch:
    """Files of one or several folders, which it holds open by descriptors of its own: one for each part."""

    folders: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    owners: list[Owner | None] = field(default_factory=list)
    size: int = 0
    names_size: int = 0
    done: Future[None] = field(default_factory=Future)

    @property
    def full(self) -> bool:
        return len(self.names) >= _BATCH_FILES or self.size >= _BATCH_BYTES or self.names_size >= _BATCH_NAMES

    @property
    def work(self) -> Work:
        counts = [len(part.names) for part in self.parts]
        return Work(self.folders, counts, self.names, self.owners if any(self.owners) else ())

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Each part gets its own: a folder that is long in the walk must not hold what others are through with."""
        position = 0
        for part in self.parts:
            part.outcomes = outcomes[position : position + len(part.names)]
            position += len(part.names)
        self.done.set_result(None)

    def close(self) -> None:
        for folder in self.folders:
            os.close(folder)
        self.folders.clear()


class SmallFiles:
    """A context manager; leaving it ends threads and processes. ``add`` and ``wait`` are for the walk's thread."""

    def __init__(self, writer: BlobWriter, progress: Progress, read_grown: Grown) -> None:
        """``read_grown(folder, name, owner)``, from any thread, reads a file that is not small any more."""
        self._writer = writer
        self._progress = progress
        self._read_grown = read_grown
        self._batch = Batch()
        self._folder: object = None
        self._met = 0
        self._queue: deque[Batch] = deque()
        self._changed = threading.Condition()  # guards the queue and everything below
        self._closing = False
        self._error: BaseException | None = None
        self._local = True  # whether threads are to take batches
        self._threads: list[threading.Thread] = []
        self._processes: list[Process] = []

    def __enter__(self) -> SmallFiles:
        for _ in range(_THREADS):
            self._start(self._work_here)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._changed:
            self._closing = True
            if error is not None:
                self._error = self._error or error
            self._changed.notify_all()
        if error is not None:
            for process in self._processes:
                process.kill()
        for thread in self._threads:
            thread.join()
        for batch in (self._batch, *self._queue):  # never worked on, after an error
            batch.close()

    # --- for the walk ---

    def add(self, name: bytes, folder: object, folder_fd: int, size: int, known: bool, owner: Owner | None) -> Part:
        """Take a file; the part that it belongs to, with others of its folder. Blocks while too much waits.

        ``folder`` tells apart folders whose descriptor has the same number, one after the other.
        """
        batch = self._batch
        if batch.full or (folder is not self._folder and len(batch.folders) >= _BATCH_FOLDERS):
            self._send()
            batch = self._batch
        if not batch.folders or folder is not self._folder:
            batch.folders.append(os.dup(folder_fd))
            batch.parts.append(Part(batch.done))
            self._folder = folder
        part = batch.parts[-1]
        part.names.append(name)
        part.known.append(known)
        batch.names.append(name)
        batch.owners.append(owner)
        batch.size += size
        batch.names_size += len(name)
        return part

    def wait(self, part: Part) -> Sequence[Outcome]:
        """What became of its files. Raises what went wrong, and what the progress raises."""
        if part.done is self._batch.done:
            self._send()
        while True:
            try:
                part.done.result(timeout=1.0)
                return part.outcomes
            except NotYet:
                if part.done.done():
                    raise
                self._progress.check()

    def _send(self) -> None:
        batch, self._batch = self._batch, Batch()
        with self._changed:
            self._queue.append(batch)
            self._changed.notify_all()
            while len(self._queue) > _QUEUE and self._error is None:
                self._changed.wait(1.0)
                self._progress.check()
            if self._error is not None:
                raise self._error
        before = self._met
        self._met += len(batch.names)
        if before < ENOUGH_FILES <= self._met:
            for _ in range(min(usable_processors(), MAX_PROCESSES)):
                self._start(self._work_elsewhere)

    # --- on threads of their own ---

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guarded, args=(work,), name="small-files", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised to the walk, which waits for one of the batches
            with self._changed:
                self._error = self._error or error
                waiting = [*self._queue]
                self._changed.notify_all()
            for batch in waiting:
                _fail(batch, error)

    def _next(self, wait: bool, local: bool = False) -> Batch | None:
        """The oldest batch that waits; None once there is none to come, or (not ``wait``) none now."""
        with self._changed:
            while self._error is None and not (local and not self._local):
                if self._queue:
                    self._changed.notify_all()
                    return self._queue.popleft()
                if self._closing or not wait:
                    return None
                self._changed.wait()
        return None

    def _work_here(self) -> None:
        reader = SmallReader(self._writer.sealer)
        while (batch := self._next(wait=True, local=True)) is not None:
            with _kept(batch):
                ids = reader.read(batch.work)
                sealed = reader.seal(self._writer.claim(BlobKind.DATA, ids))
                self._writer.add_sealed(BlobKind.DATA, sealed.blobs, sealed.content)
                self._finish(batch, sealed.outcomes)

    def _work_elsewhere(self) -> None:
        """Feed one process and take what it has done, until no more batches come."""
        try:
            process = Process(self._writer.sealer)
        except OSError as error:
            self._progress.log("warning", f"No worker process can be started ({error}): the backup goes on slower.")
            return
        with self._changed:
            self._processes.append(process)
            stop = self._error is not None
        if stop:
            process.kill()
        with process:
            if not self._take_over(process):
                return
            reading: deque[Batch] = deque()  # their ids are to come
            sealing: deque[Batch] = deque()
            try:
                while True:
                    while len(reading) + len(sealing) < _IN_PROCESS:
                        batch = self._next(wait=not reading and not sealing)
                        if batch is None:
                            break
                        reading.append(batch)
                        process.read(batch.work)
                    if not reading and not sealing:
                        return
                    self._take_answer(process, reading, sealing)
            except BaseException as error:
                for batch in (*reading, *sealing):
                    _fail(batch, error)
                    batch.close()
                raise

    def _take_over(self, process: Process) -> bool:
        """Whether it came up; from the first one on, threads take no more batches."""
        try:
            process.wait_ready()
        except WorkerDied as error:
            with self._changed:
                ending = self._closing or self._error is not None
            if not ending:
                self._progress.log("warning", f"{error} The backup goes on without it, slower.")
            return False
        with self._changed:
            self._local = False
            self._changed.notify_all()
        return True

    def _take_answer(self, process: Process, reading: deque[Batch], sealing: deque[Batch]) -> None:
        answer = process.answer()
        if answer.ids is not None:
            sealing.append(reading.popleft())
            process.seal(self._writer.claim(BlobKind.DATA, answer.ids))
        elif answer.sealed is not None:
            self._writer.add_sealed(BlobKind.DATA, answer.sealed.blobs, answer.sealed.content)
            with _kept(sealing.popleft()) as batch:
                self._finish(batch, answer.sealed.outcomes)

    def _finish(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        if any(outcome.grown for outcome in outcomes):
            files = batch.work.files()
            outcomes = [
                self._read_grown(*file) if outcome.grown else outcome
                for file, outcome in zip(files, outcomes, strict=True)
            ]
        batch.finish(outcomes)


@contextmanager
def _kept(batch: Batch) -> Iterator[Batch]:
    """Its folders are closed at the end, and whoever waits for it learns of an error."""
    try:
        yield batch
    except BaseException as error:
        _fail(batch, error)
        raise
    finally:
        batch.close()


def _fail(batch: Batch, error: BaseException) -> None:
    if not batch.done.done():
        batch.done.set_exception(error)
