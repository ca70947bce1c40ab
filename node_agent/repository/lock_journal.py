"""Which locks in a repository are ours, kept on this machine, so that a killed process's lock is no riddle.

Before a lock is stored, its holder writes an entry: the lock's name, the machine's boot id, its own process id and that
process's start time, and keeps the file locked (flock) as long as it lives. A lock is proven dead when the
machine was booted since, or when the flock is free and no process with that id and start time exists. Process ids found
*inside* a repository prove nothing: containers, clones and other hosts have the same ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from node_agent.errors import ConfigError
from node_agent.repository.strict_json import parse_json

logger = logging.getLogger(__name__)

_UNFINISHED_S = 60.0


class LockJournal:
    """The entries of one repository in one folder of this machine (a local disk, private to the node)."""

    def __init__(self, folder: Path, repository_id: str) -> None:
        self.folder = folder / f"{repository_id[:16]}.locks"
        self._held: dict[str, int] = {}

    def add(self, lock_name: str) -> None:
        """Before the lock is stored. Raises ConfigError if the folder cannot be written."""
        entry = {"boot": boot_id(), "pid": os.getpid(), "started": process_start(os.getpid())}
        path = self.folder / lock_name
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = self._held[lock_name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # nobody holds it for longer than a look
            os.write(descriptor, json.dumps(entry).encode())
            os.fsync(descriptor)
        except OSError as error:
            self.remove(lock_name)
            raise ConfigError(
                f"The lock journal {path} cannot be written: {error.strerror}.",
                hint="Give a cache folder that this user may write to; on the command line, --no-cache does without.",
            ) from error

    def remove(self, lock_name: str) -> None:
        """After the lock is gone from the repository."""
        with contextlib.suppress(OSError):
            (self.folder / lock_name).unlink()
        descriptor = self._held.pop(lock_name, None)
        if descriptor is not None:
            os.close(descriptor)

    def abandon(self, lock_name: str) -> None:
        """The lock is of no use any more, but could not be removed from the repository: a minute later it is dead."""
        descriptor = self._held.pop(lock_name, None)
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.utime(descriptor)
            os.close(descriptor)

    def dead(self) -> Iterator[str]:
        """Names of locks whose holder is proven dead."""
        try:
            paths = sorted(self.folder.iterdir())
        except OSError:
            return
        for path in paths:
            try:
                if _is_dead(path):
                    yield path.name
            except OSError as error:
                logger.warning("lock journal %s cannot be read: %s", path, error)


def _is_dead(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        content = os.read(descriptor, 4096)
        age = time.time() - os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
    try:
        entry: dict[str, Any] = parse_json(content)
        boot, pid, started = str(entry["boot"]), entry["pid"], entry["started"]
        if type(pid) is not int or type(started) is not int or not 0 < pid < 1 << 31:
            raise ValueError("no process has these numbers")
    except (ValueError, KeyError, TypeError):
        return age > _UNFINISHED_S  # killed while it wrote the entry, or writing it right now
    return boot != boot_id() or not is_running(pid, started)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def process_start(pid: int) -> int:
    """The start time of a process in clock ticks since boot; raises OSError if there is none."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[19])


def is_running(pid: int, started: int) -> bool:
    """Whether that very process lives; one that we may not signal does (EPERM)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        return process_start(pid) == started
    except OSError:
        return os.path.exists(f"/proc/{pid}")
