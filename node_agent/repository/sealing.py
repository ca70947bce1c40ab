"""A blob from plain content to what lies in a pack: compressed if that helps, sealed, and a share of them opened again.

Needs the master key and nothing of the store, so that it can be done anywhere: on a thread, or in a process of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from node_agent.repository.backend.base import Buffer
from node_agent.repository.compression import compress
from node_agent.repository.crypto import Key
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

    def seal(self, kind: BlobKind, blob_id: bytes, data: Buffer) -> tuple[SealedBlob, bytearray]:
        """Raises DamagedError when it was opened again and is something else."""
        return self.seal_plain(kind, blob_id, *self._compressed(kind, data), len(data))

    def seal_plain(
        self, kind: BlobKind, blob_id: bytes, plain: Buffer, raw_length: int, size: int
    ) -> tuple[SealedBlob, bytearray]:
        """What was compressed already, or is to be stored as it is (``raw_length`` 0). Raises as :meth:`seal`."""
        sealed = self._key.seal(plain)
        if kind is BlobKind.TREE or blob_id[0] < self._sample:
            open_blob(self._key, "(not yet stored)", PackedBlob(kind, blob_id, 0, len(sealed), raw_length), sealed)
        return SealedBlob(blob_id, len(sealed), raw_length, size), sealed

    def _compressed(self, kind: BlobKind, data: Buffer) -> tuple[Buffer, int]:
        """What to seal, and the uncompressed length to note (0: stored as it is)."""
        if kind is BlobKind.TREE:
            return compress(data, _TREE_LEVEL), len(data)  # always, else stock prune repacks it for ever
        return compressed(data, self._level)

    def to_wire(self) -> tuple[bytes, bytes, bytes, int | None, int]:
        """For another process of ours, over a channel that nobody else can read: the key is in it."""
        return self._key.encrypt, self._key.mac_k, self._key.mac_r, self._level, self._sample

    @classmethod
    def from_wire(cls, encrypt: bytes, mac_k: bytes, mac_r: bytes, level: int | None, sample: int) -> Sealer:
        return cls(Key(encrypt, mac_k, mac_r), level, sample)
