"""Taking objects away from a store that may keep them a while longer: what can go goes, the rest is put out of sight.

Where nothing is locked this is a plain delete.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from node_agent.repository.backend.base import Backend, Kind


@dataclass(frozen=True, slots=True)
class StillLocked:
    """Out of use, but the store keeps it; ``until`` in seconds since the epoch."""

    kind: Kind
    name: str
    until: float

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind.name.lower(), "name": self.name, "locked_until": self.until}


def withdraw(backend: Backend, kind: Kind, names: Iterable[str], check: Any = lambda: None) -> list[StillLocked]:
    """Returns what stays. ``check`` is called before each: it raises when the repository's lock is no longer ours."""
    lock = backend.object_lock
    kept: list[StillLocked] = []
    for name in names:
        check()
        until = lock.locked_until(kind, name) if lock is not None else 0.0
        if lock is not None and until:
            lock.hide(kind, name)
            kept.append(StillLocked(kind, name, until))
        else:
            backend.delete(kind, name)
    return kept


def longest(backend: Backend, kind: Kind, names: Iterable[str]) -> float:
    """Until when the last of them is locked; 0.0: none is."""
    lock = backend.object_lock
    return 0.0 if lock is None else max((lock.locked_until(kind, name) for name in names), default=0.0)


def inherit(backend: Backend, kind: Kind, names: Iterable[str], until: float) -> None:
    """What stands in for locked objects is locked as long as they were. Raises LockRefused."""
    lock = backend.object_lock
    if lock is None or not until:
        return
    for name in names:
        lock.lock(kind, name, until)
