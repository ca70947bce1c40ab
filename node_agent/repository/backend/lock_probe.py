"""Whether a bucket keeps what Object Lock promises against who holds the credentials in use: tried, not believed."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable

from node_agent.errors import BackendError, BackendReadOnly, BackendUnavailable, LockRefused
from node_agent.repository.backend.base import Probe
from node_agent.repository.backend.lock_rule import LockRule
from node_agent.repository.backend.s3_versions import NotLocked, VersionedBucket

PROMISE = "It cannot keep the promise of immutability"
_PROBE_S = 120.0


class LockProbe:
    """Tries to break a lock with the credentials in use, on an object of its own beside the locks."""

    def __init__(self, bucket: VersionedBucket, folder: str, rule: LockRule, usable: Callable[[], None]) -> None:
        """``usable`` raises LockRefused for a bucket whose own rules do not fit."""
        self._bucket = bucket
        self._rule = rule
        self._usable = usable
        self._path = f"{folder}/probe-tmp-{secrets.token_hex(8)}"
        self._checks: list[str] = []

    def run(self) -> Probe:
        try:
            self._run()
        except LockRefused as error:
            return Probe(tuple(self._checks), f"{error.message}")
        except BackendReadOnly as error:
            return Probe(tuple(self._checks), f"The credentials may not do what backups need: {error.message}")
        return Probe(tuple(self._checks))

    def _run(self) -> None:
        self._usable()
        self._checks.append("Object Lock is on, and the bucket locks nothing by itself for long")
        self._try_unlocked()
        until = float(math.ceil(self._bucket.now() + _PROBE_S))
        version = self._store(until)
        mode, there = self._bucket.retention(self._path, version)
        if mode != self._rule.mode or abs(there - until) > 1:
            raise LockRefused(f"{self._bucket.url} took a lock and did not set it (the store says {mode or 'none'}).")
        self._checks.append("a lock given with an object is there when it is read back")
        self._must_fail("deleted", lambda: self._bucket.delete(self._path, version))
        self._must_fail("deleted by a bypass", lambda: self._bucket.delete(self._path, version, bypass=True))
        sooner = until - _PROBE_S / 2
        self._must_fail("shortened", lambda: self._shorten(version, sooner))
        self._must_fail("shortened by a bypass", lambda: self._shorten(version, sooner, bypass=True))
        mode, there = self._bucket.retention(self._path, version)
        if mode != self._rule.mode or there < until - 1 or not self._bucket.read(self._path, version):
            raise LockRefused(f"{self._bucket.url} refused to break a lock, but it is broken. {PROMISE}.")
        self._bucket.retain(self._path, version, mode, until + 2)
        if self._bucket.retention(self._path, version)[1] < until + 1:
            raise LockRefused(f"{self._bucket.url} does not extend a lock. {PROMISE}.")
        self._checks.append("a lock can be extended")

    def _try_unlocked(self) -> None:
        """So that a refusal later means the lock, and not a missing right."""
        path = f"{self._path}0"
        version = self._bucket.put(path, b"unlocked", hashlib.sha256(b"unlocked").digest())
        if not version:
            raise LockRefused(f"{self._bucket.url} keeps no versions. {PROMISE}.")
        try:
            self._bucket.delete(path, version)
            self._checks.append("these credentials may delete versions here that are not locked")
        except BackendReadOnly:
            self._checks.append("these credentials may delete no version at all, locked or not")

    def _store(self, until: float) -> str:
        content = b"locked by a probe"
        try:
            return self._bucket.put(self._path, content, hashlib.sha256(content).digest(), (self._rule.mode, until))
        except (BackendReadOnly, NotLocked) as error:
            raise LockRefused(f"Nothing can be stored with a lock: {error.message}") from None

    def _shorten(self, version: str, until: float, *, bypass: bool = False) -> None:
        self._bucket.retain(self._path, version, self._rule.mode, until, bypass=bypass)

    def _must_fail(self, done: str, attack: Callable[[], None]) -> None:
        try:
            attack()
        except BackendUnavailable:
            raise
        except BackendError:
            self._checks.append(f"a locked version could not be {done}")
            return
        raise LockRefused(
            f"With these credentials a locked version at {self._bucket.url} can be {done}. {PROMISE}.",
            hint="Take the right to bypass from the node's account, or use a store that keeps locks.",
        )
