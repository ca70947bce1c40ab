"""Reading files and disks of snapshots at any offset, as a mount needs it: cached, ahead of whoever reads on.

    with RandomAccess(repo) as access:
        disk = access.open(snapshot_id, b"/disks/sda.raw")
        disk.read(offset, length)

All may be called from several threads. A blob is loaded once however many want it, kept in a cache of bounded bytes
that all open files share, and proven as always. Zeros known by their id are answered without the store. No lock of
the repository is needed: where a pack has gone meanwhile (a prune), the index is brought up to date and asked again.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate

from node_agent.errors import BrsError, DamagedError, ObjectMissing, SourceError
from node_agent.items import printable
from node_agent.repository.files_browse import find_node, normal_path
from node_agent.repository.ids import Ids
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.zeros import is_zero_id

CACHE_BYTES = 64 << 20
AHEAD_BYTES = 12 << 20  # at most a quarter of the cache
WORKERS = 3
TOGETHER_BYTES = 1 << 20  # of neighbours that are fetched at once
_LOOKED_UP = 4096  # ids


class BlobCache:
    """The blobs used last, within ``limit`` bytes (the newest stays, whatever its size); each loaded once at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._blobs: OrderedDict[bytes, bytes] = OrderedDict()
        self._loading: dict[bytes, Future[bytes]] = {}
        self.size = 0

    def get(self, blob_id: bytes, load: Callable[[bytes], bytes]) -> bytes:
        """Raises what ``load`` raises, in every thread that waits for it; the next one tries anew."""
        with self._lock:
            content = self._blobs.get(blob_id)
            if content is not None:
                self._blobs.move_to_end(blob_id)
                return content
            loading = self._loading.get(blob_id)
            if loading is None:
                mine = self._loading[blob_id] = Future()
        return loading.result() if loading is not None else self._settle(blob_id, mine, load)

    def fill(
        self,
        ids: Sequence[bytes],
        load_together: Callable[[Sequence[bytes]], Mapping[bytes, bytes]],
        load: Callable[[bytes], bytes],
    ) -> None:
        """Load those that are neither here nor on their way, together; what fails then, one by one."""
        with self._lock:
            lacking = [one for one in dict.fromkeys(ids) if one not in self._blobs and one not in self._loading]
            mine: dict[bytes, Future[bytes]] = {blob_id: Future() for blob_id in lacking}
            self._loading |= mine
        found: Mapping[bytes, bytes] = {}
        broken: list[BaseException] = []
        try:
            found = load_together(lacking) if lacking else {}
        except BrsError:
            pass  # which of them it concerns is seen one by one
        except BaseException as error:  # noqa: BLE001 - raised for each that waits
            broken.append(error)

        def content(blob_id: bytes) -> bytes:
            if broken:
                raise broken[0]
            return found[blob_id] if blob_id in found else load(blob_id)

        for blob_id, future in mine.items():  # all of them, whatever happens: somebody may wait
            try:
                self._settle(blob_id, future, content)
            except BrsError:
                continue  # not kept, so whoever reads this range meets it again
            except BaseException as error:  # noqa: BLE001 - raised below, when nobody waits any more
                broken.append(error)
        if broken:
            raise broken[0]

    def _settle(self, blob_id: bytes, mine: Future[bytes], load: Callable[[bytes], bytes]) -> bytes:
        try:
            content = load(blob_id)
        except BaseException as error:
            with self._lock:
                del self._loading[blob_id]
            mine.set_exception(error)
            raise
        self._keep(blob_id, content)
        mine.set_result(content)
        return content

    def _keep(self, blob_id: bytes, content: bytes) -> None:
        with self._lock:
            del self._loading[blob_id]
            self._blobs[blob_id] = content
            self.size += len(content)
            while self.size > self._limit and len(self._blobs) > 1:
                self.size -= len(self._blobs.popitem(last=False)[1])


class RandomAccess:
    """Opens files of one repository, whose index must have been loaded; a context manager."""

    def __init__(self, repo: Repository, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._repo = repo
        self._ahead = min(AHEAD_BYTES, cache_bytes // 4)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="read-ahead")
        self._reload = threading.Lock()
        self._generation = 0  # of the index
        self.cache = BlobCache(cache_bytes)

    def __enter__(self) -> RandomAccess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What is being read ahead is finished; files may not be read afterwards."""
        self._pool.shutdown(cancel_futures=True)

    def open(self, snapshot_id: str, path: bytes) -> OpenFile:
        """Raises SnapshotNotFound, SourceMissing, SourceError for what is no file, DamagedError."""
        name = printable(normal_path(path))
        node = find_node(self._repo, snapshot_id, path)
        if not node.is_file:
            raise SourceError(f"{name} is not a file.", hint="Name a file.")
        return OpenFile(self, name, Ids.of(node.content), self._ends(name, node.content, node.size), self._ahead)

    def blob(self, blob_id: bytes) -> bytes:
        return self.cache.get(blob_id, self._load)

    def prefetch(self, ids: Sequence[bytes]) -> None:
        """Neighbours, which are best read at once: small blobs one by one cost a request each."""
        self._pool.submit(self.cache.fill, ids, self._load_together, self._load)

    def _load_together(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        return self._repo.load_together(BlobKind.DATA, ids)

    def _load(self, blob_id: bytes) -> bytes:
        generation = self._generation
        try:
            return self._repo.load_blob(BlobKind.DATA, blob_id)
        except DamagedError as error:
            gone = isinstance(error.__cause__, ObjectMissing) or not self._repo.has(BlobKind.DATA, blob_id)
            if not gone:
                raise
        self._bring_up_to_date(generation)
        return self._repo.load_blob(BlobKind.DATA, blob_id)

    def _bring_up_to_date(self, generation: int) -> None:
        """Unless another thread did since the index was of this generation."""
        with self._reload:
            if self._generation == generation:
                self._repo.load_index()
                self._generation += 1

    def _ends(self, name: str, ids: Sequence[bytes], size: int) -> array[int]:
        """Where each blob of a file ends. Raises DamagedError if that cannot be known."""
        generation = self._generation
        sizes = self._sizes(ids)
        if any(blob_id not in sizes for blob_id in ids):
            self._bring_up_to_date(generation)
            sizes = self._sizes(ids)
        lost = {blob_id for blob_id in ids if blob_id not in sizes}
        if len(lost) == 1:  # its length follows from the others', so only its ranges are lost
            blob_id = lost.pop()
            known = sum(sizes.get(other, 0) for other in ids)
            sizes[blob_id] = max(0, size - known) // sum(other == blob_id for other in ids)
        elif lost:
            raise DamagedError(f"{name} cannot be read: {len(lost)} of its blobs are missing, {min(lost).hex()} first.")
        ends = array("Q", accumulate(sizes[blob_id] for blob_id in ids))
        if (ends[-1] if ends else 0) != size:
            raise DamagedError(f"{name} should have {size} bytes but its blobs have {ends[-1] if ends else 0}.")
        return ends

    def _sizes(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        sizes: dict[bytes, int] = {}
        for start in range(0, len(ids), _LOOKED_UP):
            sizes.update(self._repo.blob_sizes(BlobKind.DATA, ids[start : start + _LOOKED_UP]))
        return sizes


class OpenFile:
    """One file or disk. 40 bytes of memory for each of its blobs."""

    def __init__(self, access: RandomAccess, name: str, ids: Ids, ends: array[int], ahead: int) -> None:
        self.name = name
        self.size = ends[-1] if ends else 0
        self._access = access
        self._ids = ids
        self._ends = ends
        self._ahead = ahead
        self._together = min(TOGETHER_BYTES, ahead // WORKERS)
        self._expected = 0  # where a sequential reader goes on
        self._fetched = 0  # blobs before this one were asked for ahead

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes, fewer only at the end of the file.

        Raises DamagedError (file, offset and pack) if a blob of just this range is not whole.
        """
        if offset < 0 or length < 0:
            raise ValueError("offset and length of a read are not negative")
        end = min(self.size, offset + length)
        if offset >= end:
            return b""
        number = bisect_right(self._ends, offset)
        if offset == self._expected:
            self._read_ahead(number, end)
        elif number >= self._fetched or offset < self._expected:
            self._fetched = 0
        self._expected = end
        pieces = list(self._pieces(number, offset, end))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _pieces(self, number: int, offset: int, end: int) -> Iterator[bytes]:
        while offset < end:
            stop = min(end, self._ends[number])
            start = self._start(number)
            if stop > offset:  # a blob may be empty
                yield self._piece(number, start, offset, stop)
            offset, number = stop, number + 1

    def _piece(self, number: int, start: int, offset: int, stop: int) -> bytes:
        blob_id = self._ids[number]
        if is_zero_id(blob_id, self._ends[number] - start):
            return bytes(stop - offset)
        try:
            content = self._access.blob(blob_id)
        except DamagedError as error:
            raise DamagedError(f"{self.name} cannot be read at offset {offset}: {error.message}") from error
        if len(content) != self._ends[number] - start:
            raise DamagedError(
                f"{self.name} cannot be read at offset {offset}: blob {blob_id.hex()} has another length."
            )
        return content[offset - start : stop - start]

    def _read_ahead(self, number: int, end: int) -> None:
        """Have the blobs fetched that follow, but not those that were asked for already; no few at a time."""
        limit = min(self.size, end + self._ahead)
        following = max(number, self._fetched)
        if limit < self.size and limit < self._start(following) + self._together:
            return
        neighbours: list[bytes] = []
        size = 0
        while following < len(self._ends) and (start := self._start(following)) < limit:
            length = self._ends[following] - start
            if neighbours and size + length > self._together:
                self._access.prefetch(neighbours)
                neighbours, size = [], 0
            if not is_zero_id(self._ids[following], length):
                neighbours.append(self._ids[following])
                size += length
            following += 1
        if neighbours:
            self._access.prefetch(neighbours)
        self._fetched = following

    def _start(self, number: int) -> int:
        return self._ends[number - 1] if number else 0
