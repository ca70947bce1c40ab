"""What a node says of a task it holds: progress, complete, fail, release.

Each is fenced by the lease's token and may be repeated: the answer to a repetition is the answer to the first.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _

from apps.errors import LeaseLost, NotFound
from apps.inventory import discovery
from apps.inventory.models import Node
from apps.jobs import publish, results
from apps.jobs.faults import Fault
from apps.jobs.lease import state as moves
from apps.jobs.lease.acquire import lock_gates, report_s, resume
from apps.jobs.models import ACTIVE, Job, State, Task
from node_agent.protocol import (
    Ack,
    CompleteReport,
    FailReport,
    ProgressReply,
    ProgressReport,
    ReleaseReport,
)

STORED_EVERY = timedelta(seconds=10)


def holding(node: Node, task_id: UUID, token: str) -> Task:
    """The task, if this token is its lease's now. NotFound for another tenant's, else LeaseLost."""
    task = Task.objects.select_related("job", "repository", "node").filter(pk=task_id).first()
    task = _fence(node, task, token)
    if task.state not in ACTIVE and not moves.renewable(task):
        raise LeaseLost()
    return task


def progress(node: Node, task_id: UUID, report: ProgressReport, now: datetime) -> ProgressReply:
    """Shown live at once; stored every ten seconds, and when the phase changes or lines of log came."""
    task = holding(node, task_id, report.token)
    if _worth_storing(task, report, now):
        with transaction.atomic():
            _store_progress(node, task, report, now)
    expires = task.lease_expires_at or now
    publish.job_progress(task.job_id, task.pk, {"phase": report.phase, **_figures(report)})
    return ProgressReply(
        cancel=task.job.cancel_requested_at is not None,
        ttl_s=max(0.0, (expires - now).total_seconds()),
        report_s=report_s(),
        server_time=now,
    )


def complete(node: Node, task_id: UUID, report: CompleteReport, now: datetime) -> Ack:
    """The task, its place in the catalogue and the job's state, in one transaction."""
    results.check(holding_or_done(node, task_id, report.token), report.result)
    with transaction.atomic():
        job, task = _locked(node, task_id, report.token)
        if moves.answered(task) and task.outcome:
            return Ack()
        _must_be_held(task)
        fault = results.record(job, task, report, now)
        if report.last is not None:
            moves.keep_log(task, report.last.log, now)
        moves.end(
            task,
            State.FAILED if fault else results.state_of(report),
            now,
            fault or Fault("", ""),
            started_at=task.started_at or task.leased_at or now,
            outcome=discovery.plain(report.result.model_dump(mode="json")),
            left_out=[item.model_dump() for item in report.left_out],
            left_out_count=report.left_out_count,
            **({"progress": _figures(report.last), "progress_at": now} if report.last else {}),
        )
        moves.settle(job, now)
    return Ack()


def fail(node: Node, task_id: UUID, report: FailReport, now: datetime) -> Ack:
    with transaction.atomic():
        job, task = _locked(node, task_id, report.token)
        if moves.answered(task) and not task.outcome:
            return Ack()
        _must_be_held(task)
        moves.keep_log(task, report.log, now)
        fault = Fault(report.code, _printable(report.message), _printable(report.hint))
        rest = moves.backoff(task.attempt)
        moves.give_back(job, task, now, fault, again=report.retryable, rest=rest)
    return Ack()


def release(node: Node, task_id: UUID, report: ReleaseReport, now: datetime) -> Ack:
    """The node stops and gives the task back undone: that uses up no attempt."""
    with transaction.atomic():
        job, task = _locked(node, task_id, report.token)
        if moves.answered(task) and not task.outcome:
            return Ack()
        _must_be_held(task)
        why = _("Node %(name)s gave it back: %(reason)s") % {"name": node, "reason": report.reason or _("stopping")}
        fault = Fault("released", _printable(why))
        moves.move(task, max_attempts=min(task.max_attempts + 1, 30000))
        moves.give_back(job, task, now, fault)
    return Ack()


# --- the fence ----------------------------------------------------------------------------------------


def holding_or_done(node: Node, task_id: UUID, token: str) -> Task:
    return _fence(node, Task.objects.select_related("job", "repository").filter(pk=task_id).first(), token)


def _fence(node: Node, task: Task | None, token: str) -> Task:
    if task is None or (node.tenant_id is not None and task.job.tenant_id != node.tenant_id):
        raise NotFound(_("There is no such task."))
    if not task.lease_token or not secrets.compare_digest(task.lease_token.encode(), token.encode()):
        raise LeaseLost()
    if task.node_id not in (node.pk, None):
        raise LeaseLost()
    return task


def _locked(node: Node, task_id: UUID, token: str) -> tuple[Job, Task]:
    """The job, then the task, locked; fenced again by what stands there now."""
    seen = holding_or_done(node, task_id, token)
    job = moves.lock_job(seen.job_id)
    task = _fence(node, moves.lock_task(task_id), token)
    return job, task


def _must_be_held(task: Task) -> None:
    if task.state not in ACTIVE and not moves.renewable(task):
        raise LeaseLost()


# --- progress -------------------------------------------------------------------------------------------


def _worth_storing(task: Task, report: ProgressReport, now: datetime) -> bool:
    if task.state != State.RUNNING or report.log or report.phase != task.phase or task.progress_at is None:
        return True
    return now - task.progress_at >= min(STORED_EVERY, moves.ttl() / 4)


def _store_progress(node: Node, task: Task, report: ProgressReport, now: datetime) -> None:
    """Updates ``task``, too. Task before log: a repeated line waits for the transaction that wrote it first, and two
    reports that held the one and waited for the other would be a deadlock."""
    facts = {"phase": report.phase[:20], "progress": _figures(report), "progress_at": now}
    facts["lease_expires_at"] = now + moves.ttl()
    if task.state == State.RUNNING:
        moves.move(task, **facts)
        moves.keep_log(task, report.log, now)  # behind the task's lock, as everywhere
        if report.log:
            publish.job_changed(task.job_id, task.job.tenant_id)
        return
    lock_gates(task)
    job, current = _locked(node, task.pk, report.token)
    if moves.renewable(current):
        resume(job, current, report.token, now)
    _must_be_held(current)
    moves.move(current, state=State.RUNNING, started_at=current.started_at or now, **facts)
    moves.keep_log(current, report.log, now)
    moves.settle(job, now)
    task.lease_expires_at = current.lease_expires_at


def _figures(report: ProgressReport) -> dict[str, object]:
    figures = report.model_dump(exclude={"token", "log", "phase"})
    figures["current"] = _printable(report.current)
    return figures


def _printable(text: str) -> str:
    return text.replace("\x00", "\\0")  # PostgreSQL's text cannot hold it
