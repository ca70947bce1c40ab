"""What the walk of a files backup carries with it: its options and figures, and the open folders on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from node_agent.repository.excludes import Excludes
from node_agent.repository.files_listing import Entry
from node_agent.repository.files_read import Content
from node_agent.repository.files_trees import Folder
from node_agent.repository.snapshot import Snapshot
from node_agent.repository.tree import Node


@dataclass(slots=True)
class WalkOptions:
    excludes: Excludes
    before: Snapshot | None = None
    one_file_system: bool = False
    owners: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)  # of paths whose copy has another owner


@dataclass(slots=True)
class WalkStats:
    size_bytes: int = 0
    read_bytes: int = 0
    new: int = 0
    changed: int = 0
    unmodified: int = 0
    dirs: int = 0

    @property
    def files(self) -> int:
        return self.new + self.changed + self.unmodified


@dataclass(slots=True)
class Before:
    """A folder of the parent snapshot, if it was there; its nodes are read once somebody asks for one."""

    tree: bytes | None
    load: Callable[[bytes], Sequence[Node]]
    nodes: dict[bytes, Node] | None = None

    def node(self, name: bytes) -> Node | None:
        if self.nodes is None:
            self.nodes = {node.name: node for node in self.load(self.tree)} if self.tree is not None else {}
        return self.nodes.get(name)

    def folder(self, name: bytes) -> Before:
        known = self.node(name)
        return Before(known.subtree if known is not None else None, self.load)


@dataclass(slots=True)
class Frame:
    """One open folder of the walk. ``subtrees``: those of its folders, if it looks as in the cache of folders."""

    path: bytes
    fd: int
    entries: Iterator[Entry]
    before: Before
    folder: Folder = field(default_factory=Folder)
    subtrees: dict[bytes, bytes] | None = None


@dataclass(slots=True)
class Tally:
    """What the progress was not told of yet: its lock costs more than looking at a small file."""

    done_files: int = 0
    done_bytes: int = 0
    read_bytes: int = 0


@dataclass(slots=True)
class Linked:
    """A file with several names, some of them not met yet."""

    content: Content
    left: int
