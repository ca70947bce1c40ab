"""The random-access reader over one file of a repository: ``python -m benchmarks.random_access [REPO [PATH]]``.

Prints JSON: MB/s of a sequential read in pieces of 128 KiB, and random reads of 4 KiB a second, cold (each of
another blob, the cache empty) and warm (of blobs in the cache). Without PATH the largest disk or file is taken; without
REPO the benchmarks' image (``disk.raw`` in BENCH_DIR) is stored first, in a repository of its own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from node_agent.repository.backend import open_backend
from node_agent.repository.files_browse import list_tree
from node_agent.repository.random_access import OpenFile, RandomAccess
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import find_snapshot

PIECE, SMALL = 128 << 10, 4096
COLD, WARM = 200, 100_000
AT_MOST = 2 << 30  # bytes of the sequential read


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    work = os.environ["BENCH_DIR"]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        repo = [sys.executable, "-m", "node_agent", "repo"]
        for command in (["init"], ["backup-image", os.path.join(work, "disk.raw")]):
            subprocess.run([*repo, *command, "--repo", folder + "/repo", "--quiet"], check=True, stdout=sys.stderr)
        measure(folder + "/repo")


def measure(url: str) -> None:
    cache = Path(os.environ["BRS_CACHE_DIR"]) if "BRS_CACHE_DIR" in os.environ else None
    with Repository.open(open_backend(url), os.environ["BRS_REPOSITORY_PASSWORD"], cache_dir=cache) as repo:
        repo.load_index()
        snapshot = find_snapshot(repo, "latest").id
        path = os.fsencode(sys.argv[2]) if len(sys.argv) > 2 else _largest(repo, snapshot)
        figures = {"path": os.fsdecode(path), "sequential_mb_s": round(_sequential(repo, snapshot, path))}
        with RandomAccess(repo) as access:
            offsets = _offsets_of_data(access.open(snapshot, path))
        with RandomAccess(repo) as access:
            file = access.open(snapshot, path)
            figures["cold_reads_s"] = round(_reads(file, offsets[:COLD]))
            near = [offset + random.Random(3).randrange(64) * SMALL for offset in offsets[:COLD][-30:]]
            figures["warm_reads_s"] = round(_reads(file, (near * (WARM // len(near) + 1))[:WARM]))
    print(json.dumps(figures))


def _largest(repo: Repository, snapshot: str) -> bytes:
    files = (found for found in list_tree(repo, snapshot, recursive=True) if found[1].is_file)
    return max(files, key=lambda found: found[1].size)[0]


def _sequential(repo: Repository, snapshot: str, path: bytes) -> float:
    with RandomAccess(repo) as access:
        file = access.open(snapshot, path)
        began = time.perf_counter()
        offset = 0
        while offset < AT_MOST and (data := file.read(offset, PIECE)):
            offset += len(data)
        return offset / (time.perf_counter() - began) / 1e6


def _offsets_of_data(file: OpenFile) -> list[int]:
    """Starts of different megabytes that are not zeros, shuffled."""
    rng = random.Random(2)
    starts = [offset for offset in range(0, file.size, 1 << 20) if any(file.read(offset, 64))]
    rng.shuffle(starts)
    return starts


def _reads(file: OpenFile, offsets: list[int]) -> float:
    began = time.perf_counter()
    for offset in offsets:
        file.read(offset, SMALL)
    return len(offsets) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
