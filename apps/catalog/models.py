"""What was kept: restore points, their copies, the lists of files in them, and how protected a workload is."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.iam.models import Tenant
from apps.inventory.models import Repository, Workload


class PointOutcome(models.TextChoices):
    COMPLETE = "complete", _("Complete")
    PARTIAL = "partial", _("Partial")


NOT_IMMUTABLE = "not-immutable"  # the code of the node's note


class RestorePoint(models.Model):
    """One recoverable state of a workload. Written by ``catalog.ingest``; ``task`` makes that idempotent."""

    tenant_path: ClassVar[str] = "tenant"
    grant_path: ClassVar[str] = "workload"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="restore_points", verbose_name=_("tenant"))
    workload = models.ForeignKey(Workload, models.PROTECT, related_name="points", verbose_name=_("workload"))
    task = models.UUIDField(unique=True, editable=False)  # id of the task that made it; jobs lie above
    taken_at = models.DateTimeField(_("taken"))
    outcome = models.CharField(_("outcome"), max_length=20, choices=PointOutcome.choices)
    incremental = models.BooleanField(_("incremental"), default=False)
    size_bytes = models.BigIntegerField(_("size"), default=0)
    read_bytes = models.BigIntegerField(_("read"), default=0)
    new_bytes = models.BigIntegerField(_("changed"), default=0)
    files = models.BigIntegerField(_("files"), default=0)
    left_out = models.JSONField(_("left out"), default=list)  # the first 1,000: {"path", "code", "message", "note"}
    left_out_count = models.PositiveIntegerField(_("left out"), default=0)
    hold = models.BooleanField(_("held"), default=False)
    hold_reason = models.CharField(_("reason of the hold"), max_length=300, blank=True)
    created_at = models.DateTimeField(_("recorded"), auto_now_add=True)

    class Meta:
        verbose_name = _("restore point")
        verbose_name_plural = _("restore points")
        ordering = ["-taken_at"]
        indexes = [models.Index(fields=["workload", "-taken_at"], name="point_timeline")]

    def __str__(self) -> str:
        return f"{self.workload} · {self.taken_at:%Y-%m-%d %H:%M}"

    @property
    def immutable_refused(self) -> str | None:
        """Why a point that was to be locked is not (the node's note); None: it is, or need not be."""
        return next((str(item["message"]) for item in self.left_out if item.get("code") == NOT_IMMUTABLE), None)


class CopyState(models.TextChoices):
    PRESENT = "present", _("Present")
    EXPIRING = "expiring", _("Being removed")
    EXPIRED = "expired", _("Removed")
    MISSING = "missing", _("Missing from the repository")
    DAMAGED = "damaged", _("Damaged")


class PointCopy(models.Model):
    """A restore point in one repository: a restic snapshot."""

    tenant_path: ClassVar[str] = "repository__tenant"
    grant_path: ClassVar[str] = "point__workload"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    point = models.ForeignKey(RestorePoint, models.CASCADE, related_name="copies", verbose_name=_("restore point"))
    repository = models.ForeignKey(Repository, models.PROTECT, related_name="copies", verbose_name=_("repository"))
    snapshot_id = models.CharField(_("snapshot"), max_length=64)
    tree_id = models.CharField(max_length=64)
    stored_bytes = models.BigIntegerField(_("stored"), default=0)
    state = models.CharField(_("state"), max_length=20, choices=CopyState.choices, default=CopyState.PRESENT)
    expire_reason = models.CharField(_("why removed"), max_length=300, blank=True)
    verified_at = models.DateTimeField(_("verified"), null=True, blank=True)
    damaged_paths = models.JSONField(_("damaged files"), default=list, blank=True)  # the first of them
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = _("copy")
        verbose_name_plural = _("copies")
        constraints = [
            models.UniqueConstraint(fields=["repository", "snapshot_id"], name="copy_snapshot_unique"),
            models.UniqueConstraint(fields=["point", "repository"], name="copy_point_unique"),
        ]

    def __str__(self) -> str:
        return f"{self.point} @ {self.repository.destination}"


class Trace(models.Model):
    """What backups of a machine keep on its platform for the next of them, by whose names it bears: one row for each
    owner at a machine. Written by ``catalog.traces``.

    ``owner`` is a repository's mark, or what else stands in the names; ``repository`` is null when no repository of the
    tenant has it. ``by_backup``: a run into ``repository`` keeps it; else it was only found there.
    """

    tenant_path: ClassVar[str] = "workload__tenant"
    grant_path: ClassVar[str] = "workload"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    workload = models.ForeignKey(Workload, models.CASCADE, related_name="traces", verbose_name=_("workload"))
    repository = models.ForeignKey(
        Repository, models.SET_NULL, null=True, related_name="+", verbose_name=_("repository")
    )
    owner = models.CharField(max_length=8)
    names = models.JSONField(_("what is kept"), default=list)  # as a node told them last; empty: not known
    by_backup = models.BooleanField(default=False)
    in_cluster = models.BooleanField(default=False)  # a run may have kept snapshots of a KVM machine's disks in Ceph
    told_at = models.DateTimeField(_("seen"), null=True)  # a node last told of it
    unneeded_since = models.DateTimeField(_("not needed since"), null=True)
    tried_at = models.DateTimeField(null=True)  # a removal came to nothing
    problem = models.CharField(_("problem"), max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = _("kept snapshot")
        verbose_name_plural = _("kept snapshots")
        ordering = ["workload__name", "owner"]
        constraints = [models.UniqueConstraint(fields=["workload", "owner"], name="trace_once")]

    def __str__(self) -> str:
        return f"{self.workload} · brs-{self.owner}"


class ProtectionState(models.TextChoices):
    PROTECTED = "protected", _("Protected")
    ATTENTION = "attention", _("Needs attention")
    UNPROTECTED = "unprotected", _("Not protected")
    EXCLUDED = "excluded", _("Excluded")


class Protection(models.Model):
    """How a workload stands, as one sortable row; written by ``catalog.protection`` only."""

    tenant_path: ClassVar[str] = "workload__tenant"
    grant_path: ClassVar[str] = "workload"

    workload = models.OneToOneField(Workload, models.CASCADE, primary_key=True, related_name="protection")
    state = models.CharField(
        _("state"), max_length=20, choices=ProtectionState.choices, default=ProtectionState.UNPROTECTED, db_index=True
    )
    reason = models.CharField(_("why"), max_length=300, blank=True)
    last_good = models.ForeignKey(RestorePoint, models.SET_NULL, null=True, related_name="+")
    last_good_at = models.DateTimeField(_("last good backup"), null=True, db_index=True)
    last_run_at = models.DateTimeField(_("last run"), null=True)
    last_run_outcome = models.CharField(max_length=20, blank=True)  # job state's value
    last_run_message = models.CharField(max_length=500, blank=True)
    next_run_at = models.DateTimeField(_("next run"), null=True)
    objective_hours = models.PositiveIntegerField(null=True)
    points = models.PositiveIntegerField(_("points"), default=0)
    size_bytes = models.BigIntegerField(_("size"), default=0)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = _("protection")
        verbose_name_plural = _("protection")

    def __str__(self) -> str:
        return f"{self.workload}: {self.get_state_display()}"


class Directory(models.Model):
    """The list of one directory, addressed by restic's tree id: equal directories are kept once.

    ``entries`` is zlib-compressed JSON of ``protocol.Entry`` rows (see ``catalog.browse``).
    """

    tenant_path: ClassVar[str] = "repository__tenant"

    repository = models.ForeignKey(Repository, models.CASCADE, related_name="directories")
    tree_id = models.CharField(max_length=64)
    part = models.PositiveIntegerField(default=0)
    last = models.BooleanField(default=True)
    entries = models.BinaryField()
    count = models.PositiveIntegerField(default=0)

    class Meta:
        verbose_name = _("directory")
        verbose_name_plural = _("directories")
        constraints = [models.UniqueConstraint(fields=["repository", "tree_id", "part"], name="directory_unique")]

    def __str__(self) -> str:
        return self.tree_id[:12]
