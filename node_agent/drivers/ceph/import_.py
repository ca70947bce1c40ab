"""The way back: a disk's content becomes an image, a new one or in the place of one that is there.

A new image is written under a passing name and gets its own when it is whole; a run that fails or dies leaves no image
that looks like one. Into an existing image, only when that is asked for and nobody has it open: a snapshot is taken
first, only what differs is written, and after a failure the image is rolled back to it (after the node's death by the
next task, see :mod:`node_agent.drivers.ceph.undo`). What differs is known from the cluster where the image still has
the snapshot that the point was read from, or an older one; otherwise both are compared.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from node_agent.drivers.base import DiskContent
from node_agent.drivers.ceph import undo as undoing
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.cluster import CephBusy, CephError, CephExists, CephMissing, Cluster
from node_agent.drivers.ceph.content import RbdContent
from node_agent.drivers.ceph.inventory import FEATURES, Image, Snapshot, describe, list_pools
from node_agent.drivers.ceph.journal import Entry, Journal
from node_agent.drivers.ceph.snapshots import release
from node_agent.drivers.ceph.tracking import kept_of, read_facts, why_not
from node_agent.errors import BrsError, TargetError, TargetExists
from node_agent.items import Extent, printable
from node_agent.progress import Progress

log = logging.getLogger("brs.node.ceph")

KIND = "import"
PIECE = 4 << 20
GRAIN = 64 << 10  # zeros and equal bytes are looked for in units of this
OBJECT_SIZES = [1 << order for order in range(12, 26)]
_CREATABLE = ("layering", "striping", "exclusive-lock", "object-map", "fast-diff", "deep-flatten", "journaling")
_DEFAULT = ("layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """``object_size`` 0, ``features`` and ``data_pool`` None: as the image had them that the point is of.

    ``owner``: whose kept snapshots on the image go, so that the next backup reads it whole.
    """

    pool: str
    name: str
    overwrite: bool = False
    object_size: int = 0
    features: Sequence[str] | None = None
    data_pool: str | None = None
    owner: str = ""


@dataclass(slots=True)
class ImportResult:
    """``how``: new, changes (as the cluster knew them) or compared."""

    pool: str
    name: str
    image_id: str = ""
    how: str = "new"
    written_bytes: int = 0
    zeroed_bytes: int = 0
    notes: list[str] = field(default_factory=list)


def import_image(
    access: CephAccess,
    journal: Journal,
    options: ImportOptions,
    source: DiskContent,
    metadata: Mapping[str, bytes],
    disk: str,
    progress: Progress,
) -> ImportResult:
    """Write ``source``, the point's disk of that name; ``metadata`` are the point's small files."""
    facts = read_facts(metadata).get(disk, {})
    with Cluster(access) as cluster:
        _check(cluster, options)
        _clear_images(cluster, journal)
        try:
            there = describe(cluster, options.pool, name=options.name)
        except CephMissing:
            return _new(cluster, journal, options, source, facts, progress)
        if not options.overwrite:
            raise TargetExists(f"The image {printable(there.spec)} exists already.", hint="Give another name.")
        return _into(cluster, options, there, source, metadata, disk, progress)


def _check(cluster: Cluster, options: ImportOptions) -> None:
    shown = printable(f"{options.pool}/{options.name}")
    if options.pool not in cluster.access.pools:
        raise TargetError(f"The pool {options.pool} is not among those of the platform.", hint="Choose one of them.")
    if options.pool not in list_pools(cluster):
        raise TargetError(f"The pool {options.pool} does not exist in the cluster.", hint="Choose another one.")
    # Every program that takes POOL/IMAGE@SNAPSHOT, qemu and libvirt among them, would take it for something else.
    if not options.name or set(options.name) & set("/@\0\n") or options.name.startswith("-"):
        raise TargetError(f"{shown!r} is no name for an image.", hint="Use letters, digits, dashes, dots.")
    if options.object_size and options.object_size not in OBJECT_SIZES:
        raise TargetError("An image's objects are a power of two from 4 KiB to 32 MiB.", hint="Most have 4 MiB.")
    if strange := set(options.features or ()) - set(_CREATABLE):
        raise TargetError(
            f"No feature to choose: {', '.join(sorted(strange))}.", hint=f"Any of {', '.join(_CREATABLE)}."
        )


# --- a new image ---


def _new(
    cluster: Cluster,
    journal: Journal,
    options: ImportOptions,
    source: DiskContent,
    facts: Mapping[str, Any],
    progress: Progress,
) -> ImportResult:
    passing = f"brs-import-{secrets.token_hex(8)}"
    entry = Entry(cluster.fsid, options.pool, "", passing, KIND)
    result = ImportResult(options.pool, options.name)
    with journal.under_way(entry):
        try:
            result.image_id = cluster.call(
                "create", pool=options.pool, name=passing, size=source.size, **_shape(options, facts)
            )
            with _opened(cluster, options.pool, result.image_id) as handle:
                writer = _Writer(cluster, handle, result, progress)
                for extent in source.extents():
                    if extent.zero:
                        progress.add(done_bytes=extent.length)
                        continue
                    for offset, piece in _pieces(source, extent, progress):
                        writer.write_new(offset, piece)
                _restore_settings(cluster, handle, facts)
                cluster.call("flush", handle=handle)
            _rename(cluster, options, passing)
        except BaseException:
            _remove_image(cluster, journal, entry)
            raise
        journal.forget(entry)
    return result


def _shape(options: ImportOptions, facts: Mapping[str, Any]) -> dict[str, Any]:
    wanted = options.features if options.features is not None else facts.get("features", _DEFAULT)
    features = {name for name in wanted if name in _CREATABLE}
    striped = "striping" in features and not options.object_size and facts.get("stripe_count", 1) > 1
    if not striped:
        features.discard("striping")
    object_size = options.object_size or int(facts.get("object_size", PIECE))
    return {
        "order": object_size.bit_length() - 1,
        "features": sum(FEATURES[name] for name in features),
        "stripe_unit": int(facts["stripe_unit"]) if striped else 0,
        "stripe_count": int(facts["stripe_count"]) if striped else 0,
        "data_pool": options.data_pool if options.data_pool is not None else str(facts.get("data_pool", "")),
    }


def _restore_settings(cluster: Cluster, handle: int, facts: Mapping[str, Any]) -> None:
    """Settings of librbd for this image, such as its limits; other metadata is somebody's for the image that was."""
    for key, value in dict(facts.get("metadata", {})).items():
        if str(key).startswith("conf_"):
            cluster.call("set_metadata", handle=handle, key=str(key), value=str(value))


def _rename(cluster: Cluster, options: ImportOptions, passing: str) -> None:
    try:
        cluster.call("rename", pool=options.pool, name=passing, new_name=options.name)
    except CephExists as error:
        raise TargetExists(
            f"Somebody made an image {options.pool}/{printable(options.name)} meanwhile.", hint="Give another name."
        ) from error


def _remove_image(cluster: Cluster, journal: Journal, entry: Entry) -> None:
    try:
        there = describe(cluster, entry.pool, name=entry.name)
        cluster.call("remove", pool=entry.pool, name=entry.name, image_id=there.id)
    except CephMissing:
        pass
    except BrsError as error:
        log.warning("The unfinished image %s/%s stays until the next import: %s", entry.pool, entry.name, error)
        return
    journal.forget(entry)


def _clear_images(cluster: Cluster, journal: Journal) -> None:
    for entry in journal.left_behind(cluster.fsid):
        if entry.kind == KIND and entry.pool in cluster.access.pools:
            _remove_image(cluster, journal, entry)


# --- into one that is there ---


def _into(
    cluster: Cluster,
    options: ImportOptions,
    image: Image,
    source: DiskContent,
    metadata: Mapping[str, bytes],
    disk: str,
    progress: Progress,
) -> ImportResult:
    result = ImportResult(options.pool, options.name, image.id)
    image = _healed(cluster, image, result)
    _refuse_used(image)
    with _opened(cluster, image.pool, image.id) as handle:
        if "exclusive-lock" in image.features:
            cluster.call("lock", handle=handle)  # from here on whoever opens it waits for us
        _refuse_used(describe(cluster, image.pool, image_id=image.id))
        before, undo = undoing.begin(cluster, image, handle)
        try:
            if before.size != source.size:
                cluster.call("resize", handle=handle, size=source.size)
            _write_what_differs(cluster, handle, before, undo, source, metadata, disk, progress, result)
            cluster.call("flush", handle=handle)
        except BaseException:
            undoing.take_back(cluster, before, handle, undo)
            raise
        failed = undoing.finish(cluster, before, handle, undo)
        if options.owner:
            failed += release(cluster, describe(cluster, image.pool, image_id=image.id), options.owner)
        for problem in failed:
            log.warning("A snapshot of %s stays for now: %s", image.spec, problem)
    return result


def _healed(cluster: Cluster, image: Image, result: ImportResult) -> Image:
    """Where there is nothing to roll back to, what is there is overwritten as well as anything else."""
    try:
        said = undoing.heal(cluster, image)
    except CephBusy:
        raise
    except CephError as error:
        said = error.message
    if said:
        result.notes.append(said)
    return describe(cluster, image.pool, image_id=image.id) if said else image


def _refuse_used(image: Image) -> None:
    if image.watchers:
        raise CephBusy(f"The image {printable(image.spec)} is in use by {', '.join(image.watchers)}.")


def _write_what_differs(
    cluster: Cluster,
    handle: int,
    before: Image,
    undo: Snapshot,
    source: DiskContent,
    metadata: Mapping[str, bytes],
    disk: str,
    progress: Progress,
    result: ImportResult,
) -> None:
    old = RbdContent(cluster, before, undo)
    writer = _Writer(cluster, handle, result, progress)
    kept = kept_of(metadata, disk)
    if kept is not None and not why_not(kept, cluster.fsid, before, undo):
        result.how = "changes"
        for extent in old.differences(before.snapshot(kept.snapshot_id)):
            for offset, piece in _pieces(source, extent, progress):
                writer.write_over(offset, piece, None)
    else:
        result.how = "compared"
        for extent in _spans(source, old):
            for offset, piece in _pieces(source, extent, progress):
                inside = max(0, min(len(piece), old.size - offset))
                writer.write_over(offset, piece, old.read(offset, inside) + bytes(len(piece) - inside))
    old.close()


def _spans(source: DiskContent, old: RbdContent) -> Iterator[Extent]:
    """What is data in either of both; elsewhere both are zeros."""
    data = [one for one in source.extents() if not one.zero]
    data += [Extent(one.offset, min(one.end, source.size) - one.offset) for one in old.extents() if not one.zero]
    position = 0
    for one in sorted(data, key=lambda extent: extent.offset):
        start = max(position, one.offset)
        if start < one.end:
            yield Extent(start, one.end - start)
            position = one.end


# --- writing ---


@contextmanager
def _opened(cluster: Cluster, pool: str, image_id: str) -> Iterator[int]:
    handle = int(cluster.call("open", pool=pool, image_id=image_id, read_only=False)["handle"])
    try:
        yield handle
    finally:
        try:
            cluster.call("close", handle=handle)
        except BrsError as error:  # the process is gone, and the image closed with it
            log.warning("An image of %s was not closed: %s", pool, error)


def _pieces(source: DiskContent, extent: Extent, progress: Progress) -> Iterator[tuple[int, bytes]]:
    """The source's content in an extent, as far as the source goes."""
    position, end = extent.offset, min(extent.end, source.size)
    while position < end:
        progress.check()
        length = min(PIECE - position % PIECE, end - position)
        yield position, source.read(position, length)
        progress.add(done_bytes=length)
        position += length


class _Writer:
    """Writes pieces, zeros as holes, and counts. Errors of writes under way come with a later call."""

    def __init__(self, cluster: Cluster, handle: int, result: ImportResult, progress: Progress) -> None:
        self._cluster, self._handle, self._result, self._progress = cluster, handle, result, progress

    def write_new(self, offset: int, piece: bytes) -> None:
        for start, end, zero in _runs(piece, None):
            if not zero:
                self._write(offset + start, memoryview(piece)[start:end])

    def write_over(self, offset: int, piece: bytes, old: bytes | None) -> None:
        """``old``: what is there now, where that is known; equal parts are not written."""
        for start, end, zero in _runs(piece, old):
            if zero:
                self._cluster.call("zero", handle=self._handle, offset=offset + start, length=end - start)
                self._result.zeroed_bytes += end - start
            else:
                self._write(offset + start, memoryview(piece)[start:end])

    def _write(self, offset: int, data: memoryview) -> None:
        self._cluster.call("write", data, handle=self._handle, offset=offset)
        self._result.written_bytes += len(data)


def _runs(piece: bytes, old: bytes | None) -> Iterator[tuple[int, int, bool]]:
    """(start, end, all zeros) of the parts of a piece that differ from ``old``; neighbours of one kind are joined."""
    zeros = bytes(GRAIN)
    start = end = 0
    kind = False
    for at in range(0, len(piece), GRAIN):
        part = piece[at : at + GRAIN]
        if old is not None and part == old[at : at + GRAIN]:
            continue
        zero = part == zeros[: len(part)]
        if end == at and end > start and kind == zero:
            end = at + len(part)
            continue
        if end > start:
            yield start, end, kind
        start, end, kind = at, at + len(part), zero
    if end > start:
        yield start, end, kind
