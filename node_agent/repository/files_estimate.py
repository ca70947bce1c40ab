"""How much a files backup has before it, counted beside it on a thread of its own.

Only for the bar and the remaining time: nothing of the backup depends on it, so what cannot be looked at counts as
nothing (the backup itself tells of it), and the totals are set only once the count is complete.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from node_agent.progress import Progress
from node_agent.repository.excludes import Excludes

_DELAY_S = 1.0  # a run that ends before needs no bar, and no second look at every file


@contextmanager
def estimated(roots: Sequence[Path], excludes: Excludes, progress: Progress) -> Iterator[None]:
    """Count while the block runs, if somebody looks at the progress; ends with it."""
    if not progress.watched:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_count, args=(roots, excludes, progress, done), name="estimate", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _count(roots: Sequence[Path], excludes: Excludes, progress: Progress, done: threading.Event) -> None:
    if done.wait(_DELAY_S):
        return
    size = files = 0
    tops = {os.path.abspath(os.fsencode(root)) for root in roots}
    for top in tops:
        if any(top.startswith(other.rstrip(b"/") + b"/") for other in tops - {top}):
            continue  # inside another root
        if os.path.isfile(top):
            size, files = size + os.path.getsize(top), files + 1
        pending = [top] if os.path.isdir(top) else []
        while pending:
            if done.is_set():
                return
            for entry in _entries(pending.pop(), excludes):
                found = _look(entry, top, excludes)
                if found is None:
                    pending.append(entry.path)
                elif found >= 0:
                    size, files = size + found, files + 1
    progress.set(total_bytes=size, total_files=files)


def _entries(folder: bytes, excludes: Excludes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError:
        return []
    marker = excludes.marker(folder, {entry.name for entry in entries}) if excludes.markers else None
    return entries if marker is None else [entry for entry in entries if entry.name == marker]


def _look(entry: os.DirEntry[bytes], top: bytes, excludes: Excludes) -> int | None:
    """A file's size, -1 for what does not count, None for a folder to go into."""
    try:
        is_dir = entry.is_dir(follow_symlinks=False)
        size = entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else -1
        if excludes and excludes.match(entry.path, top, is_dir, size):
            return -1
        return None if is_dir else size
    except OSError:
        return -1
