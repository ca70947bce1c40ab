"""Pieces of a restore that need neither index nor trees: blobs out of packs, into files of open folders.

A :class:`Performer` does them, on a thread of the run or in a worker process, so a piece is made of what marshal
knows; open folders and files come beside it. What it cannot do is told by number and not raised: the run has the
index, and tries other copies of a damaged blob.

    small files   runs of blobs, then files: content and metadata, and only then the file's name
    a part        runs of blobs with the offsets they have in one large file, which is open already
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from node_agent.errors import BackendError, DamagedError, RepositoryError, TargetError
from node_agent.repository.backend.base import Buffer
from node_agent.repository.crypto import Key
from node_agent.repository.pack import BlobKind, PackedBlob, open_blob
from node_agent.repository.restore_meta import Meta, Notes, apply_to_open

DAMAGED, REFUSED, IN_THE_WAY = range(3)
GRAIN = 64 << 10  # of the zero test
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NAMELESS = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
# How a file system, or a system without /proc, says that it cannot make files without a name, or name them later.
_NEEDS_NAMES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.EPERM, errno.EXDEV, errno.ENOSYS)
_ZEROS = bytes(GRAIN)

Get = Callable[[str, int, int], bytes]  # pack, offset, length
Blob = tuple[bytes, int, int, int]  # id, offset, sealed length, uncompressed length or 0
Run = tuple[str, list[Blob]]  # pack and its neighbouring blobs, which are read at once
Pieces = list[bytes | int]  # a file's content: ids of blobs, and lengths of holes
# Number of its folder, whether nothing has its name there, name, path, metadata, content.
SmallFile = tuple[int, bool, bytes, bytes, Meta, Pieces]
Failure = tuple[int, int, int, str]  # number of the file, what happened, errno, message


class Small(NamedTuple):
    runs: list[Run]
    files: list[SmallFile]


class Part(NamedTuple):
    runs: list[Run]
    offsets: dict[bytes, list[int]]


class Answer(NamedTuple):
    """Short, whatever happens: while a worker has answers to send, the run may be sending as well."""

    failures: list[Failure]
    hurt: list[bytes]  # blobs of a part that could not be read there
    notes: list[tuple[str, bytes, int]]
    written: int  # bytes
    end: int  # of a part: how far it was written


class TemporaryNames:
    """Names that nobody else uses, told from others by a word of this run."""

    def __init__(self) -> None:
        self.prefix = b".brs-" + secrets.token_hex(8).encode() + b"-"
        self._count = 0

    def next(self) -> bytes:
        self._count += 1
        return b"%s%x.part" % (self.prefix, self._count)


class Performer:
    """Not thread-safe: one for each thread."""

    def __init__(self, key: Key, get: Get, *, verify: bool = False) -> None:
        self.names = TemporaryNames()
        self._key = key
        self._get = get
        self._verify = verify
        self._can_be_nameless = True  # as far as is known
        self._notes = Notes()
        self._written = self._end = 0

    def small(self, work: Small, folders: Sequence[int]) -> Answer:
        blobs: dict[bytes, bytes] = {}
        for run in work.runs:
            blobs.update((blob_id, content) for blob_id, content in self._load(run) if content is not None)
        failures: list[Failure] = []
        for number, (folder, new, name, path, meta, pieces) in enumerate(work.files):
            failure = self._file(folders[folder], new, name, path, meta, pieces, blobs)
            if failure is not None:
                failures.append((number, *failure))
        return self._answer(failures)

    def write_alone(self, folder: int, file: SmallFile, blobs: Mapping[bytes, bytes]) -> Answer:
        """One file whose blobs are in memory."""
        _, new, name, path, meta, pieces = file
        failure = self._file(folder, new, name, path, meta, pieces, blobs)
        return self._answer([(0, *failure)] if failure is not None else [])

    def part(self, work: Part, fd: int) -> Answer:
        hurt: list[bytes] = []
        try:
            for run in work.runs:
                for blob_id, content in self._load(run):
                    if content is None:
                        hurt.append(blob_id)
                        continue
                    for offset in work.offsets[blob_id]:
                        self.write(fd, content, offset)
        except OSError as error:
            return self._answer([(0, REFUSED, error.errno or 0, error.strerror or "")], hurt)
        return self._answer([], hurt)

    def place(self, fd: int, content: bytes, offsets: Sequence[int]) -> Answer:
        """One blob that is in memory. Raises OSError."""
        for offset in offsets:
            self.write(fd, content, offset)
        return self._answer([])

    def write(self, fd: int, content: bytes, offset: int) -> None:
        """All of it but its zeros. Raises OSError."""
        size = len(content)
        if size <= GRAIN and size and content[0]:  # most blobs of small files
            write_all(fd, content, offset)
            self._end = max(self._end, offset + size)
        else:
            for start, end in not_zero(content):
                write_all(fd, memoryview(content)[start:end], offset + start)
                self._end = max(self._end, offset + end)
        self._written += size

    def _answer(self, failures: list[Failure], hurt: Sequence[bytes] = ()) -> Answer:
        answer = Answer(failures, list(hurt), self._notes.take(), self._written, self._end)
        self._written = self._end = 0
        return answer

    def _load(self, run: Run) -> Iterator[tuple[bytes, bytes | None]]:
        """Each blob's proven content; None if it is not whole in this pack."""
        pack, blobs = run
        first, last = blobs[0], blobs[-1]
        try:
            sealed = memoryview(self._get(pack, first[1], last[1] + last[2] - first[1]))
        except (BackendError, RepositoryError):  # met again, and told, by whoever tries other copies
            yield from ((blob[0], None) for blob in blobs)
            return
        for blob_id, offset, length, raw_length in blobs:
            start = offset - first[1]
            blob = PackedBlob(BlobKind.DATA, blob_id, offset, length, raw_length)
            try:
                yield blob_id, open_blob(self._key, pack, blob, sealed[start : start + length])
            except DamagedError:
                yield blob_id, None

    def _file(
        self, folder: int, new: bool, name: bytes, path: bytes, meta: Meta, pieces: Pieces, blobs: Mapping[bytes, bytes]
    ) -> tuple[int, int, str] | None:
        """What went wrong, if anything did. The file stands under its name when it is whole, or not at all."""
        for piece in pieces:
            if type(piece) is bytes and piece not in blobs:
                return DAMAGED, 0, ""
        try:
            wrong = self._nameless(folder, name, path, meta, pieces, blobs) if new and self._can_be_nameless else None
            if wrong is None:
                wrong = self._named(folder, name, path, meta, pieces, blobs)
        except IsADirectoryError:
            return IN_THE_WAY, 0, "A folder is in its place."
        except OSError as error:
            return REFUSED, error.errno or 0, error.strerror or ""
        return (REFUSED, 0, wrong) if wrong else None

    def _nameless(
        self, folder: int, name: bytes, path: bytes, meta: Meta, pieces: Pieces, blobs: Mapping[bytes, bytes]
    ) -> str | None:
        """A file that has no name until it is whole: however a process ends, no half file is left.

        A rename costs a third more. None: it did not work, so the other way tells why, or works.
        """
        before = self._written
        try:
            fd = os.open(b".", NAMELESS, meta[0] & 0o777, dir_fd=folder)
            try:
                wrong = self._complete(fd, path, meta, pieces, blobs)
                if not wrong:
                    os.link(b"/proc/self/fd/%d" % fd, name, dst_dir_fd=folder)
            finally:
                os.close(fd)
        except OSError as error:
            self._can_be_nameless = error.errno not in _NEEDS_NAMES
            self._written = before
            return None
        return wrong

    def _named(
        self, folder: int, name: bytes, path: bytes, meta: Meta, pieces: Pieces, blobs: Mapping[bytes, bytes]
    ) -> str:
        """By a temporary name. Raises OSError, IsADirectoryError if a folder has the name."""
        temporary = self.names.next()
        fd = os.open(temporary, CREATE, 0o600, dir_fd=folder)
        placed = False
        try:
            wrong = self._complete(fd, path, meta, pieces, blobs)
            if not wrong:
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                placed = True
        finally:
            os.close(fd)
            if not placed:
                os.unlink(temporary, dir_fd=folder)
        return wrong

    def _complete(self, fd: int, path: bytes, meta: Meta, pieces: Pieces, blobs: Mapping[bytes, bytes]) -> str:
        length = self._fill(fd, pieces, blobs)
        if self._end < length:
            os.truncate(fd, length)
        if self._verify and (wrong := prove(fd, ((p, p if isinstance(p, int) else len(blobs[p])) for p in pieces))):
            return wrong
        apply_to_open(fd, meta, path, self._notes)
        return ""

    def _fill(self, fd: int, pieces: Pieces, blobs: Mapping[bytes, bytes]) -> int:
        """Returns the file's length; :attr:`_end` says how far it was written."""
        self._end = offset = 0
        for piece in pieces:
            if isinstance(piece, int):
                offset += piece
            else:
                content = blobs[piece]
                self.write(fd, content, offset)
                offset += len(content)
        return offset


def prove(fd: int, pieces: Iterator[tuple[bytes | int, int]]) -> str:
    """Read a file back from the disk; what is wrong with it, or nothing. Raises OSError."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    offset = 0
    for piece, length in pieces:
        data = os.pread(fd, length, offset)
        right = data == bytes(length) if isinstance(piece, int) else hashlib.sha256(data).digest() == piece
        if not right:
            return f"The target gave back other bytes at offset {offset} than were written."
        offset += length
    return ""


def not_zero(data: bytes) -> Iterator[tuple[int, int]]:
    """Runs of pieces of 64 KiB that are not all zero."""
    size = len(data)
    if size <= GRAIN:
        if size and (data[0] or data != _ZEROS[:size]):
            yield 0, size
        return
    start = -1
    for position in range(0, size, GRAIN):
        piece = min(GRAIN, size - position)
        if data.startswith(_ZEROS if piece == GRAIN else _ZEROS[:piece], position):
            if start >= 0:
                yield start, position
            start = -1
        elif start < 0:
            start = position
    if start >= 0:
        yield start, size


def write_all(fd: int, view: Buffer, offset: int) -> None:
    written = os.pwrite(fd, view, offset)
    if written == len(view):
        return
    view, offset = memoryview(view)[written:], offset + written
    while view:
        written = os.pwrite(fd, view, offset)
        if not written:
            raise TargetError("The target takes no more data.")
        view, offset = view[written:], offset + written
