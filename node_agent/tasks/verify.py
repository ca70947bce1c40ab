"""Check a repository: its structure, and with ``read_data`` every byte of it."""

from __future__ import annotations

from node_agent.protocol import VerifyResult, VerifySpec
from node_agent.repository.backend.base import Kind
from node_agent.repository.check import check
from node_agent.tasks.context import TaskContext
from node_agent.tasks.opening import open_for_reading

ERRORS_KEPT = 1000


def run(context: TaskContext, spec: VerifySpec) -> VerifyResult:
    """Damage is the result, not a failure. The index is not loaded first: it may be what is damaged."""
    context.phase("verify")
    with open_for_reading(context, spec.repository, index=False) as repo:
        report = check(repo, read_data=spec.read_data, progress=context.progress)
        snapshots = sorted(info.name for info in repo.backend.list(Kind.SNAPSHOT))
        stored = sum(info.size for info in repo.backend.list(Kind.PACK))
    for note in report.notes[:100]:
        context.info(note)
    for problem in report.errors[:100]:
        context.progress.log("error", f"{problem.kind} {problem.name}: {problem.message}")
    damaged = {snapshot for problem in report.errors for snapshot in problem.snapshots}
    return VerifyResult(
        checked_bytes=report.read_bytes,
        snapshots=snapshots,
        damaged_snapshots=sorted(damaged),
        errors=[f"{p.kind} {p.name}: {p.message}"[:2000] for p in report.errors[:ERRORS_KEPT]],
        stored_bytes=stored,
    )
