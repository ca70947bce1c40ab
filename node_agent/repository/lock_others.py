"""Locks of other programs in a repository, and which of them stand in our way.

When is another's lock left behind? By the store's clock only: 30 minutes after it was stored. Before *exclusive* work
24 hours, because restic before 0.15 goes on writing after its lock went stale; holders of our own kind stop themselves,
so for them 30 minutes are enough there too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from node_agent.errors import DamagedError, ObjectMissing, RepositoryLocked
from node_agent.repository.backend.base import Kind, ObjectInfo
from node_agent.repository.sealed import SealedFiles

logger = logging.getLogger(__name__)

STALE_S = 1800.0
STALE_BEFORE_EXCLUSIVE_S = 86400.0
_SKEW_S = 120.0

_OURS = re.compile(r"\.brs-[0-9a-z]{8,}\Z")


@dataclass(frozen=True, slots=True)
class OtherLock:
    info: ObjectInfo
    exclusive: bool
    hostname: str
    who: str


class OtherLocks:
    """``clock``: this machine's, to tell whether it is wrong."""

    def __init__(self, files: SealedFiles, clock: Callable[[], float]) -> None:
        self._files = files
        self._clock = clock

    def read(self, own: str | None = None) -> list[OtherLock]:
        """All locks but our own; a damaged or empty one counts as exclusive, since nobody knows what it said."""
        for _ in range(5):
            found = self._read_all(own)
            if found is not None:
                return found
        raise RepositoryLocked("The repository's locks keep changing; another program is at work.")

    def refuse(self, exclusive: bool, own: str | None) -> None:
        """Raises RepositoryLocked if somebody works alone, or we want to; what was left behind is removed."""
        now = self._files.backend.now()
        if own is None:
            self._warn_of_skew(now)
        for other in self.read(own):
            if not (exclusive or other.exclusive):
                continue
            age = now - other.info.modified
            if age < self._patience(exclusive, other):
                raise RepositoryLocked(
                    f"The repository is in use{' alone' if other.exclusive else ''} by {other.who},"
                    f" locked {_ago(age)} (lock {other.info.name[:8]})."
                )
            logger.warning("removing lock %s of %s, left behind %s", other.info.name, other.who, _ago(age))
            self._files.backend.delete(Kind.LOCK, other.info.name)

    def _warn_of_skew(self, store_now: float) -> None:
        """Locks do not suffer from a wrong clock, but snapshots carry its time and retention goes by that."""
        skew = self._clock() - store_now
        if abs(skew) > _SKEW_S:
            logger.warning("this machine's clock differs from the store's by %.0f seconds", skew)

    def _patience(self, exclusive: bool, other: OtherLock) -> float:
        if exclusive and other.hostname and not _OURS.search(other.hostname):
            return STALE_BEFORE_EXCLUSIVE_S
        return STALE_S

    def _read_all(self, own: str | None) -> list[OtherLock] | None:
        """None if one vanished while we read: its holder may just have replaced it, so the listing is too old."""
        found: list[OtherLock] = []
        for info in self._files.backend.list(Kind.LOCK):
            if info.name == own:
                continue
            try:
                found.append(self._read(info))
            except ObjectMissing:
                return None
        return found

    def _read(self, info: ObjectInfo) -> OtherLock:
        try:
            value = self._files.load_json(Kind.LOCK, info.name)
            who = f"{value['username']}@{value['hostname']} (process {value['pid']})"
            return OtherLock(info, bool(value["exclusive"]), str(value["hostname"]), who)
        except (DamagedError, KeyError, TypeError) as error:
            logger.warning("lock %s is damaged and is respected for 30 minutes: %s", info.name, error)
            return OtherLock(info, exclusive=True, hostname="", who="somebody unknown (the lock file is damaged)")


def _ago(seconds: float) -> str:
    if seconds < -600:
        return f"{-seconds / 60:.0f} minutes in the future"
    return f"{max(0.0, seconds) / 60:.0f} minutes ago" if seconds >= 90 else f"{max(0.0, seconds):.0f} seconds ago"
