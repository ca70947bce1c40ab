"""The contract of a driver, in words: where data comes from.

A driver knows one kind of source on this node. It knows no repository, no server and no task.

* ``open`` gives a consistent source as a context manager and always releases what it took, also when
  the body raises or the process is told to stop.
* It touches only what the guard allows, and checks that before it looks at anything: a path outside the
  roots is RefusedError, whether it exists or not.
* What is not there is SourceMissing; what cannot be read at all is SourceError. Single items that cannot
  be read inside an opened source are not the driver's business: whoever reads reports them.
* ``probe`` never raises for a bad path: it says what is wrong and what to do, in plain words.

What ``open`` yields is one of two shapes: a :class:`FileTree` or a :class:`Disk`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from node_agent.errors import BrsError
from node_agent.guard import Guard
from node_agent.items import Extent, TrackingBase


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a connection test."""

    name: str
    ok: bool
    detail: str = ""
    hint: str = ""

    @classmethod
    def of(cls, name: str, error: BrsError) -> Finding:
        return cls(name, ok=False, detail=error.message, hint=error.hint)


@dataclass(frozen=True, slots=True)
class FileTree:
    """Roots of trees to read: where each really lies, and the path the user knows it by.

    ``owners``: user and group ids of paths (as the user knows them) whose copy could not be given them.
    """

    roots: Sequence[tuple[Path, str]]
    owners: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)


class DiskContent(Protocol):
    """The whole content of one disk. Not for several threads at once."""

    size: int
    format: str
    damage: str  # what is wrong with the file that holds it; empty if nothing is known to be

    def extents(self) -> Iterator[Extent]: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def changed(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Changes:
    """Extents that changed since a stored state of the disk, and which state that is: never one without the other."""

    extents: Sequence[Extent]
    base: TrackingBase


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk, open for reading. ``path`` is the image's file as the user knows it, ``format`` what it is there.

    A driver that tracks changes gives ``changes`` and ``identity``, its word for which disk this is. It
    drops what it tracked since an older state only after the snapshot on the newer one is acknowledged.
    """

    path: str
    content: DiskContent
    format: str
    changes: Changes | None = None
    identity: str = ""


class Driver(ABC):
    name: ClassVar[str]

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    @abstractmethod
    def open(self, paths: Sequence[str], *, format: str = "") -> AbstractContextManager[FileTree | Disk]:
        """The source at ``paths`` (absolute); ``format`` is for disk images, empty = look."""

    @abstractmethod
    def probe(self, path: str) -> list[Finding]:
        """Whether ``path`` could be protected right now."""
