"""What users start: each verb checks the right, audits, and inserts a job with its tasks in one transaction.

Restores, downloads and file lists are in ``jobs.restores``; they are part of this face.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.catalog import ingest
from apps.catalog.models import CopyState, RestorePoint
from apps.errors import Conflict, Invalid
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.models import User
from apps.inventory import repositories, sources
from apps.inventory.models import Destination, Platform, Repository, RepositoryState, Workload
from apps.jobs import building, expiry, lease, objectives
from apps.jobs.models import OPEN, Job, JobKind, Task, Trigger
from apps.jobs.restores import browse, copy_of, download, restore
from apps.jobs.traces import remove as remove_traces
from apps.policies import commands
from apps.policies.assignment import policy_of
from apps.policies.models import Policy, Staging
from node_agent.protocol import RestoreTarget, TaskKind

__all__ = [
    "apply_retention",
    "backup_now",
    "browse",
    "cancel",
    "copy_of",
    "delete_point",
    "discover",
    "download",
    "hold",
    "make_ready",
    "open_backup",
    "probe_workload",
    "prune",
    "remove_traces",
    "restore",
    "retry",
    "test_destination",
    "test_platform",
    "unhold",
    "verify",
]
PROBES = 50  # paths that one test looks at


# --- backup -------------------------------------------------------------------------------------------


def backup_now(user: User, workload: Workload, *, full: bool = False) -> Job:
    """One backup outside of the schedule. Conflict when one is open, no policy covers it, or no node can do it."""
    access.require(user, Right.OPERATE, workload)
    policy = policy_of(workload)
    refuse_unfit(workload, policy)
    assert policy is not None  # refuse_unfit
    with transaction.atomic():
        # Locked, so that two clicks, or a click and the planner, see each other.
        Workload.objects.select_for_update(no_key=True).get(pk=workload.pk)
        running = open_backup(workload)
        if running is not None:
            raise Conflict(
                _("A backup of “%(name)s” is already waiting or running.") % {"name": workload.name},
                hint=_("Watch it on its job page, or cancel it first."),
                code="already-running",
            )
        repository = repositories.ensure(workload.tenant, policy.destination)
        make_ready(repository, user)
        now = timezone.now()
        made, tasks = building.backup(workload, policy, repository, now, full=full, requested_by=user)
        lease.add(made, tasks)
        audit.record(user, "backup.requested", workload, detail={"job": str(made.pk), "full": full})
    return made


def open_backup(workload: Workload) -> Job | None:
    return Job.objects.filter(workload=workload, kind=JobKind.BACKUP, state__in=OPEN).first()


def refuse_unfit(workload: Workload, policy: Policy | None) -> None:
    """Conflict with the reason when the workload cannot be backed up as things are set."""
    name = {"name": workload.name}
    if workload.excluded:
        raise Conflict(
            _("“%(name)s” is excluded from backups.") % name, hint=_("Include it again first."), code="excluded"
        )
    if policy is None:
        raise Conflict(
            _("No policy covers “%(name)s”, so there is no destination.") % name,
            hint=_("Assign a policy to it first."),
            code="no-policy",
        )
    if workload.gone_at is not None:
        raise Conflict(
            _("“%(name)s” is gone from %(platform)s.") % {"platform": workload.platform, **name},
            hint=_("Look for machines again if it is back, or exclude it."),
            code="gone",
        )
    if workload.platform.holds_machines and policy.staging == Staging.DISK:
        raise Conflict(
            _("Machines are stored while they are read; the policy “%(policy)s” copies to the node first.")
            % {"policy": policy},
            hint=_("Set “How” in the policy to “Store while reading”, or choose another policy."),
            code="no-staging",
        )
    if not commands.fit(policy, workload):
        raise Conflict(
            _("“%(name)s” has no hypervisor on which the commands of the policy “%(policy)s” could run.")
            % {"policy": policy, **name},
            hint=_("Let them run on the node, or choose a policy without them."),
            code="no-hypervisor",
        )
    node = workload.platform.node
    if not policy.destination.nodes.filter(pk=node.pk).exists():
        raise Conflict(
            _("The node %(node)s of “%(name)s” does not reach the destination “%(destination)s”.")
            % {"node": node.name, "destination": policy.destination.name, **name},
            hint=_("Add the node to the destination, or use another destination."),
            code="unreachable-destination",
        )


def make_ready(repository: Repository, by: User | str = "schedule") -> Job | None:
    """An init job for a repository that has not been made, unless one is open. Call within a transaction: the
    row's lock makes it one job, however many ask at once."""
    if repository.state != RepositoryState.NEW:
        return None
    locked = Repository.objects.select_for_update(no_key=True).get(pk=repository.pk)
    jobs = Job.objects.filter(repository=repository, kind=JobKind.INIT)
    if locked.state != RepositoryState.NEW or jobs.filter(state__in=OPEN).exists():
        return None
    made, tasks = building.init(
        locked,
        timezone.now(),
        key=f"init/{repository.pk}/{jobs.count()}",
        requested_by=by if isinstance(by, User) else None,
        trigger=Trigger.MANUAL if isinstance(by, User) else Trigger.SYSTEM,
        priority=60,  # a backup waits for it
    )
    return made if lease.add(made, tasks) else None


# --- tests and verification -----------------------------------------------------------------------------


def verify(user: User, repository: Repository, *, read_data: bool = False) -> Job:
    access.require(user, Right.OPERATE, repository)
    if repository.state == RepositoryState.NEW:
        raise Conflict(_("This repository has not been made yet."), hint=_("The first backup makes it."))
    made, tasks = building.verify(repository, timezone.now(), read_data=read_data, requested_by=user)
    return _start(user, "verify.requested", repository, made, tasks, read_data=read_data)


def prune(user: User, repository: Repository) -> Job:
    """Give back the space of removed points now. It alone uses the repository meanwhile: backups wait."""
    access.require(user, Right.DELETE, repository)
    if repository.state == RepositoryState.NEW:
        raise Conflict(_("This repository has not been made yet."), hint=_("The first backup makes it."))
    with transaction.atomic():
        Repository.objects.select_for_update(no_key=True).get(pk=repository.pk)
        if Job.objects.filter(repository=repository, kind=JobKind.PRUNE, state__in=OPEN).exists():
            raise Conflict(
                _("Space is being reclaimed already."), hint=_("Watch it on its job page."), code="already-running"
            )
        made, tasks = building.prune(repository, timezone.now(), requested_by=user)
        return _start(user, "prune.requested", repository, made, tasks)


def test_destination(user: User, destination: Destination) -> Job:
    """Each of its nodes looks whether it can write there; a repository that was made is opened, too."""
    access.require(user, Right.OPERATE, destination)
    nodes = list(destination.nodes.order_by("name"))
    if not nodes:
        raise Conflict(_("No node reaches this destination."), hint=_("Add a node to it first."))
    ready = Repository.objects.filter(destination=destination, state=RepositoryState.READY).first()
    made, tasks = building.probe_destination(destination, nodes, ready, timezone.now(), requested_by=user)
    return _start(user, "destination.tested", destination, made, tasks)


def test_platform(user: User, platform: Platform) -> Job:
    """Looks at the paths of its workloads, or, without any, at the folders its node may read."""
    access.require(user, Right.OPERATE, platform)
    if platform.holds_machines:
        made, tasks = building.probe_platform(platform, timezone.now(), requested_by=user)
        return _start(user, "platform.tested", platform, made, tasks)
    paths = [path for workload in platform.workloads.order_by("name") for path in sources.paths_of(workload)]
    paths = list(dict.fromkeys(paths)) or list(platform.node.roots.get("read", []))
    if not paths:
        raise Conflict(
            _("There is nothing to look at: the platform has no workload, and its node may read nothing."),
            hint=_("Add a workload, or allow folders in the node's node.toml, [roots] read."),
        )
    title = _("Test the platform %(name)s") % {"name": platform.name}
    made, tasks = building.probe_paths(title, platform, paths[:PROBES], timezone.now(), requested_by=user)
    return _start(user, "platform.tested", platform, made, tasks)


def discover(user: User, platform: Platform, *, thorough: bool = False) -> Job:
    """Look for machines now. ``thorough``: running machines are asked for what backups keep at them, too."""
    access.require(user, Right.OPERATE, platform)
    if not platform.holds_machines:
        raise Invalid(_("On a platform of this kind nothing is looked for; what it holds is added by hand."))
    with transaction.atomic():
        Platform.objects.select_for_update(no_key=True, of=("self",)).get(pk=platform.pk)
        if Job.objects.filter(platform=platform, kind=JobKind.DISCOVER, state__in=OPEN).exists():
            raise Conflict(
                _("Machines are being looked for already."), hint=_("Watch it on its job page."), code="already-running"
            )
        made, tasks = building.discover(platform, timezone.now(), thorough=thorough, requested_by=user)
        return _start(user, "platform.discovery-requested", platform, made, tasks)


def probe_workload(user: User, workload: Workload) -> Job:
    """Looks whether the node can read the source; of a machine, whether its platform can be used."""
    access.require(user, Right.OPERATE, workload)
    if workload.platform.holds_machines:
        made, tasks = building.probe_platform(workload.platform, timezone.now(), workload=workload, requested_by=user)
        return _start(user, "workload.tested", workload, made, tasks)
    title = _("Test the source of %(name)s") % {"name": workload.name}
    made, tasks = building.probe_paths(
        title,
        workload.platform,
        sources.paths_of(workload)[:PROBES],
        timezone.now(),
        workload=workload,
        requested_by=user,
    )
    return _start(user, "workload.tested", workload, made, tasks)


# --- jobs -------------------------------------------------------------------------------------------------


def cancel(user: User, job: Job) -> Job:
    """Ask the job to stop; who asked for it may always take it back."""
    if job.requested_by_id != user.pk or not access.can(user, Right.VIEW, job):
        access.require(user, Right.OPERATE, job)
    job.refresh_from_db(fields=["state", "cancel_requested_at"])
    if job.state not in OPEN:
        raise Conflict(_("The job has ended already."), hint="")
    if job.cancel_requested_at is None:
        audit.record(user, "job.cancelled", job)
    return lease.cancel(job, user.get_username(), timezone.now())


def retry(user: User, job: Job) -> Job:
    """The same again as a new job, with the rights, the policy and the state of things of now."""
    access.require(user, Right.VIEW, job)
    if job.state in OPEN:
        raise Conflict(_("The job has not ended yet."), hint=_("Cancel it first, or wait."))
    with transaction.atomic():
        made = _again(user, job)
        Job.objects.filter(pk=made.pk).update(retry_of=job)
    made.retry_of = job
    return made


def _again(user: User, job: Job) -> Job:
    first: Task | None = job.tasks.order_by("ordinal").first()
    spec: dict[str, Any] = first.spec if first else {}
    workload, point, repository = job.workload, job.restore_point, job.repository
    if job.kind == JobKind.BACKUP and workload:
        return backup_now(user, workload, full=job.full)
    if job.kind == JobKind.VERIFY and repository:
        return verify(user, repository, read_data=bool(spec.get("read_data")))
    if job.kind == JobKind.PRUNE and repository:
        return prune(user, repository)
    if job.kind == JobKind.INIT and repository:
        return _prepare(user, repository)
    if job.kind == JobKind.PROBE:
        return _probe_again(user, job)
    if job.kind == JobKind.DISCOVER and job.platform:
        return discover(user, job.platform, thorough=bool(spec.get("thorough")))
    if job.kind == JobKind.REMOVE_TRACES and workload:
        return remove_traces(user, workload, list(workload.traces.filter(owner__in=spec.get("marks", []))))
    if point is not None and first is not None:
        ways: dict[str, Callable[[], Job]] = {
            JobKind.RESTORE: lambda: _restore_again(user, point, first),
            JobKind.DOWNLOAD: lambda: download(user, point, spec["path"]).job,
            JobKind.BROWSE: lambda: browse(user, point),
        }
        if job.kind in ways:
            return ways[job.kind]()
    raise Conflict(
        _("This job cannot be run again: what it was about is gone, or it repeats by itself."),
        hint=_("Points that should expire are removed by the next hourly run."),
        code="no-retry",
    )


def _prepare(user: User, repository: Repository) -> Job:
    access.require(user, Right.OPERATE, repository)
    made = make_ready(repository, user)
    if made is None:
        raise Conflict(_("The repository is ready, or is being made already."), hint="")
    return made


def _probe_again(user: User, job: Job) -> Job:
    if job.workload:
        return probe_workload(user, job.workload)
    if job.destination:
        return test_destination(user, job.destination)
    if job.platform:
        return test_platform(user, job.platform)
    raise Conflict(_("What this job tested has been deleted."), hint="")


def _restore_again(user: User, point: RestorePoint, first: Task) -> Job:
    staging = "disk" if first.kind == TaskKind.FETCH else "stream"
    label = next((str(one) for one in first.requires if str(one).startswith("node:")), "")
    node = None  # a machine's follows from its platform
    if label and not point.workload.platform.holds_machines:
        node = access.fetch(user, type(point.workload.platform.node), label.removeprefix("node:"))
    return restore(
        user,
        point,
        chosen=first.spec["include"],
        target=RestoreTarget.model_validate(first.spec["target"]),
        node=node,
        verify=bool(first.spec.get("verify")),
        staging=staging,
    )


# --- points -------------------------------------------------------------------------------------------------


@transaction.atomic
def delete_point(user: User, point: RestorePoint, typed_name: str) -> Job:
    """Remove one point from every repository; ``typed_name`` is the workload's, to be sure. The point stays
    visible as "being removed" until the repository has forgotten it."""
    access.require(user, Right.DELETE, point)
    if typed_name.strip() != point.workload.name:
        raise Invalid(
            _("The typed name is not “%(name)s”.") % {"name": point.workload.name},
            hint=_("Type the workload's name exactly, to be sure that this is the one."),
        )
    locked = _lock_unheld(point)
    used = Job.objects.filter(restore_point=point, state__in=OPEN).first()
    if used is not None:
        raise Conflict(
            _("The job “%(job)s” is using this point.") % {"job": used.title}, hint=_("Wait for it, or cancel it.")
        )
    reason = _("deleted by %(user)s") % {"user": user.get_username()}
    copies = ingest.mark_expiring(locked.copies.select_related("repository__destination"), reason)
    if not copies:
        raise Conflict(_("This point is being removed already."), hint="")
    now = timezone.now()
    title = _("Delete the point %(point)s") % {"point": point}
    made = building.job(
        JobKind.EXPIRE, point.tenant_id, title, now, workload=point.workload, restore_point=point,
        repository=copies[0].repository, destination=copies[0].repository.destination, requested_by=user,
    )  # fmt: skip
    tasks = [building.forgetting(made, number, copy.repository, [copy]) for number, copy in enumerate(copies)]
    lease.add(made, tasks)
    audit.record(user, "point.delete-requested", point, detail={"job": str(made.pk)})
    transaction.on_commit(lambda: objectives.refresh([point.workload_id]))  # later: it locks other rows
    return made


def apply_retention(user: User, policy: Policy) -> list[Job]:
    """Remove now what the policy does not keep, instead of at the next full hour. One job a repository; none when
    there is nothing to remove, or when it is being removed already."""
    access.require(user, Right.DELETE, policy)
    if not policy.enabled:
        raise Conflict(_("The policy is switched off, so every point is kept."), hint=_("Switch it on first."))
    jobs = expiry.expire(timezone.now(), [policy])
    audit.record(user, "policy.retention-applied", policy, detail={"jobs": [str(job.pk) for job in jobs]})
    return jobs


def hold(user: User, point: RestorePoint, reason: str) -> RestorePoint:
    """Nothing may remove the point until the hold is taken off."""
    access.require(user, Right.OPERATE, point)
    if not reason.strip():
        raise Invalid(_("A hold needs a reason."), hint=_("Say who asked for it and why."))
    with transaction.atomic():
        locked = RestorePoint.objects.select_for_update(no_key=True, of=("self",)).get(pk=point.pk)
        if locked.copies.filter(state=CopyState.EXPIRING).exists():
            raise Conflict(_("This point is being removed already."), hint=_("Cancel the job that removes it first."))
        locked.hold, locked.hold_reason = True, reason.strip()[:300]
        locked.save(update_fields=["hold", "hold_reason"])
        audit.record(user, "point.held", locked, detail={"reason": locked.hold_reason})
    return locked


def unhold(user: User, point: RestorePoint) -> RestorePoint:
    """Take the hold off; from then on retention decides. As much as deleting, so it takes that right."""
    access.require(user, Right.DELETE, point)
    with transaction.atomic():
        locked = RestorePoint.objects.select_for_update(no_key=True, of=("self",)).get(pk=point.pk)
        before, locked.hold, locked.hold_reason = locked.hold_reason, False, ""
        locked.save(update_fields=["hold", "hold_reason"])
        audit.record(user, "point.released", locked, detail={"was": before})
    return locked


def _lock_unheld(point: RestorePoint) -> RestorePoint:
    locked = RestorePoint.objects.select_for_update(no_key=True, of=("self",)).get(pk=point.pk)
    if locked.hold:
        raise Conflict(
            _("The point is held: %(reason)s") % {"reason": locked.hold_reason},
            hint=_("Take the hold off first."),
            code="held",
        )
    return locked


def _start(user: User, verb: str, about: Any, made: Job, tasks: list[Task], **detail: Any) -> Job:
    with transaction.atomic():
        lease.add(made, tasks)
        audit.record(user, verb, about, detail={"job": str(made.pk), **detail})
    return made
