"""Looking into a snapshot: find, list and stream out single files.

Paths are bytes as in the snapshot, from ``/``. Names come from the repository and are not trusted: they are shown
and compared here, never given to the file system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from node_agent.errors import DamagedError, SourceError, SourceMissing
from node_agent.items import printable
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import find_snapshot
from node_agent.repository.tree import Node, load_tree, walk

WINDOW = 64  # blobs loaded together while streaming; at most this many times 8 MiB are held


def normal_path(path: bytes) -> bytes:
    """``/a/b`` for ``a/b``, ``/a//b/`` and so on; ``/`` for the top."""
    return b"/" + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))


def root_node(tree: str) -> Node:
    return Node(name=b"", type="dir", subtree=bytes.fromhex(tree))


def find_node(repo: Repository, snapshot_id: str, path: bytes) -> Node:
    """The entry at ``path``. Raises SnapshotNotFound, SourceMissing."""
    node = root_node(find_snapshot(repo, snapshot_id).tree)
    wanted = normal_path(path)
    for name in [part for part in wanted.split(b"/") if part]:
        entries = load_tree(repo, node.subtree) if node.subtree is not None else []
        found = next((entry for entry in entries if entry.name == name), None)
        if found is None:
            raise SourceMissing(
                f"The snapshot holds no {printable(wanted)}.", hint="List its files with 'ls', or search for the name."
            )
        node = found
    return node


def list_tree(
    repo: Repository, snapshot_id: str, path: bytes = b"/", recursive: bool = False
) -> Iterator[tuple[bytes, Node]]:
    """(path, node) of what lies in a folder, or the entry itself if it is none; folders before their content."""
    node = find_node(repo, snapshot_id, path)
    base = normal_path(path).rstrip(b"/")
    if node.subtree is None:
        yield base, node
    elif recursive:
        yield from walk(repo, node.subtree, base)
    else:
        for entry in load_tree(repo, node.subtree):
            yield base + b"/" + entry.name, entry


def dump(repo: Repository, snapshot_id: str, path: bytes, out: Callable[[bytes], None]) -> int:
    """Give a file's content to ``out`` piece by piece, in order; returns the bytes given.

    Raises SourceMissing, SourceError for what is no file, DamagedError.
    """
    node = find_node(repo, snapshot_id, path)
    if not node.is_file:
        raise SourceError(
            f"{printable(normal_path(path))} is not a file.", hint="Name a file; restore folders with 'restore'."
        )
    done = 0
    for data in stream_blobs(repo, node.content):
        out(data)
        done += len(data)
    if done != node.size:
        raise DamagedError(f"{printable(normal_path(path))} should have {node.size} bytes but its blobs have {done}.")
    return done


def stream_blobs(repo: Repository, ids: Iterable[bytes]) -> Iterator[bytes]:
    """The contents in the order of the ids; a window of them is fetched together."""
    rest = iter(ids)
    while window := list(islice(rest, WINDOW)):
        loaded = dict(repo.load_blobs(BlobKind.DATA, set(window)))
        for blob_id in window:
            yield loaded[blob_id]
