"""An index of many blobs: its first load, and then, cold start included, 131,072 random ids, half of them unknown.

``python -m benchmarks.many_blobs build|load|ask REPO BLOBS``. The index files are real, the packs they name are not:
nothing here reads a pack.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from node_agent.repository.backend import open_backend
from node_agent.repository.index_file import MAX_BLOBS, save_index_file
from node_agent.repository.pack import BlobKind, PackedBlob
from node_agent.repository.repository import Repository

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


def ask(repo: Repository, blobs: int) -> None:
    rng = random.Random(6)
    known = [_blob_id(rng.randrange(blobs)) for _ in range(ASKED // 2)]
    unknown = [rng.randbytes(32) for _ in range(ASKED // 2)]
    absent = repo.missing(BlobKind.DATA, known + unknown)
    if absent != set(unknown):
        raise SystemExit("the index gave a wrong answer")


def _blob_id(number: int) -> bytes:
    return random.Random(number).randbytes(32)


def main(work: str, path: str, blobs: int) -> None:
    password, cache = os.environ["BRS_REPOSITORY_PASSWORD"], Path(os.environ["BRS_CACHE_DIR"])
    with Repository.open(open_backend(path), password, cache_dir=cache) as repo:
        if work == "build":
            build(repo, blobs)
            return
        with repo.lock():
            repo.load_index()
            if work == "ask":
                ask(repo, blobs)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
