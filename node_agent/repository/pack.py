"""Pack files: sealed blobs one after the other, then the sealed header, then the header's length.

    blob … blob  header  length-of-sealed-header (uint32, little endian)

The header has one entry for each blob, in order; offsets are the running sum of lengths:

    type (1)  stored length (4)  [uncompressed length (4), types 2 and 3 only]  SHA-256 of the content (32)
    type 0 data, 1 tree, 2 compressed data, 3 compressed tree

A pack holds data or trees, never both; its name is the SHA-256 of the whole file.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from node_agent.errors import DamagedError
from node_agent.repository.backend.base import Backend, Buffer, Kind
from node_agent.repository.compression import NotCompressed, decompress
from node_agent.repository.crypto import OVERHEAD, Key, Unauthenticated

TARGET_SIZE = 16 << 20
MAX_SIZE = 128 << 20
MAX_HEADER = 16 << 20

_PLAIN = struct.Struct("<BI32s")
_COMPRESSED = struct.Struct("<BII32s")
_LENGTH = struct.Struct("<I")
MAX_ENTRIES = 50_000  # the header could hold seven times as many, an index file should not
_FIXED = OVERHEAD + _LENGTH.size
_EAGER = 16 << 10  # read with the length, so that most headers cost one request
MAX_BLOB = MAX_SIZE - MAX_HEADER


class BlobKind(StrEnum):
    DATA = "data"
    TREE = "tree"


class PackedBlob(NamedTuple):
    """Where a blob lies in its pack. ``raw_length`` is 0 for a blob that is stored uncompressed."""

    kind: BlobKind
    id: bytes
    offset: int
    length: int  # sealed
    raw_length: int

    @property
    def size(self) -> int:
        """Length of the content."""
        return self.raw_length or self.length - OVERHEAD


@dataclass(slots=True)
class PackBuilder:
    """Collects sealed blobs of one kind in memory. Not thread-safe."""

    kind: BlobKind
    target_size: int = 0  # 0: TARGET_SIZE
    blobs: list[PackedBlob] = field(default_factory=list)
    parts: list[Buffer] = field(default_factory=list)
    size: int = 0
    content_bytes: int = 0  # before compression

    def add(self, blob_id: bytes, sealed: Buffer, raw_length: int) -> None:
        self.blobs.append(PackedBlob(self.kind, blob_id, self.size, len(sealed), raw_length))
        self.parts.append(sealed)
        self.size += len(sealed)

    def add_run(self, blobs: Iterable[tuple[bytes, int, int]], sealed: Buffer) -> None:
        """Blobs that lie one after the other in ``sealed``: (id, sealed length, uncompressed length) of each.

        Raises ValueError if they do not fill it: each blob after that would be named where it does not lie.
        """
        offset = self.size
        for blob_id, length, raw_length in blobs:
            self.blobs.append(PackedBlob(self.kind, blob_id, offset, length, raw_length))
            offset += length
        if offset - self.size != len(sealed):
            raise ValueError(f"blobs of {offset - self.size} bytes do not fill {len(sealed)} bytes")
        self.parts.append(sealed)
        self.size = offset

    def fits(self, length: int, count: int = 1) -> bool:
        """Whether ``count`` blobs of ``length`` bytes together may be added."""
        header = _FIXED + (len(self.blobs) + count) * _COMPRESSED.size
        return len(self.blobs) + count <= MAX_ENTRIES and self.size + length + header <= MAX_SIZE

    @property
    def full(self) -> bool:
        return self.size >= (self.target_size or TARGET_SIZE) or len(self.blobs) >= MAX_ENTRIES

    def finish(self, key: Key) -> tuple[str, list[Buffer]]:
        """The pack's name and its bytes in parts; the header is opened again and compared."""
        header = key.seal(encode_header(self.blobs))
        if decode_header(key.open(header)) != self.blobs:
            raise DamagedError("A new pack's header did not read back as it was written; nothing was stored.")
        parts = [*self.parts, header, _LENGTH.pack(len(header))]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return digest.hexdigest(), parts


def encode_header(blobs: Sequence[PackedBlob]) -> bytes:
    out = bytearray()
    for blob in blobs:
        tree = blob.kind is BlobKind.TREE
        if blob.raw_length:
            out += _COMPRESSED.pack(2 + tree, blob.length, blob.raw_length, blob.id)
        else:
            out += _PLAIN.pack(0 + tree, blob.length, blob.id)
    return bytes(out)


def decode_header(header: bytes) -> list[PackedBlob]:
    """Raises ValueError."""
    blobs: list[PackedBlob] = []
    position = offset = 0
    try:
        while position < len(header):
            code = header[position]
            if code > 3:
                raise ValueError(f"entry of unknown type {code}")
            if code & 2:
                _, length, raw_length, blob_id = _COMPRESSED.unpack_from(header, position)
                position += _COMPRESSED.size
            else:
                _, length, blob_id = _PLAIN.unpack_from(header, position)
                raw_length = 0
                position += _PLAIN.size
            blobs.append(PackedBlob(BlobKind.TREE if code & 1 else BlobKind.DATA, blob_id, offset, length, raw_length))
            offset += length
    except struct.error as error:
        raise ValueError("entry is cut off") from error
    return blobs


def pack_size(blobs: Sequence[PackedBlob]) -> int:
    """Size of the pack file that holds exactly these blobs."""
    entries = sum(_COMPRESSED.size if blob.raw_length else _PLAIN.size for blob in blobs)
    return sum(blob.length for blob in blobs) + entries + _FIXED


def read_header(backend: Backend, key: Key, name: str, size: int) -> list[PackedBlob]:
    """The blobs that a stored pack says it holds. Raises DamagedError (naming the pack), ObjectMissing."""
    eager = min(size, _EAGER)
    tail = backend.get(Kind.PACK, name, size - eager, eager)
    if len(tail) != eager:
        raise DamagedError(f"pack {name} is damaged: it is cut off.")
    whole = _header_size(name, tail, size)
    if whole > eager:
        tail = backend.get(Kind.PACK, name, size - whole, whole)
    return _open_header(key, name, tail[len(tail) - whole :], size)


def header_of(key: Key, name: str, content: memoryview) -> list[PackedBlob]:
    """As read_header, of a pack that is in memory as a whole. Raises DamagedError."""
    whole = _header_size(name, content, len(content))
    return _open_header(key, name, content[len(content) - whole :], len(content))


def _header_size(name: str, tail: Buffer, size: int) -> int:
    """Of the header with its length, from a pack's last bytes."""
    if len(tail) <= _FIXED:
        raise DamagedError(f"pack {name} is damaged: it is cut off.")
    sealed_length: int = _LENGTH.unpack(tail[-_LENGTH.size :])[0]
    if not OVERHEAD < sealed_length <= min(MAX_HEADER, size - _LENGTH.size):
        raise DamagedError(f"pack {name} is damaged: its header's length {sealed_length} is impossible.")
    return sealed_length + _LENGTH.size


def _open_header(key: Key, name: str, header: Buffer, size: int) -> list[PackedBlob]:
    try:
        blobs = decode_header(key.open(header[: -_LENGTH.size]))
    except (Unauthenticated, ValueError) as error:
        raise DamagedError(f"pack {name} is damaged: its header cannot be read ({error}).") from error
    if sum(blob.length for blob in blobs) + len(header) != size:
        raise DamagedError(f"pack {name} is damaged: its size does not match its header.")
    return blobs


def open_blob(key: Key, pack: str, blob: PackedBlob, sealed: Buffer) -> bytes:
    """The blob's content: authenticated, decompressed, hash proven. Raises DamagedError (pack and blob)."""
    try:
        return open_content(key, blob.id, blob.length, blob.raw_length, sealed)
    except (Unauthenticated, NotCompressed) as error:
        raise damaged_blob(pack, blob, error) from error


def open_content(key: Key, blob_id: bytes, length: int, raw_length: int, sealed: Buffer) -> bytes:
    """As open_blob. Raises Unauthenticated or NotCompressed, saying what is wrong."""
    if len(sealed) != length:
        raise Unauthenticated(f"only {len(sealed)} of {length} bytes are there")
    plain = key.open(sealed)
    if raw_length:
        plain = decompress(plain, length=raw_length)
    if hashlib.sha256(plain).digest() != blob_id:
        raise Unauthenticated("the content is another")
    return plain


def damaged_blob(pack: str, blob: PackedBlob, what: object) -> DamagedError:
    return DamagedError(f"pack {pack} is damaged at {blob.kind} blob {blob.id.hex()}: {what}.")
