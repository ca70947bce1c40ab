"""Lists apart from the results, in pieces: of files (each directory once), and of what a platform has."""

from __future__ import annotations

from pydantic import Field

from node_agent.protocol.wire import Bytes, Wire


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


FOUND_PIECE = 100  # machines in one piece
FOUND_MOST = 20_000  # on one platform


class DiskFacts(Wire):
    name: str = Field(max_length=250)
    size_bytes: Bytes
    format: str = Field(default="", max_length=40)
    why_left_out: str = Field(default="", max_length=300)


TRACES_MOST = 100  # owners at one machine
KEPT_MOST = 300  # names of one owner at one machine
KEPT_LONGEST = 500


class TraceFacts(Wire):
    """What backups keep at a machine: names there, all of one owner (a repository's mark, or ``owner_of`` it)."""

    owner: str = Field(pattern=r"^[0-9a-f]{8}$")
    names: list[str] = Field(max_length=KEPT_MOST)


class MachineFacts(Wire):
    """One machine that a platform has now."""

    id: str = Field(min_length=1, max_length=200)
    name: str = Field(max_length=200)
    state: str = Field(default="", max_length=40)
    disks: list[DiskFacts] = Field(default=[], max_length=256)
    tags: list[str] = Field(default=[], max_length=100)
    project: str = Field(default="", max_length=200)
    host: str = Field(default="", max_length=300)
    summary: dict[str, str] = Field(default={}, max_length=40)
    traces: list[TraceFacts] | None = Field(default=None, max_length=TRACES_MOST)  # None: nobody has looked


class FoundReport(Wire):
    """Written down at once; what was not told until the task completes is gone. Repetitions do no harm."""

    token: str
    machines: list[MachineFacts] = Field(max_length=FOUND_PIECE)
