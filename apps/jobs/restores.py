"""What leaves the repository at a user's wish: restores, single files, lists of files.

Restoring is taking data out, so each way has a right of its own. Where the data would land is checked here, as far
as the server knows it; the node has the last word.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.catalog import browse as lists
from apps.catalog.models import CopyState, PointCopy, RestorePoint
from apps.errors import Conflict, Invalid, NotFound, TooLarge
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.models import User
from apps.inventory import presence, sources
from apps.inventory.models import Node, PlatformKind, Workload
from apps.jobs import building, lease, machine_restores
from apps.jobs.models import OPEN, Download, Job, JobKind
from node_agent.protocol import RestoreTarget

CHOSEN_MOST = 10_000
DOWNLOAD_LIVES = timedelta(hours=1)
_READABLE = [CopyState.PRESENT, CopyState.DAMAGED]  # of a damaged one, what is left of it


def restore(
    user: User,
    point: RestorePoint,
    *,
    chosen: list[str],
    target: RestoreTarget,
    node: Node | None = None,
    verify: bool = False,
    staging: str = "stream",
) -> Job:
    """``chosen``: paths in the point (Go-quoted, as listed); empty: all of it. ``node``: where to; None: the
    workload's own node, or another that reaches the repository."""
    access.require(user, Right.VIEW, point)
    copy = copy_of(point)
    wanted = _clean_chosen(copy, chosen)
    _require_driver(point, target)
    if staging not in {"stream", "disk"}:
        raise Invalid(_("The staging must be stream or disk."))
    platform = None
    if point.workload.platform.holds_machines:
        place, platform = machine_restores.clean(user, point, target)
        access.require(user, machine_restores.right(place), point)
        there = machine_restores.node_of(platform, copy)
        if verify or staging == "disk":
            raise Invalid(
                _("A machine is written straight to its platform: neither staged nor read back."),
                hint=_("Leave both off; what is written is proven before."),
            )
    else:
        place = _clean_target(point, target)
        there = _node(user, point, copy, node, place)
        access.require(user, _right(point, place, there), point)
        sources.require_roots(there, "write", sources.paths_of(point.workload) if place.in_place else [place.path])
    with transaction.atomic():
        _must_stay(point)
        made, tasks = building.restore(
            point, copy, there, place, timezone.now(),
            chosen=wanted, verify=verify, staging=staging, platform=platform, requested_by=user,
        )  # fmt: skip
        lease.add(made, tasks)
        audit.record(
            user,
            "restore.requested",
            point,
            detail={
                "job": str(made.pk), "node": there.name, "chosen": wanted[:100], "chosen_count": len(wanted),
                "target": place.model_dump(mode="json"),
            },
        )  # fmt: skip
    return made


def download(user: User, point: RestorePoint, path: str) -> Download:
    """One file on its way to this user; fetched by a node into the spool."""
    access.require(user, Right.DOWNLOAD, point)
    copy = copy_of(point)
    wanted = lists.clean_path(path)
    item = lists.find(copy, wanted)
    if item is not None and item.type != "file":
        raise Invalid(
            _("“%(path)s” is not a file.") % {"path": lists.display(wanted)},
            hint=_("Restore folders to a place; only single files can be downloaded."),
        )
    most = settings.BRS_SPOOL_QUOTA_BYTES
    if item is not None and item.size > most:
        raise TooLarge(
            _("The file is larger than what may be downloaded."), hint=_("Restore it to a folder of a node instead.")
        )
    name = lists.display(posixpath.basename(wanted)).replace("/", "_")[-255:]
    now = timezone.now()
    with transaction.atomic():
        _must_stay(point)
        made, tasks = building.download(point, copy, wanted, name, most, now, requested_by=user)
        lease.add(made, tasks)
        found = Download.objects.create(
            tenant_id=point.tenant_id,
            user=user,
            job=made,
            file_name=name,
            size_bytes=item.size if item else 0,
            expires_at=now + DOWNLOAD_LIVES,
        )
        audit.record(user, "download.requested", point, detail={"job": str(made.pk), "path": wanted})
    return found


def browse(user: User, point: RestorePoint) -> Job:
    """Have a node tell the lists of files that the server does not know; one job, however many ask."""
    access.require(user, Right.VIEW, point)
    copy = copy_of(point)
    with transaction.atomic():
        _must_stay(point)
        running = Job.objects.filter(kind=JobKind.BROWSE, restore_point=point, state__in=OPEN).first()
        if running is not None:
            return running
        made, tasks = building.browse(point, copy, timezone.now(), requested_by=user)
        lease.add(made, tasks)
    return made


def copy_of(point: RestorePoint) -> PointCopy:
    """The copy to read from: one that is present, or else a damaged one. Conflict when there is none."""
    copies = point.copies.filter(state__in=_READABLE).select_related("repository__destination", "repository__tenant")
    found = sorted(copies, key=lambda copy: (copy.state != CopyState.PRESENT, copy.created_at))
    if not found:
        raise Conflict(
            _("No repository holds this point any more."),
            hint=_("Choose another point; the copies of this one say why."),
            code="no-copy",
        )
    return found[0]


# --- what and where to ------------------------------------------------------------------------------------


def _must_stay(point: RestorePoint) -> None:
    """Under the row's lock: from here on the open job keeps expiry from removing the point."""
    locked = RestorePoint.objects.select_for_update(no_key=True, of=("self",)).filter(pk=point.pk).first()
    if locked is None:
        raise NotFound(_("This restore point has been removed."))
    copy_of(locked)


def _clean_chosen(copy: PointCopy, chosen: Iterable[str]) -> list[str]:
    wanted = list(dict.fromkeys(lists.clean_path(path) for path in chosen))
    if len(wanted) > CHOSEN_MOST:
        raise Invalid(
            _("At most %(most)s paths can be chosen.") % {"most": CHOSEN_MOST}, hint=_("Choose folders, or everything.")
        )
    if "/" in wanted:
        return []
    for folder, paths in _by_folder(wanted).items():
        found = lists.listing(copy, folder)
        there = {item.path for item in found.entries} if found else paths  # not known: the node will see
        if absent := sorted(paths - there):
            raise NotFound(
                _("There is no “%(path)s” in this restore point.") % {"path": lists.display(absent[0])},
                hint=_("Choose it from the list of files."),
            )
    return wanted


def _by_folder(paths: Iterable[str]) -> dict[str, set[str]]:
    folders: dict[str, set[str]] = {}
    for path in paths:
        folders.setdefault(posixpath.dirname(path), set()).add(path)
    return folders


def _require_driver(point: RestorePoint, target: RestoreTarget) -> None:
    kind = point.workload.platform.kind
    if target.driver != kind:
        raise Invalid(
            _("This point is restored with the driver “%(kind)s”, not “%(driver)s”.")
            % {"kind": kind, "driver": target.driver}
        )


def _clean_target(point: RestorePoint, target: RestoreTarget) -> RestoreTarget:
    kind = point.workload.platform.kind
    target = target.model_copy(update={"format": target.format or "raw", "machine": None})
    if kind == PlatformKind.IMAGE and target.format not in {"raw", "qcow2"}:
        raise Invalid(_("The format must be raw or qcow2."))
    if not target.in_place:
        return target.model_copy(update={"path": sources.clean_path(target.path, "target")})
    if kind == PlatformKind.IMAGE:
        source = point.workload.source
        return target.model_copy(update={"path": source["path"], "format": source.get("format") or target.format})
    return target.model_copy(update={"path": "/"})  # the node puts each protected path where it came from


def _node(user: User, point: RestorePoint, copy: PointCopy, node: Node | None, target: RestoreTarget) -> Node:
    own = point.workload.platform.node
    reached = copy.repository.destination.nodes
    if node is None:
        node = own if target.in_place else _reaching(point, copy)
    else:
        access.require(user, Right.VIEW, node)
    if node.tenant_id not in (None, point.tenant_id):
        raise NotFound
    if target.in_place and node.pk != own.pk:
        raise Invalid(
            _("In place means on the node %(node)s, where the data came from.") % {"node": own.name},
            hint=_("Choose that node, or restore to another folder."),
        )
    if not reached.filter(pk=node.pk).exists():
        raise Conflict(
            _("The node %(node)s does not reach the destination “%(destination)s”.")
            % {"node": node.name, "destination": copy.repository.destination.name},
            hint=_("Choose a node that does, or add the node to the destination."),
            code="unreachable-destination",
        )
    if target.driver not in node.drivers and node.last_seen_at is not None:
        raise Conflict(
            _("The node %(node)s cannot restore this kind of point.") % {"node": node.name},
            hint=_("Choose another node."),
        )
    return node


def _reaching(point: RestorePoint, copy: PointCopy) -> Node:
    """The workload's own node if it reaches the repository, else the first that does, those at work first."""
    now = timezone.now()
    nodes = copy.repository.destination.nodes.order_by("name")
    fitting = [node for node in nodes if node.tenant_id in (None, point.tenant_id)]
    if not fitting:
        raise Conflict(
            _("No node reaches the destination “%(name)s”.") % {"name": copy.repository.destination.name},
            hint=_("Add a node to the destination."),
            code="unreachable-destination",
        )
    own = point.workload.platform.node_id
    online = presence.NodeState.ONLINE
    return min(fitting, key=lambda node: (node.pk != own, presence.state(node, now) != online))


def _landing(point: RestorePoint, target: RestoreTarget) -> list[str]:
    """The paths that would be written: files land below the target under their whole path."""
    if target.in_place or point.workload.platform.kind == PlatformKind.IMAGE:
        return [target.path]
    return [sources.clean_path(target.path + "/" + path) for path in sources.paths_of(point.workload)]


def _right(point: RestorePoint, target: RestoreTarget, node: Node) -> Right:
    """Restoring "elsewhere" onto protected data is restoring in place, whatever it is called."""
    if target.in_place:
        return Right.RESTORE_IN_PLACE
    written = [*_landing(point, target), target.path]
    for workload in Workload.objects.filter(platform__node=node).select_related("platform"):
        if any(_touches(written, path, workload.platform.kind) for path in sources.paths_of(workload)):
            if workload.tenant_id != point.tenant_id:
                raise Conflict(
                    _("The target overlaps data that somebody else protects on this node."),
                    hint=_("Choose another folder."),
                )
            return Right.RESTORE_IN_PLACE
    return Right.RESTORE_ELSEWHERE


def _touches(written: list[str], protected: str, kind: str) -> bool:
    """``written``: what lands where, then the target itself, above which nothing of it is written."""
    *landing, target = written
    if any(sources.is_below(path, [protected]) for path in written) or sources.is_below(protected, landing):
        return True
    # A folder as an image's target: the file that is made in it may be the protected one.
    return kind == PlatformKind.IMAGE and posixpath.dirname(protected) == target
