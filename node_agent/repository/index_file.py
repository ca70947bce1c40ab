"""Index files: which blobs lie in which pack. JSON, as restic writes it; read in its oldest form as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from node_agent.errors import DamagedError
from node_agent.repository.backend.base import Kind
from node_agent.repository.pack import BlobKind, PackedBlob
from node_agent.repository.sealed import SealedFiles, describe

MAX_BLOBS = 50_000  # restic rewrites files with many more
MAX_AGE_S = 600.0  # a killed backup loses at most this much of its work

PackEntry = tuple[str, Sequence[PackedBlob]]


def save_index_file(files: SealedFiles, packs: Iterable[PackEntry]) -> str:
    """Store one index file; every pack in it must be durable already. Returns its name."""
    return files.save(Kind.INDEX, encode_index(packs))


def encode_index(packs: Iterable[PackEntry]) -> bytes:
    """Written by hand: dictionaries of 50,000 blobs would be the largest thing that a backup holds in memory."""
    entries = (f'{{"id":"{name}","blobs":[{",".join(map(_encode_blob, blobs))}]}}' for name, blobs in packs)
    return f'{{"packs":[{",".join(entries)}]}}\n'.encode("ascii")


def load_index_file(files: SealedFiles, name: str) -> Iterator[tuple[str, list[PackedBlob]]]:
    """The packs of one index file. Raises DamagedError naming it: an index is never skipped."""
    value = files.load_json(Kind.INDEX, name)
    try:
        packs = value if isinstance(value, list) else value.get("packs")
        for pack in packs or ():
            pack_name = bytes.fromhex(pack["id"])
            if len(pack_name) != 32:
                raise ValueError("a pack's name is not 32 bytes")
            yield pack_name.hex(), [_decode_blob(blob) for blob in pack.get("blobs") or ()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{describe(Kind.INDEX, name)} is damaged: {error!r}.") from error


def _encode_blob(blob: PackedBlob) -> str:
    raw = f',"uncompressed_length":{blob.raw_length}' if blob.raw_length else ""
    place = f'"offset":{blob.offset},"length":{blob.length}'
    return f'{{"id":"{blob.id.hex()}","type":"{blob.kind}",{place}{raw}}}'


def _decode_blob(value: dict[str, Any]) -> PackedBlob:
    blob_id = bytes.fromhex(value["id"])
    numbers = (value["offset"], value["length"], value.get("uncompressed_length", 0))
    if len(blob_id) != 32 or not all(isinstance(n, int) and 0 <= n < 1 << 32 for n in numbers):
        raise ValueError("a blob's entry is impossible")
    return PackedBlob(BlobKind(value["type"]), blob_id, *numbers)
