"""The content of one open file into blobs.

Holes are not read. What is read is what was there when it was opened: a file that grows is
read to the size it had then. Whether it changed meanwhile is told by :class:`ReadFile`.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from node_agent.progress import Progress
from node_agent.repository.chunking import MIN_SIZE, Chunker
from node_agent.repository.files_open import version
from node_agent.repository.repository import BlobKind, BlobWriter
from node_agent.repository.writer import Pending
from node_agent.repository.zeros import MARK_SIZE, ZeroBlobs

# Blobs of one file that may be on their way; the writer bounds the bytes, this bounds what is waited for.
MAX_PENDING = 64


@dataclass(slots=True)
class Content:
    """The ordered ids of a file's blobs, some of them still being stored."""

    _ids: list[bytes] = field(default_factory=list)
    _pending: deque[Pending] = field(default_factory=deque)
    size: int = 0

    def add(self, blob: Pending, size: int) -> None:
        self._pending.append(blob)
        self.size += size
        if len(self._pending) > MAX_PENDING:
            self._ids.append(self._pending.popleft().result().id)

    def add_known(self, blob_id: bytes, size: int) -> None:
        self._settle()
        self._ids.append(blob_id)
        self.size += size

    def ids(self) -> list[bytes]:
        """Waits until all are stored; raises what went wrong with one."""
        self._settle()
        return self._ids

    def _settle(self) -> None:
        while self._pending:
            self._ids.append(self._pending.popleft().result().id)


@dataclass(slots=True)
class ReadFile:
    content: Content
    read_bytes: int
    counted: bool  # whether the progress was told of them, as they came
    changed: bool  # size or time differ from what they were before reading


class FileReader:
    """Reads files into the repository; for one thread."""

    def __init__(self, writer: BlobWriter, chunker: Chunker, progress: Progress) -> None:
        self._writer = writer
        self._chunker = chunker
        self._progress = progress
        self._zeros = ZeroBlobs(writer)

    def read(self, fd: int, before: os.stat_result) -> ReadFile:
        """The content of the open file up to its size in ``before``; raises OSError."""
        content = Content()
        if before.st_size == 0:
            read = 0
        elif before.st_size <= MIN_SIZE:
            read = self._read_small(fd, before.st_size, content)
        else:
            read = self._read_large(fd, before, content)
        after = os.fstat(fd)
        changed = content.size != before.st_size or version(after) != version(before)
        return ReadFile(content, read, before.st_size > MIN_SIZE, changed)

    def _read_small(self, fd: int, size: int, content: Content) -> int:
        data = os.read(fd, size)
        while len(data) < size:
            more = os.read(fd, size - len(data))
            if not more:
                break
            data += more
        if data:
            content.add(self._writer.submit(BlobKind.DATA, data), len(data))
        return len(data)

    def _read_large(self, fd: int, before: os.stat_result, content: Content) -> int:
        read = 0
        marked = False
        for start, end, hole in _stretches(fd, before):
            if hole:
                for blob_id, size in self._zeros.run(end - start, marked):
                    content.add_known(blob_id, size)
                marked = marked or end - start >= MARK_SIZE
                self._progress.add(done_bytes=end - start)
                continue
            for chunk in self._chunker.cut(_Stretch(fd, start, end)):
                self._progress.check()
                content.add(self._writer.submit(BlobKind.DATA, chunk), len(chunk))
                read += len(chunk)
                self._progress.add(done_bytes=len(chunk), read_bytes=len(chunk))
        return read


def _stretches(fd: int, st: os.stat_result) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether a hole) in order; holes that are too small to matter count as data."""
    if st.st_blocks * 512 >= st.st_size:
        yield 0, st.st_size, False
        return
    position = start = 0
    while position < st.st_size:
        data = _seek(fd, position, os.SEEK_DATA, st.st_size)
        if data - position >= MARK_SIZE:
            if position > start:
                yield start, position, False
            yield position, data, True
            start = data
        position = _seek(fd, data, os.SEEK_HOLE, st.st_size) if data < st.st_size else data
    if start < st.st_size:
        yield start, st.st_size, False


def _seek(fd: int, position: int, whence: int, size: int) -> int:
    try:
        return min(os.lseek(fd, position, whence), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data behind this place
            return size
        raise


@dataclass(slots=True)
class _Stretch:
    """A range of a file as a stream for the chunker."""

    fd: int
    position: int
    end: int

    def readinto(self, b: memoryview, /) -> int:
        want = min(len(b), self.end - self.position)
        if want <= 0:
            return 0
        got = os.preadv(self.fd, [memoryview(b)[:want]], self.position)
        self.position += got
        return got
