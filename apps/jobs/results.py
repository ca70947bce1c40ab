"""What a finished task means for the rest: points in the catalogue, a repository that is ready, free space known.

``record`` runs inside the transaction that ends the task. It returns a fault when the task did its work and what
it found is bad (a damaged repository, a failed connection test): then the task is failed, its result kept.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.catalog import ingest, traces
from apps.errors import Invalid
from apps.inventory.models import Destination, Repository, RepositoryState
from apps.jobs import discovered, publish, spool
from apps.jobs.faults import Fault
from apps.jobs.models import Job, State, Task
from node_agent.protocol import (
    BackupResult,
    CompleteReport,
    DiscoverResult,
    DoneResult,
    DownloadResult,
    ExportResult,
    ForgetResult,
    InitResult,
    Outcome,
    Placed,
    ProbeResult,
    PruneResult,
    RemoveTracesResult,
    RestoreResult,
    Result,
    TaskKind,
    VerifyResult,
)

FITS: dict[TaskKind, type] = {
    TaskKind.PROBE: ProbeResult,
    TaskKind.DISCOVER: DiscoverResult,
    TaskKind.INIT: InitResult,
    TaskKind.BACKUP: BackupResult,
    TaskKind.EXPORT: ExportResult,
    TaskKind.STORE: BackupResult,
    TaskKind.RESTORE: RestoreResult,
    TaskKind.FETCH: RestoreResult,
    TaskKind.IMPORT: RestoreResult,
    TaskKind.DOWNLOAD: DownloadResult,
    TaskKind.BROWSE: DoneResult,
    TaskKind.FORGET: ForgetResult,
    TaskKind.VERIFY: VerifyResult,
    TaskKind.PRUNE: PruneResult,
    TaskKind.REMOVE_TRACES: RemoveTracesResult,
}


def check(task: Task, result: Result) -> None:
    """Before any lock is taken: the result fits the task, and an uploaded file is whole."""
    if not isinstance(result, FITS[TaskKind(task.kind)]):
        raise Invalid(_("A result of kind “%(kind)s” does not fit this task.") % {"kind": result.kind})
    if isinstance(result, DownloadResult):
        spool.prove(task, result)


def state_of(report: CompleteReport) -> State:
    partial = report.outcome is Outcome.PARTIAL or report.left_out_count > 0
    return State.PARTIAL if partial else State.SUCCEEDED


def record(job: Job, task: Task, report: CompleteReport, now: datetime) -> Fault | None:
    result = report.result
    if isinstance(result, Placed):
        _space(job, task, result)
    if isinstance(result, BackupResult):
        _backup(job, task, report, result, now)
    elif isinstance(result, InitResult):
        _init(task, result)
    elif isinstance(result, ForgetResult) and task.repository is not None:
        _forget(job, task, task.repository, result, now)
    elif isinstance(result, VerifyResult):
        return _verify(job, task, result, now)
    elif isinstance(result, PruneResult):
        _prune(task, result, now)
    elif isinstance(result, ProbeResult):
        return _probe(job, result, now)
    elif isinstance(result, DiscoverResult):
        return discovered.completed(job, task, result, now)
    elif isinstance(result, RemoveTracesResult) and job.workload is not None:
        traces.removed(job.workload, task.spec["marks"], bitmaps=task.spec["bitmaps"])
        publish.nudge(job.tenant_id, "platforms")
    elif isinstance(result, DownloadResult):
        spool.finish(task, result, now)
    return None


def _backup(job: Job, task: Task, report: CompleteReport, result: BackupResult, now: datetime) -> None:
    if job.workload is None or task.repository is None:
        raise Invalid(_("This task has no workload or no repository to keep a point of."))
    outcome = Outcome.PARTIAL if state_of(report) == State.PARTIAL else Outcome.SUCCEEDED
    job.restore_point = ingest.record_backup(
        task_id=task.pk,
        point_id=UUID(task.spec["point"]),
        workload=job.workload,
        repository=task.repository,
        result=result,
        outcome=outcome,
        left_out=report.left_out,
        left_out_count=report.left_out_count,
        now=now,
    )
    Job.objects.filter(pk=job.pk).update(restore_point=job.restore_point)
    if job.workload.platform.holds_machines:
        traces.kept(job.workload, task.repository, result.kept, now)
    publish.nudge(job.tenant_id, "points")


def _space(job: Job, task: Task, result: Placed) -> None:
    """A source's space, which connection tests of sources tell, is nobody's here."""
    destination = task.repository.destination_id if task.repository is not None else job.destination_id
    if destination is not None and result.capacity_bytes:
        facts = {"total_bytes": result.capacity_bytes, "free_bytes": result.free_bytes}
        if Destination.objects.filter(pk=destination).exclude(**facts).update(**facts):
            publish.nudge(job.tenant_id, "destinations")


def _init(task: Task, result: InitResult) -> None:
    """A repository that was made before keeps its id: another one in its place is not ours."""
    made = Repository.objects.filter(pk=task.repository_id, repository_id__in=("", result.repository_id))
    if not made.update(repository_id=result.repository_id, state=RepositoryState.READY, problem=""):
        raise Invalid(_("The repository there is not the one that was made before."))


def _forget(job: Job, task: Task, repository: Repository, result: ForgetResult, now: datetime) -> None:
    ingest.mark_forgotten(repository, result.removed, result.missing, now=now)
    kept = set(task.spec.get("snapshot_ids", [])) - set(result.removed) - set(result.missing)
    if kept:
        ingest.give_back(repository, kept, _("the node did not remove it"), now=now)
    publish.nudge(job.tenant_id, "points")


def _verify(job: Job, task: Task, result: VerifyResult, now: datetime) -> Fault | None:
    if task.repository is not None:
        ingest.reconcile(task.repository, result, since=task.leased_at or job.created_at, now=now)
        publish.nudge(job.tenant_id, "points")
    if not result.errors and not result.damaged_snapshots:
        return None
    count = len(result.errors) or len(result.damaged_snapshots)
    return Fault(
        "repository-damaged",
        ngettext("The check found %(n)d problem: %(first)s", "The check found %(n)d problems, first: %(first)s", count)
        % {"n": count, "first": (result.errors or result.damaged_snapshots)[0]},
        _("The points that are affected are marked damaged; a new backup stores again what is missing."),
    )


def _prune(task: Task, result: PruneResult, now: datetime) -> None:
    Repository.objects.filter(pk=task.repository_id).update(
        pruned_at=now, unused_bytes=result.unused_bytes, stored_bytes=result.stored_bytes
    )


def _probe(job: Job, result: ProbeResult, now: datetime) -> Fault | None:
    bad = [check for check in result.checks if not check.ok]
    problem = "; ".join(f"{check.name}: {check.detail}" for check in bad)
    if job.destination_id is not None:
        Destination.objects.filter(pk=job.destination_id).update(tested_at=now, problem=problem[:500])
        publish.nudge(job.tenant_id, "destinations")
    elif job.platform is not None and job.platform.holds_machines:
        discovered.tested(job.platform, problem, result.host_keys, now)
        publish.nudge(job.tenant_id, "platforms")
    if not bad:
        return None
    return Fault("probe-failed", problem, next((check.hint for check in bad if check.hint), ""))


def came_to_nothing(task: Task, fault: Fault, now: datetime) -> None:
    """A task failed or was cancelled: what its repository or destination shows of that."""
    if task.kind == TaskKind.INIT:
        Repository.objects.filter(pk=task.repository_id, state=RepositoryState.NEW).update(problem=fault.message[:500])
    elif task.kind == TaskKind.PROBE and task.job.destination_id is not None:
        Destination.objects.filter(pk=task.job.destination_id).update(tested_at=now, problem=fault.message[:500])
    elif task.kind in (TaskKind.PROBE, TaskKind.DISCOVER) and task.job.platform_id is not None:
        discovered.failed(task.job.platform_id, TaskKind(task.kind), fault, now)
    elif task.kind == TaskKind.REMOVE_TRACES and task.job.workload is not None:
        traces.not_removed(task.job.workload, task.spec["marks"], fault.message, now)
    elif task.kind == TaskKind.FORGET and task.repository is not None:
        ingest.give_back(task.repository, task.spec.get("snapshot_ids", []), fault.message, now=now)
