"""The trees that a walk over a snapshot needs, those beside each other fetched together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from node_agent.errors import DamagedError
from node_agent.repository.go_quote import decode_name
from node_agent.repository.ids import lift
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.strict_json import parse_json
from node_agent.repository.tree import FILE, Node, decode_tree

TOGETHER = 64
HELD_BYTES = 8 << 20  # fetched and not asked for yet; one more may come on top
EXPECTED = 65_536  # ids
LARGE = 256 << 10  # bytes of a tree that may hold the list of a disk's blocks


class Trees:
    """For one walk that goes down before it goes on."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._expected: dict[bytes, None] = {}  # what comes next stands last
        self._held: dict[bytes, bytes] = {}
        self._held_bytes = 0

    def expect(self, ids: Sequence[bytes]) -> None:
        """These are to be asked for next, in this order, and those below each of them before the next one."""
        for tree_id in reversed(ids):
            self._expected.pop(tree_id, None)
            self._expected[tree_id] = None
        if len(self._expected) > EXPECTED:
            self._expected.clear()  # only a hint

    def load(self, tree_id: bytes) -> list[Node]:
        """Raises DamagedError (naming the tree)."""
        try:
            return decode_tree(self._content(tree_id))
        except ValueError as error:
            raise DamagedError(f"tree {tree_id.hex()} is damaged: {error}.") from error

    def sizes(self, tree_id: bytes | None) -> Iterator[tuple[bytes, bytes | None, int | None]]:
        """Name, tree of a folder, length of a file; quicker than whole nodes. Nothing of a damaged tree."""
        try:
            content = self._content(tree_id) if tree_id is not None else b""
            yield from _sizes(lift(content)[0] if len(content) > LARGE else content)
        except (DamagedError, ValueError):  # whoever restores it meets it again, and names it
            return

    def _content(self, tree_id: bytes) -> bytes:
        content = self._held.pop(tree_id, None)
        if content is None:
            content = self._fetch(tree_id)
        else:
            self._held_bytes -= len(content)
        self._expected.pop(tree_id, None)
        return content

    def _fetch(self, tree_id: bytes) -> bytes:
        """This tree, and those that are expected next, as far as there is room."""
        sizes = self._repo.blob_sizes(BlobKind.TREE, [tree_id, *islice(reversed(self._expected), TOGETHER)])
        together = {tree_id}
        room = HELD_BYTES - self._held_bytes - sizes.get(tree_id, HELD_BYTES)
        for other, size in sizes.items():
            if other != tree_id and other not in self._held and size <= room:
                together.add(other)
                room -= size
        try:
            found = self._repo.load_together(BlobKind.TREE, together)
        except DamagedError:
            return self._repo.load_blob(BlobKind.TREE, tree_id)
        content = found.pop(tree_id)
        self._held.update(found)
        self._held_bytes += sum(map(len, found.values()))
        for other in found:
            self._expected.pop(other, None)
        return content


def _sizes(content: bytes) -> Iterator[tuple[bytes, bytes | None, int | None]]:
    try:
        for node in parse_json(content)["nodes"] or () if content else ():
            subtree = bytes.fromhex(node["subtree"]) if node.get("subtree") else None
            yield decode_name(node["name"]), subtree, int(node.get("size", 0)) if node["type"] == FILE else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a tree: {error!r}") from error
