"""Small files, read in batches on threads: opening and reading thousands of them one after the other is mostly waiting.

The walk hands files over as it meets them and takes what became of each when the folder is stored. Batches hold their
folders open by descriptors of their own, so the walk may have left a folder before its files are read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

from node_agent.repository.files_read import Content
from node_agent.repository.tree import Node

_THREADS = 2
_BATCH_FILES = 32
_BATCH_BYTES = 1 << 20
_BATCHES = 6  # waiting or being read


@dataclass(slots=True)
class SmallFile:
    """One file, and what became of it: ``node`` with ``content``, or only ``issues`` (code, message)."""

    path: bytes
    name: bytes
    known: bool  # whether the parent snapshot has it, as another one
    node: Node | None = None
    content: Content | None = None
    read_bytes: int = 0
    counted: bool = False  # by the progress
    issues: list[tuple[str, str]] = field(default_factory=list)
    batch: _Batch | None = None


@dataclass(slots=True)
class _Batch:
    files: list[tuple[int, SmallFile]] = field(default_factory=list)
    folders: list[int] = field(default_factory=list)
    size: int = 0
    done: Future[None] = field(default_factory=Future)


class SmallFiles:
    """A context manager; leaving it ends the threads. ``add`` and ``wait`` are for the walk's thread."""

    def __init__(self, read: Callable[[int, SmallFile], None]) -> None:
        """``read(folder_fd, file)`` fills in the outcome; what it raises is raised by :meth:`wait`."""
        self._read = read
        self._batch = _Batch()
        self._folder: object = None
        self._slots = threading.Semaphore(_BATCHES)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")

    def __enter__(self) -> SmallFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._threads.shutdown(wait=True)
        _close(self._batch)  # never sent, after an error

    def add(self, file: SmallFile, folder: object, folder_fd: int, size: int) -> None:
        """``folder`` tells apart folders whose descriptor has the same number, one after the other."""
        batch = self._batch
        if not batch.folders or folder is not self._folder:
            batch.folders.append(os.dup(folder_fd))
            self._folder = folder
        batch.files.append((batch.folders[-1], file))
        batch.size += size
        file.batch = batch
        if len(batch.files) >= _BATCH_FILES or batch.size >= _BATCH_BYTES:
            self._send()

    def wait(self, file: SmallFile) -> None:
        """Until the outcome is there."""
        if file.batch is self._batch:
            self._send()
        if file.batch is not None:
            file.batch.done.result()
            file.batch = None

    def _send(self) -> None:
        batch, self._batch = self._batch, _Batch()
        self._slots.acquire()
        self._threads.submit(self._run, batch)

    def _run(self, batch: _Batch) -> None:
        try:
            for folder_fd, file in batch.files:
                self._read(folder_fd, file)
            batch.done.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised to whoever waits for one of the files
            batch.done.set_exception(error)
        finally:
            _close(batch)
            self._slots.release()


def _close(batch: _Batch) -> None:
    for folder in batch.folders:
        os.close(folder)
    batch.files, batch.folders = [], []
