# ruff: noqa: ARG002  the signatures are Django's
"""Restore points: the list, and the page of one with its copies, what was left out and what may be done with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin.filters import SimpleListFilter
from django.db.models import QuerySet, Sum
from django.http import HttpRequest
from django.urls import reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from apps import display as look
from apps.catalog.models import CopyState, RestorePoint
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_scope import Empty, ReadOnlyAdmin, Verb
from apps.jobs import requests
from apps.jobs.models import Job
from apps.reports import timeline


class CopyFilter(SimpleListFilter):
    title = gettext_lazy("copies")
    parameter_name = "copy"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [("hurt", _("Damaged or missing")), ("gone", _("Removed"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[RestorePoint]) -> QuerySet[RestorePoint]:
        if self.value() == "hurt":
            return queryset.filter(copies__state__in=(CopyState.DAMAGED, CopyState.MISSING)).distinct()
        if self.value() == "gone":
            return queryset.filter(copies__state=CopyState.EXPIRED).distinct()
        return queryset.exclude(copies__state=CopyState.EXPIRED)


class HoldForm(forms.Form):
    reason = forms.CharField(label=gettext_lazy("Why"), max_length=300, widget=UnfoldAdminTextInputWidget)


def _delete(request: HttpRequest, point: RestorePoint, data: dict[str, Any]) -> Job:
    return requests.delete_point(request.user, point, data["typed_name"])


def _lost(point: RestorePoint) -> str:
    stored = point.copies.aggregate(total=Sum("stored_bytes"))["total"] or 0
    return _("This state of “%(name)s” cannot be restored any more. About %(size)s become free.") % {
        "name": point.workload,
        "size": look.size_text(stored),
    }


def _is_usable(point: RestorePoint) -> bool:
    return point.copies.filter(state=CopyState.PRESENT).exists()


def _may_go(point: RestorePoint) -> bool:
    """Also one that is damaged or missing: while it stays in the catalogue, no space is reclaimed."""
    return point.copies.exclude(state__in=(CopyState.EXPIRING, CopyState.EXPIRED)).exists()


@admin.register(RestorePoint)
class RestorePointAdmin(ReadOnlyAdmin):
    empty = Empty(
        icon="history",
        text=gettext_lazy("There is no restore point yet. Every backup makes one."),
        action=gettext_lazy("Go to the workloads"),
        url="admin:inventory_workload_changelist",
    )
    list_display: ClassVar = ["taken", "workload", "shown_outcome", "kind", "changed", "stored", "size", "held"]
    list_display_links: ClassVar = ["taken"]
    list_filter: ClassVar = ["outcome", CopyFilter, "hold", "taken_at", "workload", "tenant"]
    list_select_related: ClassVar = ["workload", "tenant"]
    search_fields: ClassVar = ["workload__name", "copies__snapshot_id"]
    date_hierarchy = None
    change_form_template = "brs/point.html"
    verbs: ClassVar = {
        "hold": Verb(
            label=gettext_lazy("Hold"),
            icon="lock",
            right=Right.OPERATE,
            run=lambda request, point, data: requests.hold(request.user, point, data["reason"]) and None,
            form=lambda _request, _point: HoldForm,
            question=gettext_lazy("Nothing removes a held point: no retention rule and no deletion by hand."),
            done=gettext_lazy("The restore point is held."),
            when=lambda point: not point.hold,
        ),
        "unhold": Verb(
            label=gettext_lazy("End the hold"),
            icon="lock_open",
            right=Right.OPERATE,
            run=lambda request, point, _data: requests.unhold(request.user, point) and None,
            question=gettext_lazy("From now on the policy's retention decides about it again."),
            done=gettext_lazy("The hold has ended."),
            when=lambda point: point.hold,
        ),
        "delete": Verb(
            label=gettext_lazy("Delete"),
            icon="delete",
            right=Right.DELETE,
            danger=True,
            typed_name=lambda point: str(point.workload),
            run=_delete,
            consequence=_lost,
            when=lambda point: not point.hold and _may_go(point),
        ),
    }

    def page_context(self, request: HttpRequest, obj: RestorePoint) -> dict[str, Any]:
        may = access.can(request.user, Right.RESTORE_ELSEWHERE, obj) and _is_usable(obj)
        return {
            "state": "damaged" if timeline.is_hurt(obj) else obj.outcome,
            "copies": obj.copies.select_related("repository__destination"),
            "restore_url": f"{reverse('admin:restore_new')}?point={obj.pk}" if may else "",
            "left_out": [row for row in obj.left_out if not row.get("note")][:200],
            "notes": [row for row in obj.left_out if row.get("note")][:200],
            "jobs": access.visible(request.user, Job).filter(restore_point=obj).order_by("-created_at")[:8],
            "title": str(obj.workload),
            "subtitle": look.exact(obj.taken_at),
        }

    @display(description=gettext_lazy("taken"), ordering="taken_at")
    def taken(self, point: RestorePoint) -> SafeString:
        return look.moment(point.taken_at)

    @display(description=gettext_lazy("outcome"), ordering="outcome")
    def shown_outcome(self, point: RestorePoint) -> SafeString:
        return look.badge(point.outcome)

    @display(description=gettext_lazy("kind"), ordering="incremental")
    def kind(self, point: RestorePoint) -> str:
        return _("incremental") if point.incremental else _("full read")

    @display(description=gettext_lazy("changed"), ordering="new_bytes")
    def changed(self, point: RestorePoint) -> SafeString:
        return look.size(point.new_bytes)

    @display(description=gettext_lazy("stored"))
    def stored(self, point: RestorePoint) -> SafeString:
        return look.size(sum(copy.stored_bytes for copy in point.copies.all()))

    @display(description=gettext_lazy("size"), ordering="size_bytes")
    def size(self, point: RestorePoint) -> SafeString:
        return look.size(point.size_bytes)

    @display(description=gettext_lazy("held"), ordering="hold")
    def held(self, point: RestorePoint) -> SafeString | str:
        return look.badge("held") if point.hold else "–"

    def get_queryset(self, request: HttpRequest) -> QuerySet[RestorePoint]:
        return super().get_queryset(request).prefetch_related("copies")
