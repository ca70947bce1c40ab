"""A small repository to test with: quick keys, a few blobs, trees and snapshots, and stock restic as the judge."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from node_agent.progress import Progress
from node_agent.repository.backend import open_backend
from node_agent.repository.crypto import ScryptParams
from node_agent.repository.lock import Locks
from node_agent.repository.repository import BlobKind, Lock, Repository
from node_agent.repository.snapshot import Snapshot, new_snapshot, save_snapshot
from node_agent.repository.tree import Node, encode_tree

PASSWORD = "correct horse"
FAST = ScryptParams(n=1024, r=8, p=1)  # the real parameters have their own test
# Debian's restic judges always; a current one besides it where BRS_RESTIC_CURRENT says where it is.
JUDGES = ["restic", *filter(None, [os.environ.get("BRS_RESTIC_CURRENT")])]
NOON = datetime(2026, 5, 17, 12, 0, tzinfo=UTC)


def new_repo(folder: Path, **options: object) -> Repository:
    """A new repository, opened anew with ``options``."""
    Repository.init(open_backend(str(folder)), PASSWORD, scrypt=FAST).close()
    return open_repo(folder, **options)


def open_repo(folder: Path, **options: object) -> Repository:
    return Repository.open(open_backend(str(folder)), PASSWORD, **options)  # type: ignore[arg-type]


def store(repo: Repository, contents: Sequence[bytes]) -> list[bytes]:
    """Store data blobs under the lock that is held; their ids."""
    with repo.writer(Progress()) as writer:
        return [writer.save(BlobKind.DATA, content).id for content in contents]


def make_snapshot(
    repo: Repository,
    lock: Lock,
    files: dict[bytes, Sequence[bytes]],
    *,
    time: datetime = NOON,
    host: str = "host",
    tags: Sequence[str] = (),
) -> Snapshot:
    """One directory ``/data`` with files of the given chunks."""
    with repo.writer(Progress()) as writer:
        nodes = [
            file_node(name, chunks, [writer.save(BlobKind.DATA, c).id for c in chunks])
            for name, chunks in files.items()
        ]
        folder = writer.save(BlobKind.TREE, encode_tree(nodes))
        top = writer.save(BlobKind.TREE, encode_tree([Node(b"data", "dir", mode=1 << 31 | 0o755, subtree=folder.id)]))
    return save_snapshot(
        repo, lock, new_snapshot(time=time, tree=top.id.hex(), hostname=host, paths=["/data"], tags=tags)
    )


def file_node(name: bytes, chunks: Sequence[bytes], ids: Sequence[bytes]) -> Node:
    return Node(name, "file", mode=0o644, size=sum(map(len, chunks)), links=1, content=list(ids))


@contextlib.contextmanager
def quick_locks() -> Iterator[None]:
    """Nobody else takes locks here, so no lock waits 200 ms for somebody to be quicker."""
    defaults = Locks.acquire.__kwdefaults__
    before = defaults["settle_s"]
    defaults["settle_s"] = 0.0
    try:
        yield
    finally:
        defaults["settle_s"] = before


def restic(
    folder: Path, *args: str, check: bool = True, password: str = PASSWORD, program: str = JUDGES[0]
) -> subprocess.CompletedProcess[str]:
    """Run stock restic on a repository, without a cache of its own."""
    env = os.environ | {"RESTIC_PASSWORD": password, "RESTIC_REPOSITORY": str(folder), "RESTIC_PROGRESS_FPS": "0.1"}
    done = subprocess.run([program, "--no-cache", *args], env=env, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"restic {' '.join(args)} ended {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def flip(path: Path, position: int) -> None:
    """Flip one bit of a stored file (they are read-only, as restic makes them)."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.chmod(0o600)
    path.write_bytes(content)


def stored(folder: Path, kind: str) -> list[Path]:
    """All object files of a kind."""
    return sorted(p for p in (folder / kind).rglob("*") if p.is_file())
