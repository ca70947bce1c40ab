"""A node asks for work: free what its earlier start held, renew what it holds, hand out what fits.

A look without work costs reads only: no transaction is opened unless there is a candidate, so a thousand idle
nodes do not queue for SQLite's only writer.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext as _
from pydantic import TypeAdapter, ValidationError

from apps.catalog import ingest, traces
from apps.errors import Conflict, DomainError, LeaseLost
from apps.inventory import platforms, presence, repositories, stores
from apps.inventory.models import Node, Platform
from apps.jobs import placement
from apps.jobs.faults import Fault
from apps.jobs.lease import state as moves
from apps.jobs.models import ACTIVE, Gate, Job, State, Task
from node_agent.protocol import LeaseClass, LeasedTask, LeaseReply, LeaseRequest, Spec, TaskKind

log = logging.getLogger(__name__)
SPEC: TypeAdapter[Any] = TypeAdapter(Spec)
WITH_PARENT = (TaskKind.BACKUP.value, TaskKind.STORE.value)
LOGS_IN = (TaskKind.DISCOVER.value, TaskKind.REMOVE_TRACES.value)  # only ever to a platform
ON_PLATFORM = (TaskKind.BACKUP.value, TaskKind.PROBE.value, TaskKind.RESTORE.value, *LOGS_IN)
NO_REPOSITORY_FIELD = (TaskKind.PROBE.value, TaskKind.EXPORT.value, TaskKind.IMPORT.value)


def acquire(node: Node, request: LeaseRequest, now: datetime, *, first_look: bool = True) -> LeaseReply:
    """One look for work. ``first_look`` is False when a long poll looks again: only the arrival of a request says
    something about the node's start, a poll that was left behind by a dead process must not."""
    if first_look:
        _arrive(node, request, now)
    elif node.incarnation != request.incarnation:
        return LeaseReply(server_time=now, report_s=report_s(), message=_("Another start of this node has taken over."))
    cancel, lost = _renew_held(node, request, now)
    tasks, message = _work(node, request, now)
    return LeaseReply(
        tasks=tasks, cancel=cancel, lost=lost, server_time=now, report_s=report_s(), message=message,
        drain=node.quarantined_at is not None,
    )  # fmt: skip


def report_s() -> float:
    """The pace of progress reports: several within one lease."""
    return float(min(2.0, settings.BRS_LEASE_TTL_S / 4))


def _arrive(node: Node, request: LeaseRequest, now: datetime) -> None:
    if node.incarnation != request.incarnation and presence.restarted(node, request.incarnation):
        _free_earlier_start(node, request.incarnation, now)
    presence.seen(node, now, node_time=request.node_time, capabilities=request.capabilities, draining=request.draining)


def _free_earlier_start(node: Node, incarnation: UUID, now: datetime) -> None:
    """A process that is gone holds nothing: its tasks may start again at once, anywhere."""
    held = Task.objects.filter(node=node).exclude(lease_incarnation=incarnation)
    waiting = held.filter(state=State.QUEUED, lease_expires_at__isnull=False)
    for task in held.filter(state__in=ACTIVE) | waiting:
        fault = Fault("node-restarted", _("Node %(name)s was restarted while it ran.") % {"name": node.name})
        with transaction.atomic():
            job, current = moves.lock_job(task.job_id), moves.lock_task(task.pk)
            if current.lease_token == task.lease_token and current.lease_expires_at is not None:
                moves.lost(job, current, now, fault, rest=timedelta())


# --- what it holds already --------------------------------------------------------------------------


def _renew_held(node: Node, request: LeaseRequest, now: datetime) -> tuple[list[UUID], list[UUID]]:
    """(held tasks that should stop, held tasks that are not this start's any more)"""
    own = Task.objects.filter(node=node, lease_incarnation=request.incarnation, pk__in=request.holding)
    kept: set[UUID] = set()
    cancel: list[UUID] = []
    for task in own.select_related("job") if request.holding else ():
        if moves.answered(task):
            kept.add(task.pk)  # its report has been taken while the poll was on its way
        elif task.state in ACTIVE or moves.renewable(task):
            if _renew(task, now):
                kept.add(task.pk)
            if task.job.cancel_requested_at is not None:
                cancel.append(task.pk)
    return cancel, [pk for pk in request.holding if pk not in kept]


def _renew(task: Task, now: datetime) -> bool:
    until = now + moves.ttl()
    if task.state in ACTIVE:
        if task.lease_expires_at is not None and until - task.lease_expires_at < moves.ttl() / 4:
            return True  # renewed a moment ago
        held = Task.objects.filter(pk=task.pk, state__in=ACTIVE, lease_token=task.lease_token)
        return held.update(lease_expires_at=until) == 1
    try:
        with transaction.atomic():
            lock_gates(task)
            job, current = moves.lock_job(task.job_id), moves.lock_task(task.pk)
            resume(job, current, task.lease_token, now)
    except LeaseLost:
        return False
    return True


def resume(job: Job, task: Task, token: str, now: datetime) -> None:
    """The holder of an expired lease that nobody took is back. Gates, job and task are locked by the caller."""
    if not moves.renewable(task) or task.lease_token != token or job.cancel_requested_at is not None:
        raise LeaseLost()
    if Task.objects.filter(pk=task.pk).filter(placement.gate_is_busy()).exists():
        raise LeaseLost()
    moves.move(task, state=State.RUNNING, lease_expires_at=now + moves.ttl())
    moves.note(task, now, _("Node %(name)s is back and carries on.") % {"name": task.node})
    moves.settle(job, now)


# --- new work ---------------------------------------------------------------------------------------


def _work(node: Node, request: LeaseRequest, now: datetime) -> tuple[list[LeasedTask], str]:
    again = Task.objects.filter(
        node=node, lease_request=request.request_id, lease_incarnation=request.incarnation, state__in=ACTIVE
    )
    repeated = list(again.select_related("job", "repository")) if request.free_slots or request.holding else []
    if repeated:
        return _handed(repeated, now), ""
    message = placement.refusal(node, draining=request.draining)
    if message or not request.free_slots:
        return [], message
    return _handed(_take_some(node, request, now), now), ""


def _take_some(node: Node, request: LeaseRequest, now: datetime) -> list[Task]:
    taken: list[Task] = []
    room = min(request.free_slots, node.slots - placement.busy(node))
    if room <= 0:
        return taken
    for task in placement.candidates(node, now):
        if _take(node, task, request, now):
            taken.append(task)
            if len(taken) >= room:
                break
    return taken


def _take(node: Node, task: Task, request: LeaseRequest, now: datetime) -> bool:
    """Lease one task to the node, if it is still free under the locks."""
    with transaction.atomic():
        Node.objects.select_for_update(no_key=True).get(pk=node.pk)  # its slots are counted
        lock_gates(task)
        job = moves.lock_job(task.job_id)
        free = placement.startable(node, now).filter(pk=task.pk).exists()
        if not free or placement.busy(node) >= node.slots:
            return False
        current = moves.lock_task(task.pk)
        if current.state != State.QUEUED:
            return False
        moves.move(
            current,
            state=State.LEASED,
            node=node,
            attempt=current.attempt + 1,
            lease_token=secrets.token_urlsafe(32),
            lease_request=request.request_id,
            lease_incarnation=request.incarnation,
            lease_expires_at=now + moves.ttl(),
            leased_at=now,
            progress_at=None,
        )
        _remember_traces(job, current)
        moves.settle(job, now)
        task.__dict__.update(current.__dict__)
        return True


def _remember_traces(job: Job, task: Task) -> None:
    """Before the run can leave anything on the platform."""
    workload, repository = job.workload, task.repository
    if task.kind != TaskKind.BACKUP or workload is None or repository is None or not workload.platform.holds_machines:
        return
    traces.begun(workload, repository, in_cluster="rbd-snapshots" in workload.platform.options)


def lock_gates(task: Task) -> None:
    """Whoever wants to start (or resume) a task of these gates waits here for his turn, always in one order."""
    keys = sorted({key for key in (task.shares, task.excludes, task.loads) if key})
    if not keys:
        return
    if Gate.objects.filter(pk__in=keys).count() < len(keys):
        Gate.objects.bulk_create([Gate(key=key) for key in keys], ignore_conflicts=True)
    list(Gate.objects.select_for_update(no_key=True).filter(pk__in=keys).order_by("pk"))


# --- from the row to the wire -------------------------------------------------------------------------


def _handed(tasks: Iterable[Task], now: datetime) -> list[LeasedTask]:
    return [handed for task in tasks if (handed := _hand_out(task, now)) is not None]


def _hand_out(task: Task, now: datetime) -> LeasedTask | None:
    """The task as the node gets it, secrets unsealed. One that cannot be made is failed, not handed out."""
    if task.lease_expires_at is None:
        return None
    try:
        spec = _spec(task)
    except DomainError as error:
        _unusable(task, now, Fault(error.error_code, error.message, error.hint))
        return None
    except ValidationError as error:
        log.error("task %s has a spec that cannot be used: %s", task.pk, error.errors(include_input=False))
        fault = Fault("bad-spec", _("The server could not describe this task to a node."), _("Tell the vendor."))
        _unusable(task, now, fault)
        return None
    return LeasedTask(
        task_id=task.pk,
        job_id=task.job_id,
        token=task.lease_token,
        attempt=task.attempt,
        ttl_s=max(0.0, (task.lease_expires_at - now).total_seconds()),
        lease_class=LeaseClass(moves.lease_class(task)),
        spec=spec,
    )


def _spec(task: Task) -> Any:
    told = dict(task.spec)
    told["kind"] = task.kind
    if task.repository is not None:
        access = repositories.access(task.repository)
        if task.kind == TaskKind.PROBE:
            told |= {"repository_url": access.url, "options": access.options, "password": access.password}
        elif task.kind not in NO_REPOSITORY_FIELD:
            told["repository"] = access
        if task.kind in WITH_PARENT and not task.spec.get("full"):
            # Chosen now, not when the job was made: what was newest then may have expired since.
            told["parent"] = ingest.parent_of(task.job.workload_id, task.repository)
        if task.kind == TaskKind.PRUNE:
            told["expected"] = ingest.expected_in(task.repository)
    elif task.kind == TaskKind.PROBE and task.job.destination is not None:
        told["options"] = stores.told(task.job.destination)
    if (platform := _platform(task)) is not None:
        told["platform"] = platforms.told(platform)
    return SPEC.validate_python(told)


def _platform(task: Task) -> Platform | None:
    """The platform of machines that the task logs in to: the job's, or the one that a machine is restored to."""
    wanted = ((task.spec.get("target") or {}).get("machine") or {}).get("platform")
    if wanted:
        # Within the tenant: a spec names it by its id alone.
        found = Platform.objects.filter(pk=wanted, tenant=task.job.tenant_id).first()
        if found is None:
            raise Conflict(_("The platform to restore to has been deleted."), hint=_("Restore to another one."))
        return found
    platform = task.job.platform
    if task.kind in LOGS_IN and platform is None:
        raise Conflict(_("The platform has been deleted."), hint="")
    return platform if platform is not None and platform.holds_machines and task.kind in ON_PLATFORM else None


def _unusable(task: Task, now: datetime, fault: Fault) -> None:
    with transaction.atomic():
        job, current = moves.lock_job(task.job_id), moves.lock_task(task.pk)
        if current.lease_token == task.lease_token and current.state in ACTIVE:
            moves.end(current, State.FAILED, now, fault)
            moves.settle(job, now)
