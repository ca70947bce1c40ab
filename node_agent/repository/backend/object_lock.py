"""Repositories that nobody can remove: S3 Object Lock, per version.

Words: Object Lock protects *versions*. A plain delete of a locked object succeeds (it lays a *marker* over it), and so
does a put under the same name (it lays a newer version over it); what was locked is still there beneath. So:

* Packs, index files and snapshots are put and locked in one request. Config and keys are locked by whoever makes a
  point immutable. Locks never are.
* An object exists as long as one of its versions is locked, whatever lies over it. It is read from the version whose
  content is what its name says; of config, which has no such name, the first version is the right one.
* A delete removes every version and marker of a name, and is refused while one of them is locked.

Dates are by the store's clock, a quarter longer than asked for and rounded up to a whole week, so that what daily
backups refer to again and again is extended once in a while and not each day. They are never made shorter.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from node_agent.errors import (
    BackendReadOnly,
    LockRefused,
    ObjectLocked,
    ObjectMissing,
    RepositoryExists,
)
from node_agent.repository.backend.base import (
    CONFIG_NAME,
    Buffer,
    Held,
    Kind,
    ObjectInfo,
    ObjectLock,
    Probe,
    is_object_name,
    object_path,
)
from node_agent.repository.backend.gate import Gate
from node_agent.repository.backend.lock_probe import PROMISE, LockProbe
from node_agent.repository.backend.lock_rule import LockRule
from node_agent.repository.backend.s3 import S3Backend
from node_agent.repository.backend.s3_versions import NotLocked, Version, VersionedBucket

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOCKED_WHEN_PUT = (Kind.PACK, Kind.INDEX, Kind.SNAPSHOT)
MAX_DEFAULT_DAYS = 1


class S3ObjectLock(ObjectLock):
    def __init__(self, bucket: VersionedBucket, prefix: str, rule: LockRule) -> None:
        self.bucket = bucket
        self.rule = rule
        self.refusal: LockRefused | None = None
        self.attempt: Callable[[Callable[[], Any]], Any] = lambda operation: operation()  # see RetryingBackend
        self._prefix = prefix
        self._taken: list[tuple[Kind, str, Held]] = []
        self._read_from: dict[str, str] = {}  # paths whose current object is not the right one: version; "": none is
        self._usable = False

    # --- the face ---

    def now(self) -> float:
        return self._try(self.bucket.now)

    def wanted(self, now: float) -> float:
        return now + self.rule.period_s

    def locked_until(self, kind: Kind, name: str) -> float:
        path = self.path(kind, name)
        return self._try(lambda: self.latest_lock(self.versions_of(path)))

    def held(self, kind: Kind, name: str, version: str) -> Held:
        path = self.path(kind, name)
        return Held(version, self._try(lambda: self.bucket.retention(path, version))[1])

    def lock(self, kind: Kind, name: str, until: float = 0.0, version: str = "") -> Held:
        version = version or self._try(lambda: self.right_version(kind, name, proven=False))
        if not version:
            raise ObjectMissing(f"{kind.name.lower()} {name} is missing from {self.bucket.url}.")
        path, wanted = self.path(kind, name), max(until, self.rule.until(self.now()))
        before = self.held(kind, name, version)
        if before.until >= (until or wanted):
            return before
        try:
            self._try(lambda: self.bucket.retain(path, version, self.rule.mode, wanted))
        except (BackendReadOnly, NotLocked) as error:
            raise LockRefused(f"{kind.name.lower()} {name[:10]} could not be locked: {error.message}") from None
        after = self.held(kind, name, version)
        if after.until < wanted - 1:
            raise LockRefused(
                f"{self.bucket.url} answered that {kind.name.lower()} {name[:10]} is locked, and it is not. {PROMISE}."
            )
        return after

    def taken(self) -> list[tuple[Kind, str, Held]]:
        taken, self._taken = self._taken, []
        return taken

    def another_version(self, kind: Kind, name: str) -> bool:
        path = self.path(kind, name)
        if path in self._read_from:
            return bool(self._read_from[path])  # perhaps found by another thread while this one read
        with contextlib.suppress(BackendReadOnly):
            version = self._try(lambda: self.right_version(kind, name))
            self._read_from[path] = version
            if version:
                logger.warning("%s was deleted or overwritten; it is read from its version %s", path, version)
            return bool(version)
        return False

    def hide(self, kind: Kind, name: str) -> bool:
        path = self.path(kind, name)
        try:
            versions = self._try(lambda: self.versions_of(path))
            if versions and not versions[0].marker:
                self._try(lambda: self.bucket.delete(path))
        except BackendReadOnly as error:
            logger.warning("%s %s stays in sight: %s", kind.name.lower(), name[:10], error.message)
            return False
        return True

    def hidden(self, kind: Kind) -> Iterator[str]:
        for versions in self.bucket.versions(f"{self._prefix}{kind.value}"):
            name = versions[0].path.rpartition("/")[2]
            valid = name == CONFIG_NAME if kind is Kind.CONFIG else is_object_name(name)
            if valid and versions[0].path == self.path(kind, name) and not _plain(versions):
                yield name

    def bring_back(self, kind: Kind, name: str) -> bool:
        path = self.path(kind, name)
        right = self._try(lambda: self.right_version(kind, name))
        if not right:
            return False
        versions = self.versions_of(path)
        above = versions[: next(i for i, v in enumerate(versions) if v.id == right)]
        try:
            if all(version.marker for version in above):
                for marker in above:
                    self.bucket.delete(path, marker.id)
                return True
        except BackendReadOnly:
            logger.info("markers over %s may not be removed with these credentials; it is stored once more", path)
        content = self._try(lambda: self.bucket.read(path, right))
        until = max(self.held(kind, name, right).until, self.rule.until(self.now()))
        digest = hashlib.sha256(content).digest()
        self._try(lambda: self.bucket.put(path, content, digest, (self.rule.mode, until)))
        self._read_from.pop(path, None)
        return True

    def probe(self) -> Probe:
        return LockProbe(self.bucket, f"{self._prefix}{Kind.LOCK.value}", self.rule, self.must_be_usable).run()

    # --- for the backend beside ---

    def path(self, kind: Kind, name: str) -> str:
        return self._prefix + object_path(kind, name)

    def must_be_usable(self) -> None:
        """Raises LockRefused for a bucket that does not lock, or that locks what must not be locked."""
        if self._usable:
            return
        rules = self.bucket.rules()
        if not rules.enabled:
            raise LockRefused(
                f"Object Lock is not on at the bucket of {self.bucket.url}. {PROMISE}.",
                hint="Make a bucket with Object Lock and give its address, or leave out the option object-lock.",
            )
        if rules.default_days > MAX_DEFAULT_DAYS:
            raise LockRefused(
                f"The bucket of {self.bucket.url} locks every object for {rules.default_days} days by itself.",
                hint="That would keep the repository's lock files. Take the default retention away, or make it a day.",
            )
        self._usable = True

    def put_locked(self, kind: Kind, name: str, content: Buffer) -> None:
        """Raises LockRefused: nothing is stored then."""
        path = self.path(kind, name)
        until = self.rule.until(self.bucket.now())
        try:
            version = self.bucket.put(path, content, bytes.fromhex(name), (self.rule.mode, until))
        except (BackendReadOnly, NotLocked) as error:
            raise LockRefused(f"{kind.name.lower()} {name[:10]} could not be locked: {error.message}") from None
        if not version:
            raise LockRefused(f"{self.bucket.url} keeps no versions. {PROMISE}.")
        self._taken.append((kind, name, Held(version, until)))

    def versions_of(self, path: str) -> list[Version]:
        """Newest first."""
        return next((group for group in self.bucket.versions(path) if group[0].path == path), [])

    def latest_lock(self, versions: Sequence[Version]) -> float:
        """The latest date that is not over yet; 0.0: none."""
        dates = [self.bucket.retention(v.path, v.id)[1] for v in versions if not v.marker]
        latest = max(dates, default=0.0)
        return latest if latest > self.bucket.now() else 0.0

    def right_version(self, kind: Kind, name: str, *, proven: bool = True) -> str:
        """The version whose content is what the name says; of config, the first. Empty: there is none.

        Without ``proven``, one that nobody stored anything else over is taken unread.
        """
        versions = self.versions_of(self.path(kind, name))
        if versions and not proven and _plain(versions):
            return versions[0].id
        contents = [version for version in reversed(versions) if not version.marker]  # the first one was ours
        if kind is Kind.CONFIG:
            return contents[0].id if contents else ""
        wrong: set[tuple[int, str]] = set()
        for version in contents:
            if (version.size, version.etag) in wrong:
                continue
            if hashlib.sha256(self.bucket.read(version.path, version.id)).hexdigest() == name:
                return version.id
            wrong.add((version.size, version.etag))
        return ""

    def read_from(self, kind: Kind, name: str) -> str:
        """The version to read instead of the current object; empty: the current one."""
        path = self.path(kind, name)
        if kind is Kind.CONFIG and path not in self._read_from:
            versions = self.versions_of(path)
            if not versions:
                return ""  # not made yet
            self._read_from[path] = "" if _plain(versions) else self.right_version(kind, name)
        return self._read_from.get(path, "")

    def _try(self, operation: Callable[[], T]) -> T:
        result: T = self.attempt(operation)
        return result


class ObjectLockBackend(S3Backend):
    """A bucket with Object Lock. Objects travel through obstore but where a lock or a version is in question."""

    object_lock: S3ObjectLock

    def __init__(self, store: Any, gate: Gate, lock: S3ObjectLock, *, url: str, bucket: str, prefix: str) -> None:
        super().__init__(store, gate, url=url, bucket=bucket, prefix=prefix)
        self.object_lock = lock

    def create(self) -> None:
        """Also proves that the bucket locks what it is told to."""
        super().create()
        probe = self.object_lock.probe()
        if probe.problem:
            raise LockRefused(probe.problem)

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        lock = self.object_lock
        if kind is Kind.CONFIG:
            self._put_first(parts)
            return
        if kind not in LOCKED_WHEN_PUT or lock.refusal is not None:
            super().put(kind, name, parts)
            return
        self._path(kind, name)  # ValueError for what is no name
        lock.must_be_usable()
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            lock.put_locked(kind, name, content)
        except LockRefused as error:
            lock.refusal = error
            logger.warning("%s", error.message)
            if kind is Kind.SNAPSHOT:
                raise  # whoever writes it shall say in it that it is not immutable
            super().put(kind, name, [content])

    def _put_first(self, parts: Sequence[Buffer]) -> None:
        """A config; also one that was deleted is in the way, since of config the first version counts."""
        path, content = self._path(Kind.CONFIG, CONFIG_NAME), b"".join(parts)
        with self._claimed():
            if any(not version.marker for version in self.object_lock.versions_of(path)):
                raise RepositoryExists(f"There is already a repository at {self.url}.")
            self.object_lock.bucket.put(path, content, hashlib.sha256(content).digest())

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if kind is Kind.LOCK:
            return super().get(kind, name, offset, length)
        if version := self.object_lock.read_from(kind, name):
            return self.object_lock.bucket.read(self._path(kind, name), version, offset, length) if length != 0 else b""
        try:
            data = super().get(kind, name, offset, length)
        except ObjectMissing:
            if not self.object_lock.another_version(kind, name):
                raise
            return self.get(kind, name, offset, length)
        whole = offset == 0 and (length is None or len(data) < length) and kind is not Kind.CONFIG
        if whole and hashlib.sha256(data).hexdigest() != name and self.object_lock.another_version(kind, name):
            return self.get(kind, name, offset, length)
        return data

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        try:
            return super().stat(kind, name)
        except ObjectMissing:
            versions = self.object_lock.versions_of(self._path(kind, name)) if kind is not Kind.LOCK else []
            info = self._existing(kind, versions)
            if info is None:
                raise
            return info

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        if kind in (Kind.LOCK, Kind.CONFIG):
            yield from super().list(kind)
            return
        for versions in self.object_lock.bucket.versions(f"{self._prefix}{kind.value}/"):
            name = versions[0].path.rpartition("/")[2]
            if is_object_name(name) and versions[0].path == self._path(kind, name):
                info = self._existing(kind, versions)
                if info is not None:
                    yield info

    def delete(self, kind: Kind, name: str) -> None:
        path = self._path(kind, name)
        if kind is Kind.LOCK:
            self._discard(path)
            return
        versions = self.object_lock.versions_of(path)
        until = self.object_lock.latest_lock(versions)
        if until and not self.object_lock.right_version(kind, name):
            super().delete(kind, name)  # what is damaged is worth nothing: out of sight, and out of listings
            return
        if until:
            when = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M UTC")
            raise ObjectLocked(f"{kind.name.lower()} {name} is locked until {when} and stays until then.")
        for version in versions:
            self.object_lock.bucket.delete(path, version.id)

    def remove_leftovers(self) -> int:
        """What locks and clocks left under ``locks/``: older versions and markers. Of packs and index files those that
        were put out of sight while they were locked, and are no longer."""
        removed = sum(map(self._remove_hidden, (Kind.PACK, Kind.INDEX)))
        bucket = self.object_lock.bucket
        for versions in bucket.versions(f"{self._prefix}{Kind.LOCK.value}/"):
            live = versions[0] if not versions[0].marker and is_object_name(versions[0].path[-64:]) else None
            for version in versions:
                if version is not live:
                    with contextlib.suppress(BackendReadOnly):  # locked: of a probe just now
                        bucket.delete(version.path, version.id)
                        removed += 1
        return removed

    def _remove_hidden(self, kind: Kind) -> int:
        removed = 0
        for versions in self.object_lock.bucket.versions(f"{self._prefix}{kind.value}/"):
            if versions[0].marker and not self.object_lock.latest_lock(versions):
                for version in versions:
                    self.object_lock.bucket.delete(version.path, version.id)
                removed += 1
        return removed

    def _discard(self, path: str) -> None:
        """For good; a plain delete leaves a version and a marker, which is what happens where no more is allowed."""
        try:
            for version in self.object_lock.versions_of(path):
                self.object_lock.bucket.delete(path, version.id)
        except BackendReadOnly:
            self.object_lock.bucket.delete(path)

    def _existing(self, kind: Kind, versions: Sequence[Version]) -> ObjectInfo | None:
        if not versions or all(version.marker for version in versions):
            return None
        first = [version for version in versions if not version.marker][-1]
        name = CONFIG_NAME if kind is Kind.CONFIG else first.path.rpartition("/")[2]
        if versions[0].marker and not self.object_lock.latest_lock(versions):
            return None
        # Packs are not read for that: a damaged one in a listing does no harm, a damaged index file would.
        if versions[0].marker and kind is not Kind.PACK and not self.object_lock.right_version(kind, name):
            return None
        return ObjectInfo(name, first.size, first.modified)


def _plain(versions: Sequence[Version]) -> bool:
    """What is in sight is what was stored first: nothing deleted or put over it, or it was brought back."""
    latest, first = versions[0], versions[-1]
    return not latest.marker and not first.marker and (latest.size, latest.etag) == (first.size, first.etag)
