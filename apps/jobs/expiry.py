"""Retention at work: what the workloads' current policies do not keep is removed from its repository.

    copies PRESENT → EXPIRING, with the reason; one FORGET job a repository   (here, one transaction)
    the node forgets the snapshots, ``catalog.ingest`` drops the points       (when the task completes)
    the node could not: the copies are PRESENT again, with the reason         (when the task fails)

Kept whatever the policy says: held points, points in use by an open job, workloads without an enabled policy.
Copies that are missing from the repository are not judged; they are shown until somebody deletes them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.catalog import browse, ingest
from apps.catalog.models import CopyState, PointCopy, PointOutcome, RestorePoint
from apps.iam import audit
from apps.inventory.models import Repository, Workload
from apps.jobs import building, lease, objectives, publish
from apps.jobs.models import OPEN, Job, JobKind, Task, Trigger
from apps.policies import retention, schedule
from apps.policies.assignment import retention_of
from apps.policies.models import Policy
from apps.policies.retention import Fact
from node_agent.protocol import TaskKind

AT_ONCE = 500  # snapshots that one job forgets; the rest follows at the next run


def expire(now: datetime, policies: Iterable[Policy] | None = None) -> list[Job]:
    """One job for each repository with something to remove. ``policies``: only what they cover."""
    put_back_stranded(now)
    workloads = Workload.objects.filter(
        assignment__policy__enabled=True, tenant__is_active=True, points__copies__state=CopyState.PRESENT
    )
    if policies is not None:
        workloads = workloads.filter(assignment__policy__in=list(policies))
    ids = set(workloads.values_list("pk", flat=True))
    holding = Repository.objects.filter(copies__point__workload__in=ids).distinct().order_by("pk")
    jobs = [job for repository in holding if (job := _expire(repository, ids, now))]
    return jobs


def would_go(policy: Policy, now: datetime) -> int:
    """How many copies of points the policy as it is stored does not keep now."""
    workloads = set(Workload.objects.filter(assignment__policy=policy).values_list("pk", flat=True))
    holding = Repository.objects.filter(copies__point__workload__in=workloads).distinct()
    return sum(len(_goes(repository, workloads, now)) for repository in holding)


def put_back_stranded(now: datetime) -> int:
    """Copies marked as going whose job has ended without them, however that came about: present again."""
    count = 0
    going = PointCopy.objects.filter(state=CopyState.EXPIRING)
    by_repository: dict[UUID, set[str]] = defaultdict(set)
    for repository_id, snapshot_id in going.values_list("repository_id", "snapshot_id"):
        by_repository[repository_id].add(snapshot_id)
    for repository in Repository.objects.filter(pk__in=by_repository):
        tasks = Task.objects.filter(repository=repository, kind=TaskKind.FORGET.value)
        for specs in tasks.filter(state__in=OPEN).values_list("spec", flat=True):
            by_repository[repository.pk] -= set(specs.get("snapshot_ids", []))
        stranded = by_repository[repository.pk]
        if stranded:
            last = tasks.exclude(state__in=OPEN).order_by("-finished_at").first()
            why = (last.error_message if last else "") or _("the job that should do it ended without it")
            with transaction.atomic():
                count += ingest.give_back(repository, stranded, why, now=now)
    return count


def sweep_lists(now: datetime) -> int:  # noqa: ARG001  chores are called with the time
    """Drop file lists that no point leads to any more. Left for later where a backup is sending lists just now."""
    count = 0
    for repository in Repository.objects.all():
        busy = Job.objects.filter(
            repository=repository, state__in=OPEN, kind__in=[JobKind.BACKUP, JobKind.BROWSE]
        ).exists()
        if not busy:
            count += browse.drop_unused(repository)
    return count


def _expire(repository: Repository, workloads: set[UUID], now: datetime) -> Job | None:
    with transaction.atomic():
        # Locked, so that two who expire at once, or a verification that reconciles, come one after the other.
        Repository.objects.select_for_update(no_key=True).get(pk=repository.pk)
        open_jobs = Job.objects.filter(repository=repository, kind=JobKind.EXPIRE, state__in=OPEN)
        if open_jobs.filter(trigger=Trigger.RETENTION).exists():
            return None
        reasons = _goes(repository, workloads, now)
        copies = _mark(repository, reasons)
        if not copies:
            return None
        job = _add_job(repository, copies, now)
    touched = {copy.point.workload_id for copy in copies}
    objectives.refresh(touched, now)
    publish.nudge(repository.tenant_id, "points")
    return job


def _goes(repository: Repository, workloads: set[UUID], now: datetime) -> dict[UUID, str]:
    """Points that the policies do not keep in this repository, oldest first, with the reason."""
    facts: dict[UUID, list[Fact]] = defaultdict(list)
    copies = PointCopy.objects.filter(
        repository=repository,
        point__workload__in=workloads,
        state__in=[CopyState.PRESENT, CopyState.DAMAGED],
    )
    for copy in copies.select_related("point"):
        # A damaged copy counts like a partial point: it never displaces a good one.
        complete = copy.point.outcome == PointOutcome.COMPLETE and copy.state == CopyState.PRESENT
        fact = Fact(copy.point_id, copy.point.taken_at, complete=complete, held=copy.point.hold)
        facts[copy.point.workload_id].append(fact)
    goes: dict[UUID, str] = {}
    for workload in Workload.objects.filter(pk__in=facts).select_related("assignment__policy"):
        policy = workload.assignment.policy
        zone = schedule.zone(policy.time_zone)
        for decision in retention.decide(facts[workload.pk], retention_of(policy), now, zone)[::-1]:
            if not decision.keep:
                goes[decision.id] = _("policy “%(policy)s”: %(why)s") % {
                    "policy": policy.name,
                    "why": "; ".join(decision.reasons),
                }
    return goes


def _mark(repository: Repository, reasons: dict[UUID, str]) -> list[PointCopy]:
    wanted = list(reasons)[:AT_ONCE]
    used = Job.objects.filter(restore_point__in=wanted, state__in=OPEN).values_list("restore_point", flat=True)
    free = RestorePoint.objects.filter(pk__in=wanted, hold=False).exclude(pk__in=list(used))
    locked = {point.pk for point in free.select_for_update(no_key=True, of=("self",)).order_by("pk")}
    # Once more under the locks: a restore that began between is seen now, one that begins later sees EXPIRING.
    locked -= set(Job.objects.filter(restore_point__in=locked, state__in=OPEN).values_list("restore_point", flat=True))
    copies = PointCopy.objects.filter(repository=repository, point__in=locked).select_related("point")
    return [copy for copy in copies if ingest.mark_expiring([copy], reasons[copy.point_id])]


def _add_job(repository: Repository, copies: list[PointCopy], now: datetime) -> Job:
    title = ngettext(
        "Remove %(count)s expired point from %(where)s", "Remove %(count)s expired points from %(where)s", len(copies)
    ) % {"count": len(copies), "where": repository.destination.name}
    job, tasks = building.forget(title, repository, copies, now, trigger=Trigger.RETENTION, priority=40)
    lease.add(job, tasks)
    detail = {"points": len(copies), "oldest": min(copy.point.taken_at for copy in copies).isoformat()}
    audit.record("retention", "points.expiring", repository, detail=detail | {"job": str(job.pk)})
    return job
