"""Folders that were walked, on their way to becoming tree blobs.

A folder's tree names the blobs of its files and the trees of its folders, all of which may still be on their way
to the repository. Finished folders wait in order (children before parents) in a bounded queue, so that reading
does not stand still at the end of each folder.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from node_agent.repository.files_read import Content
from node_agent.repository.repository import BlobKind, BlobWriter
from node_agent.repository.tree import Node, encode_tree
from node_agent.repository.writer import Saved

MAX_WAITING_FOLDERS = 256
MAX_WAITING_NODES = 20_000


@dataclass(slots=True)
class Folder:
    """The nodes of one folder; contents and subtrees are filled in when it is stored."""

    nodes: list[Node] = field(default_factory=list)
    _contents: list[tuple[Node, Content]] = field(default_factory=list)
    _folders: list[tuple[Node, Folder]] = field(default_factory=list)
    _saved: Future[Saved] | None = None

    def add(self, node: Node) -> None:
        self.nodes.append(node)

    def add_file(self, node: Node, content: Content) -> None:
        self.nodes.append(node)
        self._contents.append((node, content))

    def add_folder(self, node: Node, folder: Folder) -> None:
        self.nodes.append(node)
        self._folders.append((node, folder))

    def store(self, writer: BlobWriter) -> None:
        """Its folders must have been stored before. Frees the nodes."""
        for node, content in self._contents:
            node.content = content.ids()
        for node, folder in self._folders:
            node.subtree = folder.id()
        self._saved = writer.submit(BlobKind.TREE, encode_tree(self.nodes))
        self.nodes, self._contents, self._folders = [], [], []

    def id(self) -> bytes:
        if self._saved is None:
            raise RuntimeError("the tree of a folder was asked for before it was stored")
        return self._saved.result().id


class TreeQueue:
    """Stores finished folders a little later, in the order in which they were finished."""

    def __init__(self, writer: BlobWriter) -> None:
        self._writer = writer
        self._waiting: deque[Folder] = deque()
        self._nodes = 0

    def finish(self, folder: Folder) -> None:
        self._waiting.append(folder)
        self._nodes += len(folder.nodes)
        while len(self._waiting) > MAX_WAITING_FOLDERS or self._nodes > MAX_WAITING_NODES:
            self._store_oldest()

    def drain(self) -> None:
        while self._waiting:
            self._store_oldest()

    def _store_oldest(self) -> None:
        folder = self._waiting.popleft()
        self._nodes -= len(folder.nodes)
        folder.store(self._writer)
