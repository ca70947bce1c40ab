"""Points enter and leave the catalogue: what nodes report about repositories becomes rows, once.

Called within the transaction of the report that brings the news (``jobs.lease``), so: no network, few queries, and
everything idempotent. A point that is missing from its repository, or a snapshot unknown to us, is reported, never
silently adopted or forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.catalog import protection
from apps.catalog.models import CopyState, PointCopy, PointOutcome, RestorePoint
from apps.errors import Conflict
from apps.iam import audit
from apps.inventory.models import Repository, Workload
from node_agent.protocol import LIST_KEEP, BackupResult, LeftOut, Outcome, Parent, VerifyResult

_AT_ONCE = 500


@transaction.atomic
def record_backup(
    *,
    task_id: UUID,
    point_id: UUID,
    workload: Workload,
    repository: Repository,
    result: BackupResult,
    outcome: Outcome | str,
    left_out: Sequence[LeftOut] = (),
    left_out_count: int = 0,
    now: datetime,
) -> RestorePoint:
    """The restore point of a finished backup task; the same one when the task is reported again."""
    known = RestorePoint.objects.filter(task=task_id).first()
    if known is not None:
        return known
    if PointCopy.objects.filter(repository=repository, snapshot_id=result.snapshot_id).exists():
        raise Conflict(
            _("The snapshot %(id)s already belongs to another restore point.") % {"id": result.snapshot_id[:8]},
            hint=_("The node reported a snapshot that it did not make for this task; look at its log."),
        )
    complete = Outcome(outcome) is Outcome.SUCCEEDED
    point = RestorePoint.objects.create(
        id=point_id,
        tenant_id=workload.tenant_id,
        workload=workload,
        task=task_id,
        taken_at=now - timedelta(seconds=max(0.0, result.started_age_s)),
        outcome=PointOutcome.COMPLETE if complete else PointOutcome.PARTIAL,
        incremental=bool(result.parent_id),
        size_bytes=result.size_bytes,
        read_bytes=result.read_bytes,
        new_bytes=result.new_bytes,
        files=result.files,
        left_out=[_without_nul(item.model_dump()) for item in left_out[:LIST_KEEP]],
        left_out_count=left_out_count or sum(not item.note for item in left_out),
    )
    PointCopy.objects.create(
        point=point,
        repository=repository,
        snapshot_id=result.snapshot_id,
        tree_id=result.tree_id,
        stored_bytes=result.stored_bytes,
    )
    return point


def parent_of(workload_id: UUID, repository: Repository) -> Parent | None:
    """What the next backup of the workload builds upon: its newest complete point that lies in the repository."""
    copy = (
        PointCopy.objects.filter(
            repository=repository,
            state=CopyState.PRESENT,
            point__workload_id=workload_id,
            point__outcome=PointOutcome.COMPLETE,
        )
        .order_by("-point__taken_at")
        .first()
    )
    return Parent(snapshot_id=copy.snapshot_id, tree_id=copy.tree_id) if copy else None


def expected_in(repository: Repository) -> list[str]:
    """Snapshots that the catalogue counts on, those included that were missed when it was last verified: as long as
    nobody has deleted their points, what they hold is not to be thrown away.
    """
    copies = PointCopy.objects.filter(repository=repository)
    copies = copies.exclude(state__in=[CopyState.EXPIRING, CopyState.EXPIRED])
    return list(copies.order_by("snapshot_id").values_list("snapshot_id", flat=True))


# --- leaving ----------------------------------------------------------------------------------------


def mark_expiring(copies: Iterable[PointCopy], reason: str) -> list[PointCopy]:
    """Announce that these copies are being removed; those that were present (or lost) until now are returned."""
    taken: list[PointCopy] = []
    for copy in copies:
        guarded = PointCopy.objects.filter(pk=copy.pk, point__hold=False).exclude(
            state__in=[CopyState.EXPIRING, CopyState.EXPIRED]
        )
        if guarded.update(state=CopyState.EXPIRING, expire_reason=reason[:300]) == 1:
            copy.state, copy.expire_reason = CopyState.EXPIRING, reason[:300]
            taken.append(copy)
    return taken


@transaction.atomic
def mark_forgotten(
    repository: Repository, removed: Iterable[str], missing: Iterable[str] = (), *, now: datetime
) -> int:
    """The snapshots are gone from the repository (``missing``: they were gone before). A point whose last copy went
    is deleted from the catalogue; the audit trail keeps its name and the reason. How many points went."""
    gone = set(removed) | set(missing)
    copies = _of_snapshots(repository, gone).select_related("point__workload", "point__tenant")
    points = {copy.point_id: (copy.point, copy.expire_reason) for copy in copies}
    # Protection first, like every other writer. Then the points, so that two repositories that lose the last two
    # copies of a point at once see each other.
    protection.lock({point.workload_id for point, _reason in points.values()})
    list(RestorePoint.objects.select_for_update(of=("self",)).filter(pk__in=points).order_by("pk"))
    _of_snapshots(repository, gone).update(state=CopyState.EXPIRED)
    finished = [
        (point, reason)
        for point, reason in points.values()
        if not point.copies.exclude(state=CopyState.EXPIRED).exists()
    ]
    for point, reason in finished:
        audit.record("retention", "point.removed", point, tenant=point.tenant, detail={"reason": reason})
        point.delete()
    protection.refresh({point.workload_id for point, _reason in points.values()}, now)
    return len(finished)


def give_back(repository: Repository, snapshot_ids: Iterable[str], reason: str, *, now: datetime) -> int:
    """Copies that were being removed but are still there are present again, and say why. How many."""
    copies = _of_snapshots(repository, set(snapshot_ids)).filter(state=CopyState.EXPIRING)
    workloads = set(copies.values_list("point__workload_id", flat=True))
    text = _("could not be removed: %(why)s") % {"why": reason}
    count = copies.update(state=CopyState.PRESENT, expire_reason=text[:300])
    protection.refresh(workloads, now)
    return count


def _of_snapshots(repository: Repository, snapshot_ids: set[str]):  # type: ignore[no-untyped-def]
    return PointCopy.objects.filter(repository=repository, snapshot_id__in=snapshot_ids).exclude(
        state=CopyState.EXPIRED
    )


# --- comparing with the repository ------------------------------------------------------------------


@dataclass
class Reconciliation:
    """What a verification found: snapshot ids."""

    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    found_again: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """What an operator must know; "" when catalogue and repository agree."""
        parts = []
        if count := len(self.missing):
            parts.append(
                ngettext(
                    "%(count)s restore point is missing from it",
                    "%(count)s restore points are missing from it",
                    count,
                )
                % {"count": count}
            )
        if count := len(self.damaged):
            parts.append(
                ngettext("%(count)s restore point is damaged", "%(count)s restore points are damaged", count)
                % {"count": count}
            )
        if count := len(self.unknown):
            parts.append(
                ngettext(
                    "it holds %(count)s snapshot that the catalogue does not know",
                    "it holds %(count)s snapshots that the catalogue does not know",
                    count,
                )
                % {"count": count}
            )
        return "; ".join(parts)


@transaction.atomic
def reconcile(repository: Repository, result: VerifyResult, *, since: datetime, now: datetime) -> Reconciliation:
    """Compare the catalogue with what a verification, begun at ``since``, saw in the repository.

    Copies that entered the catalogue after ``since`` are not judged: the verification may have looked before them.
    """
    present, damaged = set(result.snapshots), set(result.damaged_snapshots)
    Repository.objects.select_for_update(no_key=True).get(pk=repository.pk)  # before its copies, as expiry does
    judged = PointCopy.objects.filter(repository=repository, created_at__lt=since).exclude(
        state__in=[CopyState.EXPIRED, CopyState.EXPIRING]
    )
    found = Reconciliation()
    verified: list[UUID] = []
    for copy in judged:
        if copy.snapshot_id not in present:
            found.missing.append(copy.snapshot_id)
            _to(copy, CopyState.MISSING)
        elif copy.snapshot_id in damaged:
            found.damaged.append(copy.snapshot_id)
            _to(copy, CopyState.DAMAGED)
            if paths := result.damaged_paths.get(copy.snapshot_id):
                PointCopy.objects.filter(pk=copy.pk).update(damaged_paths=[path.replace("\x00", "") for path in paths])
        elif copy.state == CopyState.DAMAGED and not result.complete:
            found.damaged.append(copy.snapshot_id)  # this time what is damaged was not looked at
        else:
            if copy.state == CopyState.MISSING:
                found.found_again.append(copy.snapshot_id)
            _to(copy, CopyState.PRESENT)
            if copy.damaged_paths:
                PointCopy.objects.filter(pk=copy.pk).update(damaged_paths=[])
            verified.append(copy.pk)
    if not result.errors:
        for start in range(0, len(verified), _AT_ONCE):
            PointCopy.objects.filter(pk__in=verified[start : start + _AT_ONCE]).update(verified_at=now)
    known = set(PointCopy.objects.filter(repository=repository).values_list("snapshot_id", flat=True))
    found.unknown = sorted(present - known)
    problem = "; ".join([*result.errors[:3], *filter(None, [found.summary()])])
    facts = {"verified_at": now, "problem": problem[:500]}
    if result.debt_bytes is not None:
        facts["debt_bytes"] = result.debt_bytes
    if result.stored_bytes:
        facts["stored_bytes"] = result.stored_bytes
    Repository.objects.filter(pk=repository.pk).update(**facts)
    protection.refresh(set(judged.values_list("point__workload_id", flat=True)), now)
    return found


def _to(copy: PointCopy, state: CopyState) -> None:
    # Guarded by what was read: a copy that began to expire meanwhile stays so.
    if copy.state != state:
        PointCopy.objects.filter(pk=copy.pk, state=copy.state).update(state=state)


def _without_nul(item: dict[str, object]) -> dict[str, object]:
    return {name: value.replace("\x00", "\\0") if isinstance(value, str) else value for name, value in item.items()}
