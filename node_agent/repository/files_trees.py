"""Folders that were walked, on their way to becoming tree blobs.

A folder's tree names the blobs of its files and the trees of its folders, all of which may still be on their way
to the repository. Finished folders wait in order (children before parents) in a bounded queue, so that reading
does not stand still at the end of each folder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from node_agent.repository.files_pool import Part
from node_agent.repository.files_read import Content
from node_agent.repository.folder_cache import CachedFolder, FolderCache
from node_agent.repository.repository import BlobKind, BlobWriter
from node_agent.repository.tree import EncodedNode, Node, encode_node, encode_tree
from node_agent.repository.writer import Pending

MAX_WAITING_FOLDERS = 256
MAX_WAITING_NODES = 10_000


Load = Callable[[bytes], Sequence[Node]]


@dataclass(slots=True)
class Folder:
    """The nodes of one folder (``path``); contents and subtrees are filled in when it is stored.

    ``digest``: what it looked like, to be kept in the cache of folders; None if it must not be. ``cached``: it looks
    as it did when that tree was made, so only its folders are added here, and mostly nothing is to be stored.
    """

    path: bytes = b""
    nodes: list[Node | EncodedNode] = field(default_factory=list)
    digest: bytes | None = None
    cached: CachedFolder | None = None
    _later: list[Part] = field(default_factory=list)
    _contents: list[tuple[Node, Content]] = field(default_factory=list)
    _folders: list[tuple[Node, Folder]] = field(default_factory=list)
    _subtrees: list[bytes] = field(default_factory=list)
    _saved: Pending | None = None
    _id: bytes | None = None

    def add(self, node: Node) -> None:
        """An entry of which everything is known."""
        self.add_encoded(EncodedNode(node.name, encode_node(node)))

    def add_encoded(self, node: EncodedNode) -> None:
        self.nodes.append(node)

    def add_file(self, node: Node, content: Content) -> None:
        self.nodes.append(node)
        self._contents.append((node, content))

    def add_later(self, part: Part) -> None:
        """Files that are being read; it may be told of them again with each."""
        if not self._later or self._later[-1] is not part:
            self._later.append(part)

    def add_folder(self, node: Node, folder: Folder) -> None:
        self.nodes.append(node)
        self._folders.append((node, folder))

    @property
    def weight(self) -> int:
        """How many nodes it holds in memory."""
        return len(self.nodes) + sum(len(part.names) for part in self._later)

    def store(self, writer: BlobWriter, load: Load, take: Take) -> None:
        """Its folders must have been stored before. Frees the nodes.

        ``load`` reads a tree: raises DamagedError. ``take`` waits for files that are being read, and adds them.
        """
        for part in self._later:
            take(self, part)
        self._subtrees = [folder.id() for _, folder in self._folders]
        if self.cached is not None and self._subtrees == self.cached.subtrees:
            self._id = self.cached.tree
        else:
            for node, content in self._contents:
                node.content = content.ids()
            for (node, _), subtree in zip(self._folders, self._subtrees, strict=True):
                node.subtree = subtree
            nodes = self.nodes if self.cached is None else self._merged(load(self.cached.tree))
            self._saved = writer.submit(BlobKind.TREE, encode_tree(nodes))
        self.nodes, self._contents, self._folders, self._later = [], [], [], []

    def id(self) -> bytes:
        if self._id is None:
            if self._saved is None:
                raise RuntimeError("the tree of a folder was asked for before it was stored")
            self._id, self._saved = self._saved.result().id, None
        return self._id

    def facts(self) -> CachedFolder | None:
        """What the cache of folders is to learn, after it was stored."""
        if self.digest is None or (self.cached is not None and self.id() == self.cached.tree):
            return None
        return CachedFolder(self.id(), self.digest, self._subtrees)

    def _merged(self, before: Sequence[Node]) -> list[Node]:
        """The nodes as they were, with the subtrees of now; folders that could not be entered are left out."""
        now = {node.name: node.subtree for node, _ in self._folders}
        kept = [node for node in before if not node.is_dir or node.name in now]
        return [replace(node, subtree=now[node.name]) if node.is_dir else node for node in kept]


Take = Callable[[Folder, Part], None]


class TreeQueue:
    """Stores finished folders a little later, in the order in which they were finished."""

    def __init__(self, writer: BlobWriter, load: Load, take: Take, cache: FolderCache | None) -> None:
        self._writer = writer
        self._load = load
        self._take = take
        self._cache = cache
        self._waiting: deque[Folder] = deque()
        self._stored: deque[Folder] = deque()  # their ids are not known yet
        self._nodes = 0

    def finish(self, folder: Folder) -> None:
        self._waiting.append(folder)
        self._nodes += folder.weight
        while len(self._waiting) > MAX_WAITING_FOLDERS or self._nodes > MAX_WAITING_NODES:
            self._store_oldest()

    def drain(self) -> None:
        while self._waiting:
            self._store_oldest()
        while self._stored:
            self._keep_oldest()

    def _store_oldest(self) -> None:
        folder = self._waiting.popleft()
        self._nodes -= folder.weight
        folder.store(self._writer, self._load, self._take)
        if self._cache is not None and folder.digest is not None:
            self._stored.append(folder)
            if len(self._stored) > MAX_WAITING_FOLDERS:
                self._keep_oldest()

    def _keep_oldest(self) -> None:
        facts = self._stored.popleft().facts()
        if self._cache is not None and facts is not None:
            self._cache.add(facts)
