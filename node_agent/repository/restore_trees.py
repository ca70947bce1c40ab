"""The trees that a walk over a snapshot needs, those beside each other fetched together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from node_agent.errors import DamagedError
from node_agent.repository.go_quote import decode_name
from node_agent.repository.ids import lift
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.strict_json import parse_json
from node_agent.repository.tree import FILE, Node, decode_tree

TOGETHER = 64
HELD_BYTES = 24 << 20  # fetched and not asked for yet; one more may come on top
COUNTED_BYTES = 4 << 20  # of trees that are counted together; a larger one is counted alone
EXPECTED = 65_536  # ids
LARGE = 256 << 10  # bytes of a tree that may hold the list of a disk's blocks

# What a tree says, found without parsing it: no quote stands unescaped inside a string, so none looks like these.
_SUBTREE = re.compile(rb'"subtree": ?"([0-9a-f]{64})"')
_SIZE = re.compile(rb'"size": ?(\d{1,18})[,}]')
_FILE = re.compile(rb'"type": ?"file"')


class Trees:
    """For one walk that goes down before it goes on; ``whole``: that leaves nothing out."""

    def __init__(self, repo: Repository, *, whole: bool) -> None:
        self._repo = repo
        self._whole = whole
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

    def count(self, top: bytes) -> Iterator[tuple[int, int]]:
        """(files, their bytes) of each tree from ``top`` down. As far as there is room, they are kept for the walk.

        Found by a quick look at the text, which is good enough for a bar. What is damaged counts nothing.
        """
        waiting = [top]
        while waiting:
            together = waiting[: -TOGETHER - 1 : -1]
            del waiting[-TOGETHER:]
            found = self._several(together, COUNTED_BYTES)
            below: list[bytes] = []
            for tree_id in together:
                content = found.get(tree_id) or self._held.get(tree_id) or self._alone(tree_id)
                yield len(_FILE.findall(content)), sum(map(int, _SIZE.findall(content)))
                below += _subtrees(content)
            waiting += reversed(below)
            self._hold(found)

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
        """This tree; with it what is expected next and what lies below, as far as there is room."""
        wanted = [tree_id, *islice(reversed(self._expected), TOGETHER)]
        content = b""
        while wanted and self._held_bytes < HELD_BYTES:
            found = self._several(wanted, HELD_BYTES - self._held_bytes)
            below: list[bytes] = []
            for other in wanted if self._whole else ():
                below += _subtrees(found.get(other, b""))
            content = content or found.pop(tree_id, b"")
            self._hold(found)
            wanted = [other for other in dict.fromkeys(below) if other not in self._held][:TOGETHER]
        return content or self._repo.load_blob(BlobKind.TREE, tree_id)

    def _alone(self, tree_id: bytes) -> bytes:
        try:
            return self._repo.load_blob(BlobKind.TREE, tree_id)
        except DamagedError:
            return b""

    def _several(self, ids: Sequence[bytes], room: int) -> dict[bytes, bytes]:
        """Those of ``ids`` that are whole and fit into ``room``; none if one of them is damaged."""
        try:
            return self._repo.load_fitting(BlobKind.TREE, [i for i in ids if i not in self._held], room)
        except DamagedError:
            return {}

    def _hold(self, found: dict[bytes, bytes]) -> None:
        for tree_id, content in found.items():
            if self._held_bytes + len(content) > HELD_BYTES:
                continue
            self._held[tree_id] = content
            self._held_bytes += len(content)
            self._expected.pop(tree_id, None)


def _subtrees(content: bytes) -> list[bytes]:
    return [bytes.fromhex(found.decode()) for found in _SUBTREE.findall(content)]


def _sizes(content: bytes) -> Iterator[tuple[bytes, bytes | None, int | None]]:
    try:
        for node in parse_json(content)["nodes"] or () if content else ():
            subtree = bytes.fromhex(node["subtree"]) if node.get("subtree") else None
            yield decode_name(node["name"]), subtree, int(node.get("size", 0)) if node["type"] == FILE else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a tree: {error!r}") from error
