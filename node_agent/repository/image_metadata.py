"""Where in a disk the metadata lies that everything else hangs on: partition tables, superblocks, headers.

Found by a look at the disk itself, which a guest wrote and may have written to deceive: nothing here is believed
further than to say which blocks are worth comparing, every number is bounded, and what is not understood is passed
over. Known are MBR and GPT, ext2/3/4 (primary and backup superblocks), XFS (each allocation group's), NTFS (both boot
sectors, the MFT and its mirror) and btrfs; LVM, LUKS and md keep theirs in the first or last MiB of a partition.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from node_agent.items import Extent

Read = Callable[[int, int], bytes]

EDGE = 1 << 20
_SECTOR = 512
_MAX_PARTITIONS = 128
_MAX_COPIES = 256  # of one file system's superblock
_EXTENDED = (0x05, 0x0F, 0x85)
_BTRFS_COPIES = (64 << 10, 64 << 20, 256 << 30)


def metadata_areas(read: Read, size: int) -> Iterator[Extent]:
    """Ranges inside of a disk of ``size`` bytes, in no order. ``read`` gives exactly what is asked for."""
    disk = _Part(read, 0, size)
    for part in [disk, *_partitions(disk)]:
        for offset, length in ((0, EDGE), (part.size - EDGE, EDGE), *_of_file_system(part)):
            start, end = max(0, offset), min(part.size, offset + length)
            if start < end:
                yield Extent(part.start + start, end - start)


class _Part:
    """A range of the disk; reading beyond it gives zeros, which mean nothing."""

    def __init__(self, read: Read, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self._read = read

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.size:
            return bytes(length)
        return self._read(self.start + offset, length)

    def part(self, start: int, size: int) -> _Part | None:
        if size <= 0 or start <= 0 or start + size > self.size:
            return None
        return _Part(self._read, self.start + start, size)


# --- partitions ---


def _partitions(disk: _Part) -> list[_Part]:
    if disk.read(0, _SECTOR)[510:] != b"\x55\xaa":
        return []
    found = [part for part in _gpt(disk) if part is not None] or [part for part in _mbr(disk) if part is not None]
    return found[:_MAX_PARTITIONS]


def _gpt(disk: _Part) -> Iterator[_Part | None]:
    for sector in (512, 4096):
        header = disk.read(sector, 92)
        if header[:8] != b"EFI PART":
            continue
        table, count, entry_size = struct.unpack_from("<QII", header, 72)
        if not 128 <= entry_size <= 4096:
            return
        for number in range(min(count, _MAX_PARTITIONS)):
            entry = disk.read(table * sector + number * entry_size, 48)
            first, last = struct.unpack_from("<QQ", entry, 32)
            if any(entry[:16]):
                yield disk.part(first * sector, (last - first + 1) * sector)
        return


def _mbr(disk: _Part) -> Iterator[_Part | None]:
    for kind, first, count in _mbr_entries(disk.read(0, _SECTOR)):
        if kind in _EXTENDED:
            yield from _logical(disk, first)
        else:
            yield disk.part(first * _SECTOR, count * _SECTOR)


def _logical(disk: _Part, extended: int) -> Iterator[_Part | None]:
    at = extended
    for _ in range(_MAX_PARTITIONS):
        link = 0
        for kind, first, count in _mbr_entries(disk.read(at * _SECTOR, _SECTOR)):
            if kind in _EXTENDED:
                link = extended + first
            else:
                yield disk.part((at + first) * _SECTOR, count * _SECTOR)
        if link <= at:  # the last one, or a loop
            return
        at = link


def _mbr_entries(sector: bytes) -> Iterator[tuple[int, int, int]]:
    if sector[510:] != b"\x55\xaa":
        return
    for number in range(4):
        kind, first, count = struct.unpack_from("<4xB3xII", sector, 446 + 16 * number)
        if kind and count:
            yield kind, first, count


# --- file systems ---


def _of_file_system(part: _Part) -> Iterator[tuple[int, int]]:
    head = part.read(0, 4096)
    if head[1024 + 56 : 1024 + 58] == b"\x53\xef":
        yield from _ext(head[1024:2048])
    elif head[:4] == b"XFSB":
        yield from _xfs(head)
    elif head[3:11] == b"NTFS    ":
        yield from _ntfs(part, head)
    elif part.read(_BTRFS_COPIES[0], 4096)[64:72] == b"_BHRfS_M":
        yield from ((offset, 4096) for offset in _BTRFS_COPIES)


def _ext(superblock: bytes) -> Iterator[tuple[int, int]]:
    blocks, _, _, _, first, shift = struct.unpack_from("<IIIIII", superblock, 4)
    (per_group,) = struct.unpack_from("<I", superblock, 32)
    (read_only,) = struct.unpack_from("<I", superblock, 100)
    (incompatible,) = struct.unpack_from("<I", superblock, 96)
    if shift > 6 or not per_group:
        return
    if incompatible & 0x80:  # 64bit
        blocks += struct.unpack_from("<I", superblock, 0x150)[0] << 32
    size = 1024 << shift
    groups = -(-blocks // per_group)
    sparse = bool(read_only & 1)
    for group in _groups_with_copies(groups) if sparse else range(1, min(groups, _MAX_COPIES)):
        yield (first + group * per_group) * size, size


def _groups_with_copies(groups: int) -> Iterator[int]:
    if groups > 1:
        yield 1
    for base in (3, 5, 7):
        group = base
        while group < groups:
            yield group
            group *= base


def _xfs(head: bytes) -> Iterator[tuple[int, int]]:
    (size,) = struct.unpack_from(">I", head, 4)
    per_group, groups = struct.unpack_from(">II", head, 84)
    if 512 <= size <= 65536:
        for group in range(min(groups, _MAX_COPIES)):
            yield group * per_group * size, size


def _ntfs(part: _Part, head: bytes) -> Iterator[tuple[int, int]]:
    sector, per_cluster = struct.unpack_from("<HB", head, 11)
    table, mirror = struct.unpack_from("<QQ", head, 48)
    cluster = sector * per_cluster
    yield part.size - _SECTOR, _SECTOR
    for number in (table, mirror):
        yield number * cluster, max(cluster, 4096)
