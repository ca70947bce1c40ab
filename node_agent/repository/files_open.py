"""Opening a file of a tree that does not hold still: below its open folder, never through a link, never hanging."""

from __future__ import annotations

import os
import stat

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(name: bytes, folder_fd: int | None) -> int:
    """A descriptor of a file (None: by its path); without touching its access time where that is allowed."""
    try:
        return os.open(name, _FLAGS | os.O_NOATIME, dir_fd=folder_fd)
    except PermissionError:  # O_NOATIME is for the owner and root only
        return os.open(name, _FLAGS, dir_fd=folder_fd)


def is_regular(st: os.stat_result) -> bool:
    return stat.S_ISREG(st.st_mode)


def version(st: os.stat_result) -> tuple[int, int]:
    """Two looks with equal versions, and what was read between them is one state."""
    return st.st_size, st.st_mtime_ns
