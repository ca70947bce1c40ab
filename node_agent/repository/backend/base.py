"""What a store must be able to do, in ten words: put, get, list, stat and delete small named objects.

A backend knows nothing of encryption, packs or snapshots. Names are 64 lower-case hex digits (the
configuration has the fixed name ``config``); an object never changes once it is there.

Crash model every implementation must keep, and say where it cannot:

* ``put`` is atomic: a reader sees the whole object or none, whatever is killed at whatever instant.
* ``put`` is durable: once it returned, the object survives a power cut.
* Order is the caller's: what was put before another put started is there whenever the other one is.
* ``list`` sees every object whose ``put`` returned before the listing began.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from node_agent.errors import LockRefused, ObjectMissing

Buffer = bytes | bytearray | memoryview

CONFIG_NAME = "config"
MAX_OBJECT = 512 << 20  # larger ones nobody writes; a peer that sends more is not listened to

_HEX_NAME = re.compile(r"[0-9a-f]{64}\Z")


class Kind(StrEnum):
    """The kinds of objects of a repository; the value is the folder's name in restic's layout."""

    CONFIG = "config"
    KEY = "keys"
    LOCK = "locks"
    SNAPSHOT = "snapshots"
    INDEX = "index"
    PACK = "data"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    name: str
    size: int
    modified: (
        float  # seconds since the epoch by the store's clock; 0.0 for packs and the like where the store keeps none
    )


@dataclass(frozen=True, slots=True)
class Held:
    """A lock on one object: on which of its versions, and until when (seconds since the epoch; 0.0: not locked)."""

    version: str
    until: float


@dataclass(frozen=True, slots=True)
class Probe:
    """What a store was seen to do; ``problem`` is empty if it keeps what it promises."""

    checks: Sequence[str]
    problem: str = ""


class ObjectLock(ABC):
    """What a store can do that refuses to give up what it was told to keep. Times are seconds by its own clock.

    Packs, index files and snapshots are locked as they are put; config and keys by :meth:`lock`; locks never. Once a
    lock was refused, everything later is stored without, and ``refusal`` says why. An object that is locked *exists*,
    whatever was done to its name since: it is listed, and read as it was.
    """

    refusal: LockRefused | None = None
    attempt: Callable[[Callable[[], Any]], Any]  # runs a request, as often as it needs; given by RetryingBackend

    @abstractmethod
    def now(self) -> float:
        """The store's clock, without a request where it was heard of lately."""

    @abstractmethod
    def wanted(self, now: float) -> float:
        """Until when what is stored now must be kept at least."""

    @abstractmethod
    def locked_until(self, kind: Kind, name: str) -> float:
        """The latest date on any version of the object; 0.0: it may be removed."""

    @abstractmethod
    def held(self, kind: Kind, name: str, version: str) -> Held:
        """What the store says now of one version. Raises ObjectMissing."""

    @abstractmethod
    def lock(self, kind: Kind, name: str, until: float = 0.0, version: str = "") -> Held:
        """Lock at least until ``until``, never shorter than it is, and read back that it holds; 0.0: as a new object.

        Without ``version`` the one whose content is right is looked for. Raises ObjectMissing, LockRefused.
        """

    @abstractmethod
    def taken(self) -> list[tuple[Kind, str, Held]]:
        """What was locked while it was put since this was last asked."""

    @abstractmethod
    def another_version(self, kind: Kind, name: str) -> bool:
        """The object read wrong: True if an older version is right, which is read from then on."""

    @abstractmethod
    def hide(self, kind: Kind, name: str) -> bool:
        """Put a locked object out of sight of programs that do not look beneath. False: these credentials may not."""

    @abstractmethod
    def hidden(self, kind: Kind) -> Iterator[str]:
        """Names whose current object is deleted, or not the first that was stored under the name."""

    @abstractmethod
    def bring_back(self, kind: Kind, name: str) -> bool:
        """Make the right version the current one, and locked as it was. False: there is none, or nothing to do."""

    @abstractmethod
    def probe(self) -> Probe:
        """Try, with the credentials in use, to break a lock made for it."""


class Backend(ABC):
    """One place that holds one repository. All methods may be called from several threads at once."""

    url: str
    object_lock: ObjectLock | None = None  # None: not offered by the store, or not asked for

    @abstractmethod
    def create(self) -> None:
        """Make the empty layout. The destination itself must exist or be creatable; repeating is harmless."""

    @abstractmethod
    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        """Store the concatenation of ``parts``; atomic, and durable on return.

        Raises BackendFull, BackendReadOnly, RepositoryMissing (the layout is gone: not mounted) or
        BackendError. Nothing of a failed put stays visible. An existing ``config`` is never replaced
        (RepositoryExists); any other name is the digest of its content, so replacing is harmless.
        """

    @abstractmethod
    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from ``offset``, at most ``length`` of them; fewer where it ends earlier.

        Raises ObjectMissing.
        """

    @abstractmethod
    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        """All objects of a kind, in no order. Leftovers of interrupted puts are not objects."""

    @abstractmethod
    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        """Raises ObjectMissing."""

    @abstractmethod
    def delete(self, kind: Kind, name: str) -> None:
        """Remove an object for good. One that is not there is no error: a repeated delete must succeed.

        Raises ObjectLocked where there is an object lock and it is not over.
        """

    @abstractmethod
    def now(self) -> float:
        """The store's own clock, the one that ``ObjectInfo.modified`` is taken from."""

    def exists(self, kind: Kind, name: str) -> bool:
        try:
            self.stat(kind, name)
        except ObjectMissing:
            return False
        return True

    def remove_leftovers(self) -> int:
        """Remove what interrupted puts left behind; only while nobody else writes. Returns how many."""
        return 0

    def close(self) -> None:
        """Give back connections and end waiting for retries. The backend may not be used afterwards."""
        return None


def object_path(kind: Kind, name: str) -> str:
    """Where restic's default layout keeps an object, relative to the repository. ValueError: ``name`` is none."""
    if kind is Kind.CONFIG:
        return CONFIG_NAME
    if not is_object_name(name):
        raise ValueError(f"{name!r} is not the name of an object")
    return f"{kind.value}/{name[:2]}/{name}" if kind is Kind.PACK else f"{kind.value}/{name}"


def is_object_name(name: str) -> bool:
    return _HEX_NAME.match(name) is not None
