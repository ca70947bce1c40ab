"""Replacing index files: the new ones are written first, then the old ones go, so that a kill leaves too many entries
at worst. Needs the repository alone. Holds one index file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from node_agent.repository.backend.base import Kind
from node_agent.repository.index_file import MAX_BLOBS, PackEntry, load_index_file, save_index_file
from node_agent.repository.repository import Lock, Repository

Change = Callable[[PackEntry], PackEntry | None]  # an entry as it shall be; None to leave it out


def rewrite_index(repo: Repository, lock: Lock, change: Change) -> int:
    """Replace the index files that ``change`` would alter. Returns how many went.

    Raises DamagedError for an index file that cannot be read; none was deleted then.
    """
    old: list[str] = []

    def altered() -> Iterator[PackEntry]:
        for info in list(repo.backend.list(Kind.INDEX)):
            before = list(load_index_file(repo.files, info.name))
            after = [new for entry in before if (new := change(entry)) is not None]
            if after != before:
                old.append(info.name)
                yield from after

    write_index(repo, lock, altered())
    for name in old:
        lock.check()
        repo.backend.delete(Kind.INDEX, name)
    return len(old)


def write_index(repo: Repository, lock: Lock, packs: Iterable[PackEntry]) -> list[str]:
    """Index files for these packs, as many as the format wants. Returns their names."""
    written: list[str] = []
    lock.prove()
    for batch in _index_sized(packs):
        lock.check()
        written.append(save_index_file(repo.files, batch))
    return written


def _index_sized(packs: Iterable[PackEntry]) -> Iterator[list[PackEntry]]:
    batch: list[PackEntry] = []
    count = 0
    for pack, blobs in packs:
        if not blobs:
            continue
        if batch and count + len(blobs) > MAX_BLOBS:
            yield batch
            batch, count = [], 0
        batch.append((pack, blobs))
        count += len(blobs)
    if batch:
        yield batch
