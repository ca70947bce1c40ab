"""Loading blobs: found by the index, read in few ranged requests, authenticated, decompressed, hash proven."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from node_agent.errors import DamagedError, ObjectMissing
from node_agent.repository.backend.base import Kind
from node_agent.repository.crypto import OVERHEAD
from node_agent.repository.index import Index, Location, Place
from node_agent.repository.pack import BlobKind, PackedBlob, open_blob
from node_agent.repository.sealed import SealedFiles

_BATCH = 4096
_MAX_RUN = 4 << 20  # bytes of one ranged read, unless one blob is larger
_MAX_GAP = 256 << 10  # unwanted bytes that are cheaper to read than to skip
_WORKERS = 2
_AHEAD = 6  # runs in flight
_MAX_HELD = 48 << 20  # bytes of content in flight, unless one blob is larger: lists of disks compress very well

PlacedBlob = tuple[bytes, int, int, int]  # id, offset, sealed length, uncompressed length or 0
Loaded = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Run:
    """Neighbouring blobs of one pack, read at once."""

    pack: str
    blobs: list[PackedBlob]

    @property
    def offset(self) -> int:
        return self.blobs[0].offset

    @property
    def end(self) -> int:
        return self.blobs[-1].offset + self.blobs[-1].length


class BlobReader:
    def __init__(self, files: SealedFiles, index: Index) -> None:
        self._files = files
        self._index = index

    def load(self, kind: BlobKind, blob_id: bytes) -> bytes:
        """One blob. Tries every copy that the index lists. Raises DamagedError (pack and blob)."""
        failure = DamagedError(f"{kind} blob {blob_id.hex()} is missing: no index file names it.")
        for location in self._index.locations(kind, blob_id):
            try:
                return self._load_from(location)
            except DamagedError as error:
                failure = error
        raise failure

    def load_many(self, kind: BlobKind, ids: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Each id once with its content, grouped by pack, in no order. Raises DamagedError."""
        wanted = iter(ids)
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="load") as pool:
            pending: deque[Future[Loaded]] = deque()
            sizes: deque[int] = deque()
            try:
                while batch := set(islice(wanted, _BATCH)):
                    for run in _parts(self._plan(kind, batch)):
                        size = sum(blob.size for blob in run.blobs)
                        while pending and (len(pending) >= _AHEAD or sum(sizes) + size > _MAX_HELD):
                            sizes.popleft()
                            yield from pending.popleft().result()
                        pending.append(pool.submit(self._load_run, run))
                        sizes.append(size)
                while pending:
                    yield from pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def load_together(self, kind: BlobKind, ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """A few blobs, without threads. Raises DamagedError."""
        return dict(pair for run in self._plan(kind, set(ids)) for pair in self._load_run(run))

    def load_fitting(self, kind: BlobKind, ids: Iterable[bytes], room: int) -> dict[bytes, bytes]:
        """Those that the index lists, as far as there is room for their content. Raises DamagedError."""
        places: list[Location] = []
        found = self._index.locate(kind, list(dict.fromkeys(ids)))
        for first, *_others in found.values():
            if first.blob.size <= room:
                places.append(first)
                room -= first.blob.size
        runs = (_Run(pack, blobs) for pack, blobs in plan_runs(places))
        return dict(pair for run in runs for pair in self._load_run(run))

    def _plan(self, kind: BlobKind, ids: set[bytes]) -> list[_Run]:
        found = self._index.locate(kind, sorted(ids))
        if absent := ids - found.keys():
            raise DamagedError(f"{kind} blob {min(absent).hex()} is missing: no index file names it.")
        first = (places[0] for places in found.values())
        return [_Run(pack, blobs) for pack, blobs in plan_runs(first)]

    def _load_run(self, run: _Run) -> Loaded:
        try:
            data = memoryview(self._files.backend.get(Kind.PACK, run.pack, run.offset, run.end - run.offset))
        except ObjectMissing:
            return [(blob.id, self.load(blob.kind, blob.id)) for blob in run.blobs]  # perhaps there are other copies
        loaded: Loaded = []
        for blob in run.blobs:
            start = blob.offset - run.offset
            try:
                content = open_blob(self._files.key, run.pack, blob, data[start : start + blob.length])
            except DamagedError:
                content = self.load(blob.kind, blob.id)
            loaded.append((blob.id, content))
        return loaded

    def _load_from(self, location: Location) -> bytes:
        blob = location.blob
        try:
            sealed = self._files.backend.get(Kind.PACK, location.pack, blob.offset, blob.length)
        except ObjectMissing as error:
            raise DamagedError(f"pack {location.pack} is missing; it held {blob.kind} blob {blob.id.hex()}.") from error
        try:
            return open_blob(self._files.key, location.pack, blob, sealed)
        except DamagedError:
            lock = self._files.backend.object_lock
            if lock is None or not lock.another_version(Kind.PACK, location.pack):
                raise
        sealed = self._files.backend.get(Kind.PACK, location.pack, blob.offset, blob.length)
        return open_blob(self._files.key, location.pack, blob, sealed)


def _parts(runs: Iterable[_Run]) -> Iterator[_Run]:
    """The runs, cut so that the content of none is larger than may be held."""
    for run in runs:
        blobs: list[PackedBlob] = []
        size = 0
        for blob in run.blobs:
            if blobs and size + blob.size > _MAX_HELD:
                yield _Run(run.pack, blobs)
                blobs, size = [], 0
            blobs.append(blob)
            size += blob.size
        yield _Run(run.pack, blobs)


def plan_runs(places: Iterable[Location]) -> Iterator[tuple[str, list[PackedBlob]]]:
    """Packs with neighbouring blobs that are best read at once."""
    pack, blobs = "", []  # type: tuple[str, list[PackedBlob]]
    for place in sorted(places, key=lambda p: (p.pack, p.blob.offset)):
        blob = place.blob
        if (
            blobs
            and pack == place.pack
            and blob.offset - (blobs[-1].offset + blobs[-1].length) <= _MAX_GAP
            and blob.offset + blob.length - blobs[0].offset <= _MAX_RUN
        ):
            blobs.append(blob)
            continue
        if blobs:
            yield pack, blobs
        pack, blobs = place.pack, [blob]
    if blobs:
        yield pack, blobs


def size_of(place: Place) -> int:
    """Of the blob's content."""
    return place[3] or place[2] - OVERHEAD


def runs_of(places: Mapping[bytes, Place]) -> Iterator[tuple[str, list[PlacedBlob]]]:
    """As plan_runs, of blobs as plain tuples."""
    pack, begin, end, blobs = "", 0, 0, []  # type: str, int, int, list[PlacedBlob]
    for here, offset, length, raw_length, blob_id in sorted((*place, blob_id) for blob_id, place in places.items()):
        if here != pack or offset - end > _MAX_GAP or offset + length - begin > _MAX_RUN:
            if blobs:
                yield pack, blobs
            pack, begin, blobs = here, offset, []
        blobs.append((blob_id, offset, length, raw_length))
        end = offset + length
    if blobs:
        yield pack, blobs
