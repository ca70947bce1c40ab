"""The content of restored files: which blobs lie where, given out piece by piece, and what became of the pieces.

Small files go in batches: a batch's blobs are read pack by pack, its files written by one member of the crew. A large
file is opened here under a temporary name and its blobs are written by all members at once, each run of neighbouring
blobs by one. A file gets its name when every blob was written: each blob's hash is proven when it is read, and
together they must have the file's length. Zeros are not written, so holes stay holes and zeros become some.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from node_agent.errors import DamagedError
from node_agent.items import printable
from node_agent.progress import Progress
from node_agent.repository.backend.base import Kind
from node_agent.repository.index import Place
from node_agent.repository.reader import runs_of, size_of
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.restore_crew import Crew, Task
from node_agent.repository.restore_meta import Notes, apply_to_open, meta_of
from node_agent.repository.restore_target import Folder, InTheWay, discard, put_in_place, translate
from node_agent.repository.restore_write import (
    CREATE,
    DAMAGED,
    REFUSED,
    Answer,
    Part,
    Performer,
    Pieces,
    Small,
    SmallFile,
    prove,
)
from node_agent.repository.tree import Node
from node_agent.repository.zeros import is_zero_id

WINDOW = 1024  # blobs of one large file that are looked up together
SMALL_BYTES = 4 << 20
SMALL_BLOBS = 64
BATCH_FILES = 128
BATCH_FOLDERS = 100  # descriptors that go with one message
BATCH_BLOBS = 512
BATCH_BYTES = 8 << 20


@dataclass(slots=True, eq=False)
class FileJob:
    """One file to write. ``failure`` is set once it cannot be whole any more."""

    folder: Folder
    name: bytes
    node: Node
    path: bytes
    new: bool = False  # nothing has its name, as far as is known
    failure: str = ""
    damaged: bool = False

    @property
    def place(self) -> tuple[tuple[bytes, ...], bytes]:
        """Below the target."""
        return self.folder.parts, self.name

    def fail(self, message: str, *, damaged: bool = False) -> None:
        self.failure = self.failure or message
        self.damaged = self.damaged or damaged


@dataclass(slots=True)
class _Large:
    """A file that is being written in parts."""

    job: FileJob
    fd: int
    temporary: bytes
    parts: int = 1  # that are not done yet; one more while they are being planned
    end: int = 0  # how far it was written; what is behind is a hole


@dataclass(slots=True)
class _Batch:
    jobs: list[FileJob] = field(default_factory=list)
    folders: dict[int, int] = field(default_factory=dict)  # descriptor: its number
    blobs: int = 0
    size: int = 0

    @property
    def full(self) -> bool:
        many = len(self.jobs) >= BATCH_FILES or len(self.folders) >= BATCH_FOLDERS
        return many or self.blobs >= BATCH_BLOBS or self.size >= BATCH_BYTES


class ContentWriter:
    """For one thread. ``finished`` hears of each file once it is in place, or cannot be.

    A job's folder is held until then. Raises TargetFull and what ends the whole restore, from any method.
    """

    def __init__(
        self,
        repo: Repository,
        crew: Crew,
        progress: Progress,
        notes: Notes,
        finished: Callable[[FileJob], None],
        *,
        verify: bool = False,
    ) -> None:
        self._repo = repo
        self._crew = crew
        self._progress = progress
        self._notes = notes
        self._finished = finished
        self._verify = verify
        self._batch = _Batch()
        self._open: dict[int, _Large] = {}
        self._own = Performer(repo.files.key, partial(repo.backend.get, Kind.PACK), verify=verify)
        self.bytes_written = 0

    def add(self, job: FileJob) -> None:
        size, blobs = job.node.size, len(job.node.content)
        if size > SMALL_BYTES or blobs > SMALL_BLOBS:
            self._write_large(job)
            return
        batch = self._batch
        batch.jobs.append(job)
        batch.folders.setdefault(job.folder.fd, len(batch.folders))
        batch.blobs += blobs
        batch.size += size
        if batch.full:
            self.flush()

    def flush(self) -> None:
        """Give out what was collected."""
        batch, self._batch = self._batch, _Batch()
        if batch.jobs:
            self._progress.check()
            self._submit(batch)

    def drain(self) -> None:
        """Until everything that was added is finished."""
        self.flush()
        self._crew.drain()

    def discard_unfinished(self) -> None:
        """After a failure, and when the crew has ended: no half files."""
        for large in self._open.values():
            os.close(large.fd)
            discard(large.job.folder, large.temporary)
        self._open.clear()

    # --- small files ---

    def _submit(self, batch: _Batch) -> None:
        ids = dict.fromkeys(blob_id for job in batch.jobs for blob_id in job.node.content)
        places = self._repo.index.places(BlobKind.DATA, list(ids))
        jobs: list[FileJob] = []
        files: list[SmallFile] = []
        wanted: dict[bytes, Place] = {}
        for job in batch.jobs:
            pieces = _pieces(job, places)
            if pieces is None:
                self._finished(job)
                continue
            jobs.append(job)
            files.append((batch.folders[job.folder.fd], job.new, job.name, job.path, meta_of(job.node), pieces))
            for piece in pieces:
                if type(piece) is bytes:
                    wanted[piece] = places[piece]
        self._progress.set(current=printable(batch.jobs[0].path))
        work = Small(list(runs_of(wanted)), files)
        self._crew.submit(Task(work, list(batch.folders), lambda answer: self._small_done(jobs, files, answer)))

    def _small_done(self, jobs: Sequence[FileJob], files: Sequence[SmallFile], answer: Answer) -> None:
        self._take(answer)
        for number, kind, code, message in answer.failures:
            if kind == DAMAGED:
                self._write_again(jobs[number], files[number])
            else:
                self._refused(jobs[number], kind, code, message)
        self._progress.add(done_bytes=sum(job.node.size for job in jobs))
        for job in jobs:
            self._finished(job)

    def _write_again(self, job: FileJob, file: SmallFile) -> None:
        """With whatever copies of its blobs there are."""
        try:
            blobs = {piece: self._copy_of(piece) for piece in file[-1] if isinstance(piece, bytes)}
        except DamagedError as error:
            job.fail(str(error), damaged=True)
            return
        answer = self._own.write_alone(job.folder.fd, file, blobs)
        self._take(answer)
        for _, kind, code, message in answer.failures:
            self._refused(job, kind, code, message)

    def _refused(self, job: FileJob, kind: int, code: int, message: str) -> None:
        if kind == REFUSED and code:
            self._failed(job, OSError(code, message))
        else:
            job.fail(message)

    def _take(self, answer: Answer) -> None:
        self._progress.check()
        self._notes.merge(answer.notes)
        self.bytes_written += answer.written

    def _copy_of(self, blob_id: bytes) -> bytes:
        """Any copy of a blob. Raises DamagedError."""
        return self._repo.load_blob(BlobKind.DATA, blob_id)

    # --- large files ---

    def _write_large(self, job: FileJob) -> None:
        temporary = self._own.names.next()
        try:
            fd = os.open(temporary, CREATE, 0o600, dir_fd=job.folder.fd)
        except OSError as error:
            self._failed(job, error)
            self._finished(job)
            return
        large = self._open[id(job)] = _Large(job, fd, temporary)
        self._progress.set(current=printable(job.path))
        offset = 0
        for ids in _windows(job.node.content):
            if job.failure:
                break
            offset = self._write_window(large, ids, offset)
        if not job.failure and offset != job.node.size:
            job.fail(f"its blobs have {offset} bytes instead of {job.node.size}.", damaged=True)
        self._part_done(large)

    def _write_window(self, large: _Large, ids: Sequence[bytes], offset: int) -> int:
        """Give out one window of a file's blobs, the first of which lies at ``offset``; returns where the next does."""
        found = self._repo.index.places(BlobKind.DATA, list(dict.fromkeys(ids)))
        offsets: dict[bytes, list[int]] = {}
        zeros = 0
        for blob_id in ids:
            if blob_id not in found:
                large.job.fail(_missing(blob_id), damaged=True)
                return offset
            size = size_of(found[blob_id])
            if is_zero_id(blob_id, size):
                zeros += size
            else:
                offsets.setdefault(blob_id, []).append(offset)
            offset += size
        self._progress.add(done_bytes=zeros)
        for run in runs_of({blob_id: found[blob_id] for blob_id in offsets}):
            self._progress.check()
            if large.job.failure:
                break
            part = Part([run], {blob_id: offsets[blob_id] for blob_id, *_ in run[1]})
            size = sum(size_of(found[blob_id]) * len(offsets[blob_id]) for blob_id in part.offsets)
            large.parts += 1
            self._crew.submit(Task(part, [large.fd], self._on_part(large, part, size)))
        return offset

    def _on_part(self, large: _Large, part: Part, size: int) -> Callable[[Answer], None]:
        def done(answer: Answer) -> None:
            self._take(answer)
            for _, kind, code, message in answer.failures:
                self._refused(large.job, kind, code, message)
            large.end = max(large.end, answer.end)
            for blob_id in answer.hurt:
                self._heal(large, blob_id, part.offsets[blob_id])
            self._progress.add(done_bytes=size)
            self._part_done(large)

        return done

    def _heal(self, large: _Large, blob_id: bytes, offsets: Sequence[int]) -> None:
        """Write another copy of a blob, if there is one."""
        if large.job.failure:
            return
        try:
            content = self._copy_of(blob_id)
            answer = self._own.place(large.fd, content, offsets)
        except DamagedError as error:
            large.job.fail(str(error), damaged=True)
            return
        except OSError as error:
            self._failed(large.job, error)
            return
        self.bytes_written += answer.written
        large.end = max(large.end, answer.end)

    def _part_done(self, large: _Large) -> None:
        large.parts -= 1
        if large.parts:
            return
        placed = not large.job.failure and self._complete(large)
        os.close(large.fd)
        del self._open[id(large.job)]
        if not placed:
            discard(large.job.folder, large.temporary)
        self._finished(large.job)

    def _complete(self, large: _Large) -> bool:
        job = large.job
        try:
            if large.end < job.node.size:
                os.truncate(large.fd, job.node.size)
            if self._verify and (wrong := prove(large.fd, self._sizes(job))):
                job.fail(wrong)
                return False
            apply_to_open(large.fd, meta_of(job.node), job.path, self._notes)
            put_in_place(job.folder, large.temporary, job.name)
        except OSError as error:
            self._failed(job, error)
            return False
        except InTheWay as error:
            job.fail(str(error))
            return False
        return True

    def _sizes(self, job: FileJob) -> Iterator[tuple[bytes, int]]:
        for ids in _windows(job.node.content):
            sizes = self._repo.blob_sizes(BlobKind.DATA, ids)
            for blob_id in ids:
                self._progress.check()
                yield blob_id, sizes[blob_id]

    def _failed(self, job: FileJob, error: OSError) -> None:
        whole = translate(error, job.path)
        if whole is not None:
            raise whole from error
        job.fail(f"It cannot be written: {error.strerror}.")


def _pieces(job: FileJob, places: Mapping[bytes, Place]) -> Pieces | None:
    """A small file's content as the crew is told it; None, and the job failed, if it cannot be whole."""
    pieces: Pieces = []
    length = 0
    for blob_id in job.node.content:
        place = places.get(blob_id)
        if place is None:
            job.fail(_missing(blob_id), damaged=True)
            return None
        size = size_of(place)
        pieces.append(size if is_zero_id(blob_id, size) else blob_id)
        length += size
    if length != job.node.size:
        job.fail(f"its blobs have {length} bytes instead of {job.node.size}.", damaged=True)
        return None
    return pieces


def _windows(ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(ids), WINDOW):
        yield ids[start : start + WINDOW]


def _missing(blob_id: bytes) -> str:
    return f"data blob {blob_id.hex()} is missing: no index file names it."
