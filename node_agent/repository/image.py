"""Backup of disk images: each one file ``disks/<name>.raw`` in a snapshot, cut into blocks of one size.

Full: everything that is not a hole is read, hashed and, if new, stored. Incremental: with the extents that changed
since the parent, only the blocks they touch are read, and the others keep the parent's ids. The result is a full list
either way. Which parent may be used is the dangerous question: only one that exists under our lock, is
complete, and holds a disk of the same name whose blocks lie as ours do. Otherwise everything is read, and said so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from node_agent.errors import SourceError
from node_agent.items import Extent, Issue, Issues, Severity, TrackingBase
from node_agent.progress import Progress
from node_agent.repository.ids import Ids
from node_agent.repository.image_ahead import Ahead
from node_agent.repository.image_blocks import (
    READ_BYTES,
    BlockList,
    ZeroCover,
    block_size_for,
    changed_blocks,
    count_blocks,
    stretches,
    with_rest,
)
from node_agent.repository.image_compare import Comparison, to_compare
from node_agent.repository.image_list import ListBuilder
from node_agent.repository.image_metadata import metadata_areas
from node_agent.repository.image_parent import DISKS, Parent
from node_agent.repository.lock import Lock
from node_agent.repository.publish import BackupResult, Facts, Inherited, publish
from node_agent.repository.repository import BlobKind, BlobWriter, Repository
from node_agent.repository.tree import Node, encode_tree, go_mode
from node_agent.repository.zeros import is_zero

__all__ = ["Ahead", "Comparison", "ImageBackup", "ImageSource", "backup_images"]

SUFFIX = b".raw"


class ImageSource(Protocol):
    """A disk that a driver holds open, unchanging while it is read. Used by one thread."""

    size: int

    def extents(self) -> Iterable[Extent]:
        """The whole image in order."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes."""
        ...


@dataclass(slots=True)
class ImageBackup:
    """One disk to store. ``changed``: extents since the parent; None means that nothing is known of changes.

    ``base`` says of which state the tracking itself says that they are relative to it, and ``identity`` which disk this
    is, in the driver's words; without a base, whoever names the parent answers for that.
    ``was_written`` is asked at the end: whether somebody wrote to the disk meanwhile (the point is then partial).
    """

    name: str
    source: ImageSource
    changed: Sequence[Extent] | None = None
    was_written: Callable[[], bool] | None = None
    base: TrackingBase | None = None
    identity: str = ""
    ahead: Ahead | None = None  # it is stopped when the source is needed
    block_size: int | None = None  # other than the parent's, and than what is usual for the size


def backup_images(
    repo: Repository,
    lock: Lock,
    images: Sequence[ImageBackup],
    *,
    host: str,
    paths: Sequence[str],
    tags: Sequence[str] = (),
    metadata: Mapping[str, bytes] | None = None,
    parent: str | None = None,
    progress: Progress,
    issues: Issues,
    time: datetime,
    compare: Comparison = Comparison(),  # noqa: B008 - frozen
    moved: bool = False,
    compression: str = "auto",
) -> BackupResult:
    """Store the disks of one machine as one snapshot.

    ``metadata`` are small files stored beside ``disks`` (``vm.json``). What ``compare`` chooses of the blocks that are
    said to be unchanged is compared with the parent; a difference is logged and noted, and everything is read.
    ``moved``: the parent may be of other paths (a disk that the user names, found elsewhere now).
    Raises SourceError for names that cannot be stored and for extents outside of the image.
    """
    names = [_file_name(image.name) for image in images]
    if not images or len(set(names)) != len(names):
        raise SourceError("The disks of a snapshot must have different names, and there must be one at least.")
    before = Parent.find(repo, parent, host, None if moved else paths, progress)
    epoch = repo.index.epoch
    progress.set(total_bytes=sum(image.source.size for image in images), total_files=len(images))
    _read_ahead(lock, images, before, compression)
    try:
        opened = repo.writer(progress, compression=compression)
    except BaseException:
        for image in images:
            _stop(image)  # whoever opened the source closes it now
        raise
    with opened as writer:
        if repo.index.epoch != epoch:  # the lock had to be waited for, and what was found may be gone
            before, epoch = Parent.find(repo, parent, host, None if moved else paths, progress), repo.index.epoch
        store = _Store(repo, writer, before, progress, issues, compare, time)
        stored = [store.image(image) for image in images]
        for image in images:
            if image.was_written is not None and image.was_written():
                issues.add(Issue(image.name, "changed", "The image was written while it was read: it may be mixed."))
        disks, root = _store_tree(writer, dict(zip(names, stored, strict=True)), metadata or {}, time)
        writer.flush()
        fresh = (blob_id for blocks in stored for blob_id in (blocks.ids if blocks.fresh is None else blocks.fresh))
        every = (blob_id for blocks in stored for blob_id in blocks.ids)
        inherited = Inherited(epoch, every) if store.inherited else None
        facts = Facts(host, paths, tags, time, before.id)
        snapshot_id = publish(repo, lock, root, fresh, facts, issues, inherited, progress)
        repo.index.set_proven(disks, epoch, {n: blocks.block_size for n, blocks in zip(names, stored, strict=True)})
        return BackupResult(
            snapshot_id=snapshot_id,
            tree_id=root.hex(),
            parent_id=before.id,
            size_bytes=sum(image.source.size for image in images),
            read_bytes=store.read_bytes,
            compared_bytes=store.compared_bytes,
            new_bytes=writer.new_bytes,
            stored_bytes=writer.stored_bytes,
            files=len(images),
            block_size=max(blocks.block_size for blocks in stored),
            files_new=sum(name not in before.disks for name in names),
            files_changed=sum(name in before.disks for name in names),
            dirs=1,
            partial=issues.left_out > 0,
        )


def _read_ahead(lock: Lock, images: Sequence[ImageBackup], before: Parent, compression: str) -> None:
    """Use the time that an early lock still waits: nothing may be stored until then, but read and compressed."""
    if not lock.settles_in_s or not before.trusted:
        return
    image = images[0]  # the others' turn comes much later
    block_size = before.block_sizes.get(_file_name(image.name))
    if image.ahead is None and image.changed and block_size and not image.block_size:
        image.ahead = Ahead(image.source, image.changed, compression, block_size=block_size)


def _stop(image: ImageBackup) -> None:
    if image.ahead is not None:
        image.ahead.stop()


def _file_name(name: str) -> bytes:
    raw = name.encode("utf-8", "surrogateescape")
    if not raw or b"/" in raw or b"\0" in raw or len(raw) > 250:
        raise SourceError(f"The disk name {name!r} cannot be a file's name.", hint="Use letters, digits and dashes.")
    return raw + SUFFIX


# --- one image ---


class _Differs(Exception):
    """A block that was said to be unchanged is not what the parent holds."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    ids: Ids
    fresh: set[bytes] | None  # those of them that this run did not inherit; None: all
    size: int
    block_size: int


class _Store:
    def __init__(
        self,
        repo: Repository,
        writer: BlobWriter,
        before: Parent,
        progress: Progress,
        issues: Issues,
        compare: Comparison,
        time: datetime,
    ) -> None:
        self._repo = repo
        self._writer = writer
        self._before = before
        self._progress = progress
        self._issues = issues
        self._compare = compare
        self._time = time
        self.read_bytes = 0
        self.compared_bytes = 0
        self.inherited = False

    def image(self, image: ImageBackup) -> StoredImage:
        self._progress.set(current=image.name)
        old = self._old_blocks(image)
        _stop(image)
        size = image.source.size
        block_size = image.block_size or block_size_for(size, old.block_size if old is not None else None)
        if old is not None and block_size != old.block_size:
            why = "it is to have" if image.block_size else "it has grown so much that it now has"
            self._say(image, f"{why} blocks of {block_size >> 10} KiB")
            old = None
        runs = self._runs_to_read(image, old, block_size)
        if runs is not None and old is not None:
            try:
                self._compare_unchanged(image, old, runs)
            except _Differs as difference:
                text = f"{difference} The change tracking is wrong: everything is read."
                self._progress.log("error", f"{image.name}: {text}")
                self._issues.add(Issue(image.name, "tracking-wrong", text, Severity.NOTE))
            else:
                self.inherited = True
                return self._store(image, block_size, runs, old)
        return self._store(image, block_size, [(0, count_blocks(size, block_size))], None)

    def _old_blocks(self, image: ImageBackup) -> BlockList | None:
        name = _file_name(image.name)
        if name not in self._before.disks:
            if image.changed is not None and self._before.snapshot is not None:
                self._say(image, "the parent holds no disk of this name")
            return None
        blocks = self._before.blocks(self._repo, name)
        if blocks is None and image.changed is not None:
            self._say(image, "the parent's blocks are cut differently, or some are missing")
        return blocks

    def _runs_to_read(self, image: ImageBackup, old: BlockList | None, block_size: int) -> list[tuple[int, int]] | None:
        """Runs of blocks to read; None for all of them."""
        if image.changed is None:
            return None
        size = image.source.size
        runs = list(changed_blocks(image.changed, size, block_size))  # also proves that the extents fit the image
        if not self._before.trusted:
            self._say(image, self._before.why)
            return None
        if old is None:
            return None
        if image.base is not None:
            differs = self._before.mismatch(self._repo, image.base, image.identity, old)
            if differs:
                self._say(image, f"its changes are relative to another state than the parent's: {differs}")
                return None
        return with_rest(runs, old.same_length(size), count_blocks(size, block_size))

    def _compare_unchanged(self, image: ImageBackup, old: BlockList, runs: Sequence[tuple[int, int]]) -> None:
        assert self._before.snapshot is not None
        source, size = image.source, image.source.size

        def metadata() -> list[tuple[int, int]]:
            return list(changed_blocks(metadata_areas(source.read, size), size, old.block_size))

        parent_s, now_s = self._before.snapshot.time.timestamp(), self._time.timestamp()
        chosen = to_compare(self._compare, runs, old.same_length(size), parent_s, now_s, metadata)
        cover = ZeroCover(source.extents())
        for first, end in stretches(chosen, old.block_size):
            self._progress.check()
            begin = first * old.block_size
            data = b""
            for number in range(first, end):
                start, length = number * old.block_size, old.length(number)
                if cover.covers(start, start + length):
                    same = old.is_zero(number)
                else:
                    data = data or self._compared(source, begin, min(end * old.block_size, old.size) - begin)
                    same = _is_same(data[start - begin : start - begin + length], old, number)
                if not same:
                    raise _Differs(
                        f"Block {number} at offset {start} differs from the parent, but is said to be unchanged."
                    )

    def _compared(self, source: ImageSource, offset: int, length: int) -> bytes:
        self._count_read(length)
        self.compared_bytes += length
        return source.read(offset, length)

    def _store(
        self, image: ImageBackup, block_size: int, runs: Sequence[tuple[int, int]], old: BlockList | None
    ) -> StoredImage:
        size = image.source.size
        builder = ListBuilder(self._writer, block_size, keep_fresh=old is not None)
        cover = ZeroCover(image.source.extents())
        count = count_blocks(size, block_size)
        position = 0
        for first, end in [*runs, (count, count)]:
            if position < first:
                assert old is not None
                builder.inherit(old, position, first)
                self._progress.add(done_bytes=min(size, first * block_size) - position * block_size)
            reader = _Reader(image, cover, block_size, builder)
            while first < end:
                self._progress.check()
                first, read, done = reader.step(first, end)
                self._count_read(read)
                self._progress.add(done_bytes=done)
            position = end
        ids = builder.ids()
        self._progress.add(done_files=1)
        return StoredImage(ids, builder.fresh if old is not None else None, size, block_size)

    def _count_read(self, length: int) -> None:
        self.read_bytes += length
        self._progress.add(read_bytes=length)

    def _say(self, image: ImageBackup, why: str) -> None:
        text = f"Everything is read, because {why}."
        self._progress.log("warning", f"{image.name}: {text[0].lower()}{text[1:]}")
        if image.changed is not None:
            self._issues.add(Issue(image.name, "tracking-not-used", text, Severity.NOTE))


class _Reader:
    """Takes blocks from where they are cheapest into the list: read ahead, known to be zeros, or from the source."""

    def __init__(self, image: ImageBackup, cover: ZeroCover, block_size: int, builder: ListBuilder) -> None:
        self._image = image
        self._cover = cover
        self._block_size = block_size
        self._builder = builder

    def step(self, first: int, end: int) -> tuple[int, int, int]:
        """One block, or a stretch that is read at once: the number of the block after, bytes read, bytes done."""
        number = first
        stop = min(end, first + max(1, READ_BYTES // self._block_size))
        while number < stop and not self._is_ahead(number) and not self._is_zero(number):
            number += 1
        if number > first:
            start, length = self._range(first, number)
            self._builder.data(self._image.source.read(start, length))
            return number, length, length
        _, length = self._range(first, first + 1)
        if self._image.ahead is not None and self._is_ahead(first):
            self._builder.prepared(self._image.ahead.take(first))
            return first + 1, length, length
        self._builder.zero(length)
        return first + 1, 0, length

    def _is_ahead(self, number: int) -> bool:
        return self._image.ahead is not None and self._image.ahead.holds(number, self._block_size)

    def _is_zero(self, number: int) -> bool:
        start, length = self._range(number, number + 1)
        return self._cover.covers(start, start + length)

    def _range(self, first: int, end: int) -> tuple[int, int]:
        start = first * self._block_size
        return start, min(end * self._block_size, self._image.source.size) - start


def _is_same(data: bytes, old: BlockList, number: int) -> bool:
    if old.is_marked(number):
        return is_zero(data)
    return hashlib.sha256(data).digest() == old.block(number)[0]


# --- the tree ---


def _store_tree(
    writer: BlobWriter, disks: Mapping[bytes, StoredImage], metadata: Mapping[str, bytes], time: datetime
) -> tuple[bytes, bytes]:
    """The ids of the trees of the disks and of all."""
    subtree = _save(writer, [_file(name, stored.ids, stored.size, time) for name, stored in disks.items()])
    folder = Node(name=DISKS, type="dir", mode=go_mode(0o040700), subtree=subtree)
    _set_times(folder, time)
    root = [folder]
    for file_name, data in metadata.items():
        ids = [writer.save(BlobKind.DATA, data).id] if data else []
        root.append(_file(file_name.encode(), ids, len(data), time))
    return subtree, _save(writer, root)


def _save(writer: BlobWriter, nodes: list[Node]) -> bytes:
    return writer.save(BlobKind.TREE, encode_tree(nodes)).id


def _file(name: bytes, ids: Sequence[bytes], size: int, time: datetime) -> Node:
    node = Node(name=name, type="file", mode=go_mode(0o100600), size=size, content=ids, links=1)
    _set_times(node, time)
    return node


def _set_times(node: Node, time: datetime) -> None:
    node.mtime = node.atime = node.ctime = int(time.timestamp()) * 1_000_000_000
