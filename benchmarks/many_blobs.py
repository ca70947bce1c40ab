"""An index of many blobs: its first load, and then, cold start included, 131,072 random ids, half of them unknown.

``python -m benchmarks.many_blobs build|load|ask REPO BLOBS``. The index files are real, the packs they name are not:
nothing here reads a pack. ``waste`` makes real blobs of 4 KiB instead, of which one in ten is needed by no snapshot.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from datetime import UTC, datetime
from pathlib import Path

from node_agent.progress import Progress
from node_agent.repository.backend import open_backend
from node_agent.repository.index_file import MAX_BLOBS, save_index_file
from node_agent.repository.pack import BlobKind, PackedBlob
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import new_snapshot, save_snapshot
from node_agent.repository.tree import Node, encode_tree

ASKED = 131_072
_IN_PACK = 2_000


def build(repo: Repository, blobs: int) -> None:
    rng = random.Random(5)
    with repo.lock():
        for first in range(0, blobs, MAX_BLOBS):
            count = min(MAX_BLOBS, blobs - first)
            packs = []
            for start in range(0, count, _IN_PACK):
                ids = [_blob_id(first + start + n) for n in range(min(_IN_PACK, count - start))]
                content = [PackedBlob(BlobKind.DATA, i, 4096 * n, 4096, 9000) for n, i in enumerate(ids)]
                packs.append((rng.randbytes(32).hex(), content))
            save_index_file(repo.files, packs)


def waste(repo: Repository, blobs: int) -> None:
    """One snapshot of files of 900 blobs each; a tenth of all blobs, scattered over every pack, is in none of them."""
    rng = random.Random(7)
    with repo.lock() as lock:
        repo.load_index()
        with repo.writer(Progress(), compression="off") as writer:
            nodes = []
            for first in range(0, blobs, 1000):
                count = min(1000, blobs - first)
                pending = [writer.submit(BlobKind.DATA, rng.randbytes(4096)) for _ in range(count)]
                ids = [blob.result().id for number, blob in enumerate(pending) if number % 10]
                nodes.append(Node(b"%08d" % first, "file", mode=0o600, size=4096 * len(ids), links=1, content=ids))
            root = writer.save(BlobKind.TREE, encode_tree(nodes)).id
            writer.flush()
        now = datetime.now(UTC)
        save_snapshot(repo, lock, new_snapshot(time=now, tree=root.hex(), hostname="bench", paths=["/bench"]))


def ask(repo: Repository, blobs: int) -> None:
    rng = random.Random(6)
    known = [_blob_id(rng.randrange(blobs)) for _ in range(ASKED // 2)]
    unknown = [rng.randbytes(32) for _ in range(ASKED // 2)]
    absent = repo.missing(BlobKind.DATA, known + unknown)
    if absent != set(unknown):
        raise SystemExit("the index gave a wrong answer")


def _blob_id(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def main(work: str, path: str, blobs: int) -> None:
    password, cache = os.environ["BRS_REPOSITORY_PASSWORD"], Path(os.environ["BRS_CACHE_DIR"])
    with Repository.open(open_backend(path), password, cache_dir=cache) as repo:
        if work in ("build", "waste"):
            (build if work == "build" else waste)(repo, blobs)
            return
        with repo.lock():
            repo.load_index()
            if work == "ask":
                ask(repo, blobs)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
