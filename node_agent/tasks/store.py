"""Store alone (staging: disk): put what Export staged on this node into the repository, under its own paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from node_agent.drivers.base import Disk, FileTree
from node_agent.drivers.image import open_image
from node_agent.protocol import BackupResult, BackupSpec
from node_agent.tasks.backup import adopted, store, tell_directories
from node_agent.tasks.context import TaskContext
from node_agent.tasks.export import RAW, staged_root
from node_agent.tasks.opening import open_repository
from node_agent.tasks.staging import Facts, Staged


def run(context: TaskContext, spec: BackupSpec) -> BackupResult:
    context.phase("store")
    staged = Staged(context.staging_dir, spec.staging)
    with open_repository(context, spec.repository, bandwidth_bytes_s=spec.bandwidth_bytes_s) as (repo, lock):
        result = adopted(context, repo, spec)
        with staged.emptying():
            if result is None:
                facts = staged.required()
                facts.give(context.issues)
                instant = datetime.fromtimestamp(facts.started_at, UTC)
                with _open(staged, facts) as source:
                    result = store(context, spec, repo, lock, source, instant)
            tell_directories(context, spec, repo, result.tree_id)
    return result


@contextmanager
def _open(staged: Staged, facts: Facts) -> Iterator[FileTree | Disk]:
    if facts.driver == "image":
        with open_image(staged.data / RAW, format="raw") as content:
            yield Disk(facts.paths[0], content, format=facts.format)
    else:
        roots = [(staged_root(staged, number), path) for number, path in enumerate(facts.paths)]
        yield FileTree([(Path(real), known) for real, known in roots], staged.owners())
