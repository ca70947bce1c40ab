"""How protected each workload is: the only writer of :class:`Protection`.

    protected     the newest complete point is within the objective and the last run ended well
    attention     there is a good point, but: the objective is missed, the last run failed or was partial, points
                  are missing or damaged, or no policy covers it; or there are only partial points
    unprotected   nothing to restore from
    excluded      left out on purpose, or gone from its platform

What only policies know (objective, next run) is told with :func:`set_objective` and remembered in the row; every
write locks the row first and computes from what is committed then, so that a slow refresh cannot undo a newer one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.catalog.models import CopyState, PointOutcome, Protection, ProtectionState, RestorePoint
from apps.inventory.models import Workload

_BAD_RUNS = {"failed", "cancelled"}  # job states; jobs lie above this module


def refresh(workloads: Iterable[UUID | Workload], now: datetime | None = None) -> None:
    """Compute the rows of these workloads anew."""
    for workload_id in sorted(one.pk if isinstance(one, Workload) else one for one in workloads):
        _write(workload_id, now or timezone.now())


def lock(workloads: Iterable[UUID]) -> None:
    """Hold the rows of these workloads until the transaction's end. Who also locks points locks these first."""
    rows = Protection.objects.select_for_update(no_key=True, of=("self",)).filter(workload__in=list(workloads))
    list(rows.order_by("workload_id"))


def refresh_stale(now: datetime) -> int:
    """Rows that time alone changes (an objective has just been missed) and workloads without a row; how many."""
    stale = list(Workload.objects.filter(protection=None).values_list("pk", flat=True))
    # Of rows that are amber already the sentence grows old: it says by how many hours the objective is missed.
    told = Q(state=ProtectionState.ATTENTION, updated_at__lt=now - timedelta(minutes=30))
    rows = Protection.objects.filter(told | Q(state=ProtectionState.PROTECTED), objective_hours__isnull=False)
    for pk, good_at, hours in rows.values_list("pk", "last_good_at", "objective_hours").iterator():
        if good_at is not None and now - good_at > timedelta(hours=hours):
            stale.append(pk)
    refresh(stale, now)
    return len(stale)


def after_run(workload: Workload, state: str, message: str, at: datetime) -> None:
    """A backup ended. ``state`` is the job's; ``message`` says why when it did not succeed."""
    _write(
        workload.pk, at, last_run_at=at, last_run_outcome=str(state), last_run_message=message[:500] if message else ""
    )


def set_objective(workload_id: UUID, hours: int | None, next_run_at: datetime | None, now: datetime) -> None:
    """What the workload's policy promises; ``hours`` None: no policy covers it."""
    _write(workload_id, now, objective_hours=hours, next_run_at=next_run_at)


@transaction.atomic
def _write(workload_id: UUID, now: datetime, **facts: Any) -> None:
    Protection.objects.get_or_create(workload_id=workload_id)
    row = Protection.objects.select_for_update(no_key=True, of=("self",)).get(workload_id=workload_id)
    for name, value in facts.items():
        setattr(row, name, value)
    workload = Workload.objects.get(pk=workload_id)
    points = RestorePoint.objects.filter(workload=workload)
    good = usable(points).filter(outcome=PointOutcome.COMPLETE).order_by("-taken_at").first()
    partial = usable(points).filter(outcome=PointOutcome.PARTIAL).order_by("-taken_at").first()
    row.last_good = good
    row.last_good_at = good.taken_at if good else None
    row.points = usable(points).count()
    row.size_bytes = (good or partial).size_bytes if good or partial else 0
    row.state, reason = _judge(workload, row, partial, now)
    row.reason = reason[:300]
    row.save()


def usable(points: QuerySet[RestorePoint]) -> QuerySet[RestorePoint]:
    """Points that can be restored from some repository."""
    return points.filter(copies__state=CopyState.PRESENT).distinct()


def _judge(workload: Workload, row: Protection, partial: RestorePoint | None, now: datetime) -> tuple[str, str]:
    if workload.excluded:
        return ProtectionState.EXCLUDED, workload.excluded_reason or _("Excluded.")
    if workload.gone_at is not None:
        return ProtectionState.EXCLUDED, _("It is gone from its platform. Its points stay.")
    if row.last_good_at is None and partial is None:
        return ProtectionState.UNPROTECTED, _nothing(row)
    reason = _damage(workload) or _age(row, now) or _last_run(row, partial) or _not_immutable(row.last_good)
    if not reason and row.objective_hours is None:
        reason = _("No policy covers it, so it is not backed up by itself.")
    return (ProtectionState.ATTENTION, reason) if reason else (ProtectionState.PROTECTED, "")


def _nothing(row: Protection) -> str:
    if row.last_run_outcome in _BAD_RUNS and row.last_run_message:
        return _("There is no backup yet. The last run failed: %(why)s") % {"why": row.last_run_message}
    if row.objective_hours is None:
        return _("There is no backup, and no policy covers it.")
    return _("There is no backup yet.")


def _damage(workload: Workload) -> str:
    points = RestorePoint.objects.filter(workload=workload)
    lost = points.filter(copies__state=CopyState.MISSING).distinct().count()
    if lost:
        return ngettext(
            "%(count)s restore point is missing from its repository.",
            "%(count)s restore points are missing from their repository.",
            lost,
        ) % {"count": lost}
    hurt = points.filter(copies__state=CopyState.DAMAGED).distinct().count()
    if hurt:
        return ngettext("%(count)s restore point is damaged.", "%(count)s restore points are damaged.", hurt) % {
            "count": hurt
        }
    return ""


def _age(row: Protection, now: datetime) -> str:
    if row.last_good_at is None:
        return _("There are only partial backups: some items were left out of each.")
    if row.objective_hours is None:
        return ""
    late = now - row.last_good_at - timedelta(hours=row.objective_hours)
    if late <= timedelta():
        return ""
    hours = int(late.total_seconds() // 3600)
    if not hours:
        return _("Missed its %(objective)s h objective.") % {"objective": row.objective_hours}
    return _("Missed its %(objective)s h objective by %(hours)s h.") % {
        "objective": row.objective_hours,
        "hours": hours,
    }


def _not_immutable(good: RestorePoint | None) -> str:
    if good is None or good.immutable_refused is None:
        return ""
    return _("The last backup is not immutable: %(why)s") % {"why": good.immutable_refused}


def _last_run(row: Protection, partial: RestorePoint | None) -> str:
    if row.last_run_outcome == "cancelled":
        return _("The last run was cancelled.")
    if row.last_run_outcome == "failed":
        return _("The last run failed: %(why)s") % {"why": row.last_run_message or _("see the job.")}
    if row.last_run_outcome == "partial":
        left_out = partial.left_out_count if partial else 0
        return ngettext(
            "The last backup is partial: %(count)s item was left out.",
            "The last backup is partial: %(count)s items were left out.",
            left_out,
        ) % {"count": left_out}
    return ""
