"""Moving blobs from packs to new packs as they are sealed: each is opened and proven first, then copied unchanged.

Order on the store: a pack is durable before an index file names it. What is interrupted leaves blobs twice, or packs
that no index names; never a blob less.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from node_agent.errors import DamagedError, ObjectMissing
from node_agent.repository.backend.base import Buffer, Kind
from node_agent.repository.compression import compress
from node_agent.repository.index_file import MAX_AGE_S, MAX_BLOBS, PackEntry, save_index_file
from node_agent.repository.pack import BlobKind, PackBuilder, PackedBlob, open_blob
from node_agent.repository.prover import Prover, side_by_side
from node_agent.repository.sealed import SealedFiles

_HELD = 32 << 20  # bytes read and not taken yet
_PUTS = 2  # packs on their way to the store
_MAX_GAP = 256 << 10
_LEVEL = 3
_RUN_BYTES = 1 << 20  # blobs are hashed and written that many bytes at a time: one by one small ones cost twice as much
_RUN_BLOBS = 256

Wanted = tuple[str, Sequence[PackedBlob]]


class Run(NamedTuple):
    """Blobs of a pack that were read at once, ordered by offset, and the pack's bytes from ``start`` on."""

    blobs: Sequence[PackedBlob]
    content: memoryview
    start: int

    def sealed(self, blob: PackedBlob) -> memoryview:
        return self.content[blob.offset - self.start : blob.offset - self.start + blob.length]


@dataclass(slots=True)
class ReadPack:
    """Blobs of one pack: sealed and proven to be what the index says, and those that are not."""

    pack: str
    wanted_bytes: int = 0  # of both
    good: list[Run] = field(default_factory=list)
    bad: list[tuple[PackedBlob, DamagedError]] = field(default_factory=list)

    def blobs(self) -> Iterator[tuple[PackedBlob, Buffer]]:
        """Those that are good, one by one."""
        return ((blob, run.sealed(blob)) for run in self.good for blob in run.blobs)


def read_packs(files: SealedFiles, wanted: Iterable[Wanted], prover: Prover) -> Generator[ReadPack]:
    """Packs in the order given, read and proven ahead on threads. Damage is in the result, not raised.

    Raises WorkerDied. Whoever leaves it early closes it, so that nothing goes on behind his back.
    """
    works = (
        (sum(blob.length for blob in blobs), partial(read_pack, files, pack, blobs, prover)) for pack, blobs in wanted
    )
    return side_by_side(works, prover.threads, _HELD)


def read_pack(files: SealedFiles, pack: str, blobs: Sequence[PackedBlob], prover: Prover | None = None) -> ReadPack:
    """Where an older version of the pack is right (see ObjectLock), that one. A few blobs need no ``prover``."""
    prover = prover or Prover(files.key, processes=0)
    found = _read_pack(files, pack, blobs, prover)
    lock = files.backend.object_lock
    if found.bad and lock is not None and lock.another_version(Kind.PACK, pack):
        return _read_pack(files, pack, blobs, prover)
    return found


def _read_pack(files: SealedFiles, pack: str, blobs: Sequence[PackedBlob], prover: Prover) -> ReadPack:
    found = ReadPack(pack, sum(blob.length for blob in blobs))
    for run in _runs(sorted(blobs, key=lambda blob: blob.offset)):
        start = run[0].offset
        try:
            content = memoryview(files.backend.get(Kind.PACK, pack, start, run[-1].offset + run[-1].length - start))
        except ObjectMissing:
            found.bad += [
                (b, DamagedError(f"pack {pack} is missing; it held {b.kind} blob {b.id.hex()}.")) for b in run
            ]
            continue
        bad = prover.prove(pack, run, content, start)
        found.bad += bad
        hurt = {blob for blob, _ in bad}
        good = [blob for blob in run if blob not in hurt] if hurt else run
        if good:
            found.good.append(Run(good, content, start))
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
class _Gathered:
    """Blobs that come one after the other in a new pack."""

    blobs: list[tuple[bytes, int, int]] = field(default_factory=list)  # id, sealed length, uncompressed length
    parts: list[Buffer] = field(default_factory=list)
    size: int = 0

    @property
    def full(self) -> bool:
        return self.size >= _RUN_BYTES or len(self.blobs) >= _RUN_BLOBS


class PackStore:
    """Collects blobs into new packs of one kind each. Nothing is promised before :meth:`flush`. For one thread.

    A context manager: after it nothing is on its way to the store any more.
    """

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
        self._gathered: dict[BlobKind, _Gathered] = {}
        self._builders: dict[BlobKind, PackBuilder] = {}
        self._putting: deque[Future[PackEntry]] = deque()
        self._puts = ThreadPoolExecutor(_PUTS, thread_name_prefix="put")
        self._unindexed: list[PackEntry] = []
        self._index_due = time.monotonic() + MAX_AGE_S

    def __enter__(self) -> PackStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._puts.shutdown(cancel_futures=True)

    def add(self, blob: PackedBlob, sealed: Buffer) -> None:
        """A blob sealed with this repository's key; the caller has proven ``sealed`` to be what ``blob`` says."""
        self.add_run(Run([blob._replace(offset=0)], memoryview(sealed), 0))

    def add_run(self, run: Run) -> None:
        """As add, of many. What lies side by side stays together."""
        for kind, blobs in groupby(run.blobs, key=attrgetter("kind")):
            for neighbours in _neighbours(blobs):
                first, last = neighbours[0], neighbours[-1]
                gathered = self._gathered.setdefault(kind, _Gathered())
                gathered.blobs += [(blob.id, blob.length, blob.raw_length) for blob in neighbours]
                part = run.content[first.offset - run.start : last.offset + last.length - run.start]
                gathered.parts.append(part)
                gathered.size += len(part)
                if gathered.full:
                    self._take_gathered(kind)

    def _take_gathered(self, kind: BlobKind) -> None:
        gathered = self._gathered.pop(kind)
        builder = self._builders.get(kind)
        if builder is not None and not builder.fits(gathered.size, len(gathered.blobs)):
            self._store(self._builders.pop(kind))
            builder = None
        if builder is None:
            builder = self._builders[kind] = PackBuilder(kind, self._pack_size)
        builder.add_run(gathered.blobs, b"".join(gathered.parts))
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
        for kind in list(self._gathered):
            self._take_gathered(kind)
        for kind in list(self._builders):
            self._store(self._builders.pop(kind))
        while self._putting:
            self._take_stored()
        self._write_index()

    def _store(self, builder: PackBuilder) -> None:
        if len(self._putting) >= _PUTS:
            self._take_stored()
        self._putting.append(self._puts.submit(self._put, builder))
        self.stored_bytes += builder.size
        self.packs += 1

    def _put(self, builder: PackBuilder) -> PackEntry:
        name, parts = builder.finish(self._files.key)
        self._guard()
        self._files.backend.put(Kind.PACK, name, parts)
        builder.parts.clear()
        return name, builder.blobs

    def _take_stored(self) -> None:
        """Wait for the oldest pack that is on its way."""
        entry = self._putting.popleft().result()
        if sum(len(blobs) for _, blobs in self._unindexed) + len(entry[1]) > MAX_BLOBS:
            self._write_index()
        self._unindexed.append(entry)
        if time.monotonic() >= self._index_due:
            self._write_index()

    def _write_index(self) -> None:
        packs, self._unindexed = self._unindexed, []
        self._index_due = time.monotonic() + MAX_AGE_S
        if packs:
            self._guard()
            self._on_index(save_index_file(self._files, packs), packs)


def _neighbours(blobs: Iterable[PackedBlob]) -> Iterator[list[PackedBlob]]:
    """Blobs that lie side by side, about as many as are hashed together."""
    found: list[PackedBlob] = []
    end = size = 0
    for blob in blobs:
        if found and (blob.offset != end or size >= _RUN_BYTES or len(found) >= _RUN_BLOBS):
            yield found
            found, size = [], 0
        found.append(blob)
        end = blob.offset + blob.length
        size += blob.length
    if found:
        yield found
