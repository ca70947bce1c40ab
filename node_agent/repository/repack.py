"""Moving blobs from packs to new packs as they are sealed: each is opened and proven first, then copied unchanged.

Order on the store: a pack is durable before an index file names it. What is interrupted leaves blobs twice, or packs
that no index names; never a blob less.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from node_agent.errors import DamagedError, ObjectMissing
from node_agent.repository.backend.base import Buffer, Kind
from node_agent.repository.compression import compress
from node_agent.repository.index_file import MAX_BLOBS, PackEntry, save_index_file
from node_agent.repository.pack import BlobKind, PackBuilder, PackedBlob, open_blob
from node_agent.repository.sealed import SealedFiles

_WORKERS = 2
_AHEAD = 3  # packs read ahead
_MAX_GAP = 256 << 10
_LEVEL = 3
_RUN_BYTES = 1 << 20  # blobs are hashed and written that many bytes at a time: one by one small ones cost twice as much
_RUN_BLOBS = 256

Wanted = tuple[str, Sequence[PackedBlob]]


@dataclass(slots=True)
class ReadPack:
    """Blobs of one pack: sealed and proven to be what the index says, and those that are not."""

    pack: str
    good: list[tuple[PackedBlob, Buffer]] = field(default_factory=list)
    bad: list[tuple[PackedBlob, DamagedError]] = field(default_factory=list)


def read_packs(files: SealedFiles, wanted: Iterable[Wanted], workers: int = _WORKERS) -> Iterator[ReadPack]:
    """Packs in the order given, read and proven ahead on threads. Damage is in the result, not raised."""
    with ThreadPoolExecutor(workers, thread_name_prefix="repack") as pool:
        pending: deque[Future[ReadPack]] = deque()
        try:
            for pack, blobs in wanted:
                pending.append(pool.submit(read_pack, files, pack, blobs))
                if len(pending) >= _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def read_pack(files: SealedFiles, pack: str, blobs: Sequence[PackedBlob]) -> ReadPack:
    """Where an older version of the pack is right (see ObjectLock), that one."""
    found = _read_pack(files, pack, blobs)
    lock = files.backend.object_lock
    if found.bad and lock is not None and lock.another_version(Kind.PACK, pack):
        return _read_pack(files, pack, blobs)
    return found


def _read_pack(files: SealedFiles, pack: str, blobs: Sequence[PackedBlob]) -> ReadPack:
    found = ReadPack(pack)
    for run in _runs(sorted(blobs, key=lambda blob: blob.offset)):
        start = run[0].offset
        try:
            data = memoryview(files.backend.get(Kind.PACK, pack, start, run[-1].offset + run[-1].length - start))
        except ObjectMissing:
            found.bad += [
                (b, DamagedError(f"pack {pack} is missing; it held {b.kind} blob {b.id.hex()}.")) for b in run
            ]
            continue
        for blob in run:
            sealed = data[blob.offset - start : blob.offset - start + blob.length]
            try:
                open_blob(files.key, pack, blob, sealed)
            except DamagedError as error:
                found.bad.append((blob, error))
            else:
                found.good.append((blob, sealed))
    return found


def _runs(blobs: Sequence[PackedBlob]) -> Iterator[list[PackedBlob]]:
    run: list[PackedBlob] = []
    for blob in blobs:
        if run and blob.offset - (run[-1].offset + run[-1].length) > _MAX_GAP:
            yield run
            run = []
        run.append(blob)
    if run:
        yield run


@dataclass(slots=True)
class _Run:
    """Blobs that come one after the other in a new pack."""

    blobs: list[tuple[bytes, int, int]] = field(default_factory=list)  # id, sealed length, uncompressed length
    parts: list[Buffer] = field(default_factory=list)
    size: int = 0

    def add(self, blob: PackedBlob, sealed: Buffer) -> None:
        self.blobs.append((blob.id, len(sealed), blob.raw_length))
        self.parts.append(sealed)
        self.size += len(sealed)

    @property
    def full(self) -> bool:
        return self.size >= _RUN_BYTES or len(self.blobs) >= _RUN_BLOBS


class PackStore:
    """Collects blobs into new packs of one kind each. Nothing is promised before :meth:`flush`. One thread."""

    def __init__(
        self,
        files: SealedFiles,
        guard: Callable[[], None],
        on_index: Callable[[str, Sequence[PackEntry]], None] = lambda _name, _packs: None,
        pack_size: int = 0,
    ) -> None:
        """``guard`` is called before each write; ``on_index`` hears of each index file written, with its packs."""
        self.stored_bytes = 0
        self.packs = 0
        self._files = files
        self._guard = guard
        self._on_index = on_index
        self._pack_size = pack_size
        self._runs: dict[BlobKind, _Run] = {}
        self._builders: dict[BlobKind, PackBuilder] = {}
        self._unindexed: list[PackEntry] = []

    def add(self, blob: PackedBlob, sealed: Buffer) -> None:
        """A blob sealed with this repository's key; the caller has proven it."""
        run = self._runs.setdefault(blob.kind, _Run())
        run.add(blob, sealed)
        if run.full:
            self._take_run(blob.kind)

    def _take_run(self, kind: BlobKind) -> None:
        run = self._runs.pop(kind)
        builder = self._builders.get(kind)
        if builder is not None and not builder.fits(run.size, len(run.blobs)):
            self._store(self._builders.pop(kind))
            builder = None
        if builder is None:
            builder = self._builders[kind] = PackBuilder(kind, self._pack_size)
        builder.add_run(run.blobs, b"".join(run.parts))
        if builder.full:
            self._store(self._builders.pop(kind))

    def add_content(self, kind: BlobKind, content: bytes) -> bytes:
        """Compress, seal, prove and add; returns the blob's id."""
        blob_id = hashlib.sha256(content).digest()
        plain, raw_length = compress(content, _LEVEL), len(content)
        if kind is BlobKind.DATA and len(plain) >= len(content):
            plain, raw_length = content, 0
        sealed = self._files.key.seal(plain)
        blob = PackedBlob(kind, blob_id, 0, len(sealed), raw_length)
        open_blob(self._files.key, "(not yet stored)", blob, sealed)
        self.add(blob, sealed)
        return blob_id

    def flush(self) -> None:
        """Every pack durable and named by an index file."""
        for kind in list(self._runs):
            self._take_run(kind)
        for kind in list(self._builders):
            self._store(self._builders.pop(kind))
        self._write_index()

    def _store(self, builder: PackBuilder) -> None:
        name, parts = builder.finish(self._files.key)
        self._guard()
        self._files.backend.put(Kind.PACK, name, parts)
        if sum(len(blobs) for _, blobs in self._unindexed) + len(builder.blobs) > MAX_BLOBS:
            self._write_index()
        self._unindexed.append((name, builder.blobs))
        self.stored_bytes += builder.size
        self.packs += 1

    def _write_index(self) -> None:
        packs, self._unindexed = self._unindexed, []
        if packs:
            self._guard()
            self._on_index(save_index_file(self._files, packs), packs)
