"""A snapshot of an image, open for reading at any offset.

What was asked for last decides how much is fetched: whoever reads on gets the next pieces fetched meanwhile, in
growing pieces; single blocks elsewhere are fetched alone. A snapshot that is removed while it is read would read as
zeros, silently: so it is looked for again at the end (:meth:`RbdContent.changed`).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence

from node_agent.drivers.ceph.cluster import CephMissing, Cluster
from node_agent.drivers.ceph.inventory import Image, Snapshot, describe
from node_agent.errors import SourceChanged, SourceError
from node_agent.items import Extent

_EXTENT = struct.Struct(">QQB")
_DIFF_OBJECTS = 16384  # objects asked about in one call
_GAP_OBJECTS = 16  # unchanged objects between two changed ones that are not worth a call of their own
AHEAD = 8 << 20
UNDER_WAY = 2  # pieces: one is read in the cluster while the other comes through the pipe
FAST = {"object-map", "fast-diff"}


class RbdContent:
    """DiskContent of a driver, and what changed in it."""

    format = "raw"
    damage = ""

    def __init__(self, cluster: Cluster, image: Image, snapshot: Snapshot) -> None:
        self._cluster, self._image, self._snapshot = cluster, image, snapshot
        opened = cluster.call("open", pool=image.pool, image_id=image.id, snapshot_id=snapshot.id)
        self._handle: int = opened["handle"]
        self.size: int = opened["size"]
        self._extents: list[Extent] | None = None
        self._piece: bytes | bytearray = b""
        self._piece_at = 0
        self._next = 0  # where a sequential reader goes on
        self._window = 0
        self._ahead: deque[tuple[int, int, int]] = deque()  # offset, length and number of the calls under way

    def close(self) -> None:
        self._settle()
        self._cluster.call("close", handle=self._handle)

    # --- what there is ---

    def extents(self) -> Iterator[Extent]:
        """The whole image in order; what no object holds is zero."""
        if self._extents is None:
            data = [one for one in self.differences(None) if not one.zero]
            self._extents = list(_filled(data, self.size))
        return iter(self._extents)

    def differences(self, since: Snapshot | None) -> list[Extent]:
        """What differs from an older snapshot of the same image, or from nothing; ``zero`` for what is no more.

        Where the object map can be trusted for both ends and all between, it says which objects to look at; how much of
        each changed is then asked of these alone. Otherwise every object is asked.
        """
        if not self._map_is_valid(since):
            return self._ask(since, 0, self.size, whole=False)
        objects = self._ask(since, 0, self.size, whole=True)
        if since is None:
            return objects  # what an object holds beyond what it says is zeros, read at no cost worth a call
        found: list[Extent] = []
        for run in _joined(objects, _GAP_OBJECTS * self._image.object_size):
            found += self._ask(since, run.offset, run.length, whole=False)
        return found

    def _map_is_valid(self, since: Snapshot | None) -> bool:
        image = self._image
        if not image.features.issuperset(FAST) or image.flags or (since is None and image.parent is not None):
            return False  # a clone's own map says nothing of how valid its parent's is
        first = since.id if since is not None else self._snapshot.id
        return not any(one.flags for one in image.snapshots if first <= one.id <= self._snapshot.id)

    def _ask(self, since: Snapshot | None, start: int, length: int, *, whole: bool) -> list[Extent]:
        found: list[Extent] = []
        step = _DIFF_OBJECTS * self._image.object_size * self._image.stripe_count
        for offset in range(start, start + length, step):
            raw = self._cluster.call(
                "diff",
                handle=self._handle,
                since=since.name if since is not None else None,
                offset=offset,
                length=min(step, start + length - offset),
                whole_object=whole,
            )
            for at, size, exists in _EXTENT.iter_unpack(raw or b""):
                end = min(at + size, self.size)
                if at < end:
                    found.append(Extent(at, end - at, zero=not exists))
        return found

    # --- reading ---

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise SourceError(f"A read beyond the end of {self._image.spec} (offset {offset}, {length} bytes).")
        sequential = offset == self._next
        self._next = offset + length
        if not sequential:
            self._window = 0
            self._settle()
            return bytes(self._fetch(offset, length))
        out = b""
        while len(out) < length:
            at = offset + len(out)
            begin = at - self._piece_at
            if not 0 <= begin < len(self._piece):
                self._advance(at, length - len(out))
                begin = 0
            out += bytes(memoryview(self._piece)[begin : begin + length - len(out)])
        return out

    def _advance(self, at: int, wanted: int) -> None:
        """The piece at ``at`` becomes the current one, and the next are asked for, each up to twice as long."""
        if self._ahead and self._ahead[0][0] == at:
            _, size, number = self._ahead.popleft()
            self._piece = self._cluster.receive(number)
        else:
            self._settle()
            size = min(max(wanted, self._window), self.size - at)
            self._piece = self._fetch(at, size)
        self._piece_at = at
        following = sum(self._ahead[-1][:2]) if self._ahead else at + size
        while self._window and len(self._ahead) < UNDER_WAY and following < self.size:
            length = min(self._window, self.size - following)
            number = self._cluster.send("read", handle=self._handle, offset=following, length=length)
            self._ahead.append((following, length, number))
            following += length
        self._window = min(AHEAD, max(2 * self._window, size))

    def _settle(self) -> None:
        """Drop the pieces that are under way: they are not what is wanted now."""
        while self._ahead:
            self._cluster.receive(self._ahead.popleft()[2])

    def _fetch(self, offset: int, length: int) -> bytes | bytearray:
        if not length:
            return b""
        data: bytearray = self._cluster.call("read", handle=self._handle, offset=offset, length=length)
        return data

    def changed(self) -> bool:
        """False: a snapshot is not written. Raises SourceChanged if it is not there any more."""
        try:
            now = describe(self._cluster, self._image.pool, image_id=self._image.id)
            there = now.snapshot(self._snapshot.id) is not None
        except CephMissing:
            there = False
        if not there:
            raise SourceChanged(
                f"The snapshot {self._snapshot.name} of {self._image.spec} was removed while it was read.",
                hint="Run the backup again; find out who removes snapshots that begin with “brs-”.",
            )
        return False


def _filled(data: Sequence[Extent], size: int) -> Iterator[Extent]:
    position = 0
    for extent in _joined(data, 0):
        if position < extent.offset:
            yield Extent(position, extent.offset - position, zero=True)
        yield extent
        position = extent.end
    if position < size:
        yield Extent(position, size - position, zero=True)


def _joined(extents: Sequence[Extent], gap: int) -> Iterator[Extent]:
    """In order, apart, and none with a gap of at most ``gap`` bytes to the next."""
    start = end = -1
    for extent in sorted(extents, key=lambda one: one.offset):
        if start >= 0 and extent.offset - end <= gap:
            end = max(end, extent.end)
            continue
        if start >= 0:
            yield Extent(start, end - start)
        start, end = extent.offset, extent.end
    if start >= 0:
        yield Extent(start, end - start)
