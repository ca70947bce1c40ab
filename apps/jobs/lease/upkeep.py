"""What happens to tasks without a node's word: they are added, cancelled, given up, and their leases run out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils.translation import gettext as _

from apps.inventory.models import RepositoryState
from apps.jobs import placement, publish
from apps.jobs.faults import Fault
from apps.jobs.lease import state as moves
from apps.jobs.models import ACTIVE, ENDED, OPEN, Gate, Job, State, Task
from node_agent.protocol import LeaseClass, TaskKind

log = logging.getLogger(__name__)
REPOSITORY_PATIENCE = timedelta(seconds=30)


def add(job: Job, tasks: Sequence[Task]) -> bool:
    """Insert a job with its tasks, in one transaction. False, and nothing is written, when a job with this id or
    ``dedupe_key`` exists. Links the tasks to the job; fills ``ordinal``, ``priority`` and ``available_at``."""
    for ordinal, task in enumerate(tasks):
        task.job, task.ordinal, task.priority, task.state = job, ordinal, job.priority, State.QUEUED
        task.available_at = task.available_at or job.due_at
    job.state = State.QUEUED
    try:
        with transaction.atomic():
            job.save(force_insert=True)
            Task.objects.bulk_create(tasks)
    except IntegrityError:
        if Job.objects.filter(Q(pk=job.pk) | Q(dedupe_key=job.dedupe_key, dedupe_key__isnull=False)).exists():
            return False
        raise
    gates = sorted({gate for task in tasks for gate in (task.shares, task.excludes, task.loads) if gate})
    Gate.objects.bulk_create([Gate(key=gate) for gate in gates], ignore_conflicts=True)
    publish.work(job.tenant_id, _only_node(tasks))
    publish.job_changed(job.pk, job.tenant_id)
    return True


def _only_node(tasks: Iterable[Task]) -> UUID | None:
    """The node that all of them name, so that no other is woken."""
    named = {label for task in tasks for label in task.requires if str(label).startswith("node:")}
    return UUID(named.pop()[5:]) if len(named) == 1 else None


def cancel(job: Job, by: str, now: datetime) -> Job:
    """Queued tasks end now, held ones are told to stop at their next word. An ended job stays as it is."""
    with transaction.atomic():
        locked = moves.lock_job(job.pk)
        if locked.state in ENDED:
            return locked
        if locked.cancel_requested_at is None:
            locked.cancel_requested_at, locked.cancel_requested_by = now, by[:200]
            locked.save(update_fields=["cancel_requested_at", "cancel_requested_by"])
        for task in locked.tasks.select_for_update(no_key=True).filter(state=State.QUEUED).order_by("ordinal"):
            moves.end(task, State.CANCELLED, now, moves.cancelled_by(locked))
        moves.settle(locked, now)
        publish.work(locked.tenant_id)
    return locked


def give_up(job: Job, code: str, message: str, now: datetime, hint: str = "") -> bool:
    """Fail a job none of whose tasks is held (its start window has passed). False when one is, or it has ended."""
    with transaction.atomic():
        locked = moves.lock_job(job.pk)
        tasks = list(locked.tasks.select_for_update(no_key=True).filter(state__in=OPEN).order_by("ordinal"))
        if locked.state in ENDED or any(task.state in ACTIVE for task in tasks):
            return False
        for task in tasks:
            moves.end(task, State.FAILED, now, Fault(code, message, hint))
        moves.settle(locked, now)
    return True


def server_started(now: datetime) -> int:
    """Leases that ran while no server was there to hear are given one more TTL. Returns how many."""
    return Task.objects.filter(
        Q(lease_expires_at__lt=now + moves.ttl()) | Q(lease_expires_at=None), state__in=ACTIVE
    ).update(lease_expires_at=now + moves.ttl())


def sweep(now: datetime) -> int:
    """Leases that ran out, tasks that can never start, and why the others wait. Returns how many leases ran out."""
    expired = 0
    for task in _overdue(now):
        expired += _expire(task, now)
    _drop_orphans(now)
    _explain(now)
    return expired


def _overdue(now: datetime) -> list[Task]:
    exclusive = Q(kind__in=placement.EXCLUSIVE)
    passed = (~exclusive & Q(lease_expires_at__lt=now)) | (exclusive & Q(lease_expires_at__lt=now - moves.margin()))
    return list(Task.objects.filter(passed, state__in=ACTIVE).select_related("node").order_by("lease_expires_at"))


def _expire(seen: Task, now: datetime) -> int:
    with transaction.atomic():
        job, task = moves.lock_job(seen.job_id), moves.lock_task(seen.pk)
        if task.state not in ACTIVE or task.lease_token != seen.lease_token:
            return 0
        if task.lease_expires_at != seen.lease_expires_at:
            return 0  # renewed since we looked
        fault = Fault(
            "lease-expired",
            _("Node %(name)s has not been heard of while it ran (attempt %(attempt)s of %(most)s).")
            % {"name": seen.node, "attempt": task.attempt, "most": task.max_attempts},
            _("Look whether the node is running and reaches the server."),
        )
        append = moves.lease_class(task) is LeaseClass.APPEND
        moves.lost(job, task, now, fault, renewable=append, rest=moves.backoff(1))
    return 1


def _drop_orphans(now: datetime) -> None:
    """Queued tasks that wait for a step of another job, or for a repository, that will not come."""
    dead_step = Q(after__state__in=(State.FAILED, State.CANCELLED))
    making = Task.objects.filter(repository=OuterRef("repository"), kind=TaskKind.INIT.value, state__in=OPEN)
    unmade = Q(repository__state=RepositoryState.NEW) & ~Q(kind__in=placement.NEED_NO_REPOSITORY)
    unmade &= Q(job__created_at__lt=now - REPOSITORY_PATIENCE) & ~Exists(making)
    lost = Task.objects.filter(dead_step | unmade, state=State.QUEUED).select_related(
        "after", "repository__destination"
    )
    for task in lost:
        with transaction.atomic():
            job, current = moves.lock_job(task.job_id), moves.lock_task(task.pk)
            if current.state != State.QUEUED:
                continue
            moves.end(current, State.FAILED, now, _why_orphaned(task))
            moves.settle(job, now)


def _why_orphaned(task: Task) -> Fault:
    if task.after is not None and task.after.state in (State.FAILED, State.CANCELLED):
        step = task.after
        return Fault(
            step.error_code or "step-before-failed",
            step.error_message or _("The step before it did not succeed."),
            step.error_hint,
        )
    repository = task.repository
    place = repository.destination if repository is not None else ""
    return Fault(
        "repository-not-ready",
        (repository.problem if repository is not None else "")
        or _("The repository at %(name)s has not been made.") % {"name": place},
        _("Test the destination, then start the job again."),
    )


def _explain(now: datetime) -> None:
    """Store why queued jobs wait, where that changed."""
    queued = Task.objects.filter(state=State.QUEUED, job__state=State.QUEUED).select_related(
        "job__tenant", "after__node", "repository__destination"
    )
    told: set[UUID] = set()
    for task in queued.order_by("job_id", "ordinal"):
        if task.job_id in told:
            continue
        told.add(task.job_id)
        reason = placement.why_waiting(task, now)[:300]
        if reason != task.job.waiting_for:
            Job.objects.filter(pk=task.job_id, state=State.QUEUED).update(waiting_for=reason)
            publish.job_changed(task.job_id, task.job.tenant_id)
