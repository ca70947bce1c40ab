"""Tells ``catalog.protection`` what only policies know: how old the last good backup may be, and the next run."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from django.db.models import QuerySet
from django.utils import timezone

from apps.catalog import protection
from apps.catalog.models import ProtectionState
from apps.errors import Invalid
from apps.inventory.models import Workload
from apps.policies import schedule
from apps.policies.assignment import policy_of
from apps.policies.models import Policy, Schedule


def refresh(workloads: Iterable[UUID | Workload], now: datetime | None = None) -> None:
    """After an assignment, an edited policy or an exclusion. A policy's change concerns all that it covers."""
    moment = now or timezone.now()
    for workload in Workload.objects.filter(pk__in=[getattr(one, "pk", one) for one in workloads]):
        _tell(workload, policy_of(workload), moment)


def refresh_policy(policy: Policy, now: datetime | None = None) -> None:
    """After a policy or its schedules were saved. New schedules count from this moment, not from the next tick."""
    moment = now or timezone.now()
    new = Schedule.objects.filter(policy=policy, enabled=True, policy__enabled=True, planned_until=None)
    new.update(planned_until=moment)
    for workload in Workload.objects.filter(assignment__policy=policy):
        _tell(workload, policy, moment)


def refresh_changed(now: datetime) -> int:
    """The workloads whose row does not say what their policy says now; how many. Cheap when nothing changed."""
    changed = 0
    next_runs: dict[UUID, datetime | None] = {}
    for workload in _with_policy():
        policy = workload.assignment.policy if hasattr(workload, "assignment") else None
        if policy and policy.pk not in next_runs:
            next_runs[policy.pk] = next_run(policy, now)
        if not _is_told(workload, policy, next_runs.get(policy.pk) if policy else None):
            _tell(workload, policy, now)
            changed += 1
    return changed


def _is_told(workload: Workload, policy: Policy | None, runs_at: datetime | None) -> bool:
    row = getattr(workload, "protection", None)
    if row is None or (row.state == ProtectionState.EXCLUDED) != workload.rests:
        return False
    if policy is None or not policy.enabled:
        return (row.objective_hours, row.next_run_at) == (None, None)
    return (row.objective_hours, row.next_run_at) == (policy.objective_hours, None if workload.rests else runs_at)


def next_run(policy: Policy, now: datetime) -> datetime | None:
    if not policy.enabled:
        return None
    found = [moment for row in policy.schedules.all() if row.enabled and (moment := _next(row, policy, now))]
    return min(found, default=None)


def _next(row: Schedule, policy: Policy, now: datetime) -> datetime | None:
    try:
        return schedule.next_run(row.cron, policy.time_zone, now)
    except Invalid:  # the form refuses such a line; the planner says so where it was stored otherwise
        return None


def _tell(workload: Workload, policy: Policy | None, now: datetime) -> None:
    if policy is None or not policy.enabled:
        protection.set_objective(workload.pk, None, None, now)
    else:
        runs_at = None if workload.rests else next_run(policy, now)
        protection.set_objective(workload.pk, policy.objective_hours, runs_at, now)


def _with_policy() -> QuerySet[Workload]:
    return Workload.objects.select_related("protection", "assignment__policy").prefetch_related(
        "assignment__policy__schedules"
    )
