"""Which verb does which kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node_agent.errors import BrsError, RefusedError
from node_agent.protocol import BackupResult, BackupSpec, Placed, RestoreResult, RestoreSpec, Result, Spec, TaskKind
from node_agent.tasks import (
    backup,
    browse,
    discover,
    download,
    export,
    fetch,
    forget,
    import_,
    init,
    machine_backup,
    machine_restore,
    probe,
    prune,
    remove_traces,
    restore,
    store,
    verify,
)
from node_agent.tasks.context import TaskContext
from node_agent.tasks.space import with_space


def _backup(context: TaskContext, spec: BackupSpec) -> BackupResult:
    return machine_backup.run(context, spec) if spec.source.machine is not None else backup.run(context, spec)


def _restore(context: TaskContext, spec: RestoreSpec) -> RestoreResult:
    return machine_restore.run(context, spec) if spec.target.machine is not None else restore.run(context, spec)


# Each verb takes the spec of its own kind; protocol.Spec's discriminator has already chosen it.
VERBS: dict[TaskKind, Callable[[TaskContext, Any], Result]] = {
    TaskKind.PROBE: probe.run,
    TaskKind.DISCOVER: discover.run,
    TaskKind.INIT: init.run,
    TaskKind.BACKUP: _backup,
    TaskKind.EXPORT: export.run,
    TaskKind.STORE: store.run,
    TaskKind.RESTORE: _restore,
    TaskKind.FETCH: fetch.run,
    TaskKind.IMPORT: import_.run,
    TaskKind.DOWNLOAD: download.run,
    TaskKind.BROWSE: browse.run,
    TaskKind.FORGET: forget.run,
    TaskKind.VERIFY: verify.run,
    TaskKind.PRUNE: prune.run,
    TaskKind.REMOVE_TRACES: remove_traces.run,
}


def perform(context: TaskContext, spec: Spec) -> Result:
    """Raises BrsError for what went wrong in a way we know; everything else is an error of ours."""
    verb = VERBS.get(spec.kind)
    if verb is None:
        raise RefusedError(f"This node does no tasks of the kind {spec.kind}.", hint="Update the node.")
    try:
        result = verb(context, spec)
        return with_space(context, spec, result) if isinstance(result, Placed) else result
    except OSError as error:
        raise BrsError(
            f"The node met an error of the operating system: {error.strerror or type(error).__name__}.",
            hint="The node's log has the details.",
        ) from error
