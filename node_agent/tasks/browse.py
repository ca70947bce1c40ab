"""Send the server the directories of a restore point that it has no list of."""

from __future__ import annotations

from node_agent.protocol import BrowseSpec, DoneResult
from node_agent.repository.snapshot import load_snapshot
from node_agent.tasks.context import TaskContext
from node_agent.tasks.directories import send_directories
from node_agent.tasks.opening import open_for_reading


def run(context: TaskContext, spec: BrowseSpec) -> DoneResult:
    context.phase("index")
    with open_for_reading(context, spec.repository) as repo:
        sent = send_directories(context, repo, load_snapshot(repo, spec.snapshot_id).tree)
    context.info(f"{sent} folders were sent.")
    return DoneResult()
