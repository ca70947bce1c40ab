"""The policy editor: when, how long, where to; with the schedule in words and the retention simulator."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import Count
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from unfold.decorators import display

from apps import display as look
from apps.errors import DomainError
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_grants import GrantedAdmin
from apps.iam.admin_scope import Empty, ScopedForm, ScopedInline, Verb
from apps.inventory.models import MACHINES, Platform, Workload
from apps.jobs import expiry, objectives, requests
from apps.policies import commands, rules, schedule
from apps.policies.models import AssignmentRule, Policy, Schedule, Staging

COVERED = 12


class ScheduleForm(ScopedForm):
    class Meta:
        model = Schedule
        fields = ["cron", "mode", "enabled"]

    def has_changed(self) -> bool:
        """A row that was added and left as it was proposed is meant: else it would be dropped without a word."""
        return super().has_changed() or self.instance._state.adding

    def clean_cron(self) -> str:
        cron = " ".join(self.cleaned_data["cron"].split())
        try:
            schedule.validate(cron)
        except DomainError as error:
            raise forms.ValidationError(f"{error.message} {error.hint}") from error
        return cron


class ScheduleInline(ScopedInline):
    model = Schedule
    form = ScheduleForm
    hide_title = True
    fields: ClassVar = ["cron", "mode", "enabled", "in_words", "next_run"]
    readonly_fields: ClassVar = ["in_words", "next_run"]

    @display(description=gettext_lazy("in words"))
    def in_words(self, one: Schedule) -> str:
        return schedule.describe(one.cron) if one.cron else "–"

    @display(description=gettext_lazy("next run"))
    def next_run(self, one: Schedule) -> SafeString | str:
        if one._state.adding or not one.enabled or not one.policy.enabled:
            return "–"
        return look.ago(schedule.next_run(one.cron, one.policy.time_zone, timezone.now()))


class RuleForm(ScopedForm):
    class Meta:
        model = AssignmentRule
        fields = ["by", "pattern"]


class RuleInline(ScopedInline):
    """Rules reach for all machines of the tenant, so it takes the right to configure all of it."""

    model = AssignmentRule
    form = RuleForm
    fields: ClassVar = ["by", "pattern"]
    verbose_name_plural = gettext_lazy("Which machines, by themselves")

    def _may(self, request: HttpRequest, obj: Any, right: Right) -> bool:
        if obj is None or obj._state.adding or right is Right.VIEW:
            return super()._may(request, obj, right)
        return access.can(request.user, right, obj.tenant)


def _has_machines(request: HttpRequest) -> bool:
    return access.visible(request.user, Platform).filter(kind__in=MACHINES).exists()


class PolicyForm(ScopedForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in {"command_before", "command_after"} & self.fields.keys():
            self.fields[name].widget.attrs["rows"] = 3
        if (staging := self.fields.get("staging")) is not None:
            staging.label = _("How")
            staging.widget.choices = [
                (Staging.STREAM, _("Store while reading")),
                (Staging.DISK, _("Copy to the node first")),
            ]
            staging.help_text = _(
                "Copied first, a snapshot of the source lives shortly; the node needs the room for it."
            )

    def clean_time_zone(self) -> str:
        try:
            schedule.zone(self.cleaned_data["time_zone"])
        except DomainError as error:
            raise forms.ValidationError(f"{error.message} {error.hint}") from error
        return self.cleaned_data["time_zone"]


def _run_all(request: HttpRequest, policy: Policy, _data: dict[str, Any]) -> str:
    covered = access.visible(request.user, Workload).filter(assignment__policy=policy, excluded=False)
    for workload in covered:
        requests.backup_now(request.user, workload)
    return reverse("admin:jobs_job_changelist")


def _expire(request: HttpRequest, policy: Policy, _data: dict[str, Any]) -> str:
    requests.apply_retention(request.user, policy)
    return reverse("admin:jobs_job_changelist")


def _expire_counts(policy: Policy) -> str:
    count = expiry.would_go(policy, timezone.now())
    return (
        ngettext("%d restore point will be removed for good.", "%d restore points will be removed for good.", count)
        % count
    )


_COMMANDS = (
    gettext_lazy("Commands around the snapshot"),
    {
        "fields": (
            "command_before",
            "command_after",
            "command_where",
            ("command_limit_s", "command_accepts"),
            "command_on_error",
        ),
        "description": gettext_lazy(
            "For applications that should be at rest when the snapshot is taken. Each command finds the machine's name "
            "in BRS_MACHINE and its id in BRS_MACHINE_ID. What it prints is in the job's log. Owners set them."
        ),
    },
)


@admin.register(Policy)
class PolicyAdmin(GrantedAdmin):
    form = PolicyForm
    inlines: ClassVar = [ScheduleInline]
    empty = Empty(
        icon="event_repeat",
        text=gettext_lazy(
            "There is no policy yet. A policy says when backups run, where they are kept and for how long."
        ),
        action=gettext_lazy("Add a policy"),
        url="admin:policies_policy_add",
    )
    list_display: ClassVar = ["name", "when", "how_long", "destination", "used_by", "on", "tenant"]
    list_filter: ClassVar = ["enabled", "destination", "tenant"]
    list_select_related: ClassVar = ["destination", "tenant"]
    search_fields: ClassVar = ["name", "destination__name"]
    change_form_template = "brs/policy.html"
    add_form_template = "brs/policy.html"
    fieldsets = (
        (None, {"fields": ("tenant", "name", "enabled")}),
        (gettext_lazy("When"), {"fields": (("time_zone", "start_window_minutes"), ("objective_hours", "priority"))}),
        (
            gettext_lazy("How long"),
            {
                "fields": (
                    ("keep_last", "keep_hourly", "keep_daily"),
                    ("keep_weekly", "keep_monthly", "keep_yearly"),
                    "keep_within_days",
                ),
                "description": gettext_lazy(
                    "How many points are kept of each kind. The newest good one and held ones always stay."
                ),
            },
        ),
        (gettext_lazy("Where to"), {"fields": ("destination", ("staging", "bandwidth_mib_s"), "list_files")}),
    )
    verbs: ClassVar = {
        "run": Verb(
            label=gettext_lazy("Run now"),
            icon="backup",
            right=Right.OPERATE,
            run=_run_all,
            question=gettext_lazy("Every workload of this policy is backed up now."),
            done=gettext_lazy("The backups were started."),
        ),
        "expire": Verb(
            label=gettext_lazy("Remove expired now"),
            icon="auto_delete",
            right=Right.DELETE,
            run=_expire,
            question=gettext_lazy("Restore points that the rules do not keep are removed now, not at the full hour."),
            consequence=_expire_counts,
            done=gettext_lazy("Looked for expired points; the jobs that remove them are in the list."),
            danger=True,
            when=lambda policy: policy.enabled,
        ),
    }

    def get_inlines(self, request: HttpRequest, obj: Any) -> list[Any]:
        """Rules only where there are machines that they could match."""
        return [*super().get_inlines(request, obj), *([RuleInline] if _has_machines(request) else [])]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        machines = (_("Machines"), {"fields": ("backup_new", "freeze", "freeze_limit_s")})
        title, about = _COMMANDS
        unused = obj is None or commands.of(obj) is None  # few policies have any
        about = {**about, "classes": ("collapse",) if unused else ()}
        return [*super().get_fieldsets(request, obj), *([machines] if _has_machines(request) else []), (title, about)]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        fixed = super().get_readonly_fields(request, obj)
        tenant = obj.tenant if obj is not None and not obj._state.adding else None
        return [*fixed, *(() if commands.may_set(request.user, tenant) else commands.FIELDS)]

    def save_model(self, request: HttpRequest, obj: Policy, form: forms.ModelForm, change: bool) -> None:
        """Also for a tenant that is chosen with the form."""
        before = Policy.objects.get(pk=obj.pk) if change else None
        commands.require_right(request.user, obj.tenant, before, form.cleaned_data)
        super().save_model(request, obj, form, change)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).annotate(covered=Count("assignments")).prefetch_related("schedules")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {**super().get_changeform_initial_data(request), "time_zone": request.user.time_zone or "UTC"}

    def get_formset_kwargs(self, request: HttpRequest, obj: Any, inline: Any, prefix: str) -> dict[str, Any]:
        kwargs = super().get_formset_kwargs(request, obj, inline, prefix)
        if obj is not None and obj._state.adding and request.method == "GET":
            kwargs["initial"] = [{"cron": "0 22 * * *"}]
        return kwargs

    def save_related(self, request: HttpRequest, form: forms.Form, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        objectives.refresh_policy(form.instance)
        objectives.refresh(rules.apply(form.instance.tenant))

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> Any:
        home = access.tenants(request.user, Right.CONFIGURE).first()
        extra = {"with_rules": _has_machines(request), "home": home.pk if home else "", **(extra_context or {})}
        return super().add_view(request, form_url, extra)

    def page_context(self, request: HttpRequest, obj: Policy) -> dict[str, Any]:
        covered = access.visible(request.user, Workload).filter(assignment__policy=obj).select_related("protection")
        return {
            "covered": covered[:COVERED],
            "covered_count": covered.count(),
            "with_rules": _has_machines(request),
            "home": obj.tenant_id,
            "subtitle": str(obj.destination),
        }

    @display(description=gettext_lazy("when"))
    def when(self, policy: Policy) -> str:
        words = [schedule.describe(one.cron) for one in policy.schedules.all() if one.enabled]
        return "; ".join(words) or _("by hand only")

    @display(description=gettext_lazy("keeps"))
    def how_long(self, policy: Policy) -> str:
        counts = [
            (policy.keep_last, _("%d last")),
            (policy.keep_hourly, _("%d hourly")),
            (policy.keep_daily, _("%d daily")),
            (policy.keep_weekly, _("%d weekly")),
            (policy.keep_monthly, _("%d monthly")),
            (policy.keep_yearly, _("%d yearly")),
        ]
        return ", ".join(word % count for count, word in counts if count) or _("everything")

    @display(description=gettext_lazy("used by"), ordering="covered")
    def used_by(self, policy: Policy) -> str:
        return ngettext("%d workload", "%d workloads", policy.covered) % policy.covered

    @display(description=gettext_lazy("state"), ordering="enabled")
    def on(self, policy: Policy) -> SafeString:
        return look.badge("ready", _("On")) if policy.enabled else look.badge("paused", _("Off"))
