"""Turns schedules that are due into jobs. The jobs table is the one scheduler's truth; beat only ticks.

One run a workload and tick: what was missed coalesces into the newest due time, full beats incremental. A schedule's
cursor ``planned_until`` moves in the same transaction that inserts the jobs, under the schedule's row lock, and the
jobs' ids and dedupe keys follow from schedule, workload and due time: two planners at one moment make one job.

While an earlier backup of the workload is waiting or running, a due run is skipped, and that job's log says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from apps.errors import Conflict, DomainError, Invalid
from apps.inventory import repositories
from apps.inventory.models import Workload
from apps.jobs import building, lease, objectives, publish
from apps.jobs.models import Job, LogLine, State, Trigger
from apps.jobs.requests import make_ready, open_backup, refuse_unfit
from apps.policies import schedule
from apps.policies.models import Policy, Schedule, ScheduleMode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Due:
    schedule: Schedule
    at: datetime
    full: bool


def plan(now: datetime) -> int:
    """Insert what is due, fail what could not start in its window; how many jobs were made."""
    _rewind_disabled()
    made = 0
    ready = Policy.objects.filter(enabled=True, tenant__is_active=True, schedules__enabled=True)
    for policy_id in list(ready.values_list("pk", flat=True).distinct()):
        try:
            made += _plan_policy(policy_id, now)
        except DomainError as error:  # one policy's trouble must not keep the others waiting
            log.error("policy %s could not be planned: %s %s", policy_id, error.message, error.hint)
    fail_overdue(now)
    objectives.refresh_changed(now)
    return made


def fail_overdue(now: datetime) -> int:
    """Jobs that did not start within their window fail, and say what they waited for."""
    late = Job.objects.filter(state=State.QUEUED, started_at=None, start_before__lt=now)
    failed = 0
    for job in late:
        window = int(job.rule.get("start_window_minutes", 0))
        message = _("It could not start within its window of %(minutes)s minutes.") % {"minutes": window}
        if job.waiting_for:
            message += " " + _("It waited: %(reason)s") % {"reason": job.waiting_for}
        hint = _("Remove what it waited for, or give the policy a longer start window; then start it again.")
        failed += lease.give_up(job, "start-window", message, now, hint)
    return failed


def _rewind_disabled() -> None:
    """What is switched on again begins then, not with a run for the time it was off."""
    off = Q(enabled=False) | Q(policy__enabled=False) | Q(policy__tenant__is_active=False)
    Schedule.objects.filter(off).exclude(planned_until=None).update(planned_until=None)


@transaction.atomic
def _plan_policy(policy_id: UUID, now: datetime) -> int:
    rows = Schedule.objects.select_for_update(of=("self",)).filter(policy=policy_id, enabled=True)
    schedules = list(rows.select_related("policy__destination", "policy__tenant").order_by("pk"))
    runs = [run for row in schedules if (run := _due(row, now))]
    made = _make(runs, now) if runs else 0
    for row in schedules:
        # Never backwards: a planner whose clock is behind must not plan again what another one planned.
        if row.planned_until is None or row.planned_until < now:
            row.planned_until = now
            row.save(update_fields=["planned_until"])
    return made


def _due(row: Schedule, now: datetime) -> Due | None:
    if row.planned_until is None:
        return None  # new: it begins with the next time
    try:
        at = schedule.latest_due(row.cron, row.policy.time_zone, row.planned_until, now)
    except Invalid as error:
        log.error("schedule %s of policy “%s” is unusable: %s", row.pk, row.policy, error.message)
        return None
    return Due(row, at, row.mode == ScheduleMode.FULL) if at else None


def _make(runs: list[Due], now: datetime) -> int:
    policy = runs[0].schedule.policy
    # All at once and in one order, so that two planners and a user's click cannot wait for one another in a circle.
    covered = Workload.objects.select_for_update(no_key=True, of=("self",)).filter(assignment__policy=policy)
    workloads = covered.select_related("platform__node", "assignment", "tenant").order_by("pk")
    return sum(_make_one(policy, workload, runs, now) for workload in workloads if not workload.rests)


def _make_one(policy: Policy, workload: Workload, runs: list[Due], now: datetime) -> bool:
    mine = [run for run in runs if run.at > workload.assignment.created_at]
    if not mine:
        return False
    run = max(mine, key=lambda one: (one.full, one.at))
    at = max(one.at for one in mine)
    earlier = open_backup(workload)
    if earlier is not None:
        _say_skipped(earlier, policy, at, now)
        return False
    repository = repositories.ensure(policy.tenant, policy.destination)
    made, tasks = building.backup(
        workload,
        policy,
        repository,
        now,
        full=run.full,
        key=f"schedule:{run.schedule.pk}/{workload.pk}/{at.isoformat()}",
        due_at=at,
        trigger=Trigger.SCHEDULE,
    )
    # A catch-up after the server was away gets its window from now on.
    made.start_before = max(at, now) + timedelta(minutes=policy.start_window_minutes)
    if not lease.add(made, tasks):
        return False
    try:
        refuse_unfit(workload, policy)
    except Conflict as error:
        lease.give_up(made, error.error_code, error.message, now, error.hint)
        return True
    make_ready(repository)
    return True


def _say_skipped(earlier: Job, policy: Policy, at: datetime, now: datetime) -> None:
    local = at.astimezone(schedule.zone(policy.time_zone))
    message = _("The run due at %(when)s was skipped, because this one has not ended yet.")
    LogLine.objects.create(
        job=earlier, at=now, level="warning", message=message % {"when": date_format(local, "Y-m-d H:i")}
    )
    publish.job_changed(earlier.pk, earlier.tenant_id)
