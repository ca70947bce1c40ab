"""Repository locks by restic's rules: files in ``locks/`` that say who works here, and whether alone.

Taking one: look for conflicting locks, store ours, wait 200 ms, look again; withdraw if somebody was quicker. A lock
that is taken *early* is handed out before the second look, which then comes before the first write at the latest:
what was read until then may be outdated, but nothing was done that somebody who works alone could not bear. Holding
one: a new file every five minutes, then the old one goes. A holder that could not refresh for 22.5 minutes must stop
writing (:meth:`Lock.check`), since after 30 minutes others may treat its lock as left behind.

When is another's lock left behind? By the store's clock only: 30 minutes after it was stored. Before *exclusive* work
24 hours, because restic before 0.15 goes on writing after its lock went stale; holders of our own kind stop themselves,
so for them 30 minutes are enough there too. Our own dead locks are known at once from the journal.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_agent.errors import BackendReadOnly, BrsError, DamagedError, ObjectMissing, RepositoryLocked
from node_agent.repository.backend.base import Kind, ObjectInfo
from node_agent.repository.identity import username
from node_agent.repository.lock_journal import LockJournal
from node_agent.repository.rfc3339 import format_ns
from node_agent.repository.sealed import SealedFiles

logger = logging.getLogger(__name__)

REFRESH_S = 300.0
FENCE_S = 1350.0  # 30 min - 1.5 * refresh, as restic's refreshabilityTimeout
STALE_S = 1800.0
STALE_BEFORE_EXCLUSIVE_S = 86400.0
SETTLE_S = 0.2
_SKEW_S = 120.0
_RETRY_S = (1.0, 2.0, 5.0, 10.0)

_OURS = re.compile(r"\.brs-[0-9a-z]{8,}\Z")


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who we are in a lock file. ``hostname`` must be unique for each node; ``journal`` is a private local folder.

    Without a journal a killed process's lock stays until it is stale.
    """

    hostname: str
    journal: Path | None = None

    @classmethod
    def for_node(cls, node_id: str, journal: Path | None) -> LockHolder:
        suffix = re.sub(r"[^0-9a-z]", "", node_id.lower())[:12].ljust(8, "0")
        return cls(f"{os.uname().nodename}.brs-{suffix}", journal)

    @classmethod
    def for_command_line(cls, journal: Path | None) -> LockHolder:
        """The plain hostname, so that ``restic unlock`` on this machine clears a killed command's lock as its own."""
        return cls(os.uname().nodename, journal)


@dataclass(frozen=True, slots=True)
class OtherLock:
    info: ObjectInfo
    exclusive: bool
    hostname: str
    who: str


class Locks:
    """Takes locks of one repository."""

    def __init__(
        self, files: SealedFiles, holder: LockHolder, repository_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.files = files
        self.holder = holder
        self._clock = clock
        self.journal = LockJournal(holder.journal, repository_id) if holder.journal else None

    def acquire(self, *, exclusive: bool, wait_s: float = 0, settle_s: float = SETTLE_S, early: bool = False) -> Lock:
        """Raises RepositoryLocked (naming the holder) once ``wait_s`` has passed.

        ``early``, of a shared one: without waiting for the second look; see :meth:`Lock.settle`.
        """
        ignore_hangup()
        deadline = time.monotonic() + wait_s
        for attempt in range(1 << 30):
            try:
                return self._try(exclusive, settle_s, early and not exclusive)
            except RepositoryLocked:
                pause = min(_RETRY_S[min(attempt, len(_RETRY_S) - 1)], deadline - time.monotonic())
                if pause <= 0:
                    raise
                time.sleep(pause)
        raise AssertionError

    def clear_dead(self) -> int:
        """Remove our own locks whose process is proven dead. Returns how many."""
        cleared = 0
        if self.journal is not None:
            for name in self.journal.dead():
                if self.files.backend.exists(Kind.LOCK, name):
                    self.files.backend.delete(Kind.LOCK, name)
                    logger.info("removed lock %s of a process of this node that was killed", name)
                    cleared += 1
                self.journal.remove(name)
        return cleared

    def clear_stale(self, *, everything: bool = False) -> list[OtherLock]:
        """Remove our own dead locks and those older than 30 minutes by the store's clock; or all, whoever holds them.

        Returns those that were removed besides our own.
        """
        self.clear_dead()
        now = self.files.backend.now()
        cleared = [lock for lock in self.others() if everything or now - lock.info.modified >= STALE_S]
        for lock in cleared:
            self.files.backend.delete(Kind.LOCK, lock.info.name)
        return cleared

    def others(self, own: str | None = None) -> list[OtherLock]:
        """All locks but our own; a damaged or empty one counts as exclusive, since nobody knows what it said."""
        for _ in range(5):
            found = self._read_all(own)
            if found is not None:
                return found
        raise RepositoryLocked("The repository's locks keep changing; another program is at work.")

    def store(self, exclusive: bool) -> str:
        """Store a new lock file; the journal knows it before the store does."""
        value: dict[str, Any] = {
            # The store's time: other programs judge our lock's age, and must not suffer from this machine's clock.
            "time": format_ns(int(self.files.backend.now() * 1e9)),
            "exclusive": exclusive,
            "hostname": self.holder.hostname,
            "username": username(),
            "pid": os.getpid(),
            "uid": os.getuid(),
            "gid": os.getgid(),
        }
        name, sealed = self.files.seal(Kind.LOCK, json.dumps(value, separators=(",", ":")).encode())
        if self.journal is not None:
            self.journal.add(name)
        try:
            self.files.backend.put(Kind.LOCK, name, [sealed])
        except BaseException:
            if self.journal is not None:
                self.journal.remove(name)
            raise
        return name

    def withdraw(self, name: str) -> None:
        try:
            self.files.backend.delete(Kind.LOCK, name)
        except BaseException:
            if self.journal is not None:
                self.journal.abandon(name)
            raise
        if self.journal is not None:
            self.journal.remove(name)

    def _try(self, exclusive: bool, settle_s: float, early: bool) -> Lock:
        self.clear_dead()
        self.refuse_conflicts(exclusive, None)
        name = self.store(exclusive)
        if early:
            return Lock(self, name, exclusive, settle_s=settle_s)
        try:
            time.sleep(settle_s)
            self.refuse_conflicts(exclusive, name)
        except BaseException:
            self.withdraw(name)
            raise
        return Lock(self, name, exclusive)

    def refuse_conflicts(self, exclusive: bool, own: str | None) -> None:
        now = self.files.backend.now()
        if own is None:
            self._warn_of_skew(now)
        for other in self.others(own):
            if not (exclusive or other.exclusive):
                continue
            age = now - other.info.modified
            if age < self._patience(exclusive, other):
                raise RepositoryLocked(
                    f"The repository is in use{' alone' if other.exclusive else ''} by {other.who},"
                    f" locked {_ago(age)} (lock {other.info.name[:8]})."
                )
            logger.warning("removing lock %s of %s, left behind %s", other.info.name, other.who, _ago(age))
            self.files.backend.delete(Kind.LOCK, other.info.name)

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
        for info in self.files.backend.list(Kind.LOCK):
            if info.name == own:
                continue
            try:
                found.append(self._read(info))
            except ObjectMissing:
                return None
        return found

    def _read(self, info: ObjectInfo) -> OtherLock:
        try:
            value = self.files.load_json(Kind.LOCK, info.name)
            who = f"{value['username']}@{value['hostname']} (process {value['pid']})"
            return OtherLock(info, bool(value["exclusive"]), str(value["hostname"]), who)
        except (DamagedError, KeyError, TypeError) as error:
            logger.warning("lock %s is damaged and is respected for 30 minutes: %s", info.name, error)
            return OtherLock(info, exclusive=True, hostname="", who="somebody unknown (the lock file is damaged)")


class Lock:
    """A held lock that refreshes itself in the background. A context manager; leaving it removes the lock."""

    def __init__(
        self, locks: Locks, name: str, exclusive: bool, refresh_s: float = REFRESH_S, settle_s: float | None = None
    ) -> None:
        """``settle_s``: the second look is still to come, after that time."""
        self.exclusive = exclusive
        self._settle_at = None if settle_s is None else time.monotonic() + settle_s
        self._settling = threading.Lock()
        self.name = name
        self._locks = locks
        self._refresh_s = refresh_s
        self._refreshed = _uptime()
        self._lost: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, name="lock", daemon=True)
        self._thread.start()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def settles_in_s(self) -> float | None:
        """How long until the second look may come; None once it is over."""
        at = self._settle_at
        return None if at is None else max(0.0, at - time.monotonic())

    def settle(self) -> bool:
        """Look a second time, if that is still to come, and say whether it was: what was read before may be outdated.

        Raises RepositoryLocked when somebody else works alone.
        """
        with self._settling:
            if self._settle_at is None:
                return False
            time.sleep(max(0.0, self._settle_at - time.monotonic()))
            try:
                self._locks.refuse_conflicts(self.exclusive, self.name)
            except RepositoryLocked as error:
                self._lost = error.message
                raise
            self._settle_at = None
            return True

    def check(self) -> None:
        """To be called before each write. Raises RepositoryLocked once this lock may no longer be trusted."""
        if self._settle_at is not None and self._lost is None:
            self.settle()
        if self._lost is None and _uptime() - self._refreshed > FENCE_S:
            self._lost = "it could not be refreshed for more than 22 minutes"
        if self._lost is not None:
            raise RepositoryLocked(
                f"The lock on the repository was lost: {self._lost}.",
                hint="Nothing is written without a lock. Start the run again; what was stored already is kept.",
            )

    def prove(self) -> None:
        """As check, and the lock file is still in the store. Before what cannot be taken back: a snapshot, a delete."""
        self.check()
        name = self.name
        if not self._locks.files.backend.exists(Kind.LOCK, name) and name == self.name:
            self._lost = "its file was removed by another program"
        self.check()

    def refresh(self) -> None:
        """Replace the lock file by a new one. Raises BrsError if that fails; the old lock then still stands."""
        started = _uptime()
        if not self._locks.files.backend.exists(Kind.LOCK, self.name):
            self._lost = "its file was removed by another program"
            self.check()
        new = self._locks.store(self.exclusive)
        old, self.name = self.name, new
        self._refreshed = started
        self._locks.withdraw(old)

    def release(self) -> None:
        """Idempotent. A failure to delete is logged: the lock goes stale by itself."""
        if self._done.is_set():
            return
        self._done.set()
        self._thread.join()
        try:
            self._locks.withdraw(self.name)
        except BrsError as error:
            logger.warning("lock %s could not be removed: %s", self.name, error)

    def _keep_fresh(self) -> None:
        pause = self._refresh_s
        while not self._done.wait(pause):
            try:
                self.refresh()
                pause = self._refresh_s
            except RepositoryLocked as error:
                logger.error("%s", error)
                return
            except BrsError as error:
                logger.warning("the lock could not be refreshed: %s", error)
                pause = min(self._refresh_s, 30.0)


class NoLock(Lock):
    """Stands in where the store cannot be written, so that reading from a read-only mount works."""

    def __init__(self) -> None:
        self.exclusive = False
        self.name = ""

    @property
    def settles_in_s(self) -> float | None:
        return None

    def settle(self) -> bool:
        return False

    def check(self) -> None:
        raise BackendReadOnly("The destination is read-only; no lock is held, nothing may be written.")

    def prove(self) -> None:
        self.check()

    def refresh(self) -> None:
        """There is nothing to refresh."""

    def release(self) -> None:
        """There is nothing to release."""


def ignore_hangup() -> None:
    """Keep SIGHUP from ending this process: stock ``restic unlock`` sends it to learn whether a lock's holder lives.

    Has an effect on the main thread only, and none if the program handles SIGHUP itself. Programs whose locks are
    taken by other threads call it when they start.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # runs on while a laptop sleeps; the monotonic clock does not


def _ago(seconds: float) -> str:
    if seconds < -600:
        return f"{-seconds / 60:.0f} minutes in the future"
    return f"{max(0.0, seconds) / 60:.0f} minutes ago" if seconds >= 90 else f"{max(0.0, seconds):.0f} seconds ago"
