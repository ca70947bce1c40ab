"""Backup of disk images: each one file ``disks/<name>.raw`` in a snapshot, cut into blocks of one size.

Full: everything that is not a hole is read, hashed and, if new, stored. Incremental: with the extents that changed
since the parent, only the blocks they touch are read, and the others keep the parent's ids. The result is a full list
either way. Which parent may be used is the dangerous question: only one that exists under our lock, is
complete, and holds a disk of the same name whose blocks lie as ours do. Otherwise everything is read, and said so.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from node_agent.errors import DamagedError, SnapshotNotFound, SourceError
from node_agent.items import Extent, Issue, Issues
from node_agent.progress import Progress
from node_agent.repository.image_blocks import (
    BlockList,
    ZeroCover,
    block_size_for,
    changed_blocks,
    count_blocks,
    read_block_list,
)
from node_agent.repository.lock import Lock
from node_agent.repository.publish import BackupResult, Facts, publish
from node_agent.repository.repository import BlobKind, BlobWriter, Repository
from node_agent.repository.snapshot import Snapshot, find_snapshot
from node_agent.repository.tree import Node, encode_tree, go_mode, load_tree
from node_agent.repository.writer import Pending
from node_agent.repository.zeros import MARK_SIZE, ZeroBlobs, is_zero, zero_id

DISKS = b"disks"
SUFFIX = b".raw"
MAX_PENDING = 64
EDGE = 1 << 20  # partition table and superblocks: always compared when a sample is asked for


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

    ``was_written`` is asked at the end: whether somebody wrote to the disk meanwhile (the point is then partial).
    """

    name: str
    source: ImageSource
    changed: Sequence[Extent] | None = None
    was_written: Callable[[], bool] | None = None


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
    sample: int = 0,
    compression: str = "auto",
) -> BackupResult:
    """Store the disks of one machine as one snapshot.

    ``metadata`` are small files stored beside ``disks`` (``vm.json``). ``sample`` blocks that are said to be unchanged,
    and the first and last MiB, are compared with the parent; a difference is logged and everything is read.
    Raises SourceError for names that cannot be stored and for extents outside of the image.
    """
    names = [_file_name(image.name) for image in images]
    if not images or len(set(names)) != len(names):
        raise SourceError("The disks of a snapshot must have different names, and there must be one at least.")
    before = _Parent.find(repo, parent, progress)
    progress.set(total_bytes=sum(image.source.size for image in images), total_files=len(images))
    with repo.writer(progress, compression=compression) as writer:
        store = _Store(repo, writer, before, progress, sample)
        stored = [store.image(image) for image in images]
        for image in images:
            if image.was_written is not None and image.was_written():
                issues.add(Issue(image.name, "changed", "The image was written while it was read: it may be mixed."))
        root = _store_tree(writer, dict(zip(names, stored, strict=True)), metadata or {}, time)
        writer.flush()
        content = (blob_id for blocks in stored for blob_id in blocks.ids)
        snapshot_id = publish(repo, lock, root, content, Facts(host, paths, tags, time, before.id), issues)
        return BackupResult(
            snapshot_id=snapshot_id,
            tree_id=root.hex(),
            parent_id=before.id,
            size_bytes=sum(image.source.size for image in images),
            read_bytes=store.read_bytes,
            new_bytes=writer.new_bytes,
            stored_bytes=writer.stored_bytes,
            files=len(images),
            block_size=max(blocks.block_size for blocks in stored),
            files_new=sum(name not in before.disks for name in names),
            files_changed=sum(name in before.disks for name in names),
            dirs=1,
            partial=issues.left_out > 0,
        )


def _file_name(name: str) -> bytes:
    raw = name.encode("utf-8", "surrogateescape")
    if not raw or b"/" in raw or b"\0" in raw or len(raw) > 250:
        raise SourceError(f"The disk name {name!r} cannot be a file's name.", hint="Use letters, digits and dashes.")
    return raw + SUFFIX


# --- the parent ---


@dataclass(slots=True)
class _Parent:
    """What an earlier snapshot holds. ``trusted`` when its blocks may be inherited."""

    snapshot: Snapshot | None = None
    disks: dict[bytes, Node] = field(default_factory=dict)
    trusted: bool = False

    @property
    def id(self) -> str | None:
        return self.snapshot.id if self.snapshot is not None else None

    @classmethod
    def find(cls, repo: Repository, parent: str | None, progress: Progress) -> _Parent:
        if parent is None:
            return cls()
        try:
            snapshot = find_snapshot(repo, parent)
            disks = _disks_of(repo, snapshot)
        except SnapshotNotFound:
            progress.log("warning", f"The parent snapshot {parent[:8]} is gone: everything is read.")
            return cls()
        except DamagedError as error:
            progress.log("warning", f"The parent snapshot {parent[:8]} is damaged: everything is read. {error}")
            return cls()
        if snapshot.partial:
            progress.log("warning", f"The parent snapshot {parent[:8]} is partial: everything is read.")
            return cls(snapshot, disks)
        return cls(snapshot, disks, trusted=True)


def _disks_of(repo: Repository, snapshot: Snapshot) -> dict[bytes, Node]:
    root = load_tree(repo, bytes.fromhex(snapshot.tree))
    folder = next((node for node in root if node.name == DISKS and node.subtree is not None), None)
    if folder is None or folder.subtree is None:
        return {}
    nodes = load_tree(repo, folder.subtree)
    return {node.name: node for node in nodes if node.is_file}


# --- one image ---


class _Differs(Exception):
    """A block that was said to be unchanged is not what the parent holds."""


class _ListBuilder:
    """The ids of an image's blocks in order, some still being stored; knows which zero block is the marked one."""

    def __init__(self, writer: BlobWriter, size: int, block_size: int) -> None:
        self.size = size
        self.block_size = block_size
        self.ids: list[bytes] = []
        self._writer = writer
        self._zeros = ZeroBlobs(writer)
        self._marked = False
        self._pending: deque[Pending] = deque()

    def data(self, block: bytes) -> None:
        if is_zero(block):
            self.zero(len(block))
            return
        self._pending.append(self._writer.submit(BlobKind.DATA, block))
        if len(self._pending) > MAX_PENDING:
            self.ids.append(self._pending.popleft().result().id)

    def zero(self, length: int) -> None:
        self.settle()
        if length == self.block_size and not self._marked:
            self._marked = True
            self.ids += [self._zeros.id(MARK_SIZE)] * (length // MARK_SIZE)
        else:
            self.ids.append(self._zeros.id(length))

    def inherit(self, block: Sequence[bytes], length: int) -> None:
        if len(block) > 1 or block[0] == zero_id(length):  # several blobs are always the marked zero block
            self.zero(length)
            return
        self.settle()
        self.ids.append(block[0])

    def settle(self) -> None:
        while self._pending:
            self.ids.append(self._pending.popleft().result().id)


@dataclass(frozen=True, slots=True)
class StoredImage:
    ids: Sequence[bytes]
    size: int
    block_size: int


class _Store:
    def __init__(self, repo: Repository, writer: BlobWriter, before: _Parent, progress: Progress, sample: int) -> None:
        self._repo = repo
        self._writer = writer
        self._before = before
        self._progress = progress
        self._sample = sample
        self.read_bytes = 0

    def image(self, image: ImageBackup) -> StoredImage:
        self._progress.set(current=image.name)
        old = self._old_blocks(image)
        size = image.source.size
        block_size = block_size_for(size, old.block_size if old is not None else None)
        if old is not None and block_size != old.block_size:
            self._say(image, f"it has grown so much that its blocks are now {block_size >> 20} MiB")
            old = None
        runs = self._runs_to_read(image, old, block_size)
        if runs is not None and old is not None:
            try:
                self._compare_sample(image, old, runs)
            except _Differs as difference:
                self._progress.log(
                    "error", f"{image.name}: {difference} The change tracking is wrong: everything is read."
                )
            else:
                return self._store(image, block_size, runs, old)
        return self._store(image, block_size, [(0, count_blocks(size, block_size))], None)

    def _old_blocks(self, image: ImageBackup) -> BlockList | None:
        node = self._before.disks.get(_file_name(image.name))
        if node is None:
            if image.changed is not None and self._before.snapshot is not None:
                self._say(image, "the parent holds no disk of this name")
            return None
        blocks = read_block_list(node.size, node.content, self._repo.blob_sizes(BlobKind.DATA, node.content))
        if blocks is None and image.changed is not None:
            self._say(image, "the parent's blocks are cut differently, or some are missing")
        return blocks

    def _runs_to_read(self, image: ImageBackup, old: BlockList | None, block_size: int) -> list[tuple[int, int]] | None:
        """Runs of blocks to read; None for all of them."""
        if image.changed is None:
            return None
        size = image.source.size
        runs = list(changed_blocks(image.changed, size, block_size))  # also proves that the extents fit the image
        if old is None or not self._before.trusted:
            if self._before.snapshot is None:
                self._say(image, "there is no parent to go with its changed extents")
            return None
        return runs

    def _compare_sample(self, image: ImageBackup, old: BlockList, runs: Sequence[tuple[int, int]]) -> None:
        if self._sample <= 0:
            return
        size = image.source.size
        total = sum(_is_inheritable(old, number, size) for number in range(len(old)))
        for number in _sampled(total, runs, self._sample, max(1, EDGE // old.block_size)):
            self._progress.check()
            data = image.source.read(number * old.block_size, old.length(number))
            self.read_bytes += len(data)
            self._progress.add(read_bytes=len(data))
            if not _is_same(data, old.block(number)):
                raise _Differs(f"Block {number} at offset {number * old.block_size} differs from the parent.")

    def _store(
        self, image: ImageBackup, block_size: int, runs: Sequence[tuple[int, int]], old: BlockList | None
    ) -> StoredImage:
        size = image.source.size
        builder = _ListBuilder(self._writer, size, block_size)
        cover = ZeroCover(image.source.extents())
        for number, to_read in _blocks(count_blocks(size, block_size), runs):
            self._progress.check()
            start = number * block_size
            length = min(block_size, size - start)
            if not to_read and old is not None and _is_inheritable(old, number, size):
                builder.inherit(old.block(number), length)
            elif cover.covers(start, start + length):
                builder.zero(length)
            else:
                builder.data(image.source.read(start, length))
                self.read_bytes += length
                self._progress.add(read_bytes=length)
            self._progress.add(done_bytes=length)
        builder.settle()
        self._progress.add(done_files=1)
        return StoredImage(builder.ids, size, block_size)

    def _say(self, image: ImageBackup, why: str) -> None:
        self._progress.log("warning", f"{image.name}: everything is read, because {why}.")


def _is_inheritable(old: BlockList, number: int, size: int) -> bool:
    """Whether the parent has this block in the length it has now; what the image grew by must be read."""
    return number < len(old) and old.length(number) == min(old.block_size, size - number * old.block_size)


def _blocks(count: int, runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bool]]:
    """Each block's number and whether a run holds it."""
    position = 0
    for first, end in runs:
        for number in range(position, first):
            yield number, False
        for number in range(first, end):
            yield number, True
        position = end
    for number in range(position, count):
        yield number, False


def _sampled(total: int, runs: Sequence[tuple[int, int]], wanted: int, edge: int) -> list[int]:
    """Numbers of unchanged blocks: ``wanted`` at random, and those at both ends."""
    unchanged = [
        number for number, to_read in _blocks(total, [(a, min(b, total)) for a, b in runs if a < total]) if not to_read
    ]
    ends = {number for number in unchanged if number < edge or number >= total - edge - 1}
    rest = [number for number in unchanged if number not in ends]
    return sorted(ends | set(random.sample(rest, min(wanted, len(rest)))))


def _is_same(data: bytes, block: Sequence[bytes]) -> bool:
    if len(block) > 1:
        return is_zero(data)
    return hashlib.sha256(data).digest() == block[0]


# --- the tree ---


def _store_tree(
    writer: BlobWriter, disks: Mapping[bytes, StoredImage], metadata: Mapping[str, bytes], time: datetime
) -> bytes:
    nodes = [_file(name, stored.ids, stored.size, time) for name, stored in disks.items()]
    folder = Node(name=DISKS, type="dir", mode=go_mode(0o040700), subtree=_save(writer, nodes))
    _set_times(folder, time)
    root = [folder]
    for file_name, data in metadata.items():
        ids = [writer.save(BlobKind.DATA, data).id] if data else []
        root.append(_file(file_name.encode(), ids, len(data), time))
    return _save(writer, root)


def _save(writer: BlobWriter, nodes: list[Node]) -> bytes:
    return writer.save(BlobKind.TREE, encode_tree(nodes)).id


def _file(name: bytes, ids: Sequence[bytes], size: int, time: datetime) -> Node:
    node = Node(name=name, type="file", mode=go_mode(0o100600), size=size, content=list(ids), links=1)
    _set_times(node, time)
    return node


def _set_times(node: Node, time: datetime) -> None:
    node.mtime = node.atime = node.ctime = int(time.timestamp()) * 1_000_000_000
