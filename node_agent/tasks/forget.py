"""Remove snapshots from a repository, alone in it. One that is gone already is reported, not an error."""

from __future__ import annotations

from node_agent.errors import ObjectLocked, SnapshotNotFound
from node_agent.protocol import ForgetResult, ForgetSpec
from node_agent.repository.backend import Kind
from node_agent.repository.snapshot import remove_snapshot
from node_agent.tasks.context import TaskContext
from node_agent.tasks.opening import open_repository


def run(context: TaskContext, spec: ForgetSpec) -> ForgetResult:
    context.phase("forget")
    removed: list[str] = []
    missing: list[str] = []
    with open_repository(context, spec.repository, exclusive=True) as (repo, lock):
        # By name, unread: one damaged snapshot must not keep the others for ever.
        there = {info.name for info in repo.backend.list(Kind.SNAPSHOT)}
        context.progress.set(total_files=len(spec.snapshot_ids))
        for snapshot_id in dict.fromkeys(spec.snapshot_ids):
            context.progress.check()
            lock.check()
            if snapshot_id not in there:
                missing.append(snapshot_id)
            else:
                try:
                    remove_snapshot(repo, snapshot_id)
                    removed.append(snapshot_id)
                except SnapshotNotFound:
                    missing.append(snapshot_id)
                except ObjectLocked as error:  # stays in the catalogue, and is tried again by the next expiry
                    context.warn(error.message)
            context.progress.add(done_files=1)
        repo.backend.remove_leftovers()  # of puts whose node was killed; only we are here now
    for snapshot_id in missing:
        context.warn(f"Snapshot {snapshot_id[:8]} was not in the repository any more.")
    return ForgetResult(removed=removed, missing=missing)
