"""Replacing index files: the new ones are written first, then the old ones go, so that a kill leaves too many entries
at worst. Needs the repository alone. Holds two index files at a time.

Where the store locks objects, old ones may have to stay. The last of the new files, written when all others are
there, says which files they supersede; it is locked as long as these are, so that they never count again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from node_agent.progress import Progress
from node_agent.repository.backend.base import Kind
from node_agent.repository.index import Index
from node_agent.repository.index_file import MAX_BLOBS, NO_MARKS, Marks, PackEntry, load_index_file, save_index_file
from node_agent.repository.repository import Lock, Repository
from node_agent.repository.withdraw import StillLocked, inherit, longest, withdraw

Change = Callable[[PackEntry], PackEntry | None]  # an entry as it shall be; None to leave it out


@dataclass(slots=True)
class Replaced:
    written: list[str] = field(default_factory=list)
    removed: int = 0
    still_locked: list[StillLocked] = field(default_factory=list)  # superseded


def rewrite_index(
    repo: Repository,
    lock: Lock,
    index: Index,
    change: Change,
    dropped: Iterable[str] = (),
    *,
    but: Collection[str] = (),
    gone: Collection[str] = (),
    progress: Progress | None = None,
) -> Replaced:
    """Replace those files of ``index``, which is up to date, that ``change`` would alter, and note ``dropped`` packs.

    It is known of the files in ``but`` that they stay as they are, of those in ``gone`` that nothing stays of them.
    Raises DamagedError for an index file that cannot be read; none was deleted then.
    """
    old: list[str] = sorted(gone)
    names, shown = sorted(index.file_names() - {*but, *gone}), progress or Progress()
    shown.set(total_files=len(names), done_files=0)

    def altered() -> Iterator[PackEntry]:
        for name in names:
            shown.add(done_files=1)
            before = list(load_index_file(repo.files, name))
            after = [new for entry in before if (new := change(entry)) is not None]
            if after != before:
                old.append(name)
                yield from after

    return replace_index(repo, lock, altered(), old, index.marks() | Marks(dropped=frozenset(dropped)))


def replace_index(repo: Repository, lock: Lock, packs: Iterable[PackEntry], old: list[str], marks: Marks) -> Replaced:
    """New files for ``packs`` instead of ``old``, which may grow while ``packs`` is read; ``marks`` are handed on."""
    listed = {info.name for info in repo.backend.list(Kind.INDEX)}
    before = marks.superseded & listed  # by earlier rewrites, and still locked

    def handed_on() -> Marks:
        if not old:
            return NO_MARKS
        locks = repo.backend.object_lock is not None
        return Marks(before | frozenset(old if locks else ()), marks.dropped)

    result = Replaced(write_index(repo, lock, packs, handed_on))
    inherit(repo.backend, Kind.INDEX, result.written, longest(repo.backend, Kind.INDEX, old))
    result.still_locked = withdraw(repo.backend, Kind.INDEX, (*old, *sorted(before)), lock.check)
    result.removed = len(set(old) - {one.name for one in result.still_locked})
    return result


def write_index(
    repo: Repository, lock: Lock, packs: Iterable[PackEntry], marks: Callable[[], Marks] = Marks
) -> list[str]:
    """Index files for these packs, as many as the format wants; the last has the ``marks``. Returns their names."""
    written: list[str] = []
    waiting: list[PackEntry] = []
    lock.prove()

    def save(batch: list[PackEntry], last: Marks) -> None:
        lock.check()
        written.append(save_index_file(repo.files, batch, last))

    for batch in _index_sized(packs):
        if waiting:
            save(waiting, NO_MARKS)
        waiting = batch
    last = marks()
    if waiting or last != NO_MARKS:
        save(waiting, last)
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
