"""Backup of a machine: all its disks, of one instant, as one snapshot, and beside them what recreates it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from node_agent.drivers.base import Consistency, Freeze, Machine, MachineRequest
from node_agent.errors import BrsError, LeaseLost, RefusedError, SourceError
from node_agent.items import Issue, Severity, printable
from node_agent.protocol import KEPT_LONGEST, BackupResult, BackupSpec
from node_agent.repository.image import ImageBackup, backup_images
from node_agent.repository.lock import Lock
from node_agent.repository.repository import Repository
from node_agent.tasks.backup import adopted, tags_of, tell_directories, usable_parent
from node_agent.tasks.commands import around
from node_agent.tasks.context import TaskContext
from node_agent.tasks.machine_files import FACTS, facts_of, previous
from node_agent.tasks.opening import open_repository
from node_agent.tasks.sources import platform_for
from node_agent.tasks.throttle import pace_of, paced_disk

_CONSISTENT = {
    Consistency.APPLICATION: "They are of one instant, at which the guest's file systems were held.",
    Consistency.CRASH: "They are of one instant, as after a power cut.",
    Consistency.STOPPED: "The machine does not run.",
    Consistency.NONE: "They are not of one instant.",
}
_NOT_ONE_INSTANT = "The disks are not of one instant: between them this point may not fit together."


def run(context: TaskContext, spec: BackupSpec) -> BackupResult:
    context.phase("export")
    if spec.platform is None or spec.source.machine is None:
        raise RefusedError("A machine's backup without its platform makes no sense.", hint="An error of the server.")
    platform = platform_for(context, spec.platform)
    opened = open_repository(context, spec.repository, bandwidth_bytes_s=spec.bandwidth_bytes_s, early=True)
    with opened as (repo, lock):
        result = adopted(context, repo, spec)
        if result is None:
            parent = usable_parent(context, repo, spec)
            before = previous(repo, parent, spec.host, spec.snapshot_paths, context.progress)
            request = _request(spec, repo.id[:8])
            with around(context, spec, platform, request) as taken, platform.open(request, before) as machine:
                taken()
                result = _store(context, spec, repo, lock, _paced(context, spec, machine), parent)
                _acknowledge(context, machine)
                result = result.model_copy(update={"kept": [printable(name)[:KEPT_LONGEST] for name in machine.kept]})
        tell_directories(context, spec, repo, result.tree_id)
    return result


def _request(spec: BackupSpec, mark: str) -> MachineRequest:
    wanted = spec.source.machine
    assert wanted is not None
    return MachineRequest(
        id=wanted.id,
        name=wanted.name,
        mark=mark,
        host=wanted.host,
        leave_out=frozenset(wanted.leave_out),
        freeze=Freeze(wanted.freeze),
        freeze_limit_s=wanted.freeze_limit_s,
    )


def _store(
    context: TaskContext, spec: BackupSpec, repo: Repository, lock: Lock, machine: Machine, parent: str | None
) -> BackupResult:
    machine = _wanted(machine, frozenset(spec.source.machine.leave_out if spec.source.machine else ()))
    if not machine.disks:
        raise SourceError(
            "The machine has no disk that can be protected.", hint="Its page lists the disks and why each is left out."
        )
    for issue in [*machine.left_out, *machine.notes]:
        context.issues.add(issue)
    for disk in machine.disks.values():
        if disk.content.damage:
            context.issues.add(Issue(disk.path, "image-damaged", disk.content.damage))
    if machine.consistency is Consistency.NONE:
        context.issues.add(Issue(spec.workload_name, "not-one-instant", _NOT_ONE_INSTANT))
    else:
        said = f"Consistency of the disks: {machine.consistency}."
        context.issues.add(Issue(spec.workload_name, "consistency", said, Severity.NOTE))
    context.info(f"Opened: {_listed(machine)}. {_CONSISTENT[machine.consistency]}")
    context.progress.set(parts=tuple((name, disk.content.size) for name, disk in machine.disks.items()))
    context.phase("store")
    instant = datetime.fromtimestamp(machine.instant, UTC)
    stored = backup_images(
        repo,
        lock,
        [
            ImageBackup(
                name,
                disk.content,
                disk.changes.extents if disk.changes is not None else None,
                disk.content.changed,
                disk.changes.base if disk.changes is not None else None,
                disk.identity,
            )
            for name, disk in machine.disks.items()
        ],
        host=spec.host,
        paths=spec.snapshot_paths,
        tags=tags_of(context, spec),
        metadata={**machine.metadata, FACTS: facts_of(machine)},
        parent=parent,
        progress=context.progress,
        issues=context.issues,
        time=instant,
    )
    context.info(f"Snapshot {stored.snapshot_id[:8]} is in the repository.")
    return BackupResult(
        snapshot_id=stored.snapshot_id,
        tree_id=stored.tree_id,
        parent_id=stored.parent_id or "",
        size_bytes=stored.size_bytes,
        read_bytes=stored.read_bytes,
        new_bytes=stored.new_bytes,
        stored_bytes=stored.stored_bytes,
        files=stored.files,
        started_age_s=max(0.0, context.now() - machine.instant),
        block_size=stored.block_size or 0,
    )


def _paced(context: TaskContext, spec: BackupSpec, machine: Machine) -> Machine:
    assert spec.platform is not None and spec.source.machine is not None
    pace = pace_of(spec.platform, spec.source.machine.host)
    disks = {name: paced_disk(disk, pace, context.progress.check) for name, disk in machine.disks.items()}
    return replace(machine, disks=disks)


def _listed(machine: Machine) -> str:
    """Each disk, and how much of it is read."""
    said = []
    for name, disk in machine.disks.items():
        changed = (
            "all of it" if disk.changes is None else f"{sum(e.length for e in disk.changes.extents) >> 10} KiB changed"
        )
        said.append(f"{printable(name)} ({changed})")
    return ", ".join(said)


def _wanted(machine: Machine, leave_out: frozenset[str]) -> Machine:
    """Without the disks that the user does not want: those make no point partial."""
    return replace(
        machine,
        disks={name: disk for name, disk in machine.disks.items() if name not in leave_out},
        left_out=[issue for issue in machine.left_out if issue.path not in leave_out],
    )


def _acknowledge(context: TaskContext, machine: Machine) -> None:
    """The point is good whatever becomes of this: what is not tidied now is found by the next run."""
    try:
        machine.acknowledge()
    except LeaseLost:
        raise
    except BrsError as error:
        context.warn(f"What the point before this one had left on the platform could not be removed: {error.message}")
