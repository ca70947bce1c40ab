"""Storing blobs: hash, known?, compress, seal, pack, write; on threads, with bounded memory.

Order on the store, which is all that a crash can cut: a pack is durable before an index file names it; index files are
written when 20,000 blobs wait, when ten minutes have passed, and by :meth:`BlobWriter.flush`. A snapshot is none of
this module's business: whoever writes one flushes first. What a killed run leaves are packs that no index names, and
packs that one does: the next run finds those known and goes on from there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypeVar

from node_agent.errors import BrsError, RepositoryError
from node_agent.progress import Progress
from node_agent.repository.backend.base import Buffer, Kind
from node_agent.repository.byte_budget import ByteBudget
from node_agent.repository.compression import level_of
from node_agent.repository.heap import share_heaps
from node_agent.repository.index import Index
from node_agent.repository.index_file import MAX_AGE_S, PackEntry, save_index_file
from node_agent.repository.pack import BlobKind, PackBuilder
from node_agent.repository.sealed import SealedFiles
from node_agent.repository.sealing import EVERYTHING, SAMPLE, Prepared, SealedBlob, Sealer

logger = logging.getLogger(__name__)

T = TypeVar("T")

BYTES_IN_FLIGHT = 32 << 20
_PACKS_IN_FLIGHT = 2
MAX_BLOBS = 20_000  # in an index file; more would be allowed, but all of them wait in memory with their claims
_MAX_WORKERS = 8  # what the one uploading thread can still hash and send
_SMALL = 64 << 10  # blobs up to this size are stored in batches: a thread's handling costs more than their hashing
_BATCH_BLOBS = 128
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Saved:
    id: bytes
    new: bool
    stored_bytes: int  # sealed size in the pack; 0 if the blob was known


class Pending(Protocol):
    """A blob on its way."""

    def result(self) -> Saved:
        """Waits; raises what went wrong."""
        ...


_Blob = tuple[BlobKind, Buffer | Prepared]


@dataclass(slots=True)
class _Batch:
    blobs: list[_Blob] = field(default_factory=list)
    size: int = 0
    saved: Future[list[Saved]] = field(default_factory=Future)

    @property
    def full(self) -> bool:
        return len(self.blobs) >= _BATCH_BLOBS or self.size >= _BATCH_BYTES


@dataclass(frozen=True, slots=True)
class _InBatch:
    writer: BlobWriter
    batch: _Batch
    number: int

    def result(self) -> Saved:
        self.writer.send(self.batch)
        return self.batch.saved.result()[self.number]


def usable_processors() -> int:
    return len(os.sched_getaffinity(0))


def _id(data: Buffer | Prepared) -> bytes:
    return data.id if isinstance(data, Prepared) else hashlib.sha256(data).digest()


class BlobWriter:
    """A context manager: leaving it without an error flushes; with one, what is durable is still indexed."""

    def __init__(
        self,
        files: SealedFiles,
        index: Index,
        guard: Callable[[], None],
        progress: Progress,
        *,
        compression: str = "auto",
        workers: int | None = None,
        verify_write: bool = False,
        pack_size: int = 0,
    ) -> None:
        """``guard`` is called before each write to the store and raises when the lock was lost.

        ``workers``: threads that hash, compress and seal; by default one for each processor, two to eight.
        """
        share_heaps()
        self.new_bytes = 0
        self.stored_bytes = 0
        self.new_blobs = 0
        self._files = files
        self._index = index
        self._guard = guard
        self._progress = progress
        self._pack_size = pack_size
        self.sealer = Sealer(files.key, level_of(compression), EVERYTHING if verify_write else SAMPLE)
        self._budget = ByteBudget(BYTES_IN_FLIGHT)
        self._gathering = threading.Lock()
        self._batch = _Batch()
        self._state = threading.Lock()  # claims, builders, unindexed packs, figures
        # Of this run, until an index file names them.
        self._claims: dict[BlobKind, set[bytes]] = {kind: set() for kind in BlobKind}
        self._builders: dict[BlobKind, PackBuilder] = {}
        self._unindexed: list[PackEntry] = []
        self._index_due = time.monotonic() + MAX_AGE_S
        self._pack_slots = threading.Semaphore(_PACKS_IN_FLIGHT)
        self._error: BaseException | None = None
        self._workers = ThreadPoolExecutor(
            workers or max(2, min(_MAX_WORKERS, usable_processors())), thread_name_prefix="store"
        )
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="upload")

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self.flush()
            else:
                self._keep_what_is_durable(error)
        finally:
            self._workers.shutdown(wait=True, cancel_futures=True)
            self._uploader.shutdown(wait=True)

    def submit(self, kind: BlobKind, data: Buffer) -> Pending:
        """Store one blob in the background; blocks while too much is in flight.

        ``data`` must not be changed until the result is there. Raises what went wrong with earlier blobs, Cancelled and
        Interrupted. Counts ``new_bytes`` and ``stored_bytes`` in the progress by itself. Small blobs wait until there
        are many, or until one of their results is asked for.
        """
        size = len(data)
        if not size:
            raise ValueError("an empty blob cannot be stored")
        self._still_wanted()
        if size > _SMALL:
            return self._in_background(self._store_one, kind, data, size=size)
        with self._gathering:
            batch = self._batch
            batch.blobs.append((kind, data))
            batch.size += size
            handle = _InBatch(self, batch, len(batch.blobs) - 1)
        if batch.full:
            self.send(batch)
        return handle

    def submit_run(self, kind: BlobKind, blobs: Sequence[Buffer | Prepared]) -> Future[list[Saved]]:
        """As :meth:`submit`, of several that one thread stores together: a MiB or so of them, or one that is larger."""
        self._still_wanted()
        size = sum(map(len, blobs))
        return self._in_background(self._store, [(kind, blob) for blob in blobs], size, size=size)

    def send(self, batch: _Batch) -> None:
        """Let a batch be stored, if it is still gathering."""
        with self._gathering:
            if batch is not self._batch:
                return
            self._batch = _Batch()
        if not batch.blobs:
            return
        try:
            self._in_background(self._store_batch, batch, size=batch.size)
        except BaseException as error:
            batch.saved.set_exception(error)
            raise

    def _in_background(self, work: Callable[..., T], *args: object, size: int) -> Future[T]:
        self._budget.acquire(size, self._still_wanted)
        self._progress.add(waiting_bytes=size)
        try:
            return self._workers.submit(work, *args)
        except BaseException:
            self._budget.release(size)
            self._progress.add(waiting_bytes=-size)
            raise

    def save(self, kind: BlobKind, data: Buffer) -> Saved:
        return self.submit(kind, data).result()

    def flush(self) -> None:
        """Every pack durable, then every index file. Raises what went wrong in the background."""
        self.send(self._batch)
        self._budget.wait_empty()
        self._raise_error()
        with self._state:
            rest = [builder for builder in self._builders.values() if builder.blobs]
            self._builders.clear()
        for builder in rest:
            self._dispatch(builder)
        self._uploader.submit(self._write_index, True).result()  # after the packs: there is one uploader
        self._raise_error()

    def _still_wanted(self) -> None:
        self._progress.check()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _store_one(self, kind: BlobKind, data: Buffer) -> Saved:
        return self._store([(kind, data)], len(data))[0]

    def _store_batch(self, batch: _Batch) -> None:
        try:
            batch.saved.set_result(self._store(batch.blobs, batch.size))
        except BaseException as error:  # noqa: BLE001 - raised to whoever asks for a result, and by the next submit
            batch.saved.set_exception(error)
        batch.blobs = []

    def _store(self, blobs: Sequence[_Blob], size: int) -> list[Saved]:
        try:
            return self._store_checked(blobs)
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            self._progress.add(waiting_bytes=-size)
            self._budget.release(size)

    def _store_checked(self, blobs: Sequence[_Blob]) -> list[Saved]:
        ids = [_id(data) for _, data in blobs]
        self._raise_error()
        different: dict[BlobKind, dict[bytes, Buffer | Prepared]] = {}
        for blob_id, (kind, data) in zip(ids, blobs, strict=True):
            different.setdefault(kind, {}).setdefault(blob_id, data)
        stored: dict[bytes, int] = {}
        for kind, its in different.items():
            mine = self._claim(kind, set(its))
            sealed, content = self.sealer.seal(kind, [blob for blob in its.items() if blob[0] in mine])
            self.add_sealed(kind, sealed, content)
            stored.update((blob.id, blob.length) for blob in sealed)
        # Of two alike the first is the new one.
        return [Saved(blob_id, new=blob_id in stored, stored_bytes=stored.pop(blob_id, 0)) for blob_id in ids]

    # --- for whoever seals by himself ---

    def claim(self, kind: BlobKind, ids: Sequence[bytes]) -> list[int]:
        """The positions of those that the caller is to seal and to hand to :meth:`add_sealed`; ids may be empty.

        A claim that is not kept leaves a blob missing: the run must then fail. Raises as :meth:`submit` does.
        """
        self._still_wanted()
        mine = self._claim(kind, {blob_id for blob_id in ids if blob_id})
        wanted: list[int] = []
        for position, blob_id in enumerate(ids):
            if blob_id in mine:
                mine.remove(blob_id)  # of two alike the first
                wanted.append(position)
        return wanted

    def add_sealed(self, kind: BlobKind, blobs: Sequence[SealedBlob], sealed: Buffer) -> None:
        """Take over claimed blobs that lie one after the other in ``sealed``, about a MiB at most."""
        self._raise_error()
        if not blobs:
            return
        for builder in self._append(kind, blobs, sealed):
            self._dispatch(builder)
        self._progress.add(new_bytes=sum(blob.size for blob in blobs), stored_bytes=len(sealed))

    def _waits(self, kind: BlobKind, size: int) -> None:
        """Content that is sealed and not in the store yet (negative: it has come there). Trees are nobody's bytes."""
        if kind is BlobKind.DATA:
            self._progress.add(waiting_bytes=size)

    def _claim(self, kind: BlobKind, ids: set[bytes]) -> set[bytes]:
        """Those that are this caller's to store: in no index, and claimed by nobody else."""
        with self._state:
            mine = ids - self._claims[kind]
            self._claims[kind] |= mine
        unknown = self._index.missing(kind, mine)
        if len(unknown) < len(mine):
            with self._state:
                self._claims[kind] -= mine - unknown  # the index says it; remembering it twice would cost memory
        return unknown

    def _append(self, kind: BlobKind, blobs: Sequence[SealedBlob], sealed: Buffer) -> list[PackBuilder]:
        """Put a run of blobs into the open pack of their kind; returns the packs that became ready by that."""
        ready: list[PackBuilder] = []
        size = len(sealed)
        with self._state:
            builder = self._builders.pop(kind, None)
            if builder is not None and not builder.fits(size, len(blobs)):
                ready.append(builder)
                builder = None
            builder = builder or PackBuilder(kind, self._pack_size)
            if not builder.fits(size, len(blobs)):
                raise RepositoryError(f"{kind.capitalize()} of {size} bytes are more than a pack may hold.")
            builder.add_run(((blob.id, blob.length, blob.raw_length) for blob in blobs), sealed)
            if builder.full:
                ready.append(builder)
            else:
                self._builders[kind] = builder
            content = sum(blob.size for blob in blobs)
            builder.content_bytes += content
            self._waits(kind, content)
            self.new_bytes += content
            self.stored_bytes += size
            self.new_blobs += len(blobs)
        return ready

    def _dispatch(self, builder: PackBuilder) -> None:
        self._pack_slots.acquire()
        try:
            self._uploader.submit(self._upload, builder)
        except BaseException:
            self._pack_slots.release()
            raise

    def _upload(self, builder: PackBuilder) -> None:
        try:
            if self._error is not None:
                return
            name, parts = builder.finish(self._files.key)
            self._guard()
            self._files.backend.put(Kind.PACK, name, parts)
            self._waits(builder.kind, -builder.content_bytes)
            builder.parts.clear()
            waiting = sum(len(blobs) for _, blobs in self._unindexed)
            if waiting + len(builder.blobs) > MAX_BLOBS:
                self._write_index(True)
            self._unindexed.append((name, builder.blobs))
            self._write_index(time.monotonic() >= self._index_due)
        except BaseException as error:  # noqa: BLE001 - kept, and raised to the caller by the next submit or flush
            self._error = self._error or error
        finally:
            self._pack_slots.release()

    def _write_index(self, due: bool) -> None:
        """Name the finished packs in an index file. Only ever runs on the uploader's one thread."""
        if not due or self._error is not None:
            return
        packs, self._unindexed = self._unindexed, []
        self._index_due = time.monotonic() + MAX_AGE_S
        if not packs:
            return
        self._guard()
        name = save_index_file(self._files, packs)
        self._index.add_file(name, packs)
        with self._state:
            for _, blobs in packs:
                self._claims[blobs[0].kind].difference_update(blob.id for blob in blobs)  # a pack is of one kind

    def _keep_what_is_durable(self, reason: BaseException) -> None:
        """After an error: name finished packs, so that the next run need not store them again. Never raises."""
        failed_before = self._error is not None
        self._error = self._error or reason  # workers stop at their next step
        self._budget.wait_empty()
        if failed_before:
            return  # the store, or this machine, is not to be trusted now; unnamed packs are harmless
        try:
            self._uploader.submit(self._index_finished).result()
        except BrsError as error:
            logger.warning("finished packs could not be indexed: %s", error)

    def _index_finished(self) -> None:
        self._error = None
        self._write_index(True)


class CountingWriter(BlobWriter):
    """Of a dry run: does all that a writer does but store anything, so that its figures are those of a real run.

    Ids of new blobs are held to the end.
    """

    def _upload(self, builder: PackBuilder) -> None:
        self._waits(builder.kind, -builder.content_bytes)
        builder.parts.clear()
        self._pack_slots.release()
