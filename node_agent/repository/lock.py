"""Repository locks by restic's rules: files in ``locks/`` that say who works here, and whether alone.

Taking one: look for conflicting locks, store ours, wait 200 ms, look again; withdraw if somebody was quicker. A lock
that is taken *early* is handed out before the second look, which then comes before the first write at the latest:
what was read until then may be outdated, but nothing was done that somebody who works alone could not bear. If that
look finds such a one, the lock is withdrawn, and taken anew as long as its user would have waited for it.

Holding one: a new file every five minutes, then the old one goes. A holder that could not refresh for 22.5 minutes must
stop writing (:meth:`Lock.check`), since after 30 minutes others may treat its lock as left behind.

Those of other programs are in :mod:`.lock_others`; our own dead ones are known at once from the journal.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_agent.errors import BackendReadOnly, BrsError, RepositoryLocked
from node_agent.progress import Progress
from node_agent.repository.backend.base import Kind
from node_agent.repository.identity import username
from node_agent.repository.lock_journal import LockJournal
from node_agent.repository.lock_others import STALE_S, OtherLock, OtherLocks
from node_agent.repository.rfc3339 import format_ns
from node_agent.repository.sealed import SealedFiles

logger = logging.getLogger(__name__)

REFRESH_S = 300.0
FENCE_S = 1350.0  # 30 min - 1.5 * refresh, as restic's refreshabilityTimeout
SETTLE_S = 0.2
_RETRY_S = (1.0, 2.0, 5.0, 10.0)

Pause = Callable[[RepositoryLocked, float], None]  # waits so many seconds; may tell why, or raise to wait no longer


def sleeping(_why: RepositoryLocked, seconds: float) -> None:
    time.sleep(seconds)


def waiting(progress: Progress, tell: Callable[[str], None]) -> Pause:
    """Says once why, and waits no longer once the run is to stop."""
    told = False

    def pause(why: RepositoryLocked, seconds: float) -> None:
        nonlocal told
        if not told:
            tell(f"Waiting: {why.message}")
        told = True
        progress.sleep(seconds)

    return pause


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


class Locks:
    """Takes locks of one repository."""

    def __init__(
        self, files: SealedFiles, holder: LockHolder, repository_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.files = files
        self.holder = holder
        self.others = OtherLocks(files, clock)
        self.journal = LockJournal(holder.journal, repository_id) if holder.journal else None

    def acquire(
        self,
        *,
        exclusive: bool,
        wait_s: float = 0,
        settle_s: float = SETTLE_S,
        early: bool = False,
        pause: Pause = sleeping,
    ) -> Lock:
        """Raises RepositoryLocked (naming the holder) once ``wait_s`` has passed.

        ``early``, of a shared one: without waiting for the second look; see :meth:`Lock.settle`.
        """
        ignore_hangup()
        attempts = Attempts(self, exclusive, settle_s, time.monotonic() + wait_s, pause)
        if early and not exclusive:
            return Lock(self, attempts.take(early=True), exclusive, attempts=attempts)
        return Lock(self, attempts.take(), exclusive)

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
        cleared = [lock for lock in self.others.read() if everything or now - lock.info.modified >= STALE_S]
        for lock in cleared:
            self.files.backend.delete(Kind.LOCK, lock.info.name)
        return cleared

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

    def add(self, exclusive: bool, settle_s: float | None) -> str:
        """Look, store, look again (None: not yet). Returns the name, or raises RepositoryLocked and leaves nothing."""
        self.clear_dead()
        self.others.refuse(exclusive, None)
        name = self.store(exclusive)
        if settle_s is None:
            return name
        try:
            time.sleep(settle_s)
            self.others.refuse(exclusive, name)
        except BaseException:
            self.withdraw(name)
            raise
        return name


@dataclass(frozen=True, slots=True)
class Attempts:
    """How a lock is taken, and until when (by the monotonic clock) that is tried."""

    locks: Locks
    exclusive: bool
    settle_s: float
    deadline: float
    pause: Pause

    def take(self, *, early: bool = False) -> str:
        """The name of a new lock file in the store."""
        for attempt in range(1 << 30):
            try:
                return self.locks.add(self.exclusive, None if early else self.settle_s)
            except RepositoryLocked as error:
                self.wait(error, _RETRY_S[min(attempt, len(_RETRY_S) - 1)])
        raise AssertionError

    def wait(self, why: RepositoryLocked, seconds: float) -> None:
        """Raises ``why`` once the time is over."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise why
        # Never the same for two who met, or they would meet again each time.
        self.pause(why, min(seconds * random.uniform(0.5, 1), left))


class Lock:
    """A held lock that refreshes itself in the background. A context manager; leaving it removes the lock."""

    def __init__(
        self,
        locks: Locks,
        name: str,
        exclusive: bool,
        refresh_s: float = REFRESH_S,
        attempts: Attempts | None = None,
    ) -> None:
        """With ``attempts`` it is an early one: the second look is still to come."""
        self.exclusive = exclusive
        self._unsettled = attempts
        self._settle_at = time.monotonic() + (attempts.settle_s if attempts is not None else 0.0)
        self._changing = threading.RLock()  # the file in the store, and with it the name
        self.name = name  # empty while there is none
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
        return None if self._unsettled is None else max(0.0, self._settle_at - time.monotonic())

    def settle(self) -> None:
        """Look a second time, if that is still to come: what was read before may be outdated.

        Finds it somebody who works alone, the lock is withdrawn, and taken anew as long as it was to be waited for.
        Raises RepositoryLocked if that is in vain.
        """
        with self._changing:
            if self._unsettled is None:
                return
            self._refuse_lost()
            time.sleep(max(0.0, self._settle_at - time.monotonic()))
            try:
                self._locks.others.refuse(self.exclusive, self.name)
            except RepositoryLocked as error:
                self._take_again(self._unsettled, error)
            self._unsettled = None

    def _take_again(self, attempts: Attempts, met: RepositoryLocked) -> None:
        self._lost = met.message  # until there is a new one
        self._locks.withdraw(self.name)
        self.name = ""
        attempts.wait(met, _RETRY_S[0])
        self.name = attempts.take()
        self._lost, self._refreshed = None, _uptime()

    def check(self) -> None:
        """To be called before each write. Raises RepositoryLocked once this lock may no longer be trusted."""
        if self._unsettled is not None:
            self.settle()
        if self._lost is None and _uptime() - self._refreshed > FENCE_S:
            self._lost = "it could not be refreshed for more than 22 minutes"
        self._refuse_lost()

    def _refuse_lost(self) -> None:
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
        with self._changing:
            started = _uptime()
            if self._lost is None and not self._locks.files.backend.exists(Kind.LOCK, self.name):
                self._lost = "its file was removed by another program"
            self._refuse_lost()
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
        if not self.name:
            return
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
