"""What needs attention: one line a cause, worst first, each with where to go and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode

from django.db.models import Model, QuerySet
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.catalog.models import CopyState, PointCopy, Protection, ProtectionState, Trace
from apps.iam import access
from apps.iam.access import Right
from apps.iam.models import User
from apps.inventory import presence
from apps.inventory.models import Destination, Node, Repository, RepositoryState
from apps.jobs.models import Job, State

FULL_PERCENT = 90
WAITED = timedelta(minutes=5)
NAMED = 3


@dataclass(frozen=True)
class Alert:
    tone: str  # bad or warn
    icon: str
    title: str
    detail: str | Promise
    url: str
    action: str


def alerts(user: User, now: datetime) -> list[Alert]:
    found = [*_nodes(user, now), *_stores(user), *_copies(user), *_workloads(user), *_jobs(user, now)]
    return sorted([*found, *_kept(user), *_kits(user)], key=lambda alert: alert.tone != "bad")


def _page(obj: Model) -> str:
    return reverse(f"admin:{obj._meta.app_label}_{obj._meta.model_name}_change", args=[obj.pk])


def _list(name: str, **query: str) -> str:
    address = reverse(f"admin:{name}_changelist")
    return f"{address}?{urlencode(query)}" if query else address


def _names(rows: list[Model]) -> str:
    shown = ", ".join(str(row) for row in rows[:NAMED])
    return shown if len(rows) <= NAMED else _("%(names)s and %(n)d more") % {"names": shown, "n": len(rows) - NAMED}


def _nodes(user: User, now: datetime) -> Iterator[Alert]:
    words = {
        presence.NodeState.QUARANTINED: ("bad", _("Quarantined: an old token was used again"), _("Enrol it anew")),
        presence.NodeState.OFFLINE: ("bad", _("Offline: it does its tasks when it is back"), _("Look at it")),
        presence.NodeState.OUTDATED: ("bad", _("Too old for this server: it gets no tasks"), _("Update it")),
        presence.NodeState.CLOCK: ("warn", _("Its clock is wrong by more than five minutes"), _("Set its clock")),
    }
    for node in access.visible(user, Node):
        if (state := presence.state(node, now)) in words:
            tone, detail, action = words[state]
            yield Alert(tone, "dns", _("Node “%s”") % node, detail, _page(node), action)


def _stores(user: User) -> Iterator[Alert]:
    for one in access.visible(user, Destination):
        title = _("Destination “%s”") % one
        if one.problem:
            yield Alert("bad", "hard_drive", title, one.problem, _page(one), _("Test it"))
        elif one.total_bytes and 100 * (one.total_bytes - one.free_bytes) / one.total_bytes >= FULL_PERCENT:
            yield Alert("bad", "hard_drive", title, _("Almost full"), _page(one), _("Make room"))
    for repository in access.visible(user, Repository).exclude(problem=""):
        title = _("Repository “%s”") % repository
        yield Alert("bad", "inventory_2", title, repository.problem, _page(repository), _("Look at it"))


def _copies(user: User) -> Iterator[Alert]:
    hurt = access.visible(user, PointCopy).filter(state__in=(CopyState.DAMAGED, CopyState.MISSING)).count()
    if hurt:
        title = ngettext("%d restore point is hurt", "%d restore points are hurt", hurt) % hurt
        detail = _("Damaged in or missing from its repository")
        yield Alert("bad", "broken_image", title, detail, _list("catalog_restorepoint", copy="hurt"), _("Look at them"))


def _workloads(user: User) -> Iterator[Alert]:
    rows = access.visible(user, Protection).select_related("workload").exclude(state=ProtectionState.EXCLUDED)
    yield from _last_runs(rows.filter(last_run_outcome=State.FAILED), "bad", _("Last backup failed"))
    yield from _last_runs(rows.filter(last_run_outcome=State.PARTIAL), "warn", _("Last backup is partial"))
    yield from _never(rows.filter(state=ProtectionState.UNPROTECTED).exclude(workload__assignment=None))
    bare = list(rows.filter(workload__assignment=None))
    if bare:
        title = ngettext("%d workload has no policy", "%d workloads have no policy", len(bare)) % len(bare)
        detail = _names([row.workload for row in bare])
        yield Alert("warn", "event_busy", title, detail, _list("inventory_workload", policy="none"), _("Assign one"))


def _last_runs(rows: QuerySet[Protection], tone: str, title: str) -> Iterator[Alert]:
    for row in rows[:5]:
        detail = row.last_run_message or row.reason
        named = f"{title}: {row.workload}"
        yield Alert(tone, "shield", named, detail, _page(row.workload), _("See why"))


def _never(rows: QuerySet[Protection]) -> Iterator[Alert]:
    """Covered by a policy and still without a good backup, where no failed run says so already."""
    told = {State.FAILED, State.PARTIAL}
    waiting = [row.workload for row in rows if row.last_good_at is None and row.last_run_outcome not in told]
    if waiting:
        title = ngettext("%d workload has no backup yet", "%d workloads have no backup yet", len(waiting))
        only = _page(waiting[0]) if len(waiting) == 1 else _list("inventory_workload", state="unprotected")
        yield Alert("bad", "gpp_bad", title % len(waiting), _names(waiting), only, _("Back up now"))


def _jobs(user: User, now: datetime) -> Iterator[Alert]:
    stuck = access.visible(user, Job).filter(state=State.QUEUED, due_at__lt=now - WAITED).exclude(waiting_for="")
    for job in stuck[:3]:
        title = _("Waiting: %s") % job
        yield Alert("warn", "hourglass_top", title, job.waiting_for, _page(job), _("See the job"))


def _kept(user: User) -> Iterator[Alert]:
    rows = list(access.visible(user, Trace).exclude(problem="").select_related("workload"))
    if rows:
        title = ngettext(
            "Kept snapshots of %d machine could not be removed",
            "Kept snapshots of %d machines could not be removed",
            len(rows),
        )
        detail = f"{_names([row.workload for row in rows])}: {rows[0].problem}"
        only = _page(rows[0]) if len(rows) == 1 else _list("catalog_trace", needed="no")
        yield Alert("warn", "photo_camera", title % len(rows), detail, only, _("See why"))


def _kits(user: User) -> Iterator[Alert]:
    ready = access.visible(user, Repository).filter(state=RepositoryState.READY, kit_saved_at=None)
    for repository in ready.select_related("destination", "tenant"):
        if not access.can(user, Right.READ_KIT, repository):
            continue
        title = _("Recovery kit of “%s” is not saved") % repository.destination
        detail = _("Without it nobody can restore when this server is lost.")
        yield Alert("warn", "medical_services", title, detail, _page(repository), _("Save the kit"))
