"""What backups keep on platforms lives only as long as a schedule needs it; then a job removes it.

A row (``catalog.Trace``) is needed while the machine is covered by an enabled policy with an enabled schedule into that
repository, and is neither excluded nor gone. Left by a policy, it gets an hour: who only moves a machine from one rule
to another need not read it whole. A removal that came to nothing is tried again after some hours, and the platform's
page says why it did. When a KVM platform no longer wants snapshots in Ceph, those alone go, and at once.

Never beside a run: no removal is planned while a backup or restore of the machine waits or runs (both look under the
workload's lock), and when they meet all the same, they hold one gate (``building.machine_gate``) and come one after the
other; the backup then reads everything.

What was only found on a platform is never removed by itself: a person has to say so.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.catalog import traces
from apps.catalog.models import Trace
from apps.errors import Conflict, DomainError, Invalid
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.models import User
from apps.inventory.models import PlatformKind, Workload
from apps.jobs import building, lease
from apps.jobs.models import OPEN, Job, JobKind, State, Trigger
from apps.policies.models import Schedule

log = logging.getLogger(__name__)
GRACE = timedelta(hours=1)
RETRY = timedelta(hours=6)
SYSTEM = "schedule"
BESIDE = (JobKind.BACKUP, JobKind.RESTORE, JobKind.REMOVE_TRACES)  # what a removal waits for


def plan(now: datetime) -> int:
    """Say what is needed, and remove what has not been for a while; how many jobs were made."""
    traces.needed(_kept().filter(_is_needed()))
    traces.unneeded(_kept().exclude(_is_needed()), now)
    _withdraw(now)
    rested = _kept().filter(Q(tried_at=None) | Q(tried_at__lte=now - RETRY))
    made = 0
    for row in rested.filter(unneeded_since__lte=now - GRACE):
        made += _plan_one(row, now, snapshots_only=False)
    for row in rested.filter(_option_is_off(), unneeded_since=None, in_cluster=True):
        made += _plan_one(row, now, snapshots_only=True)
    return made


def remove(user: User, workload: Workload, rows: list[Trace]) -> Job:
    """Remove this of what is kept at the workload, now. Conflict while it is backed up or restored.

    What no repository of the tenant has made takes the right to configure: it may be another server's.
    """
    ours = all(row.repository_id is not None for row in rows)
    access.require(user, Right.OPERATE if ours else Right.CONFIGURE, workload)
    if not rows:
        raise Conflict(
            _("Nothing is kept at “%(name)s”.") % {"name": workload},
            hint=_("“Look for kept snapshots” on its platform's page asks the platform itself."),
            code="nothing-kept",
        )
    if any(row.workload_id != workload.pk for row in rows):
        raise Invalid(_("This is not kept at “%(name)s”.") % {"name": workload})
    with transaction.atomic():
        locked = _locked(workload)
        if (busy := _busy(locked)) is not None:
            raise Conflict(
                _("“%(job)s” is waiting or running.") % {"job": busy.title},
                hint=_("Wait until it has ended, or cancel it."),
                code="already-running",
            )
        made, tasks = building.remove_traces(locked, rows, timezone.now(), requested_by=user)
        lease.add(made, tasks)
        audit.record(user, "traces.removal-requested", workload, detail=_detail(made, rows))
    return made


def of_backups(workload: Workload) -> list[Trace]:
    """What runs of this server keep there."""
    return list(Trace.objects.filter(workload=workload, by_backup=True))


# --- parts --------------------------------------------------------------------------------------------


def _kept() -> QuerySet[Trace]:
    return Trace.objects.filter(by_backup=True)


def _is_needed() -> Exists:
    """A machine that two platforms reach is one: what the one keeps, the other one's backups build upon."""
    runs = Schedule.objects.filter(enabled=True, policy__enabled=True)
    machine = "policy__assignments__workload__"
    return Exists(
        runs.filter(
            **{
                "policy__destination": OuterRef("repository__destination"),
                f"{machine}tenant": OuterRef("workload__tenant"),
                f"{machine}external_id": OuterRef("workload__external_id"),
                f"{machine}excluded": False,
                f"{machine}gone_at": None,
            }
        )
    )


def _option_is_off() -> Q:
    return Q(workload__platform__kind=PlatformKind.KVM) & ~Q(workload__platform__options__has_key="rbd-snapshots")


def _plan_one(row: Trace, now: datetime, *, snapshots_only: bool) -> bool:
    try:
        with transaction.atomic():
            workload = _locked(row.workload)
            still = _kept().filter(pk=row.pk, in_cluster=True) if snapshots_only else _kept().filter(pk=row.pk)
            fresh = (still if snapshots_only else still.exclude(_is_needed())).first()
            if fresh is None or _busy(workload) is not None:
                return False
            part = "snapshots" if snapshots_only else "all"
            before = Job.objects.filter(workload=workload, kind=JobKind.REMOVE_TRACES).count()
            key = f"traces:{row.pk}/{part}/{before}"
            made, tasks = building.remove_traces(
                workload, [fresh], now, snapshots_only=snapshots_only, key=key, trigger=Trigger.SYSTEM, priority=40
            )
            if not lease.add(made, tasks):
                return False
            audit.record(SYSTEM, "traces.removal-planned", workload, detail=_detail(made, [fresh]))
            return True
    except DomainError as error:  # one machine's trouble must not keep the others waiting
        log.error("what is kept at workload %s: %s %s", row.workload_id, error.message, error.hint)
        return False


def _withdraw(now: datetime) -> None:
    """Removals that nobody has begun, of what is needed again meanwhile."""
    waiting = Job.objects.filter(kind=JobKind.REMOVE_TRACES, trigger=Trigger.SYSTEM, state=State.QUEUED)
    for job in waiting.select_related("workload").prefetch_related("tasks"):
        spec = job.tasks.all()[0].spec
        rows = _kept().filter(workload=job.workload, owner__in=spec["marks"])
        if spec["bitmaps"] and rows.exists() and not rows.exclude(_is_needed()).exists():
            lease.cancel(job, SYSTEM, now)
            traces.withdrawn(rows)


def _locked(workload: Workload) -> Workload:
    rows = Workload.objects.select_for_update(no_key=True, of=("self",))
    return rows.select_related("platform__node", "tenant").get(pk=workload.pk)


def _busy(workload: Workload) -> Job | None:
    mine = Q(workload=workload) | Q(restore_point__workload=workload)
    return Job.objects.filter(mine, kind__in=BESIDE, state__in=OPEN).first()


def _detail(made: Job, rows: list[Trace]) -> dict[str, object]:
    return {
        "job": str(made.pk),
        "owners": [row.owner for row in rows],
        "names": [n for r in rows for n in r.names][:50],
    }
