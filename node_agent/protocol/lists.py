"""Lists of files, apart from the results: in pieces, and each directory once."""

from __future__ import annotations

from pydantic import Field

from node_agent.protocol.wire import Wire


class Entry(Wire):
    """One name of a directory. ``name`` is Go-quoted as in the tree: bytes that are not UTF-8 are ``\\xNN``."""

    name: str
    type: str  # file, dir, symlink, fifo, dev, chardev, socket
    size: int = 0
    mtime: str = ""  # RFC 3339
    mode: int = 0  # POSIX permission bits
    user: str = ""
    target: str = ""  # of a symlink
    tree: str = ""  # of a dir: the tree id of its own list


class DirectoriesWanted(Wire):
    token: str
    tree_ids: list[str] = Field(max_length=5000)


class DirectoriesMissing(Wire):
    tree_ids: list[str]


class Directory(Wire):
    tree_id: str
    entries: list[Entry]
    part: int = 0  # a directory too large for one piece comes in parts 0 … n
    last: bool = True


class DirectoriesReport(Wire):
    token: str
    directories: list[Directory]
