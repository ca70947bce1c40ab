"""What happens: jobs that people see, tasks that nodes lease, their logs, and the wizard's drafts.

``jobs.lease`` is the only writer of a task's and a job's state. A job's state is derived from its tasks and
stored in the same transaction, which locks the job first, then the task.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.catalog.models import RestorePoint
from apps.iam.models import Tenant, User
from apps.inventory.models import Destination, Node, Platform, Repository, Workload
from apps.policies.models import Policy


class JobKind(models.TextChoices):
    BACKUP = "backup", _("Backup")
    RESTORE = "restore", _("Restore")
    DOWNLOAD = "download", _("Download")
    BROWSE = "browse", _("Read file list")
    EXPIRE = "expire", _("Expire points")
    VERIFY = "verify", _("Verify repository")
    PRUNE = "prune", _("Reclaim space")
    INIT = "init", _("Prepare repository")
    PROBE = "probe", _("Connection test")
    DISCOVER = "discover", _("Look for machines")
    REMOVE_TRACES = "remove-traces", _("Remove kept snapshots")


class State(models.TextChoices):
    """Of jobs and of tasks."""

    QUEUED = "queued", _("Waiting")
    LEASED = "leased", _("Starting")
    RUNNING = "running", _("Running")
    SUCCEEDED = "succeeded", _("Complete")
    PARTIAL = "partial", _("Partial")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")


ACTIVE = (State.LEASED, State.RUNNING)
OPEN = (State.QUEUED, *ACTIVE)
ENDED = (State.SUCCEEDED, State.PARTIAL, State.FAILED, State.CANCELLED)


class Trigger(models.TextChoices):
    MANUAL = "manual", _("By hand")
    SCHEDULE = "schedule", _("Schedule")
    RETENTION = "retention", _("Retention")
    EVENT = "event", _("New machine")
    SYSTEM = "system", _("System")


class Job(models.Model):
    tenant_path: ClassVar[str] = "tenant"
    grant_path: ClassVar[str] = "workload"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="jobs", verbose_name=_("tenant"))
    kind = models.CharField(_("kind"), max_length=20, choices=JobKind.choices)
    state = models.CharField(_("state"), max_length=20, choices=State.choices, default=State.QUEUED, db_index=True)
    trigger = models.CharField(_("started by"), max_length=20, choices=Trigger.choices, default=Trigger.MANUAL)
    title = models.CharField(_("what"), max_length=300)
    workload = models.ForeignKey(Workload, models.PROTECT, null=True, related_name="jobs", verbose_name=_("workload"))
    platform = models.ForeignKey(Platform, models.SET_NULL, null=True, related_name="jobs", verbose_name=_("platform"))
    destination = models.ForeignKey(
        Destination, models.SET_NULL, null=True, related_name="jobs", verbose_name=_("destination")
    )
    repository = models.ForeignKey(
        Repository, models.SET_NULL, null=True, related_name="jobs", verbose_name=_("repository")
    )
    restore_point = models.ForeignKey(
        RestorePoint, models.SET_NULL, null=True, related_name="jobs", verbose_name=_("restore point")
    )
    policy = models.ForeignKey(Policy, models.SET_NULL, null=True, related_name="jobs", verbose_name=_("policy"))
    rule = models.JSONField(default=dict)  # the policy as it was when the job was made
    requested_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+", verbose_name=_("requested by"))
    dedupe_key = models.CharField(max_length=200, unique=True, null=True)  # noqa: DJ001  unique, so null not ""
    retry_of = models.ForeignKey("self", models.SET_NULL, null=True, related_name="retries")
    priority = models.PositiveSmallIntegerField(_("priority"), default=50)
    full = models.BooleanField(_("full"), default=False)
    due_at = models.DateTimeField(_("due"), db_index=True)
    start_before = models.DateTimeField(null=True)  # a job not started by then fails with that reason
    created_at = models.DateTimeField(_("created"), auto_now_add=True, db_index=True)
    started_at = models.DateTimeField(_("started"), null=True)
    finished_at = models.DateTimeField(_("finished"), null=True, db_index=True)
    cancel_requested_at = models.DateTimeField(null=True)
    cancel_requested_by = models.CharField(max_length=200, blank=True)
    error_code = models.CharField(max_length=60, blank=True)
    error_message = models.CharField(_("error"), max_length=8000, blank=True)
    error_hint = models.CharField(_("what to do"), max_length=4000, blank=True)
    waiting_for = models.CharField(_("waits for"), max_length=300, blank=True)

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["workload", "-created_at"], name="job_workload")]

    def __str__(self) -> str:
        return self.title


class Task(models.Model):
    """The unit of lease. ``spec`` is a ``protocol`` spec without secrets; these are added when it is leased."""

    tenant_path: ClassVar[str] = "job__tenant"
    grant_path: ClassVar[str] = "job__workload"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    job = models.ForeignKey(Job, models.CASCADE, related_name="tasks", verbose_name=_("job"))
    ordinal = models.PositiveSmallIntegerField(default=0)
    kind = models.CharField(_("kind"), max_length=20)  # protocol.TaskKind
    state = models.CharField(_("state"), max_length=20, choices=State.choices, default=State.QUEUED, db_index=True)
    spec = models.JSONField(default=dict)
    repository = models.ForeignKey(Repository, models.SET_NULL, null=True, related_name="+")
    after = models.ForeignKey("self", models.CASCADE, null=True, related_name="followers")
    same_node = models.BooleanField(default=False)  # as ``after`` ran on
    requires = models.JSONField(default=list)  # labels its node must have, such as "node:<id>", "driver:files"
    shares = models.CharField(max_length=200, blank=True)  # gate held with others ("repository:<id>")
    excludes = models.CharField(max_length=200, blank=True)  # gate held alone
    loads = models.CharField(
        max_length=200, blank=True, db_index=True
    )  # gate held by a few: a host ("load:<digest>") …
    load_limit = models.ForeignKey(Platform, models.SET_NULL, null=True, related_name="+")  # … and who says how many
    priority = models.PositiveSmallIntegerField(default=50)
    available_at = models.DateTimeField(db_index=True)  # retries wait
    attempt = models.PositiveSmallIntegerField(default=0)
    max_attempts = models.PositiveSmallIntegerField(default=3)
    node = models.ForeignKey(Node, models.SET_NULL, null=True, related_name="tasks", verbose_name=_("node"))
    lease_token = models.CharField(max_length=64, blank=True, db_index=True)
    lease_request = models.UUIDField(null=True)  # request_id that took it: a repeated request gets it again
    lease_incarnation = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True, db_index=True)
    leased_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(_("started"), null=True)
    finished_at = models.DateTimeField(_("finished"), null=True)
    phase = models.CharField(_("phase"), max_length=20, blank=True)
    progress = models.JSONField(default=dict)  # protocol.ProgressReport's figures
    progress_at = models.DateTimeField(null=True)
    outcome = models.JSONField(default=dict)  # protocol.Result of the one that completed
    left_out = models.JSONField(default=list)
    left_out_count = models.PositiveIntegerField(default=0)
    error_code = models.CharField(max_length=60, blank=True)
    error_message = models.CharField(max_length=8000, blank=True)
    error_hint = models.CharField(max_length=4000, blank=True)

    class Meta:
        verbose_name = _("task")
        verbose_name_plural = _("tasks")
        ordering = ["job", "ordinal"]

    def __str__(self) -> str:
        return f"{self.kind} · {self.job}"


class LogLine(models.Model):
    tenant_path: ClassVar[str] = "job__tenant"
    grant_path: ClassVar[str] = "job__workload"

    job = models.ForeignKey(Job, models.CASCADE, related_name="log", verbose_name=_("job"))
    task = models.ForeignKey(Task, models.CASCADE, null=True, related_name="log", verbose_name=_("task"))
    attempt = models.PositiveSmallIntegerField(default=0)
    seq = models.PositiveIntegerField(default=0)  # of the node within one lease; 0 = the server's own
    at = models.DateTimeField(_("time"))
    level = models.CharField(_("level"), max_length=10)
    message = models.TextField(_("message"))

    class Meta:
        verbose_name = _("log line")
        verbose_name_plural = _("log")
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["task", "attempt", "seq"], condition=models.Q(seq__gt=0), name="logline_once"
            )
        ]

    def __str__(self) -> str:
        return self.message


class Gate(models.Model):
    """One row per thing that tasks share or exclude ("repository:<id>"). Locked while a lease looks whether it is
    free; who is inside is counted from the running tasks, so that nothing can drift."""

    tenant_path: ClassVar[str] = ""  # the system's own

    key = models.CharField(max_length=200, primary_key=True)

    class Meta:
        verbose_name = _("gate")
        verbose_name_plural = _("gates")

    def __str__(self) -> str:
        return self.key


class RestoreDraft(models.Model):
    """The restore wizard's memory: survives the back button, a reload and another day."""

    tenant_path: ClassVar[str] = "tenant"
    owner_path: ClassVar[str] = "user"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="restore_drafts", verbose_name=_("tenant"))
    user = models.ForeignKey(User, models.CASCADE, related_name="restore_drafts", verbose_name=_("user"))
    workload = models.ForeignKey(Workload, models.CASCADE, null=True, related_name="+", verbose_name=_("workload"))
    point = models.ForeignKey(RestorePoint, models.SET_NULL, null=True, related_name="+")
    chosen = models.JSONField(default=list)  # paths in the snapshot; empty = all
    node = models.ForeignKey(Node, models.SET_NULL, null=True, related_name="+", verbose_name=_("node"))
    target = models.JSONField(default=dict)  # protocol.RestoreTarget, as far as chosen
    job = models.ForeignKey(Job, models.SET_NULL, null=True, related_name="+", verbose_name=_("job"))
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = _("restore draft")
        verbose_name_plural = _("restore drafts")

    def __str__(self) -> str:
        return f"{self.user}: {self.workload}"


class Download(models.Model):
    """One file on its way to a user: pieces in the spool, a link bound to him, gone after an hour."""

    tenant_path: ClassVar[str] = "tenant"
    owner_path: ClassVar[str] = "user"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="downloads", verbose_name=_("tenant"))
    user = models.ForeignKey(User, models.CASCADE, related_name="downloads", verbose_name=_("user"))
    job = models.OneToOneField(Job, models.CASCADE, related_name="download", verbose_name=_("job"))
    file_name = models.CharField(_("file"), max_length=1000)
    size_bytes = models.BigIntegerField(_("size"), default=0)
    received_bytes = models.BigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True)
    ready_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(_("expires"))

    class Meta:
        verbose_name = _("download")
        verbose_name_plural = _("downloads")

    def __str__(self) -> str:
        return self.file_name
