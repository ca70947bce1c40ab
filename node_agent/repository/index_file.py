"""Index files: which blobs lie in which pack. JSON, as restic writes it; read in its oldest form as well.

Two lists may stand beside the packs, for stores that do not give up what they locked. ``supersedes`` (a field of
restic's format, which restic itself does not look at) names index files that count no longer although they are still
there. ``brs_dropped`` names packs that a repair took out of the index for good: nothing makes entries from their
headers again. Both stand in the last file of a set that was written together.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from node_agent.errors import DamagedError
from node_agent.repository.backend.base import Kind, is_object_name
from node_agent.repository.pack import BlobKind, PackedBlob
from node_agent.repository.sealed import SealedFiles, describe

MAX_BLOBS = 50_000  # restic rewrites files with many more
MAX_AGE_S = 600.0  # a killed backup loses at most this much of its work

PackEntry = tuple[str, Sequence[PackedBlob]]


@dataclass(frozen=True, slots=True)
class Marks:
    superseded: frozenset[str] = frozenset()  # index files
    dropped: frozenset[str] = frozenset()  # packs

    def __or__(self, other: Marks) -> Marks:
        return Marks(self.superseded | other.superseded, self.dropped | other.dropped)


NO_MARKS = Marks()


@dataclass(frozen=True, slots=True)
class IndexFile:
    packs: list[tuple[str, list[PackedBlob]]]
    marks: Marks = NO_MARKS


def save_index_file(files: SealedFiles, packs: Iterable[PackEntry], marks: Marks = NO_MARKS) -> str:
    """Store one index file; every pack in it must be durable already. Returns its name."""
    return files.save(Kind.INDEX, encode_index(packs, marks))


def encode_index(packs: Iterable[PackEntry], marks: Marks = NO_MARKS) -> bytes:
    """Written by hand: dictionaries of 50,000 blobs would be the largest thing that a backup holds in memory."""
    entries = (f'{{"id":"{name}","blobs":[{",".join(map(_encode_blob, blobs))}]}}' for name, blobs in packs)
    lists = (("supersedes", marks.superseded), ("brs_dropped", marks.dropped))
    front = "".join(f'"{field}":{json.dumps(sorted(names))},' for field, names in lists if names)
    return f'{{{front}"packs":[{",".join(entries)}]}}\n'.encode("ascii")


def load_index_file(files: SealedFiles, name: str) -> Iterator[tuple[str, list[PackedBlob]]]:
    """The packs of one index file. Raises DamagedError naming it: an index is never skipped."""
    yield from open_index_file(files, name).packs


def open_index_file(files: SealedFiles, name: str) -> IndexFile:
    """Raises DamagedError."""
    value = files.load_json(Kind.INDEX, name)
    try:
        packs = value if isinstance(value, list) else value.get("packs")
        marks = (
            NO_MARKS if isinstance(value, list) else Marks(_names(value, "supersedes"), _names(value, "brs_dropped"))
        )
        return IndexFile([_decode_pack(pack) for pack in packs or ()], marks)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{describe(Kind.INDEX, name)} is damaged: {error!r}.") from error


def marks_of(files: SealedFiles, names: Iterable[str]) -> Marks:
    """What these index files say of other index files and of packs; those that cannot be read say nothing."""
    found = NO_MARKS
    for name in names:
        with contextlib.suppress(DamagedError):
            found |= open_index_file(files, name).marks
    return found


def _names(value: dict[str, Any], field: str) -> frozenset[str]:
    names = value.get(field) or ()
    if not all(is_object_name(name) for name in names):
        raise ValueError(f"{field} holds what is no name")
    return frozenset(names)


def _decode_pack(pack: dict[str, Any]) -> tuple[str, list[PackedBlob]]:
    name = bytes.fromhex(pack["id"])
    if len(name) != 32:
        raise ValueError("a pack's name is not 32 bytes")
    return name.hex(), [_decode_blob(blob) for blob in pack.get("blobs") or ()]


_LIMIT = 1 << 32
_KINDS = {str(kind): kind for kind in BlobKind}


def _encode_blob(blob: PackedBlob) -> str:
    raw = f',"uncompressed_length":{blob.raw_length}' if blob.raw_length else ""
    place = f'"offset":{blob.offset},"length":{blob.length}'
    return f'{{"id":"{blob.id.hex()}","type":"{blob.kind}",{place}{raw}}}'


def _decode_blob(value: dict[str, Any]) -> PackedBlob:
    """Written out, since a large repository has millions of entries. Numbers are Go's uint32."""
    blob_id = bytes.fromhex(value["id"])
    offset, length, raw_length = value["offset"], value["length"], value.get("uncompressed_length", 0)
    if not (
        type(offset) is type(length) is type(raw_length) is int
        and len(blob_id) == 32
        and 0 <= offset < _LIMIT
        and 0 <= length < _LIMIT
        and 0 <= raw_length < _LIMIT
    ):
        raise ValueError("a blob's entry is impossible")
    return PackedBlob(_KINDS[value["type"]], blob_id, offset, length, raw_length)
