"""What this machine has seen in a repository: so that what was deleted, rolled back or put back is noticed.

A repository cannot say what is missing once it is gone together with all that named it. Each machine remembers the
snapshots that it wrote or met, those that it removed itself, and the keys that it met in checks. Another program may
remove snapshots rightfully (``restic forget``), and a retention rule never removes the newest of a workload: that one
gone is an error, an older one is told once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from node_agent.repository.local_memory import LocalMemory
from node_agent.repository.rfc3339 import from_datetime, to_datetime

_SEEN, _REMOVED, _REPLACED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Known:
    """A snapshot as far as it is remembered. ``workload``: its host and paths."""

    id: str
    workload: str = ""
    time_ns: int = 0

    @property
    def time(self) -> datetime:
        return to_datetime(self.time_ns)

    @classmethod
    def of(cls, snapshot_id: str, hostname: str, paths: Iterable[str], time: datetime) -> Known:
        return cls(snapshot_id, f"{hostname} {' '.join(sorted(paths))}", from_datetime(time))


class KnownObjects(LocalMemory):
    table = "known"
    columns = "kind TEXT, id TEXT, state INTEGER, workload TEXT, time_ns INTEGER, PRIMARY KEY (kind, id)"

    def saw(self, snapshots: Iterable[Known]) -> None:
        self._change(
            "INSERT OR IGNORE INTO known VALUES ('snapshot', ?, ?, ?, ?)",
            [(known.id, _SEEN, known.workload, known.time_ns) for known in snapshots],
        )

    def removed(self, known: Known, *, replaced: bool = False) -> None:
        """By us. ``replaced``: by the same with other tags, or repaired, which is not to be gone for that."""
        row = (known.id, _REPLACED if replaced else _REMOVED, known.workload, known.time_ns)
        self._change("INSERT OR REPLACE INTO known VALUES ('snapshot', ?, ?, ?, ?)", [row])

    def gone(self, present: set[str]) -> list[Known]:
        """Snapshots that were seen, were not removed by us, and are not among ``present``; oldest first.

        One that another machine had given other tags, so that it has another id, was removed if we removed that.
        """
        query = """
            SELECT id, workload, time_ns FROM known AS seen WHERE kind = 'snapshot' AND state = ? AND NOT EXISTS (
                SELECT 1 FROM known WHERE kind = 'snapshot' AND state = ?
                AND workload = seen.workload AND time_ns = seen.time_ns AND workload != ''
            ) ORDER BY time_ns
        """
        return [Known(*row) for row in self._rows(query, (_SEEN, _REMOVED)) if row[0] not in present]

    def newest_removed(self) -> dict[str, int]:
        """By workload, the time of the newest that we removed: what was older may have gone by a rule before."""
        query = "SELECT workload, max(time_ns) FROM known WHERE kind = 'snapshot' AND state = ? GROUP BY workload"
        return {str(workload): int(time_ns) for workload, time_ns in self._rows(query, (_REMOVED,))}

    def returned(self, present: set[str]) -> list[str]:
        """Snapshots that we removed and that are there again."""
        query = "SELECT id FROM known WHERE kind = 'snapshot' AND state IN (?, ?)"
        return sorted(row[0] for row in self._rows(query, (_REMOVED, _REPLACED)) if row[0] in present)

    def accept(self, snapshot_ids: Iterable[str]) -> None:
        """As they are now is right: they are told no more."""
        self._change("DELETE FROM known WHERE kind = 'snapshot' AND id = ?", [(name,) for name in snapshot_ids])

    def keys(self) -> set[str]:
        return {row[0] for row in self._rows("SELECT id FROM known WHERE kind = 'key'")}

    def set_keys(self, names: Iterable[str]) -> None:
        self._change("DELETE FROM known WHERE kind = ?", [("key",)])
        self._change("INSERT INTO known VALUES ('key', ?, 0, '', 0)", [(name,) for name in names])
