"""What lies on a platform, told to the server in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from node_agent.drivers.base import FoundMachine
from node_agent.items import Issue, printable
from node_agent.protocol import (
    FOUND_MOST,
    FOUND_PIECE,
    KEPT_LONGEST,
    KEPT_MOST,
    TRACES_MOST,
    DiscoverResult,
    DiscoverSpec,
    DiskFacts,
    MachineFacts,
    TraceFacts,
)
from node_agent.tasks.context import TaskContext
from node_agent.tasks.sources import platform_for

_TOO_MANY = f"There are more than {FOUND_MOST:,} machines: the rest was not looked at."
_RUNNING = "running"


def run(context: TaskContext, spec: DiscoverSpec) -> DiscoverResult:
    context.phase("discover")
    platform = platform_for(context, spec.platform)
    problems: list[str] = []
    found: dict[str, MachineFacts] = {}
    for one in platform.discover(thorough=spec.thorough):
        context.progress.check()
        if isinstance(one, Issue):
            problems.append(f"{one.path}: {one.message}"[:500])
            context.warn(problems[-1])
            continue
        facts = facts_of(one)
        # Defined on two hosts while it moves from one to the other: where it runs counts.
        if facts.id not in found or facts.state == _RUNNING:
            found[facts.id] = facts
        if len(found) > FOUND_MOST:
            problems.append(_TOO_MANY)
            break
        context.progress.set(done_files=len(found))
    told = list(found.values())[:FOUND_MOST]
    for piece in _pieces(told):
        context.outlet.found(piece)
    return DiscoverResult(found=len(told), whole=not problems, problems=problems[:100])


def _pieces(told: list[MachineFacts]) -> Iterator[list[MachineFacts]]:
    for start in range(0, len(told), FOUND_PIECE):
        yield told[start : start + FOUND_PIECE]


def facts_of(machine: FoundMachine) -> MachineFacts:
    """Within what the wire carries: names on a platform may hold anything."""
    return MachineFacts(
        id=printable(machine.id)[:200],
        name=printable(machine.name)[:200],
        state=printable(machine.state)[:40],
        disks=[
            DiskFacts(
                name=printable(disk.name)[:250],
                size_bytes=max(0, disk.size),
                format=disk.format[:40],
                why_left_out=printable(disk.why_left_out)[:300],
            )
            for disk in machine.disks[:256]
        ],
        tags=[printable(tag)[:200] for tag in machine.tags[:100]],
        project=printable(machine.project)[:200],
        host=printable(machine.host)[:300],
        summary={printable(name)[:80]: printable(value)[:500] for name, value in list(machine.summary.items())[:40]},
        traces=None if machine.traces is None else _traces(machine.traces),
    )


def _traces(found: Mapping[str, Sequence[str]]) -> list[TraceFacts]:
    told = list(found.items())[:TRACES_MOST]
    return [
        TraceFacts(owner=owner, names=[printable(name)[:KEPT_LONGEST] for name in names[:KEPT_MOST]])
        for owner, names in told
    ]
