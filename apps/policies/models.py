"""What should happen: when, how long kept, where to. Pure functions decide, these rows remember."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.core.validators import MaxLengthValidator, MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from apps.iam.models import Tenant
from apps.inventory.models import Destination, Workload


class Staging(models.TextChoices):
    STREAM = "stream", _("Stream: Store reads what Export opened")
    DISK = "disk", _("Disk: Export copies to the node's staging space first")


class CommandsWhere(models.TextChoices):
    HOST = "host", _("On the machine's hypervisor, over SSH")
    NODE = "node", _("On the node; its node.toml must list the program")


class CommandsOnError(models.TextChoices):
    FAIL = "fail", _("The backup fails")
    GO_ON = "go-on", _("The backup goes on; its point is partial")


class PolicyFreeze(models.TextChoices):
    OWN = "", _("As each machine's page says")
    NO = "no", _("Never")
    TRY = "try", _("If its agent answers (else as after a power cut)")
    REQUIRE = "require", _("Always; without an agent there is no backup")


class Policy(models.Model):
    tenant_path: ClassVar[str] = "tenant"
    grant_path: ClassVar[str] = "pk"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="policies", verbose_name=_("tenant"))
    name = models.CharField(_("name"), max_length=100)
    enabled = models.BooleanField(_("enabled"), default=True)
    destination = models.ForeignKey(Destination, models.PROTECT, related_name="policies", verbose_name=_("destination"))
    staging = models.CharField(_("staging"), max_length=10, choices=Staging.choices, default=Staging.STREAM)
    time_zone = models.CharField(_("time zone"), max_length=64, default="UTC")
    start_window_minutes = models.PositiveIntegerField(
        _("start window (minutes)"),
        default=240,
        help_text=_("A run that could not start this long after its time fails with that reason."),
    )
    objective_hours = models.PositiveIntegerField(
        _("objective (hours)"), default=26, help_text=_("The last good backup should never be older than this.")
    )
    priority = models.PositiveSmallIntegerField(_("priority"), default=50, validators=[MaxValueValidator(100)])
    list_files = models.BooleanField(
        _("keep file lists on the server"),
        default=True,
        help_text=_("Makes browsing instant; names (not content) are then readable on the server."),
    )
    bandwidth_mib_s = models.PositiveIntegerField(
        _("bandwidth (MiB/s)"),
        default=0,
        validators=[MaxValueValidator(100_000)],
        help_text=_("The most that a backup writes to the destination, averaged over its run; 0: no limit."),
    )
    backup_new = models.BooleanField(
        _("back up new machines at once"),
        default=False,
        help_text=_("A machine that a rule brings here and that has no backup yet gets its first one right away."),
    )
    freeze = models.CharField(
        _("hold the guests' file systems"), max_length=10, choices=PolicyFreeze.choices, blank=True, default=""
    )
    freeze_limit_s = models.PositiveSmallIntegerField(
        _("for at most (seconds)"),
        default=10,
        validators=[MinValueValidator(1), MaxValueValidator(600)],
        help_text=_("Then the hypervisor lets go of them, whatever becomes of the node."),
    )
    command_before = models.TextField(
        _("command before"), blank=True, validators=[MaxLengthValidator(4000)],
        help_text=_("Run right before the snapshot is taken, for example to hold a database."),
    )  # fmt: skip
    command_after = models.TextField(
        _("command after"), blank=True, validators=[MaxLengthValidator(4000)],
        help_text=_("Run as soon as the snapshot is there; also when the backup failed or was cancelled."),
    )  # fmt: skip
    command_where = models.CharField(
        _("they run"), max_length=10, choices=CommandsWhere.choices, default=CommandsWhere.HOST
    )
    command_limit_s = models.PositiveSmallIntegerField(
        _("time limit (seconds)"), default=300, validators=[MinValueValidator(1), MaxValueValidator(3600)],
        help_text=_("For each command; then it is ended, and has failed."),
    )  # fmt: skip
    command_accepts = models.CharField(
        _("accepted exit codes"), max_length=100, default="0",
        validators=[
            RegexValidator(
                r"^\d{1,3}(\s*,\s*\d{1,3}){0,20}\Z", _("Write numbers with commas between them, such as 0, 3.")
            )
        ],
        help_text=_("Every other one is a failure."),
    )  # fmt: skip
    command_on_error = models.CharField(
        _("when a command fails"), max_length=10, choices=CommandsOnError.choices, default=CommandsOnError.FAIL
    )
    keep_last = models.PositiveIntegerField(_("last"), default=7)
    keep_hourly = models.PositiveIntegerField(_("hourly"), default=0)
    keep_daily = models.PositiveIntegerField(_("daily"), default=14)
    keep_weekly = models.PositiveIntegerField(_("weekly"), default=8)
    keep_monthly = models.PositiveIntegerField(_("monthly"), default=12)
    keep_yearly = models.PositiveIntegerField(_("yearly"), default=0)
    keep_within_days = models.PositiveIntegerField(_("everything of the last … days"), default=0)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("policy")
        verbose_name_plural = _("policies")
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="policy_name_unique")]

    def __str__(self) -> str:
        return self.name


class ScheduleMode(models.TextChoices):
    INCREMENTAL = "incremental", _("Incremental")
    FULL = "full", _("Full (reads everything again)")


class Schedule(models.Model):
    """When a policy runs: a cron line in the policy's time zone. ``planned_until`` is the planner's cursor."""

    tenant_path: ClassVar[str] = "policy__tenant"
    grant_path: ClassVar[str] = "policy"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    policy = models.ForeignKey(Policy, models.CASCADE, related_name="schedules", verbose_name=_("policy"))
    mode = models.CharField(_("mode"), max_length=20, choices=ScheduleMode.choices, default=ScheduleMode.INCREMENTAL)
    cron = models.CharField(
        _("when"),
        max_length=100,
        default="0 22 * * *",
        help_text=_("Minute hour day month weekday, e.g. “0 22 * * *” for every day at 22:00."),
    )
    enabled = models.BooleanField(_("enabled"), default=True)
    planned_until = models.DateTimeField(null=True, editable=False)

    class Meta:
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")

    def __str__(self) -> str:
        return f"{self.get_mode_display()}: {self.cron}"


class RuleBy(models.TextChoices):
    TAG = "tag", _("Tag")
    NAME = "name", _("Name")
    PROJECT = "project", _("Project")


class AssignmentRule(models.Model):
    """Discovered machines that a policy covers by itself. ``policies.matching`` decides, ``policies.rules`` acts."""

    tenant_path: ClassVar[str] = "policy__tenant"
    grant_path: ClassVar[str] = "policy"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    policy = models.ForeignKey(Policy, models.CASCADE, related_name="rules", verbose_name=_("policy"))
    by = models.CharField(_("by"), max_length=10, choices=RuleBy.choices, default=RuleBy.NAME)
    pattern = models.CharField(
        _("matches"), max_length=200, help_text=_("* stands for anything, ? for one character; case does not matter.")
    )

    class Meta:
        verbose_name = _("rule")
        verbose_name_plural = _("rules")
        ordering = ["by", "pattern"]
        constraints = [models.UniqueConstraint(fields=["policy", "by", "pattern"], name="rule_once")]

    def __str__(self) -> str:
        return f"{self.get_by_display()}: {self.pattern}"


class Assignment(models.Model):
    """Which policy covers a workload: one at most. Written by ``policies.assignment`` and ``policies.rules``."""

    tenant_path: ClassVar[str] = "policy__tenant"
    grant_path: ClassVar[str] = "workload"

    workload = models.OneToOneField(Workload, models.CASCADE, related_name="assignment", verbose_name=_("workload"))
    policy = models.ForeignKey(Policy, models.CASCADE, related_name="assignments", verbose_name=_("policy"))
    by_rule = models.BooleanField(default=False)  # then a rule may also change it, or take it away
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("assignment")
        verbose_name_plural = _("assignments")

    def __str__(self) -> str:
        return f"{self.workload} → {self.policy}"
