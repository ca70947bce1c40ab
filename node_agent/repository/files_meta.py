"""Metadata of files: from the file system into tree nodes.

Everything goes through an open folder and one name in it, so that no part of a path can be replaced by
a link between look and touch.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
from collections.abc import Iterator
from functools import lru_cache

from node_agent.repository.tree import Node, go_mode, node_type

_NO_XATTRS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@lru_cache(maxsize=4096)
def user_name(uid: int) -> str:
    """Empty when nobody is known by this number, as restic has it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@lru_cache(maxsize=4096)
def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def node_from_stat(name: bytes, st: os.stat_result) -> Node:
    """All that lstat tells; content, link target and extended attributes are the caller's."""
    kind = node_type(st.st_mode)
    node = Node(
        name=name,
        type=kind,
        mode=go_mode(st.st_mode),
        # restic's atime is the mtime unless asked otherwise: with the true one no unchanged tree deduplicates.
        mtime=st.st_mtime_ns,
        atime=st.st_mtime_ns,
        ctime=st.st_ctime_ns,
        uid=st.st_uid,
        gid=st.st_gid,
        user=user_name(st.st_uid),
        group=group_name(st.st_gid),
        inode=st.st_ino,
        device_id=st.st_dev,
    )
    if kind not in ("dir", "symlink"):
        node.links = st.st_nlink
    if kind in ("dev", "chardev"):
        node.device = st.st_rdev
    return node


def proc_path(folder_fd: int, name: bytes) -> bytes:
    """A path for calls that know no folder descriptors (extended attributes)."""
    return b"/proc/self/fd/%d/%s" % (folder_fd, name)


def read_xattrs(path: bytes | int, *, follow: bool = False) -> Iterator[tuple[str, bytes]]:
    """Of an open file or of a path. Nothing where the file system knows none. Raises OSError."""
    follow = follow or isinstance(path, int)  # a descriptor cannot be "not followed": Python refuses that
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return
        raise
    for name in sorted(names):
        try:
            yield name, os.getxattr(path, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.ENODATA, *_NO_XATTRS):  # ENODATA: removed between list and get
                raise
