"""Small files in batches, from name to sealed blob and tree node: the work itself, whoever does it.

Opening, looking at, hashing, compressing, sealing and describing thousands of small files is mostly the interpreter's
own time, so a large backup has it done by processes (:mod:`node_agent.repository.files_worker`), a small one by threads
(:mod:`node_agent.repository.files_pool`). Both run this module, and it imports nothing of the store.

A batch goes two steps, so that nothing is compressed that the repository has: :meth:`SmallReader.read` tells the ids,
the caller says which are wanted, :meth:`SmallReader.seal` gives those and what became of each file.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from node_agent.repository.backend.base import Buffer
from node_agent.repository.chunking import MIN_SIZE
from node_agent.repository.files_meta import group_name, node_from_stat, read_xattrs, user_name
from node_agent.repository.files_open import is_regular, open_regular, version
from node_agent.repository.pack import BlobKind
from node_agent.repository.sealing import SealedBlob, Sealer
from node_agent.repository.tree import Node, encode_node

SMALL_FILE = MIN_SIZE  # such a file is one blob

Finding = tuple[str, str]  # an issue's code and message
Owner = tuple[int, int]  # of a file whose copy could not be given it

VANISHED = ("vanished", "It vanished while the backup ran.")
REPLACED = ("changed", "It was replaced by something else while the backup ran.")
CHANGED = ("changed", "It changed while it was read; the stored content may be mixed.")


class Work(NamedTuple):
    """Files of one or several open folders. ``counts``: how many of ``names`` are in each."""

    folders: Sequence[int]
    counts: Sequence[int]
    names: Sequence[bytes]
    owners: Sequence[Owner | None]  # of each, or empty

    def files(self) -> Iterator[tuple[int, bytes, Owner | None]]:
        """(open folder, name, owner) of each."""
        position = 0
        for folder, count in zip(self.folders, self.counts, strict=True):
            for number in range(position, position + count):
                yield folder, self.names[number], self.owners[number] if self.owners else None
            position += count


class Outcome(NamedTuple):
    """What became of a file: its node in JSON, or only findings. ``grown``: it is no small file any more, unread."""

    node: bytes | None
    size: int
    read_bytes: int
    findings: Sequence[Finding]
    grown: bool = False


class Sealed(NamedTuple):
    """The outcome of each file in order, and the wanted blobs one after the other in ``content``."""

    outcomes: Sequence[Outcome]
    blobs: Sequence[SealedBlob]
    content: Buffer


class _Read(NamedTuple):
    """A file between the two steps."""

    node: Node | None
    data: bytes
    findings: Sequence[Finding]
    grown: bool = False


class SmallReader:
    """For one thread. Several batches may have been read and not yet been sealed: they are sealed in their order."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self._waiting: deque[list[_Read]] = deque()

    def read(self, work: Work) -> list[bytes]:
        """The id of each file's content; empty if there is none."""
        files = [_read(*file) for file in work.files()]
        ids = [hashlib.sha256(file.data).digest() if file.data else b"" for file in files]
        for file, blob_id in zip(files, ids, strict=True):
            if file.node is not None and blob_id:
                file.node.content = [blob_id]
        self._waiting.append(files)
        return ids

    def seal(self, wanted: Sequence[int]) -> Sealed:
        """``wanted``: the numbers of those files whose content is to be stored. Raises DamagedError."""
        files = self._waiting.popleft()
        new: list[tuple[bytes, Buffer]] = []
        for number in wanted:
            node, data = files[number].node, files[number].data
            assert node is not None
            new.append((node.content[0], data))
        return Sealed([_outcome(file) for file in files], *self._sealer.seal(BlobKind.DATA, new))


def _read(folder: int, name: bytes, owner: Owner | None) -> _Read:
    try:
        fd = open_regular(name, folder)
    except OSError as error:
        return _Read(None, b"", [finding_of(error)])
    findings: list[Finding] = []
    try:
        st = os.fstat(fd)
        if not is_regular(st):
            return _Read(None, b"", [REPLACED])
        if st.st_size > SMALL_FILE:
            return _Read(None, b"", [], grown=True)
        node = describe_file(fd, name, st, owner, findings)
        data = _content(fd, st.st_size)
        if len(data) != st.st_size or version(os.fstat(fd)) != version(st):
            findings.append(CHANGED)
        node.size = len(data)
        return _Read(node, data, findings)
    except OSError as error:
        return _Read(None, b"", [*findings, finding_of(error)])
    finally:
        os.close(fd)


def describe_file(fd: int, name: bytes, st: os.stat_result, owner: Owner | None, findings: list[Finding]) -> Node:
    """The node of an open file, all but its content."""
    node = node_from_stat(name, st)
    if owner is not None:
        set_owner(node, owner)
    try:
        node.xattrs = list(read_xattrs(fd))
    except OSError as error:
        findings.append(no_xattrs(error))
    return node


def set_owner(node: Node, owner: Owner) -> None:
    node.uid, node.gid = owner
    node.user, node.group = user_name(node.uid), group_name(node.gid)


def _content(fd: int, size: int) -> bytes:
    """Up to ``size`` bytes; fewer where the file has become shorter."""
    data = os.read(fd, size) if size else b""
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data


def _outcome(file: _Read) -> Outcome:
    node = file.node
    if node is None:
        return Outcome(None, 0, 0, file.findings, file.grown)
    return Outcome(encode_node(node), node.size, node.size, file.findings)


def finding_of(error: OSError) -> Finding:
    if isinstance(error, FileNotFoundError):
        return VANISHED
    return "unreadable", f"It cannot be read: {error.strerror}."


def no_xattrs(error: OSError) -> Finding:
    return "xattrs", f"Its extended attributes cannot be read: {error.strerror}."
