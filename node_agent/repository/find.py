"""Finding files by name, and blobs by their users, across snapshots; matches as ``restic find`` has them.

A pattern without a slash matches a name at any depth; with a slash, parts that follow each other; with one in front,
from the top. What lies below a folder that matches is a match as well, as in restic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from node_agent.progress import Progress
from node_agent.repository.excludes import Excludes
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import Snapshot
from node_agent.repository.tree import Node, load_tree

_HEX = re.compile(r"[0-9a-f]{4,64}\Z")


@dataclass(frozen=True, slots=True)
class Wanted:
    """``oldest`` and ``newest`` limit the modification time, nanoseconds since the epoch."""

    patterns: Sequence[str]
    ignore_case: bool = False
    oldest: int | None = None
    newest: int | None = None

    def matcher(self) -> Callable[[bytes, bool], bool]:
        globs = Excludes([], ignoring_case=self.patterns) if self.ignore_case else Excludes(self.patterns)

        def match(path: bytes, is_dir: bool) -> bool:
            return globs.match(path, b"/", is_dir)

        return match

    def in_time(self, node: Node) -> bool:
        return (self.oldest is None or node.mtime >= self.oldest) and (self.newest is None or node.mtime <= self.newest)


@dataclass(frozen=True, slots=True)
class BlobUse:
    """A snapshot's entry that needs a blob."""

    object_type: str  # blob, tree
    id: bytes
    path: bytes
    parent_tree: bytes
    snapshot: Snapshot


class Finder:
    """Searches snapshots one after the other; trees without a match are remembered and not read again.

    Memory grows with the number of different trees (some hundred bytes each).
    """

    def __init__(self, repo: Repository, wanted: Wanted, progress: Progress) -> None:
        self._repo = repo
        self._wanted = wanted
        self._match = wanted.matcher()
        self._progress = progress
        self._empty: set[tuple[bytes, bytes]] = set()  # (tree, its path): nothing below matches

    def find(self, snapshot: Snapshot) -> Iterator[tuple[bytes, Node]]:
        yield from self._walk(b"", bytes.fromhex(snapshot.tree), False)

    def _walk(self, top: bytes, root: bytes, inside: bool) -> Iterator[tuple[bytes, Node]]:
        stack = [_Level(root, top, inside, iter(self._nodes(root, top)))]
        while stack:
            level = stack[-1]
            node = next(level.nodes, None)
            if node is None:
                stack.pop()
                if not level.matched:
                    self._empty.add((level.tree, level.path))
                elif stack:
                    stack[-1].matched = True
                continue
            path = level.path + b"/" + node.name
            hit = level.inside or self._match(path, node.is_dir)
            if hit and self._wanted.in_time(node):
                level.matched = True
                yield path, node
            if node.subtree is not None and (node.subtree, path) not in self._empty:
                stack.append(_Level(node.subtree, path, hit, iter(self._nodes(node.subtree, path))))

    def _nodes(self, tree_id: bytes, path: bytes) -> list[Node]:
        self._progress.check()
        return [] if (tree_id, path) in self._empty else load_tree(self._repo, tree_id)


@dataclass(slots=True)
class _Level:
    tree: bytes
    path: bytes
    inside: bool  # of a folder that matches
    nodes: Iterator[Node]
    matched: bool = False


def find_blobs(
    repo: Repository, snapshots: Sequence[Snapshot], prefixes: Sequence[str], kind: str, progress: Progress
) -> Iterator[BlobUse]:
    """Who needs the blobs (``kind`` ``blob``) or trees (``tree``) whose ids begin so; each tree is looked at once."""
    wanted = tuple(prefix.lower() for prefix in prefixes)
    if not all(_HEX.match(prefix) for prefix in wanted):
        raise ValueError("ids are at least four hexadecimal digits")
    seen: set[bytes] = set()
    for snapshot in snapshots:
        root = bytes.fromhex(snapshot.tree)
        if kind == "tree" and snapshot.tree.startswith(wanted):
            yield BlobUse("tree", root, b"/", b"", snapshot)
        stack = [(b"", root)]
        while stack:
            folder, tree_id = stack.pop()
            if tree_id in seen:
                continue
            seen.add(tree_id)
            progress.check()
            for node in load_tree(repo, tree_id):
                path = folder + b"/" + node.name
                ids = node.content if kind == "blob" else [node.subtree] if node.subtree is not None else []
                for blob_id in dict.fromkeys(ids):
                    if blob_id.hex().startswith(wanted):
                        yield BlobUse(kind, blob_id, path, tree_id, snapshot)
                if node.subtree is not None:
                    stack.append((path, node.subtree))
