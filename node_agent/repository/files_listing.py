"""What a folder looks like without anything in it being opened: its names, their lstat, one digest over both.

The digest holds everything of lstat but the access time and the block count: type, mode, inode, device, links, owner,
size, times of change of content and of anything else, and the owners' names as this machine has them now. Whoever
changes a file, its attributes or its access list changes its ctime, which no program can set back.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from node_agent.repository.excludes import Excludes
from node_agent.repository.files_meta import group_name, user_name

_MAX_KEPT = 20_000  # of larger folders the stats are dropped, and asked for again one by one

Entry = tuple[bytes, os.stat_result | None]


@dataclass(frozen=True, slots=True)
class Listing:
    """Names in order. ``digest`` is None if something could not be looked at."""

    entries: Sequence[Entry]
    digest: bytes | None
    newest_ns: int  # the youngest ctime
    folders: Sequence[bytes]
    sockets: Sequence[bytes]
    files: int
    size_bytes: int

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)


def list_folder(fd: int, path: bytes, root: bytes, excludes: Excludes, one_file_system: bool) -> Listing:
    """Everything in an open folder but what is excluded. Raises OSError if it cannot be listed."""
    with os.scandir(fd) as found:
        named = sorted((os.fsencode(entry.name), entry) for entry in found)
    if excludes.markers and (marker := excludes.marker(fd, {name for name, _ in named})) is not None:
        named = [pair for pair in named if pair[0] == marker]
    keep = len(named) <= _MAX_KEPT
    hasher = hashlib.sha256(b"1x" if one_file_system else b"1-")
    entries: list[Entry] = []
    folders: list[bytes] = []
    sockets: list[bytes] = []
    owners: set[tuple[int, int]] = set()
    newest = files = size = 0
    whole = True
    for name, entry in named:
        try:
            st = entry.stat(follow_symlinks=False)
        except OSError:  # vanished, most likely: who visits it finds out
            entries.append((name, None))
            whole = False
            continue
        is_dir = stat.S_ISDIR(st.st_mode)
        if excludes and excludes.match(os.path.join(path, name), root, is_dir, st.st_size):
            continue
        entries.append((name, st if keep else None))
        hasher.update(_line(name, st))
        owners.add((st.st_uid, st.st_gid))
        newest = max(newest, st.st_ctime_ns)
        if is_dir:
            folders.append(name)
        elif stat.S_ISREG(st.st_mode):
            files += 1
            size += st.st_size
        elif stat.S_ISSOCK(st.st_mode):
            sockets.append(name)
    for uid, gid in sorted(owners):
        hasher.update(f"{uid} {user_name(uid)}\0{gid} {group_name(gid)}\n".encode("utf-8", "surrogateescape"))
    return Listing(entries, hasher.digest() if whole else None, newest, folders, sockets, files, size)


def _line(name: bytes, st: os.stat_result) -> bytes:
    return b"%b\0%d %d %d %d %d %d %d %d %d %d\n" % (
        name,
        st.st_mode,
        st.st_ino,
        st.st_dev,
        st.st_nlink,
        st.st_uid,
        st.st_gid,
        st.st_size,
        st.st_mtime_ns,
        st.st_ctime_ns,
        st.st_rdev,
    )
