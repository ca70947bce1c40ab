"""Metadata onto restored files, in the order that keeps it: owner, extended attributes, mode, times.

A change of owner clears set-id bits and capabilities; attributes need a writable file; times come last. What the
node's user or the target's file system may not have is a note, counted once for each kind, and not a failure.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from node_agent.items import Issue, Issues, Severity, printable
from node_agent.repository.files_meta import proc_path
from node_agent.repository.tree import Node

_MAX_ID = (1 << 32) - 2
_MAX_TIME_NS = (1 << 63) * 1_000_000_000 - 1  # what the system call takes; the file system may keep less
_NOT_SUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_SET_ID = stat.S_ISUID | stat.S_ISGID

# Permission bits, owner, group, times of access and change, attributes; a plain tuple, which marshal knows.
Meta = tuple[int, int, int, int, int, list[tuple[str, bytes]]]

_SENTENCES = {
    "owner": "The owner could not be set, because the node's user may not",
    "xattrs-unsupported": "Extended attributes were not restored, because the target's file system has none",
    "xattrs": "Extended attributes were not restored, because the node's user may not set them",
    "mode": "The mode could not be set",
    "times": "The times could not be set",
    "socket": "A socket was not restored; the program that made it makes it again",
}


@dataclass(slots=True)
class Notes:
    """Counts by kind; told as one note each at the end."""

    _first: dict[str, bytes] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, path: bytes) -> None:
        self._first.setdefault(kind, path)
        self._count[kind] = self._count.get(kind, 0) + 1

    def take(self) -> list[tuple[str, bytes, int]]:
        """What was counted, to be merged elsewhere; here it begins anew."""
        taken = [(kind, self._first[kind], count) for kind, count in self._count.items()]
        self._first.clear()
        self._count.clear()
        return taken

    def merge(self, taken: Iterable[tuple[str, bytes, int]]) -> None:
        for kind, path, count in taken:
            self._first.setdefault(kind, path)
            self._count[kind] = self._count.get(kind, 0) + count

    def tell(self, issues: Issues) -> None:
        for kind, count in self._count.items():
            more = f" (and of {count - 1} more)" if count > 1 else ""
            issues.add(Issue(printable(self._first[kind]), kind, f"{_SENTENCES[kind]}{more}.", Severity.NOTE))


def meta_of(node: Node) -> Meta:
    return stat.S_IMODE(node.st_mode), node.uid, node.gid, _within(node.atime), _within(node.mtime), node.xattrs


def apply_to_open(fd: int, meta: Meta, path: bytes, notes: Notes) -> None:
    """To an open file or folder. What it has already is not set again: a look costs a tenth of a change."""
    mode, uid, gid, atime, mtime, xattrs = meta
    st = os.fstat(fd)
    same_owner = st.st_uid == uid and st.st_gid == gid
    owned = same_owner or _set_owner(fd, None, uid, gid, path, notes)
    if xattrs:
        _set_xattrs(fd, xattrs, path, notes)
    # Without its owner, a set-id bit would lend the rights of somebody else.
    mode = mode if owned else mode & ~_SET_ID
    if mode != stat.S_IMODE(st.st_mode) or not same_owner or xattrs:
        try:
            os.chmod(fd, mode)
        except OSError:
            notes.add("mode", path)
    try:
        os.utime(fd, ns=(atime, mtime))
    except (OSError, OverflowError):
        notes.add("times", path)


def apply_to_name(folder_fd: int, name: bytes, node: Node, path: bytes, notes: Notes) -> None:
    """To a link, FIFO or device, which cannot be opened."""
    mode, uid, gid, atime, mtime, xattrs = meta_of(node)
    owned = _set_owner(name, folder_fd, uid, gid, path, notes)
    if xattrs:
        _set_xattrs(proc_path(folder_fd, name), xattrs, path, notes)
    if node.type != "symlink":
        try:
            _chmod_not_following(folder_fd, name, mode if owned else mode & ~_SET_ID)
        except OSError:
            notes.add("mode", path)
    try:
        os.utime(name, ns=(atime, mtime), dir_fd=folder_fd, follow_symlinks=False)
    except (OSError, OverflowError):
        notes.add("times", path)


def _chmod_not_following(folder_fd: int, name: bytes, mode: int) -> None:
    """chmod follows links; through a descriptor of the entry itself it cannot."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)


def _set_owner(what: int | bytes, folder_fd: int | None, uid: int, gid: int, path: bytes, notes: Notes) -> bool:
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        notes.add("owner", path)
        return False
    try:
        if isinstance(what, int):
            os.chown(what, uid, gid)
        else:
            os.chown(what, uid, gid, dir_fd=folder_fd, follow_symlinks=False)
    except OSError:
        notes.add("owner", path)
        return False
    return True


def _set_xattrs(what: int | bytes, xattrs: Sequence[tuple[str, bytes]], path: bytes, notes: Notes) -> None:
    for name, value in xattrs:
        try:
            os.setxattr(what, name, value, follow_symlinks=isinstance(what, int))
        except OSError as error:
            notes.add("xattrs-unsupported" if error.errno in _NOT_SUPPORTED else "xattrs", path)
        except ValueError:  # a name with NUL: nothing that a file system could have given
            notes.add("xattrs", path)


def _within(time_ns: int) -> int:
    return time_ns if -_MAX_TIME_NS <= time_ns <= _MAX_TIME_NS else _MAX_TIME_NS if time_ns > 0 else -_MAX_TIME_NS
