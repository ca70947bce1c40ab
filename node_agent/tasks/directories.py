"""Telling the server what lies in a restore point: lists of directories, addressed by tree id.

Equal directories have equal ids, so only those the server does not know are sent. A known directory is
not entered: the server may rely on it that whoever has a directory has everything below it. Therefore
children are sent before their parents, also when the sending is cut off in the middle.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from node_agent.protocol import PIECE_BYTES, Directory, Entry
from node_agent.repository.go_quote import encode_name
from node_agent.repository.repository import Repository
from node_agent.repository.rfc3339 import format_ns
from node_agent.repository.tree import Node, load_tree
from node_agent.tasks.context import TaskContext

ASK_AT_ONCE = 1000  # tree ids in one question; the wire allows 5,000
PIECE_TARGET = PIECE_BYTES // 2  # estimated size; JSON overhead and odd names fit into the rest


def send_directories(context: TaskContext, repo: Repository, tree_id: str) -> int:
    """Send what the server lacks below ``tree_id``. Returns how many directories were sent."""
    children = _unknown(context, repo, tree_id)
    sent = 0
    for piece in _pieces(context, repo, _children_first(tree_id, children)):
        context.outlet.send_directories(piece)
        sent += len(piece)
    return sent


def _unknown(context: TaskContext, repo: Repository, root: str) -> dict[str, list[str]]:
    """The directories that the server lacks, each with its sub-directories (known ones too)."""
    children: dict[str, list[str]] = {}
    asked: set[str] = {root}
    to_ask = [root]
    while to_ask:
        batch, to_ask = to_ask[:ASK_AT_ONCE], to_ask[ASK_AT_ONCE:]
        for tree_id in context.outlet.directories_wanted(batch):
            context.progress.check()
            if tree_id not in asked:
                continue  # not one of ours: the server may not make us read anything
            subtrees = [node.subtree.hex() for node in _nodes(repo, tree_id) if node.subtree is not None]
            children[tree_id] = subtrees
            fresh = [sub for sub in dict.fromkeys(subtrees) if sub not in asked]
            asked.update(fresh)
            to_ask.extend(fresh)
    return children


def _children_first(root: str, children: dict[str, list[str]]) -> Iterator[str]:
    """Each unknown directory once, after all unknown directories below it."""
    done: set[str] = set()
    stack: list[tuple[str, bool]] = [(root, False)]
    while stack:
        tree_id, entered = stack.pop()
        if tree_id in done or tree_id not in children:
            continue
        if entered:
            done.add(tree_id)
            yield tree_id
        else:
            stack.append((tree_id, True))
            stack.extend((child, False) for child in children[tree_id])


def _pieces(context: TaskContext, repo: Repository, order: Iterator[str]) -> Iterator[list[Directory]]:
    piece: list[Directory] = []
    size = 0
    for tree_id in order:
        context.progress.check()
        for part in _parts(tree_id, _nodes(repo, tree_id)):
            part_size = 200 + sum(_size(entry) for entry in part.entries)
            if piece and size + part_size > PIECE_TARGET:
                yield piece
                piece, size = [], 0
            piece.append(part)
            size += part_size
    if piece:
        yield piece


def _parts(tree_id: str, nodes: list[Node]) -> list[Directory]:
    """One directory, cut where it would not fit into a piece."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for node in nodes:
        entry = _entry(node)
        if groups[-1] and size + _size(entry) > PIECE_TARGET:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += _size(entry)
    last = len(groups) - 1
    return [
        Directory(tree_id=tree_id, entries=entries, part=number, last=number == last)
        for number, entries in enumerate(groups)
    ]


def _entry(node: Node) -> Entry:
    return Entry(
        name=encode_name(node.name),
        type=node.type,
        size=node.size,
        mtime=format_ns(node.mtime),
        mode=stat.S_IMODE(node.st_mode),
        user=node.user or str(node.uid),
        target=encode_name(node.linktarget) if node.linktarget else "",
        tree=node.subtree.hex() if node.subtree is not None else "",
    )


def _size(entry: Entry) -> int:
    """About what the entry takes as JSON; quoted names grow at most sixfold, and rarely."""
    return 160 + 2 * len(entry.name) + len(entry.user) + 2 * len(entry.target) + len(entry.tree)


def _nodes(repo: Repository, tree_id: str) -> list[Node]:
    return load_tree(repo, bytes.fromhex(tree_id))
