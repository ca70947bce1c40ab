"""The folder that a restore writes into, and nothing outside of it.

Every name comes from the repository and is hostile. Each step is one name below an open folder, never through a
link: a snapshot that holds a link ``a`` and then a folder ``a``, or a target in which somebody plants links, cannot
lead outside.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node_agent.errors import TargetError, TargetFull
from node_agent.items import printable
from node_agent.repository.tree import Node

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_NAMES = frozenset((b"", b".", b".."))
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class InTheWay(Exception):
    """Something at the target that may not be replaced. The message says what."""


def is_safe_name(name: bytes) -> bool:
    """Whether a name can only mean an entry of the folder it is used in."""
    return name not in _NO_NAMES and b"/" not in name and b"\0" not in name


def translate(error: OSError, path: bytes) -> TargetError | None:
    """The error that ends the whole restore, or None for one that concerns one item only."""
    if error.errno in _FULL:
        return TargetFull(f"The target has no space left for {printable(path)}.")
    if error.errno in (errno.EROFS, errno.EIO):
        return TargetError(f"The target cannot be written: {error.strerror}.", hint="Check the target's file system.")
    return None


@dataclass(slots=True)
class Folder:
    """An open folder of the target. It is finished (metadata, close) once nobody needs it any more."""

    fd: int
    path: bytes  # in the snapshot, for messages
    parts: tuple[bytes, ...]  # below the target
    node: Node | None  # its metadata; None for one that stays as it is
    parent: Folder | None
    finish: Callable[[Folder], None]
    fresh: bool = False  # made by this run, and closed to others until it is finished: nothing is in the way there
    _holders: int = 1

    def hold(self) -> Folder:
        self._holders += 1
        return self

    def release(self) -> None:
        """Let go of it; the last holder finishes it, and so on upwards (a loop: trees are deep)."""
        here: Folder | None = self
        while here is not None:
            here._holders -= 1
            if here._holders:
                return
            try:
                here.finish(here)
            finally:
                os.close(here.fd)
            here = here.parent


def open_target(target: Path) -> tuple[int, bool]:
    """(descriptor, whether it was made now). Links on the way to the target are the user's and are followed."""
    try:
        created = not target.exists()
        target.mkdir(parents=True, exist_ok=True)
        return os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), created
    except OSError as error:
        full = translate(error, os.fsencode(target))
        raise full or TargetError(f"The target {target} cannot be used: {error.strerror}.") from error


def enter(folder: Folder, name: bytes, overwrite: str) -> tuple[int, bool]:
    """Open the folder ``name`` below ``folder``, making it if need be; (descriptor, whether it was made)."""
    try:
        os.mkdir(name, 0o700, dir_fd=folder.fd)
        return os.open(name, _OPEN_FOLDER, dir_fd=folder.fd), True
    except FileExistsError:
        found = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        if overwrite == "never":
            raise InTheWay("Something that is no folder is in its place.")
        os.unlink(name, dir_fd=folder.fd)
        os.mkdir(name, 0o700, dir_fd=folder.fd)
        return os.open(name, _OPEN_FOLDER, dir_fd=folder.fd), True
    return os.open(name, _OPEN_FOLDER, dir_fd=folder.fd), False


def open_below(fd: int, parts: tuple[bytes, ...]) -> int:
    """A folder below an open one, no link followed. Raises OSError."""
    here = os.dup(fd)
    for part in parts:
        try:
            deeper = os.open(part, _OPEN_FOLDER, dir_fd=here)
        finally:
            os.close(here)
        here = deeper
    return here


def lookup(folder: Folder, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def temporary_name() -> bytes:
    return b".brs-" + secrets.token_hex(8).encode() + b".part"


def put_in_place(folder: Folder, temporary: bytes, name: bytes, *, linked: bool = False) -> None:
    """Replace whatever ``name`` is, unless it is a folder. ``linked``: the temporary file may have other names."""
    try:
        os.rename(temporary, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
    except OSError as error:
        discard(folder, temporary)
        if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise InTheWay("A folder is in its place.") from error
        raise
    if linked:  # if both names were links of one file, rename leaves the temporary one
        discard(folder, temporary)


def discard(folder: Folder, temporary: bytes) -> None:
    try:
        os.unlink(temporary, dir_fd=folder.fd)
    except FileNotFoundError:
        return
