"""zstd for blobs and for the repository's own files, with bounds against what a hostile store could send."""

from __future__ import annotations

import threading

import zstandard

from node_agent.errors import ConfigError
from node_agent.repository.backend.base import Buffer

# "auto" is level 1: on the machines we measured zstd is the limit of the whole pipeline, level 3 takes half as long
# again for a twelfth of space. "off" stores data as it is; trees are compressed all the same.
LEVELS: dict[str, int | None] = {"auto": 1, "fastest": -1, "better": 6, "max": 19, "off": None}

MAX_UNPACKED = 512 << 20  # an index of restic's "oversized" kind has 80 MiB; nothing honest comes near this
_WINDOW = 128 << 20


class NotCompressed(ValueError):
    """The bytes are not one zstd frame within the bounds."""


class _PerThread(threading.local):
    """zstd contexts cannot be shared between threads and are costly to make."""

    def __init__(self) -> None:
        self.compressors: dict[tuple[int, int], zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        self.dense = False  # whether the middle blob before this one became less than a quarter


_local = _PerThread()


# Level 1 finds matches of seven bytes and more in large blobs; six cost nothing and save 2 % of real disks. Blocks of
# 256 KiB need five and a table four times as large to become nearly as small as if they were cut into whole MiB, 5 %
# slower. What becomes very small (text, logs) gains by a second table; its neighbours on a disk are mostly alike, so
# the block before says whether that is worth another 15 %.
_SMALL, _MIDDLE, _DENSE, _LARGE = range(4)
_MIDDLE_FROM, _LARGE_FROM = 128 << 10, 256 << 10  # beyond; below, the library's own choice for the size is better
_DENSE_SHARE = 4


def _parameters(**chosen: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(1, write_checksum=False, **chosen)


_PARAMETERS = {
    (1, _MIDDLE): _parameters(min_match=5, hash_log=16),
    (1, _DENSE): _parameters(min_match=5, hash_log=14, chain_log=14, strategy=zstandard.STRATEGY_DFAST),
    (1, _LARGE): _parameters(min_match=6, hash_log=15),
}


def level_of(name: str) -> int | None:
    """The zstd level behind a name; None means off."""
    try:
        return LEVELS[name]
    except KeyError:
        raise ConfigError(f"There is no compression {name!r}.", hint=f"Choose one of {', '.join(LEVELS)}.") from None


def compress(data: Buffer, level: int) -> bytes:
    size = len(data)
    if size <= _MIDDLE_FROM:
        return _compressor(level, _SMALL).compress(data)
    if size > _LARGE_FROM:
        return _compressor(level, _LARGE).compress(data)
    smaller = _compressor(level, _DENSE if _local.dense else _MIDDLE).compress(data)
    _local.dense = len(smaller) * _DENSE_SHARE < size
    return smaller


def _compressor(level: int, kind: int) -> zstandard.ZstdCompressor:
    compressor = _local.compressors.get((level, kind))
    if compressor is None:
        chosen = _PARAMETERS.get((level, kind))
        compressor = _local.compressors[level, kind] = (
            zstandard.ZstdCompressor(compression_params=chosen)
            if chosen is not None
            else zstandard.ZstdCompressor(level=level, write_checksum=False)
        )
    return compressor


def decompress(data: Buffer, *, length: int | None = None, limit: int = MAX_UNPACKED) -> bytes:
    """The content of one frame; with ``length``, exactly that many bytes. Raises NotCompressed.

    Never allocates more than ``length`` or ``limit``, whatever the frame claims.
    """
    bound = limit if length is None else length
    try:
        claimed = zstandard.get_frame_parameters(data).content_size
        if claimed not in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
            if claimed > bound:
                raise NotCompressed(f"the frame claims {claimed} bytes, at most {bound} are expected")
            plain = _local.decompressor.decompress(data, allow_extra_data=False) if claimed else b""
        else:
            plain = _decompress_stream(data, bound)
    except zstandard.ZstdError as error:
        raise NotCompressed(str(error)) from error
    if length is not None and len(plain) != length:
        raise NotCompressed(f"{len(plain)} bytes instead of {length}")
    return plain


def _decompress_stream(data: Buffer, bound: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    with _local.decompressor.stream_reader(data, read_across_frames=True) as reader:
        while piece := reader.read(1 << 20):
            size += len(piece)
            if size > bound:
                raise NotCompressed(f"more than {bound} bytes")
            pieces.append(piece)
    return b"".join(pieces)
