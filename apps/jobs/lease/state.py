"""The writes beneath every verb of the lease: lock, move, derive the job's state, tell.

Lock order: node → gate → job → task → lines of its log; the first four FOR NO KEY UPDATE (rows that point to them
may be inserted meanwhile).
Every move of a task is a one-row UPDATE whose WHERE names the state and the token it was decided upon.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.utils.translation import gettext as _

from apps.catalog import protection
from apps.errors import LeaseLost
from apps.jobs import publish, results
from apps.jobs.faults import Fault
from apps.jobs.models import ACTIVE, ENDED, Job, JobKind, LogLine, State, Task
from node_agent.protocol import LEASE_CLASS, LeaseClass, LogEntry, TaskKind

LOST_AT_MOST = 10  # runs of one task that may end with their holder's death


def ttl() -> timedelta:
    return timedelta(seconds=settings.BRS_LEASE_TTL_S)


def margin() -> timedelta:
    return timedelta(seconds=settings.BRS_LEASE_MARGIN_S)


def lease_class(task: Task) -> LeaseClass:
    return LEASE_CLASS[TaskKind(task.kind)]


def backoff(attempt: int) -> timedelta:
    """How long a task rests after its ``attempt``-th run failed: 5 s, 20 s, 80 s, then 5 min."""
    return timedelta(seconds=min(300, 5 * 4 ** max(0, attempt - 1)))


def lock_job(job_id: UUID) -> Job:
    return Job.objects.select_for_update(no_key=True).get(pk=job_id)


def lock_task(task_id: UUID) -> Task:
    return Task.objects.select_for_update(no_key=True).get(pk=task_id)


def move(task: Task, **facts: Any) -> None:
    """One guarded UPDATE. LeaseLost when the task is no longer as ``task`` was read."""
    guard = Task.objects.filter(pk=task.pk, state=task.state, lease_token=task.lease_token, attempt=task.attempt)
    if guard.update(**facts) != 1:
        raise LeaseLost()
    for name, value in facts.items():
        setattr(task, name, value)


def renewable(task: Task) -> bool:
    """Its lease ran out, nobody took it, and its kind allows the old holder to come back."""
    return task.state == State.QUEUED and task.lease_expires_at is not None


def answered(task: Task) -> bool:
    """The holder of the token has reported how it went (or gave the task back)."""
    return bool(task.lease_token) and task.lease_expires_at is None


def end(task: Task, state: State, now: datetime, fault: Fault | None = None, **facts: Any) -> None:
    """The task is over. ``lease_expires_at`` is cleared: its token was answered."""
    if fault is not None and state in (State.FAILED, State.CANCELLED):
        results.came_to_nothing(task, fault, now)
    if fault is not None:
        facts |= {"error_code": fault.code[:60], "error_message": fault.message[:8000], "error_hint": fault.hint[:4000]}
    move(task, state=state, finished_at=now, lease_expires_at=None, **facts)


def requeue(task: Task, available_at: datetime, fault: Fault | None = None, **facts: Any) -> None:
    """Back to the queue; the token stays for repeated reports, but works no more."""
    if fault is not None:
        facts |= {"error_code": fault.code[:60], "error_message": fault.message[:8000], "error_hint": fault.hint[:4000]}
    facts = {"lease_expires_at": None, "node": None, "phase": "", "progress": {}, **facts}
    move(task, state=State.QUEUED, available_at=available_at, **facts)


def give_back(
    job: Job, task: Task, now: datetime, fault: Fault, *, again: bool = True, rest: timedelta = timedelta(), **kept: Any
) -> None:
    """A run that did not reach its end: cancelled if that was asked for, failed when it may not run ``again`` or has
    no attempt left, else queued, to start after a ``rest`` at the earliest. ``kept``: facts that stay on it then."""
    note(task, now, fault.message, "warning")
    if job.cancel_requested_at is not None:
        end(task, State.CANCELLED, now, cancelled_by(job))
    elif not again or task.attempt >= task.max_attempts:
        end(task, State.FAILED, now, fault)
    else:
        requeue(task, now + rest, fault, **kept)
    settle(job, now)


def lost(job: Job, task: Task, now: datetime, fault: Fault, *, renewable: bool = False, rest: timedelta) -> None:
    """Its holder is gone without a word. That says little about the task, so it uses up an attempt only when it may
    be the task that kills its nodes (or when it was meant to run once). ``renewable``: the holder may come back."""
    if task.max_attempts > 1 and task.attempt < LOST_AT_MOST:
        move(task, max_attempts=task.max_attempts + 1)
    kept = {"lease_expires_at": task.lease_expires_at, "node": task.node} if renewable else {}
    give_back(job, task, now, fault, rest=rest, **kept)


def cancelled_by(job: Job) -> Fault:
    return Fault("cancelled", _("Cancelled by %(who)s.") % {"who": job.cancel_requested_by or _("the server")})


def note(task: Task, now: datetime, message: str, level: str = "info") -> None:
    """A line of the server's own in the job's log."""
    LogLine.objects.create(job_id=task.job_id, task=task, attempt=task.attempt, at=now, level=level, message=message)


def keep_log(task: Task, entries: Iterable[LogEntry], now: datetime) -> None:
    """Lines of the node; those that were kept already (same lease, same number) are ignored."""
    lines = [
        LogLine(
            job_id=task.job_id,
            task=task,
            attempt=task.attempt,
            seq=entry.seq,
            at=now - timedelta(seconds=min(max(entry.age_s, 0), 7 * 86400)),
            level=entry.level,
            message=entry.message.replace("\x00", "\\0"),
        )
        for entry in entries
        if 0 < entry.seq < 2**31
    ]
    LogLine.objects.bulk_create(lines, ignore_conflicts=True)


def derive(states: Iterable[str]) -> State:
    """A job's state from its tasks'. What is still open wins, then the worst outcome."""
    found = set(states)
    for state in (State.RUNNING, State.LEASED, State.QUEUED, State.FAILED, State.CANCELLED, State.PARTIAL):
        if state in found:
            return state
    return State.SUCCEEDED


def settle(job: Job, now: datetime) -> None:
    """After a task of the (locked) job moved: drop what can no longer run, store the job's state, tell."""
    _drop_followers(job, now)
    tasks = list(job.tasks.order_by("ordinal"))
    state = derive(task.state for task in tasks)
    facts: dict[str, Any] = {"state": state, "waiting_for": job.waiting_for if state == State.QUEUED else ""}
    if state in ACTIVE and job.started_at is None:
        facts["started_at"] = now
    if state in ENDED:
        facts["finished_at"] = now
        facts |= _error_of(tasks) if state in {State.FAILED, State.CANCELLED} else {}
    if Job.objects.filter(pk=job.pk).exclude(state__in=ENDED).update(**facts) != 1:
        return  # it had ended before: nothing may change that
    moved = state != job.state
    for name, value in facts.items():
        setattr(job, name, value)
    if state in ENDED:
        _ended(job, now)
    if moved:
        publish.work(job.tenant_id)
    publish.job_changed(job.pk, job.tenant_id)


def _drop_followers(job: Job, now: datetime) -> None:
    """Queued tasks of the job whose forerunner did not succeed; those behind them, too."""
    while True:
        lost = list(
            job.tasks.select_for_update(no_key=True, of=("self",)).filter(
                state=State.QUEUED, after__job=job, after__state__in=(State.FAILED, State.CANCELLED)
            )
        )
        if not lost:
            return
        for task in lost:
            end(task, State.CANCELLED, now, Fault("step-before-failed", _("The step before it did not succeed.")))


def _error_of(tasks: list[Task]) -> dict[str, str]:
    for state in (State.FAILED, State.CANCELLED):
        for task in tasks:
            if task.state == state and task.error_message:
                return {
                    "error_code": task.error_code,
                    "error_message": task.error_message,
                    "error_hint": task.error_hint,
                }
    return {}


def _ended(job: Job, now: datetime) -> None:
    if job.kind == JobKind.BACKUP and job.workload is not None:
        protection.after_run(job.workload, job.state, job.error_message, now)
