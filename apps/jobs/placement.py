"""Which queued task may start on which node now, and in plain words why one does not.

Reads only. ``jobs.lease`` asks again under its locks before it hands a task out.

A task may start when its time has come, the step before it is done, its repository has been made, its node
is fit (kind, labels, tenant, reach of the destination, clock, version, not paused, a free slot), and nobody
holds its gate: tasks that ``shares`` a gate run together, one that ``excludes`` it runs alone. So that those who
share cannot keep one out for ever who must be alone, newcomers let him pass after a while (``_let_pass``). Of those
that ``loads`` a host so many run as its platform allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import connection
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.inventory import presence
from apps.inventory.models import Node, RepositoryState
from apps.inventory.presence import NodeState
from apps.jobs.models import ACTIVE, State, Task
from node_agent.protocol import LEASE_CLASS, LeaseClass, TaskKind

GOOD = (State.SUCCEEDED, State.PARTIAL)
EXCLUSIVE = [kind.value for kind, lease in LEASE_CLASS.items() if lease is LeaseClass.EXCLUSIVE]

GATE_PATIENCE = timedelta(hours=1)  # a task that must be alone waits this long for a gate to become free by itself …
GATE_TURN = timedelta(hours=3)  # … and then newcomers wait for it, but shorter than a backup's usual start window
LOOK_AT = 200  # candidates; whoever loses that many races looks again at its next poll
NEED_NO_REPOSITORY = (TaskKind.INIT.value, TaskKind.PROBE.value)


def refusal(node: Node, *, draining: bool = False) -> str:
    """Why this node gets no task at all, for its own log; "" when it may have some."""
    if node.quarantined_at is not None:
        return _("This node is quarantined: %(reason)s") % {"reason": node.quarantine_reason}
    if not presence.speaks_our_protocol(node):
        return _("This node is too old for the server; upgrade it.")
    if node.paused:
        return _("This node is paused by an administrator.")
    return _("This node is stopping.") if draining else ""


def candidates(node: Node, now: datetime) -> Iterator[Task]:
    """Queued tasks that could start on this node now, most urgent first; gates are looked at, not locked.

    The keys are read first and wholly: a cursor that stays open while its reader begins to write would end in
    "database is locked" on SQLite.
    """
    labels = presence.labels(node)
    found = startable(node, now).order_by("-priority", "available_at", "job__created_at", "ordinal")
    if connection.vendor == "postgresql":
        found = found.filter(requires__contained_by=sorted(labels))[:LOOK_AT]
    turns = _let_pass(now)
    keys = [
        pk
        for pk, requires, shares, since in found.values_list("pk", "requires", "shares", "available_at")
        if labels.issuperset(requires) and not (shares in turns and since > turns[shares])
    ]
    for pk in keys:
        if (task := Task.objects.select_related("job", "repository").filter(pk=pk).first()) is not None:
            yield task


def startable(node: Node, now: datetime) -> QuerySet[Task]:
    """All conditions but the labels, as one query."""
    found = _ripe(now).filter(kind__in=node.kinds, job__tenant__is_active=True)
    if node.tenant_id is not None:
        found = found.filter(job__tenant=node.tenant_id)
    if presence.clock_is_off(node):
        found = found.exclude(kind__in=EXCLUSIVE)
    found = found.filter(Q(same_node=False) | Q(after__node=node))
    reach = Node.objects.filter(pk=node.pk, destinations=OuterRef("repository__destination"))
    found = found.filter(Q(repository=None) | Exists(reach))
    return _with_room(found.filter(~gate_is_busy()))


def _with_room(tasks: QuerySet[Task]) -> QuerySet[Task]:
    """Those whose host takes one more. Counted over all tenants; how many is asked of the task's own platform. Who is
    inside stays: a limit that is lowered, or a holder that comes back, ends nothing."""
    inside = Task.objects.filter(state__in=ACTIVE, loads=OuterRef("loads")).order_by().values("loads")
    held = Coalesce(Subquery(inside.annotate(count=Count("pk")).values("count")), 0)
    return tasks.alias(held=held).filter(Q(loads="") | Q(load_limit=None) | Q(held__lt=F("load_limit__max_jobs")))


def gate_is_busy() -> Exists:
    """For a query of tasks: an active task keeps this one from its gate."""
    inside = Task.objects.filter(state__in=ACTIVE)
    return Exists(
        inside.filter(
            (~Q(excludes="") & (Q(excludes=OuterRef("shares")) | Q(excludes=OuterRef("excludes"))))
            | (~Q(shares="") & Q(shares=OuterRef("excludes")))
        )
    )


def _let_pass(now: datetime) -> dict[str, datetime]:
    """Gates whose turn it is for a task that must be alone, and since when it waits: who came later and would share
    the gate does not start. Only for tasks that a node could begin now, and not for ever: a run of many hours that
    is inside already must not make all others miss their start windows."""
    turns: dict[str, datetime] = {}
    # Only a repository is shared: whoever waits for another gate has nobody to let him pass.
    waiting = _ripe(now).filter(excludes__startswith="repository:", available_at__lte=now - GATE_PATIENCE)
    for task in waiting.select_related("job", "repository__destination", "after").order_by("available_at")[:LOOK_AT]:
        is_turn = (now - task.available_at) % (GATE_PATIENCE + GATE_TURN) >= GATE_PATIENCE
        if is_turn and task.excludes not in turns and _somebody_could(task, now):
            turns[task.excludes] = task.available_at
    return turns


def _somebody_could(task: Task, now: datetime) -> bool:
    nodes = task.repository.destination.nodes.all() if task.repository is not None else Node.objects.all()
    seen = nodes.filter(
        Q(tenant=None) | Q(tenant=task.job.tenant_id), last_seen_at__gte=now - presence.OFFLINE_AFTER, paused=False
    )
    return any(
        not _unfit(task, node, now) and _same_node(task, node) and presence.labels(node).issuperset(task.requires)
        for node in seen
    )


def _ripe(now: datetime) -> QuerySet[Task]:
    ready = Q(repository=None) | Q(kind__in=NEED_NO_REPOSITORY) | ~Q(repository__state=RepositoryState.NEW)
    return Task.objects.filter(
        ready,
        Q(after=None) | Q(after__state__in=GOOD),
        state=State.QUEUED,
        available_at__lte=now,
        job__cancel_requested_at=None,
    )


# --- why is it waiting? -----------------------------------------------------------------------------


def why_waiting(task: Task, now: datetime) -> str:
    """One sentence for the operator; "" when the task does not wait."""
    if task.state != State.QUEUED:
        return ""
    reasons = (_own_reason(task, now), _gate_reason(task, now), _load_reason(task), _node_reason(task, now))
    return next((reason for reason in reasons if reason), _("Starts in a moment."))


def _own_reason(task: Task, now: datetime) -> str:
    if task.available_at > now:
        when = date_format(task.available_at, "H:i:s")
        if task.attempt:
            return _("Tries again at %(when)s UTC. Last time: %(error)s") % {"when": when, "error": task.error_message}
        return _("Starts at %(when)s UTC.") % {"when": date_format(task.available_at, "Y-m-d H:i")}
    if task.after is not None and task.after.state not in GOOD:
        return _("Waits for the step before it.")
    if not task.job.tenant.is_active:
        return _("Tenant %(name)s is switched off.") % {"name": task.job.tenant}
    repository = task.repository
    if repository is not None and task.kind not in NEED_NO_REPOSITORY and repository.state == RepositoryState.NEW:
        return _("Waits until the repository at %(name)s is prepared.") % {"name": repository.destination}
    return ""


def _gate_reason(task: Task, now: datetime) -> str:
    if not task.shares and not task.excludes:
        return ""
    alone = Q(excludes__in=[gate for gate in (task.shares, task.excludes) if gate])
    together = Q(shares=task.excludes) if task.excludes else Q(pk__in=[])
    holder = Task.objects.filter(alone | together, state__in=ACTIVE).select_related("job").first()
    if holder is not None and holder.job.tenant_id != task.job.tenant_id:
        return _("Waits until another job on the same host is finished.")
    if holder is not None:
        return _("Waits until “%(job)s” is finished.") % {"job": holder.job.title}
    since = _let_pass(now).get(task.shares) if task.shares else None
    if since is not None and task.available_at > since:
        return _("Lets a job pass that has waited long to have the repository for itself.")
    return ""


def _load_reason(task: Task) -> str:
    if task.load_limit is None or _with_room(Task.objects.filter(pk=task.pk)).exists():
        return ""
    allowed = task.load_limit.max_jobs
    words = ngettext(
        "Waits: the platform “%(platform)s” allows %(n)d backup or restore on a host at a time.",
        "Waits: the platform “%(platform)s” allows %(n)d backups and restores on a host at a time.",
        allowed,
    )
    return words % {"platform": task.load_limit, "n": allowed}


def _node_reason(task: Task, now: datetime) -> str:
    nodes = list(Node.objects.filter(Q(tenant=None) | Q(tenant=task.job.tenant_id)).exclude(last_seen_at=None))
    if not nodes:
        return _("No node is enrolled for this tenant.")
    fitting = [node for node in nodes if presence.labels(node).issuperset(task.requires) and _same_node(task, node)]
    if not fitting:
        return _no_label(task, nodes)
    if task.repository is not None:
        reached = set(task.repository.destination.nodes.values_list("pk", flat=True))
        fitting = [node for node in fitting if node.pk in reached]
        if not fitting:
            return _("No node that could do it reaches %(name)s.") % {"name": task.repository.destination}
    reasons = [_unfit(task, node, now) for node in fitting]
    return "" if "" in reasons else reasons[0]


def _same_node(task: Task, node: Node) -> bool:
    return not task.same_node or task.after is None or task.after.node_id == node.pk


def _no_label(task: Task, nodes: list[Node]) -> str:
    wanted = next((label[5:] for label in task.requires if str(label).startswith("node:")), "")
    named = Node.objects.filter(pk=wanted).first() if wanted else (task.after.node if task.same_node else None)
    if named is not None and named.last_seen_at is None:
        return _("Node %(name)s is not enrolled.") % {"name": named}
    missing = sorted(set(task.requires) - set().union(*(presence.labels(node) for node in nodes)))
    if named is not None:
        return _("Node %(name)s cannot do it.") % {"name": named}
    return _("No node has %(labels)s.") % {"labels": ", ".join(missing or task.requires)}


def _unfit(task: Task, node: Node, now: datetime) -> str:
    """Why this node, which has the labels, does not take it; "" when it will."""
    name = {"name": node.name}
    state = presence.state(node, now)
    if state == NodeState.OFFLINE:
        return _("Node %(name)s is offline.") % name
    if state == NodeState.QUARANTINED:
        return _("Node %(name)s is quarantined.") % name
    if state == NodeState.OUTDATED:
        return _("Node %(name)s is too old; upgrade it.") % name
    if state == NodeState.PAUSED:
        return _("Node %(name)s is paused.") % name
    if state == NodeState.DRAINING:
        return _("Node %(name)s is stopping.") % name
    if task.kind not in node.kinds:
        return _("Node %(name)s cannot do this kind of task.") % name
    if task.kind in EXCLUSIVE and presence.clock_is_off(node):
        return _("The clock of node %(name)s is off by more than 5 minutes.") % name
    if busy(node) >= node.slots:
        return _("Node %(name)s is busy with other tasks.") % name
    return ""


def busy(node: Node) -> int:
    """How many tasks it holds."""
    return Task.objects.filter(node=node, state__in=ACTIVE).count()
