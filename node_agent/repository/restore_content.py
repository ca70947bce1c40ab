"""The content of restored files: blobs fetched pack by pack, written where they belong, put in place when whole.

A file is written under a temporary name in its folder, gets its metadata, and is renamed when every blob was
written: each blob's hash is proven when it is read, and together they must have the file's length. Zeros are not
written, so holes stay holes and zeros become some.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from node_agent.errors import DamagedError, TargetError
from node_agent.progress import Progress
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.restore_meta import Notes, apply_to_open
from node_agent.repository.restore_target import Folder, InTheWay, discard, put_in_place, temporary_name, translate
from node_agent.repository.tree import Node
from node_agent.repository.zeros import MARK_SIZE, MAX_ZERO_BLOB, zero_bytes, zero_id

WINDOW = 2048  # blobs of one large file that are looked up and fetched together
_PIECE = 64 << 10  # grain of the zero test
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class FileJob:
    """One file to write. ``failure`` is set once it cannot be whole any more."""

    folder: Folder
    name: bytes
    node: Node
    path: bytes
    fd: int = -1
    temporary: bytes = b""
    length: int = 0  # of the blobs placed so far
    written: int = 0  # how far bytes were written; what is behind is a hole
    failure: str = ""
    damaged: bool = False

    def fail(self, message: str, *, damaged: bool = False) -> None:
        self.failure = self.failure or message
        self.damaged = self.damaged or damaged


@dataclass(slots=True)
class ContentWriter:
    """Writes batches of files; for one thread. Counts what it wrote in ``bytes_written``."""

    repo: Repository
    progress: Progress
    notes: Notes
    verify: bool = False
    bytes_written: int = 0
    _places: dict[bytes, list[tuple[FileJob, int]]] = field(default_factory=dict)

    def write(self, jobs: Sequence[FileJob]) -> None:
        """Write these files; a job that failed says so. Raises TargetFull and what ends the whole restore."""
        try:
            for job in jobs:
                self._create(job)
            for window in _windows(jobs):
                self._write_window(window)
            for job in jobs:
                self._complete(job)
        finally:
            self._places.clear()
            for job in jobs:
                if job.fd >= 0:  # not completed
                    os.close(job.fd)
                    job.fd = -1
                    discard(job.folder, job.temporary)

    def _create(self, job: FileJob) -> None:
        job.temporary = temporary_name()
        try:
            job.fd = os.open(job.temporary, _CREATE, 0o600, dir_fd=job.folder.fd)
        except OSError as error:
            self._failed(job, error)

    def _write_window(self, window: Sequence[tuple[FileJob, Sequence[bytes]]]) -> None:
        sizes = self.repo.blob_sizes(BlobKind.DATA, (blob_id for _, ids in window for blob_id in ids))
        self._places.clear()
        for job, ids in window:
            self._place(job, ids, sizes)
        for blob_id, data in self._load(list(self._places)):
            self.progress.check()
            for job, offset in self._places[blob_id]:
                if isinstance(data, DamagedError):
                    job.fail(str(data), damaged=True)
                elif not job.failure:
                    self._write(job, offset, data)

    def _place(self, job: FileJob, ids: Sequence[bytes], sizes: dict[bytes, int]) -> None:
        for blob_id in ids:
            size = sizes.get(blob_id)
            if size is None:
                job.fail(f"data blob {blob_id.hex()} is missing: no index file names it.", damaged=True)
                return
            if _is_known_zero(blob_id, size):
                self.progress.add(done_bytes=size)
            else:
                self._places.setdefault(blob_id, []).append((job, job.length))
            job.length += size

    def _load(self, ids: Sequence[bytes]) -> Iterator[tuple[bytes, bytes | DamagedError]]:
        """Contents in any order; after damage the rest one by one, so that only those files suffer that are hurt."""
        left = set(ids)
        try:
            for blob_id, data in self.repo.load_blobs(BlobKind.DATA, ids):
                left.discard(blob_id)
                yield blob_id, data
            return
        except DamagedError as error:
            self.progress.log("warning", f"Damage found; reading on blob by blob. {error}")
        for blob_id in left:
            try:
                yield blob_id, self.repo.load_blob(BlobKind.DATA, blob_id)
            except DamagedError as error:
                yield blob_id, error

    def _write(self, job: FileJob, offset: int, data: bytes) -> None:
        try:
            for start, end in _not_zero(data):
                _write_all(job.fd, memoryview(data)[start:end], offset + start)
                job.written = max(job.written, offset + end)
        except OSError as error:
            self._failed(job, error)
            return
        self.bytes_written += len(data)
        self.progress.add(done_bytes=len(data))

    def _complete(self, job: FileJob) -> None:
        if not job.failure and job.length != job.node.size:
            job.fail(f"its blobs have {job.length} bytes instead of {job.node.size}.", damaged=True)
        if job.failure:
            return
        try:
            if job.written < job.length:
                os.truncate(job.fd, job.length)
            if self.verify:
                self._verify(job)
            if job.failure:
                return
            apply_to_open(job.fd, job.node, job.path, self.notes)
            put_in_place(job.folder, job.temporary, job.name)
        except OSError as error:
            self._failed(job, error)
            return
        except InTheWay as error:
            job.fail(str(error))
            return
        os.close(job.fd)
        job.fd = -1

    def _verify(self, job: FileJob) -> None:
        """Read the file back from the disk and prove each blob's hash again."""
        os.fsync(job.fd)
        os.posix_fadvise(job.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        offset = 0
        for window in _windows([job]):
            for _, ids in window:
                sizes = self.repo.blob_sizes(BlobKind.DATA, ids)
                offset = self._verify_blobs(job, ids, sizes, offset)

    def _verify_blobs(self, job: FileJob, ids: Sequence[bytes], sizes: dict[bytes, int], offset: int) -> int:
        for blob_id in ids:
            self.progress.check()
            data = os.pread(job.fd, sizes[blob_id], offset)
            if hashlib.sha256(data).digest() != blob_id:
                job.fail(f"The target gave back other bytes at offset {offset} than were written.")
            offset += sizes[blob_id]
        return offset

    def _failed(self, job: FileJob, error: OSError) -> None:
        whole = translate(error, job.path)
        if whole is not None:
            raise whole from error
        job.fail(f"It cannot be written: {error.strerror}.")


def _windows(jobs: Sequence[FileJob]) -> Iterator[list[tuple[FileJob, Sequence[bytes]]]]:
    """Pieces of work of at most about WINDOW blobs."""
    window: list[tuple[FileJob, Sequence[bytes]]] = []
    count = 0
    for job in jobs:
        content = job.node.content
        for start in range(0, len(content), WINDOW):
            part = content[start : start + WINDOW]
            if window and count + len(part) > WINDOW:
                yield window
                window, count = [], 0
            window.append((job, part))
            count += len(part)
    if window:
        yield window


def _is_known_zero(blob_id: bytes, size: int) -> bool:
    return MARK_SIZE <= size <= MAX_ZERO_BLOB and size & (size - 1) == 0 and blob_id == zero_id(size)


def _not_zero(data: bytes) -> Iterator[tuple[int, int]]:
    """Runs of pieces that are not all zero."""
    zeros = zero_bytes(_PIECE)
    start = -1
    for position in range(0, len(data), _PIECE):
        piece = min(_PIECE, len(data) - position)
        if data.startswith(zeros if piece == _PIECE else bytes(piece), position):
            if start >= 0:
                yield start, position
            start = -1
        elif start < 0:
            start = position
    if start >= 0:
        yield start, len(data)


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(fd, view, offset)
        if not written:
            raise TargetError("The target takes no more data.")
        view, offset = view[written:], offset + written
