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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from node_agent.errors import ObjectMissing

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


class Backend(ABC):
    """One place that holds one repository. All methods may be called from several threads at once."""

    url: str

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
        """Remove an object for good. One that is not there is no error: a repeated delete must succeed."""

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
