"""A check's comparison with what this machine remembers of the repository."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from node_agent.repository.known_objects import Known, KnownObjects
from node_agent.repository.rfc3339 import format_datetime
from node_agent.repository.snapshot import Snapshot


@dataclass(slots=True)
class Comparison:
    vanished: list[Known] = field(default_factory=list)  # the newest of their workload: no retention rule removes them
    notes: list[str] = field(default_factory=list)


def compare_snapshots(known: KnownObjects, present: set[str], loaded: Sequence[Snapshot]) -> Comparison:
    """``present``: the names that the store lists, ``loaded``: those that could be read. Remembers what it met."""
    now = [Known.of(s.id, s.hostname, s.paths, s.time) for s in loaded]
    newest = known.newest_removed()
    for one in now:
        newest[one.workload] = max(one.time_ns, newest.get(one.workload, one.time_ns))
    result = Comparison()
    told = []
    for one in known.gone(present):
        if one.workload not in newest or one.time_ns > newest[one.workload]:
            result.vanished.append(one)
        else:
            told.append(one.id)
            result.notes.append(
                f"snapshot {one.id} of {one.workload} at {format_datetime(one.time)} was here and is gone. "
                "This machine did not remove it; if nobody else was meant to, look for it in a copy."
            )
    for name in known.returned(present):
        told.append(name)
        result.notes.append(f"snapshot {name} was removed by this machine and is here again: who put it back?")
    known.accept(told)
    known.saw(now)
    return result


def compare_keys(known: KnownObjects, present: Iterable[str]) -> list[str]:
    """Notes about keys that came or went since the last check. The first check knows nothing to compare with."""
    names, before = set(present), known.keys()
    known.set_keys(names)
    if not before:
        return []
    came = [f"key {name} was added since the last check: whose is it?" for name in sorted(names - before)]
    went = [f"key {name} was here at the last check and is gone." for name in sorted(before - names)]
    return came + went


def describe_vanished(one: Known) -> str:
    return (
        f"snapshot {one.id} of {one.workload} at {format_datetime(one.time)} was here and is gone, and with it the "
        "newest of its workload, which no retention rule removes: it was deleted, or the store was rolled back."
    )
