"""What there is: nodes that move data, platforms and their workloads, destinations and repositories."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.iam.models import Secret, Tenant, User


class Node(models.Model):
    """An agent of the data plane. ``inventory.enrolment`` and ``inventory.node_auth`` write its token,
    ``inventory.presence`` what it tells of itself."""

    tenant_path: ClassVar[str] = "tenant"
    shared_without_tenant: ClassVar[bool] = True
    grant_path: ClassVar[str] = "pk"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(
        Tenant,
        models.PROTECT,
        null=True,
        blank=True,
        related_name="nodes",
        verbose_name=_("tenant"),
        help_text=_("Empty: shared, serves every tenant. A node that has served a tenant can read its repositories."),
    )
    name = models.CharField(_("name"), max_length=100)
    token_hash = models.CharField(max_length=64, blank=True, db_index=True, editable=False)
    next_token_hash = models.CharField(max_length=64, blank=True, db_index=True, editable=False)
    old_token_hash = models.CharField(max_length=64, blank=True, db_index=True, editable=False)
    token_changed_at = models.DateTimeField(null=True, editable=False)
    incarnation = models.UUIDField(null=True, editable=False)
    version = models.CharField(_("version"), max_length=40, blank=True, editable=False)
    protocol = models.PositiveSmallIntegerField(default=1, editable=False)  # node_agent.protocol.API_VERSION it speaks
    hostname = models.CharField(_("host"), max_length=255, blank=True, editable=False)
    system = models.CharField(_("system"), max_length=200, blank=True, editable=False)
    kinds = models.JSONField(default=list, editable=False)  # task kinds it can run
    drivers = models.JSONField(default=list, editable=False)
    labels = models.JSONField(_("labels"), default=list, blank=True)
    told_labels = models.JSONField(default=list, editable=False)  # from its own node.toml
    roots = models.JSONField(default=dict, editable=False)  # {"read": [...], "write": [...], "repositories": [...]}
    slots = models.PositiveSmallIntegerField(_("parallel tasks"), default=2)
    staging_bytes = models.BigIntegerField(default=0, editable=False)
    last_seen_at = models.DateTimeField(_("last seen"), null=True, blank=True, editable=False)
    clock_offset_s = models.FloatField(_("clock offset"), default=0, editable=False)
    paused = models.BooleanField(_("paused"), default=False, help_text=_("Gets no new tasks."))
    draining = models.BooleanField(default=False, editable=False)  # told by the node
    quarantined_at = models.DateTimeField(null=True, blank=True, editable=False)
    quarantine_reason = models.CharField(max_length=300, blank=True, editable=False)
    enrolled_at = models.DateTimeField(_("enrolled"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("node")
        verbose_name_plural = _("nodes")
        ordering = ["name"]
        constraints = [  # per tenant: else a name that is refused would tell what strangers have
            models.UniqueConstraint(fields=["tenant", "name"], name="node_name_unique"),
            models.UniqueConstraint(
                fields=["name"], condition=models.Q(tenant__isnull=True), name="node_shared_name_unique"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class EnrolmentCode(models.Model):
    """A one-time code for a new node; 15 minutes, kept by hash, single use."""

    tenant_path: ClassVar[str] = "tenant"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(
        Tenant, models.CASCADE, null=True, blank=True, related_name="enrolment_codes", verbose_name=_("tenant")
    )
    node_name = models.CharField(_("node name"), max_length=100, blank=True)
    code_hash = models.CharField(max_length=64, unique=True, editable=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(_("expires"))
    used_at = models.DateTimeField(null=True, editable=False)
    node = models.ForeignKey(Node, models.SET_NULL, null=True, related_name="+", editable=False)

    class Meta:
        verbose_name = _("enrolment code")
        verbose_name_plural = _("enrolment codes")

    def __str__(self) -> str:
        return self.node_name or str(_("enrolment code"))


class PlatformKind(models.TextChoices):
    FILES = "files", _("Files on a node")
    IMAGE = "image", _("Disk images on a node")
    KVM = "kvm", _("KVM host")
    RBD = "rbd", _("Ceph RBD")


MACHINES = (PlatformKind.KVM, PlatformKind.RBD)  # kinds whose workloads are discovered; reached over the network


class Platform(models.Model):
    """A system that is protected. For files and image it is a place on one node; machines lie on a system that the
    node logs in to: ``inventory.platforms`` knows what each kind is told, ``inventory.discovery`` what was found."""

    tenant_path: ClassVar[str] = "tenant"
    grant_path: ClassVar[str] = "pk"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="platforms", verbose_name=_("tenant"))
    kind = models.CharField(_("kind"), max_length=20, choices=PlatformKind.choices)
    name = models.CharField(_("name"), max_length=100)
    node = models.ForeignKey(Node, models.PROTECT, related_name="platforms", verbose_name=_("node"))
    addresses = models.JSONField(_("addresses"), default=list, blank=True)
    login = models.CharField(_("user"), max_length=100, blank=True)
    options = models.JSONField(_("options"), default=dict, blank=True)
    sealed = models.BinaryField(null=True, editable=False)  # the secrets, as one sealed JSON object
    secret_names = models.JSONField(default=list, editable=False)
    host_keys = models.JSONField(_("host keys"), default=dict, blank=True, editable=False)  # confirmed, by address
    offered_keys = models.JSONField(default=dict, editable=False)  # met by the last test, by address
    problem = models.CharField(_("problem"), max_length=500, blank=True, editable=False)
    tested_at = models.DateTimeField(_("tested"), null=True, editable=False)
    discover_every_hours = models.PositiveSmallIntegerField(
        _("look for machines every (hours)"), default=6, help_text=_("0: only when asked.")
    )
    max_jobs = models.PositiveSmallIntegerField(
        _("at the same time on one host"),
        default=2,
        validators=[MinValueValidator(1), MaxValueValidator(64)],
        help_text=_("Backups and restores of machines; more of them wait. It counts for the host, whoever loads it."),
    )
    bandwidth_mib_s = models.PositiveIntegerField(
        _("bandwidth (MiB/s)"),
        default=0,
        validators=[MaxValueValidator(100_000)],
        help_text=_("The most that the node reads from one host, or writes to it, over all jobs; 0: no limit."),
    )
    discovered_at = models.DateTimeField(_("looked for machines"), null=True, editable=False)
    discovery_problem = models.CharField(max_length=500, blank=True, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("platform")
        verbose_name_plural = _("platforms")
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="platform_name_unique")]

    def __str__(self) -> str:
        return self.name

    @property
    def holds_machines(self) -> bool:
        return self.kind in MACHINES


class Workload(models.Model):
    """One protected thing. ``source`` is what its driver needs: files ``{"paths": [...], "excludes": [...]}``,
    image ``{"path": "/…", "format": "", "disk": "disk"}``, machines ``{"known_as": "…", "leave_out": [...], "freeze":
    "try", "freeze_limit_s": 10}`` (validated by ``inventory.sources``). Machines are written by
    ``inventory.discovery``: ``external_id`` is the platform's own and stays when they are renamed."""

    tenant_path: ClassVar[str] = "tenant"
    grant_path: ClassVar[str] = "pk"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="workloads", verbose_name=_("tenant"))
    platform = models.ForeignKey(Platform, models.PROTECT, related_name="workloads", verbose_name=_("platform"))
    name = models.CharField(_("name"), max_length=200)
    source = models.JSONField(_("source"), default=dict)
    external_id = models.CharField(max_length=200, blank=True, editable=False)
    facts = models.JSONField(default=dict, editable=False)  # protocol.MachineFacts, as it was seen last
    seen_at = models.DateTimeField(_("seen"), null=True, editable=False)
    seen_by = models.UUIDField(null=True, editable=False)  # the task that saw it last
    gone_at = models.DateTimeField(_("gone since"), null=True, editable=False)
    excluded = models.BooleanField(_("excluded"), default=False)
    excluded_reason = models.CharField(_("reason"), max_length=300, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("workload")
        verbose_name_plural = _("workloads")
        ordering = ["name"]
        permissions = [("operate_workload", _("Can back up, restore elsewhere and download"))]
        constraints = [
            models.UniqueConstraint(fields=["tenant", "name"], name="workload_name_unique"),
            models.UniqueConstraint(
                fields=["platform", "external_id"], condition=~models.Q(external_id=""), name="workload_machine_unique"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def rests(self) -> bool:
        """Nothing is expected of it: left out on purpose, or gone from its platform."""
        return self.excluded or self.gone_at is not None

    @property
    def disk_bytes(self) -> int:
        """How large a machine's disks are together, as far as they are protected."""
        return sum(disk["size_bytes"] for disk in self.facts.get("disks", []) if not disk.get("why_left_out"))


class DestinationKind(models.TextChoices):
    """The values are the kinds of restic's addresses."""

    LOCAL = "local", _("Folder on a node (local disk or NFS)")
    SFTP = "sftp", _("SFTP server")
    S3 = "s3", _("S3 (Amazon and compatible)")
    AZURE = "azure", _("Azure Blob Storage")
    GS = "gs", _("Google Cloud Storage")
    REST = "rest", _("restic REST server")


class Destination(models.Model):
    """A place where backups are kept. A local folder exists on the nodes that are named only; a remote store is
    used by them only. ``inventory.stores`` knows what each kind is told."""

    tenant_path: ClassVar[str] = "tenant"
    grant_path: ClassVar[str] = "pk"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="destinations", verbose_name=_("tenant"))
    kind = models.CharField(_("kind"), max_length=20, choices=DestinationKind.choices, default=DestinationKind.LOCAL)
    name = models.CharField(_("name"), max_length=100)
    path = models.CharField(_("folder or address"), max_length=1000)
    options = models.JSONField(_("options"), default=dict, blank=True)
    sealed = models.BinaryField(null=True, editable=False)  # the secrets, as one sealed JSON object
    secret_names = models.JSONField(default=list, editable=False)
    nodes = models.ManyToManyField(Node, related_name="destinations", verbose_name=_("reached by"))
    verify_every_days = models.PositiveSmallIntegerField(
        _("verify every (days)"), default=1, help_text=_("0: never by itself.")
    )
    verify_cycle_days = models.PositiveSmallIntegerField(
        _("read all data within (days)"),
        default=30,
        help_text=_("Each verification reads a share, so that all is read within this time. What is late is debt."),
    )
    prune_every_days = models.PositiveSmallIntegerField(
        _("reclaim space every (days)"), default=7, help_text=_("0: never by itself.")
    )
    prune_max_minutes = models.PositiveSmallIntegerField(
        _("reclaiming rewrites for at most (minutes)"), default=120, help_text=_("0: as long as it takes.")
    )
    maintenance_from = models.PositiveSmallIntegerField(
        _("maintenance from (hour, UTC)"), default=1, validators=[MaxValueValidator(23)]
    )
    maintenance_until = models.PositiveSmallIntegerField(
        _("maintenance until (hour, UTC)"),
        default=6,
        validators=[MaxValueValidator(23)],
        help_text=_("It starts within these hours; the same hour twice: at any time."),
    )
    total_bytes = models.BigIntegerField(_("capacity"), default=0, editable=False)
    free_bytes = models.BigIntegerField(_("free"), default=0, editable=False)
    problem = models.CharField(_("problem"), max_length=500, blank=True, editable=False)
    tested_at = models.DateTimeField(_("tested"), null=True, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("destination")
        verbose_name_plural = _("destinations")
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="destination_name_unique")]

    def __str__(self) -> str:
        return self.name


class RepositoryState(models.TextChoices):
    NEW = "new", _("Not made yet")
    READY = "ready", _("Ready")
    PROBLEM = "problem", _("Problem")


class Repository(models.Model):
    """What one tenant keeps at one destination; a restic repository. Made once, by an init task."""

    tenant_path: ClassVar[str] = "tenant"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="repositories", verbose_name=_("tenant"))
    destination = models.ForeignKey(
        Destination, models.PROTECT, related_name="repositories", verbose_name=_("destination")
    )
    password = models.ForeignKey(Secret, models.PROTECT, related_name="+", editable=False)
    repository_id = models.CharField(_("repository id"), max_length=64, blank=True, editable=False)  # restic's
    state = models.CharField(
        _("state"), max_length=20, choices=RepositoryState.choices, default=RepositoryState.NEW, editable=False
    )
    problem = models.CharField(_("problem"), max_length=500, blank=True, editable=False)
    stored_bytes = models.BigIntegerField(_("stored"), default=0, editable=False)
    verified_at = models.DateTimeField(_("verified"), null=True, editable=False)
    debt_bytes = models.BigIntegerField(_("verification debt"), null=True, editable=False)  # null = not known
    pruned_at = models.DateTimeField(_("space reclaimed"), null=True, editable=False)
    unused_bytes = models.BigIntegerField(_("waste"), null=True, editable=False)  # that the last prune left
    kit_saved_at = models.DateTimeField(_("recovery kit saved"), null=True, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("repository")
        verbose_name_plural = _("repositories")
        constraints = [models.UniqueConstraint(fields=["tenant", "destination"], name="repository_unique")]

    def __str__(self) -> str:
        return f"{self.tenant} @ {self.destination}"

    @property
    def seen_state(self) -> str:
        """A repository in which the last check found something wrong is not “ready”."""
        return RepositoryState.PROBLEM if self.problem else self.state

    @property
    def url(self) -> str:
        """Where a node finds it: a folder of the tenant's own below the destination."""
        from apps.inventory import stores  # it knows this module's rows

        return stores.url(self.destination, self.tenant.slug)
