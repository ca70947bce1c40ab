# ruff: noqa: ARG002  the signatures are Django's
"""Kept snapshots: what backups left on platforms, whose it is, what needs it, and its removal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin.filters import SimpleListFilter
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import UnfoldBooleanSwitchWidget

from apps import display as look
from apps.catalog import traces
from apps.catalog.models import Trace
from apps.errors import DomainError
from apps.iam.access import Right
from apps.iam.admin_bulk import BulkActs
from apps.iam.admin_scope import Empty, ReadOnlyAdmin, Verb
from apps.inventory.models import Workload
from apps.jobs import requests
from apps.jobs.models import Job

SHOWN = 3


class NeedFilter(SimpleListFilter):
    title = gettext_lazy("needed")
    parameter_name = "needed"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [("no", _("By nothing")), ("yes", _("By the next backup"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Trace]) -> QuerySet[Trace]:
        wanted = {"no": queryset.filter(traces.not_needed()), "yes": queryset.exclude(traces.not_needed())}
        return wanted.get(self.value() or "", queryset)


class NobodyElseForm(forms.Form):
    nobody_else = forms.BooleanField(
        label=gettext_lazy("No other BRS server protects this machine"), widget=UnfoldBooleanSwitchWidget
    )


def state_of(trace: Trace) -> str:
    if trace.problem:
        return "problem"
    if trace.repository_id is None:
        return "foreign"
    return "unneeded" if trace.unneeded_since or not trace.by_backup else "needed"


def why(trace: Trace) -> str:
    """One sentence for the operator."""
    if trace.problem:
        return _("It could not be removed: %(why)s") % {"why": trace.problem}
    if trace.repository_id is None:
        return _("It bears the mark of a BRS repository that is not known here.")
    if not trace.by_backup:
        return _("It was found there, and no backup of this machine made it: perhaps the machine is a copy.")
    if trace.unneeded_since:
        return _("No schedule needs it any more; it is removed within the hour.")
    return _("The next backup reads only what has changed since.")


def shown(trace: Trace) -> SafeString:
    """The names there; a few of them."""
    if not trace.names:
        return format_html('<span class="brs-faint">{}</span>', _("not told yet"))
    more = len(trace.names) - SHOWN
    words = ", ".join(trace.names[:SHOWN]) + (_(" and %d more") % more if more > 0 else "")
    return format_html('<span class="brs-mono brs-wrap" title="{}">{}</span>', "\n".join(trace.names), words)


def _remove(request: HttpRequest, trace: Trace, _data: dict[str, Any]) -> Job:
    return requests.remove_traces(request.user, trace.workload, [trace])


def remove_all(request: HttpRequest, rows: Sequence[Trace], _data: dict[str, Any]) -> int:
    """One job a workload; those that refuse are named, the others are done."""
    by_workload: dict[Workload, list[Trace]] = {}
    for row in rows:
        by_workload.setdefault(row.workload, []).append(row)
    started = 0
    for workload, mine in by_workload.items():
        try:
            requests.remove_traces(request.user, workload, mine)
        except DomainError as error:
            admin.site._registry[Trace].message_user(request, f"{workload}: {error.message} {error.hint}", "warning")
        else:
            started += 1
    return started


@admin.register(Trace)
class TraceAdmin(BulkActs, ReadOnlyAdmin):
    list_title = gettext_lazy("Kept snapshots")
    empty = Empty(
        icon="photo_camera",
        text=gettext_lazy(
            "Nothing is kept on any platform. Backups of machines leave a checkpoint or a snapshot there, so that the "
            "next one reads only what has changed."
        ),
        action=gettext_lazy("Go to the platforms"),
        url="admin:inventory_platform_changelist",
    )
    list_display: ClassVar = ["state", "workload", "platform", "kept", "reason", "seen"]
    list_display_links: ClassVar = ["workload"]
    list_filter: ClassVar = [NeedFilter, "workload__platform"]
    list_select_related: ClassVar = ["workload__platform", "repository"]
    search_fields: ClassVar = ["workload__name", "owner"]
    fields: ClassVar = ["state", "workload", "platform", "kept", "reason", "seen"]
    readonly_fields: ClassVar = ["state", "platform", "kept", "reason", "seen"]
    actions: ClassVar = ["remove_many"]
    change_form_template = "brs/facts_page.html"
    verbs: ClassVar = {
        "remove": Verb(
            label=gettext_lazy("Remove"),
            icon="delete",
            right=Right.OPERATE,
            run=_remove,
            question=gettext_lazy(
                "It is removed from the platform. No restore point is lost; the machine's next backup reads everything."
            ),
            when=lambda trace: trace.repository_id is not None,
        ),
        "remove-unknown": Verb(
            label=gettext_lazy("Remove"),
            icon="delete",
            right=Right.CONFIGURE,
            danger=True,
            run=_remove,
            form=lambda _request, _trace: NobodyElseForm,
            question=gettext_lazy(
                "This server did not make it. Should another BRS server protect this machine, its next backup has to "
                "read everything. Restore points are not touched."
            ),
            when=lambda trace: trace.repository_id is None,
        ),
    }

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return self._may(request, Right.OPERATE)

    @admin.action(description=gettext_lazy("Remove"), permissions=["operate"])
    def remove_many(self, request: HttpRequest, queryset: QuerySet[Trace]) -> HttpResponse | None:
        words = {
            "title": _("Remove kept snapshots"),
            "question": _(
                "They are removed from their platforms. No restore point is lost; the machines' next backups read "
                "everything. What bears an unknown mark may be another BRS server's: then its next backup does."
            ),
            "done": _("Removals started: %d"),
        }
        return self.bulk(request, queryset, "remove_many", remove_all, words)

    @display(description=gettext_lazy("state"))
    def state(self, trace: Trace) -> SafeString:
        return look.badge(state_of(trace))

    @display(description=gettext_lazy("platform"), ordering="workload__platform__name")
    def platform(self, trace: Trace) -> str:
        return str(trace.workload.platform)

    @display(description=gettext_lazy("what is kept"))
    def kept(self, trace: Trace) -> SafeString:
        return shown(trace)

    @display(description=gettext_lazy("why"))
    def reason(self, trace: Trace) -> str:
        return why(trace)

    @display(description=gettext_lazy("seen"), ordering="told_at")
    def seen(self, trace: Trace) -> SafeString:
        return look.ago(trace.told_at)
