"""A blob from plain content to what lies in a pack: compressed if that helps, sealed, and a share of them opened again.

Needs the master key and nothing of the store, so that it can be done anywhere: on a thread, or in a process of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from node_agent.repository.backend.base import Buffer
from node_agent.repository.compression import compress
from node_agent.repository.crypto import OVERHEAD, Key
from node_agent.repository.pack import BlobKind, PackedBlob, open_blob

_TREE_LEVEL = 3
_QUICK = 1  # what this makes no smaller, a slow level is not asked for: at "max" it would take 150 ms for each MiB
SAMPLE = 4  # of 256: this share of data blobs is opened again after sealing
EVERYTHING = 256


class SealedBlob(NamedTuple):
    """What a pack must know of a blob. ``raw_length`` is 0 for one that is stored uncompressed."""

    id: bytes
    length: int  # sealed
    raw_length: int
    size: int  # of the content


@dataclass(frozen=True, slots=True)
class Prepared:
    """A blob of data that is hashed and compressed already: neither depends on the repository."""

    id: bytes
    plain: Buffer  # what to seal
    raw_length: int  # 0: plain is the content
    size: int

    def __len__(self) -> int:
        return self.size

    @classmethod
    def of(cls, data: Buffer, level: int | None) -> Prepared:
        return cls(hashlib.sha256(data).digest(), *compressed(data, level), len(data))


def compressed(data: Buffer, level: int | None) -> tuple[Buffer, int]:
    """What to seal of data, and the uncompressed length to note (0: stored as it is)."""
    if level is not None and (level <= _QUICK or len(compress(data, _QUICK)) < len(data)):
        smaller = compress(data, level)
        if len(smaller) < len(data):
            return smaller, len(data)
    return data, 0


class Sealer:
    """Thread-safe. ``level`` None stores data as it is; trees are always compressed."""

    def __init__(self, key: Key, level: int | None, sample: int = SAMPLE) -> None:
        self._key = key
        self._level = level
        self._sample = sample

    def seal(
        self, kind: BlobKind, blobs: Sequence[tuple[bytes, Buffer | Prepared]]
    ) -> tuple[list[SealedBlob], bytearray]:
        """Blobs (id, content), and all of them sealed one after the other.

        Raises DamagedError when one was opened again and is something else.
        """
        ready = [self._ready(kind, data) for _, data in blobs]
        content = self._key.seal_each([plain for plain, _ in ready])
        sealed: list[SealedBlob] = []
        at = 0
        for (blob_id, data), (plain, raw_length) in zip(blobs, ready, strict=True):
            length = len(plain) + OVERHEAD
            if kind is BlobKind.TREE or blob_id[0] < self._sample:
                blob = PackedBlob(kind, blob_id, 0, length, raw_length)
                open_blob(self._key, "(not yet stored)", blob, memoryview(content)[at : at + length])
            sealed.append(SealedBlob(blob_id, length, raw_length, len(data)))
            at += length
        return sealed, content

    def _ready(self, kind: BlobKind, data: Buffer | Prepared) -> tuple[Buffer, int]:
        """What to seal, and the uncompressed length to note (0: stored as it is)."""
        if isinstance(data, Prepared):
            return data.plain, data.raw_length
        if kind is BlobKind.TREE:
            return compress(data, _TREE_LEVEL), len(data)  # always, else stock prune repacks it for ever
        return compressed(data, self._level)

    def to_wire(self) -> tuple[bytes, bytes, bytes, int | None, int]:
        """For another process of ours, over a channel that nobody else can read: the key is in it."""
        return self._key.encrypt, self._key.mac_k, self._key.mac_r, self._level, self._sample

    @classmethod
    def from_wire(cls, encrypt: bytes, mac_k: bytes, mac_r: bytes, level: int | None, sample: int) -> Sealer:
        return cls(Key(encrypt, mac_k, mac_r), level, sample)
