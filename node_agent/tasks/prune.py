"""Give back the space of what no snapshot needs any more. Repeating it is harmless; a kill loses nothing."""

from __future__ import annotations

from node_agent.protocol import PruneResult, PruneSpec
from node_agent.repository.backend import Kind
from node_agent.repository.prune import PruneOptions, prune
from node_agent.tasks.context import TaskContext
from node_agent.tasks.opening import LOCK_WAIT_S, opened

MIB = 1 << 20


def run(context: TaskContext, spec: PruneSpec) -> PruneResult:
    context.phase("prune")
    options = PruneOptions(
        max_duration_s=spec.max_duration_s or None, wait_s=LOCK_WAIT_S, expected=frozenset(spec.expected)
    )
    with opened(context, spec.repository) as repo:
        done = prune(repo, options, progress=context.progress)
        stored = sum(info.size for info in repo.backend.list(Kind.PACK))
    for note in done.notes[:100]:
        context.info(note)
    removed = done.removed_packs + done.orphaned_packs
    context.info(
        f"{removed} packs removed, {done.rewritten_packs} rewritten: {done.freed_bytes / MIB:.1f} MiB freed, "
        f"{done.unused_bytes / MIB:.1f} MiB of waste stay."
    )
    return PruneResult(
        removed_packs=removed,
        rewritten_packs=done.rewritten_packs,
        freed_bytes=done.freed_bytes,
        unused_bytes=done.unused_bytes,
        stored_bytes=stored,
    )
