"""What this node has under way in clusters, one small file each in its state folder, written before the thing is made.

A run that is killed leaves its file behind, and nobody holds the file's lock any more: so the next run knows what it
may remove. A run that lives holds the lock, whichever process of this node it is in.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from node_agent.errors import ConfigError
from node_agent.state import replace_file

FOLDER = "ceph"


@dataclass(frozen=True, slots=True)
class Entry:
    """A snapshot whose point is not known to be stored, or (without ``image_id``) an image that is not whole yet."""

    fsid: str
    pool: str
    image_id: str
    name: str
    kind: str  # snapshot or import


class Journal:
    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"The folder {self._folder} cannot be made: {error.strerror}.") from error

    @contextmanager
    def under_way(self, entry: Entry) -> Iterator[None]:
        """Recorded, and held as ours. It stays recorded after an error, until somebody calls :meth:`forget`."""
        path = self._path(entry)
        replace_file(path, json.dumps(asdict(entry)).encode())
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def forget(self, entry: Entry) -> None:
        self._path(entry).unlink(missing_ok=True)

    def left_behind(self, fsid: str) -> list[Entry]:
        """Entries that no living run holds."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            entry = _read(path)
            if entry is not None and entry.fsid == fsid and not _held(path):
                found.append(entry)
        return found

    def _path(self, entry: Entry) -> Path:
        words = (entry.fsid, entry.pool, entry.image_id, entry.name)
        return self._folder / (
            "_".join(re.sub(r"[^A-Za-z0-9-]", lambda c: f"%{ord(c[0]):x}", w) for w in words) + ".json"
        )


def _read(path: Path) -> Entry | None:
    """None for one that went meanwhile; a file is replaced whole, so what is no entry was not written by us."""
    try:
        return Entry(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}.", hint="Look for brs- snapshots by hand, then remove it."
        ) from error


def _held(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # just finished
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
