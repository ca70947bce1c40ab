"""Remove what backups of one machine keep on its platform: checkpoints, bitmaps, snapshots, by whose they are."""

from __future__ import annotations

from node_agent.drivers.base import MachineRequest
from node_agent.errors import SourceMissing
from node_agent.items import printable
from node_agent.protocol import KEPT_LONGEST, LIST_KEEP, RemoveTracesResult, RemoveTracesSpec
from node_agent.tasks.context import TaskContext
from node_agent.tasks.sources import platform_for


def run(context: TaskContext, spec: RemoveTracesSpec) -> RemoveTracesResult:
    """A machine that is gone keeps nothing that its platform could be asked for."""
    context.phase("remove-traces")
    platform = platform_for(context, spec.platform)
    removed: list[str] = []
    for mark in spec.marks:
        context.progress.check()
        wanted = MachineRequest(spec.machine.id, spec.machine.name, mark, spec.machine.host)
        try:
            found = platform.remove_traces(wanted, bitmaps=spec.bitmaps, snapshots=spec.snapshots)
        except SourceMissing as error:
            context.warn(f"There is nothing left to remove it from: {error.message}")
            return RemoveTracesResult(removed=removed, gone=True)
        for name in found:
            context.info(f"Removed: {printable(name)}")
        removed += [printable(name)[:KEPT_LONGEST] for name in found]
    if not removed:
        context.info("Nothing was kept there.")
    return RemoveTracesResult(removed=removed[:LIST_KEEP])
