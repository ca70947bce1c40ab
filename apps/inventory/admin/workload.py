# ruff: noqa: ARG002  the signatures are Django's
"""Workloads: the list that answers "are we protected?", the page of one, and acts on many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin.filters import SimpleListFilter
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from unfold.decorators import display

from apps import display as look
from apps.catalog.models import CopyState, Protection, ProtectionState, RestorePoint
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_bulk import BulkActs
from apps.iam.admin_grants import GrantedAdmin
from apps.iam.admin_scope import Empty, Verb
from apps.inventory import exclusion, sources
from apps.inventory.admin.workload_forms import MachineForm, ReasonForm, WorkloadForm, policy_form
from apps.inventory.models import Workload
from apps.jobs import objectives, requests, traces
from apps.jobs.models import OPEN, Job, JobKind, State
from apps.policies import assignment
from apps.policies.models import Policy
from apps.reports import figures, timeline

RUNS = 10
SHOWN_RUNS = (JobKind.BACKUP, JobKind.RESTORE, JobKind.REMOVE_TRACES)


class StateFilter(SimpleListFilter):
    title = gettext_lazy("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [*ProtectionState.choices, ("late", _("Missed its objective"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Workload]) -> QuerySet[Workload]:
        value = self.value()
        if value == "late":
            rows = access.visible(request.user, Protection)
            now = timezone.now()
            return queryset.filter(pk__in=[row.pk for row in rows if figures.is_late(row, now)])
        if value == ProtectionState.UNPROTECTED:  # nothing has looked at it yet: no row
            return queryset.filter(Q(protection__state=value) | Q(protection=None))
        return queryset.filter(protection__state=value) if value else queryset


class PolicyFilter(SimpleListFilter):
    title = gettext_lazy("policy")
    parameter_name = "policy"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        own = [(str(policy.pk), policy.name) for policy in access.visible(request.user, Policy)[:200]]
        return [("none", _("No policy")), *own]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Workload]) -> QuerySet[Workload]:
        value = self.value()
        if value == "none":
            return queryset.filter(assignment=None, excluded=False)
        known = {key for key, _name in self.lookup_choices}
        return queryset.filter(assignment__policy_id=value) if value in known else queryset


def _exclude(request: HttpRequest, workloads: Iterable[Workload], data: dict[str, Any]) -> int:
    changed = exclusion.exclude(request.user, workloads, data["reason"], request=request)
    objectives.refresh(workloads)
    return changed


def _include(request: HttpRequest, workloads: Iterable[Workload], _data: dict[str, Any]) -> int:
    changed = exclusion.include(request.user, workloads, request=request)
    objectives.refresh(workloads)
    return changed


def _back_up(request: HttpRequest, workloads: Iterable[Workload], _data: dict[str, Any]) -> int:
    return len([requests.backup_now(request.user, workload) for workload in workloads])


def _assign(request: HttpRequest, workloads: Iterable[Workload], data: dict[str, Any]) -> int:
    changed = assignment.assign(request.user, workloads, data["policy"])
    objectives.refresh(workloads)
    return changed


def _act(url: str, icon: str, label: str, *, dialog: bool = True) -> SafeString:
    return format_html(
        '<a class="brs-button brs-slim" href="{}" title="{}" aria-label="{}"{}>'
        '<span class="material-symbols-outlined" aria-hidden="true">{}</span></a>',
        url, label, label, SafeString(" data-dialog") if dialog else "", icon,
    )  # fmt: skip


def _none(act: Callable[..., Any]) -> Callable[..., None]:
    """An act on many, for one."""

    def run(request: HttpRequest, workload: Workload, data: dict[str, Any]) -> None:
        act(request, [workload], data)

    return run


@admin.register(Workload)
class WorkloadAdmin(BulkActs, GrantedAdmin):
    form = WorkloadForm
    empty = Empty(
        icon="shield",
        text=gettext_lazy(
            "Nothing is protected yet. A workload is one thing you protect: a folder tree or a disk image."
        ),
        action=gettext_lazy("Protect something"),
        url="admin:protect",
    )
    list_display: ClassVar = ["state", "name", "platform", "policy", "last_good", "next_run", "size", "acts"]
    list_display_links: ClassVar = ["name"]
    list_filter: ClassVar = [StateFilter, PolicyFilter, "platform", "tenant"]
    list_select_related: ClassVar = ["platform", "protection", "assignment__policy", "tenant"]
    search_fields: ClassVar = ["name", "platform__name"]
    fields: ClassVar = ["name", "policy", "paths", "excludes"]
    actions: ClassVar = ["back_up_many", "assign_many", "exclude_many", "include_many"]
    change_form_template = "brs/workload.html"
    list_before_template = "brs/list_before.html"
    verbs: ClassVar = {
        "backup": Verb(
            label=gettext_lazy("Back up now"),
            icon="backup",
            right=Right.OPERATE,
            primary=True,
            run=lambda request, workload, _data: requests.backup_now(request.user, workload),
            question=gettext_lazy("Only what has changed since the last backup is read and stored."),
            when=lambda workload: not workload.excluded,
        ),
        "full": Verb(
            label=gettext_lazy("Full backup"),
            icon="sync",
            right=Right.OPERATE,
            run=lambda request, workload, _data: requests.backup_now(request.user, workload, full=True),
            question=gettext_lazy("Reads everything again and trusts nothing remembered. Stored is only what is new."),
            when=lambda workload: not workload.excluded,
        ),
        "remove-traces": Verb(
            label=gettext_lazy("Remove kept snapshots"),
            icon="delete_sweep",
            right=Right.OPERATE,
            run=lambda request, workload, _data: requests.remove_traces(
                request.user, workload, traces.of_backups(workload)
            ),
            question=gettext_lazy(
                "What backups keep on its platform for the next one (checkpoints, bitmaps, snapshots) is removed; then "
                "its owner can delete an image in Ceph. No restore point is lost; the next backup reads everything."
            ),
            when=lambda workload: bool(traces.of_backups(workload)),
        ),
        "exclude": Verb(
            label=gettext_lazy("Exclude"),
            icon="block",
            right=Right.CONFIGURE,
            run=_none(_exclude),
            form=lambda _request, _workload: ReasonForm,
            question=gettext_lazy("It is not backed up any more and not counted as unprotected. Its points stay."),
            done=gettext_lazy("The workload is excluded."),
            when=lambda workload: not workload.excluded,
        ),
        "include": Verb(
            label=gettext_lazy("Protect again"),
            icon="shield",
            right=Right.CONFIGURE,
            run=_none(_include),
            question=gettext_lazy("It is backed up again by its policy."),
            done=gettext_lazy("The workload is protected again."),
            when=lambda workload: workload.excluded,
        ),
    }

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        return HttpResponseRedirect(reverse("admin:protect"))

    def get_form(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> type[forms.ModelForm]:
        if obj is not None and obj.platform.holds_machines:
            kwargs["form"] = MachineForm
        form = super().get_form(request, obj, **kwargs)
        if obj is not None and "policy" in form.base_fields:
            form.base_fields["policy"].queryset = access.visible(request.user, Policy).filter(tenant=obj.tenant)
        return form

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is not None and not self.has_change_permission(request, obj):
            return ((None, {"fields": ("name", "source")}),)
        if obj is not None and obj.platform.holds_machines:
            return ((None, {"fields": ("name", "policy", "disks", "freeze", "freeze_limit_s")}),)
        return super().get_fieldsets(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return []

    def save_model(self, request: HttpRequest, obj: Any, form: forms.Form, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if "policy" in form.cleaned_data:
            _assign(request, [obj], form.cleaned_data)

    def response_change(self, request: HttpRequest, obj: Any) -> HttpResponse:
        self.message_user(request, _("The changes were saved."))
        return HttpResponseRedirect(request.path)

    def page_context(self, request: HttpRequest, obj: Workload) -> dict[str, Any]:
        now = timezone.now()
        shown = RestorePoint.objects.filter(workload=obj).exclude(copies__state=CopyState.EXPIRED)
        points = list(shown.prefetch_related("copies__repository__destination").order_by("-taken_at")[: timeline.SHOWN])
        runs = access.visible(request.user, Job).filter(workload=obj, kind__in=SHOWN_RUNS)
        row = getattr(obj, "protection", None)
        return {
            "row": row,
            "state": row.state if row else ProtectionState.UNPROTECTED,
            "late": bool(row and figures.is_late(row, now)),
            "policy": assignment.policy_of(obj),
            "points": points,
            "line": timeline.build(points, now, request.GET.get("zoom", "")) if points else None,
            "runs": runs.order_by("-created_at")[:RUNS],
            "active": runs.filter(state__in=OPEN).order_by("-created_at").first(),
            "disks": obj.facts.get("disks", []),
            "kept": obj.traces.all() if obj.external_id else [],
            "unprotectable": sources.unprotectable(obj),
            "may_restore": access.can(request.user, Right.RESTORE_ELSEWHERE, obj),
            "subtitle": str(obj.platform),
        }

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return self._may(request, Right.OPERATE)

    def has_configure_permission(self, request: HttpRequest) -> bool:
        return self._may(request, Right.CONFIGURE)

    # --- columns ---

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        columns = super().get_list_display(request)
        return columns if self.has_operate_permission(request) else [one for one in columns if one != "acts"]

    @display(description="")
    def acts(self, workload: Workload) -> SafeString:
        """What is asked for most, one click from the list."""
        row = getattr(workload, "protection", None)
        back_up = restore = SafeString()
        if not workload.excluded:
            back_up = _act(
                reverse("admin:inventory_workload_do", args=[workload.pk, "backup"]), "backup", _("Back up now")
            )
        if row and (row.last_good_at or row.last_run_outcome == State.PARTIAL):
            address = f"{reverse('admin:restore_new')}?workload={workload.pk}"
            restore = _act(address, "settings_backup_restore", _("Restore"), dialog=False)
        return format_html('<span class="brs-acts">{}{}</span>', back_up, restore)

    @display(description=gettext_lazy("state"), ordering="protection__state")
    def state(self, workload: Workload) -> SafeString:
        row = getattr(workload, "protection", None)
        return look.badge(row.state if row else ProtectionState.UNPROTECTED)

    @display(description=gettext_lazy("policy"), ordering="assignment__policy__name")
    def policy(self, workload: Workload) -> str:
        covered = getattr(workload, "assignment", None)
        return covered.policy.name if covered else "–"

    @display(description=gettext_lazy("last good backup"), ordering=F("protection__last_good_at").desc(nulls_last=True))
    def last_good(self, workload: Workload) -> SafeString:
        row = getattr(workload, "protection", None)
        if row is None or row.last_good_at is None:
            return look.ago(None)
        words = look.ago(row.last_good_at)
        if not row.objective_hours:
            return words
        age_h = (timezone.now() - row.last_good_at).total_seconds() / 3600
        tone = "bad" if age_h > row.objective_hours else "ok"
        label = _("%(share)d %% of its objective of %(hours)d h") % {
            "share": round(100 * age_h / row.objective_hours),
            "hours": row.objective_hours,
        }
        return format_html(
            '<span class="brs-age">{}{}</span>', words, look.bar(age_h, row.objective_hours, tone, label)
        )

    @display(description=gettext_lazy("next run"), ordering="protection__next_run_at")
    def next_run(self, workload: Workload) -> SafeString:
        row = getattr(workload, "protection", None)
        at = row.next_run_at if row else None
        return look.ago(at) if at else format_html('<span class="brs-faint">{}</span>', _("by hand only"))

    @display(description=gettext_lazy("size"), ordering="protection__size_bytes")
    def size(self, workload: Workload) -> SafeString:
        row = getattr(workload, "protection", None)
        return look.size(row.size_bytes) if row and row.size_bytes else SafeString("–")

    # --- acts on many: a page that says what will happen, then one call ---

    @admin.action(description=gettext_lazy("Back up now"), permissions=["operate"])
    def back_up_many(self, request: HttpRequest, queryset: QuerySet[Workload]) -> HttpResponse | None:
        words = {
            "title": _("Back up now"),
            "question": ngettext("%d workload", "%d workloads", queryset.count()) % queryset.count(),
            "done": _("Backups started: %d"),
        }
        return self.bulk(request, queryset, "back_up_many", _back_up, words)

    @admin.action(description=gettext_lazy("Assign a policy"), permissions=["configure"])
    def assign_many(self, request: HttpRequest, queryset: QuerySet[Workload]) -> HttpResponse | None:
        words = {
            "title": _("Assign a policy"),
            "question": _("From now on these workloads are backed up, and their points kept, as the policy says."),
            "done": _("Workloads changed: %d"),
        }
        return self.bulk(request, queryset, "assign_many", _assign, words, policy_form(request))

    @admin.action(description=gettext_lazy("Exclude"), permissions=["configure"])
    def exclude_many(self, request: HttpRequest, queryset: QuerySet[Workload]) -> HttpResponse | None:
        words = {
            "title": _("Exclude from protection"),
            "question": _("They are not backed up any more and not counted as unprotected. Their points stay."),
            "done": _("Workloads excluded: %d"),
        }
        return self.bulk(request, queryset, "exclude_many", _exclude, words, ReasonForm)

    @admin.action(description=gettext_lazy("Protect again"), permissions=["configure"])
    def include_many(self, request: HttpRequest, queryset: QuerySet[Workload]) -> HttpResponse | None:
        words = {
            "title": _("Protect again"),
            "question": _("They are backed up again by their policies."),
            "done": _("Workloads protected again: %d"),
        }
        return self.bulk(request, queryset, "include_many", _include, words)
