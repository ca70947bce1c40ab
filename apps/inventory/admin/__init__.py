# ruff: noqa: ARG002  the signatures are Django's
"""Inventory: platforms, destinations, repositories. Nodes and workloads have modules of their own beside it."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import Sum
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldBooleanSwitchWidget,
)

from apps import display as look
from apps.catalog.models import CopyState, PointCopy
from apps.errors import DomainError
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_grants import GrantedAdmin
from apps.iam.admin_scope import Empty, ReadOnlyAdmin, ScopedForm, Verb, address
from apps.inventory import repositories, sources
from apps.inventory.admin import node, workload
from apps.inventory.models import Destination, Node, Platform, Repository, RepositoryState
from apps.jobs import requests
from apps.jobs.models import Job
from apps.reports import figures, first_run

RECENT = 8

__all__ = ["node", "workload"]  # these register their pages


@admin.register(Platform)
class PlatformAdmin(GrantedAdmin):
    empty = Empty(
        icon="lan",
        text=gettext_lazy(
            "There is no platform yet. A platform is a system you protect; the first workload on a node brings its own."
        ),
        action=gettext_lazy("Protect something"),
        url="admin:protect",
    )
    list_display: ClassVar = ["name", "kind", "node", "workload_count", "tenant"]
    list_filter: ClassVar = ["kind", "node", "tenant"]
    list_select_related: ClassVar = ["node", "tenant"]
    search_fields: ClassVar = ["name", "node__name"]
    fields: ClassVar = ["tenant", "name", "kind", "node"]
    change_form_template = "brs/object_page.html"
    verbs: ClassVar = {
        "test": Verb(
            label=gettext_lazy("Test the connection"),
            icon="network_check",
            right=Right.OPERATE,
            run=lambda request, platform, _data: requests.test_platform(request.user, platform),
            question=gettext_lazy("The node looks whether it can reach and read this platform. Nothing is changed."),
        )
    }

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), *(["kind", "node"] if obj else [])]

    @display(description=gettext_lazy("workloads"))
    def workload_count(self, platform: Platform) -> int:
        return platform.workloads.count()


class DestinationForm(ScopedForm):
    class Meta:
        model = Destination
        fields = ["tenant", "name", "nodes", "path"]

    def clean_path(self) -> str:
        try:
            return sources.clean_path(self.cleaned_data["path"])
        except DomainError as error:
            raise forms.ValidationError(f"{error.message} {error.hint}") from error


@admin.register(Destination)
class DestinationAdmin(GrantedAdmin):
    form = DestinationForm
    empty = Empty(
        icon="hard_drive",
        text=gettext_lazy("There is no destination yet. A destination is the place where backups are kept, encrypted."),
        action=gettext_lazy("Add a destination"),
        url="admin:inventory_destination_add",
    )
    list_display: ClassVar = ["state", "name", "path", "fill", "reached_by", "tested", "tenant"]
    list_display_links: ClassVar = ["name"]
    list_filter: ClassVar = ["kind", "nodes", "tenant"]
    list_select_related: ClassVar = ["tenant"]
    search_fields: ClassVar = ["name", "path"]
    fields: ClassVar = ["tenant", "name", "nodes", "path"]
    change_form_template = "brs/destination.html"
    add_form_template = "brs/destination_add.html"
    verbs: ClassVar = {
        "test": Verb(
            label=gettext_lazy("Test"),
            icon="network_check",
            right=Right.OPERATE,
            run=lambda request, destination, _data: requests.test_destination(request.user, destination),
            question=gettext_lazy("A node looks whether it can write there, and how much room is left."),
        )
    }

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("nodes")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        used = obj is not None and obj.repositories.exclude(state=RepositoryState.NEW).exists()
        # The folder of a repository that holds backups cannot be renamed here: they would not be found.
        return [*super().get_readonly_fields(request, obj), *(["path"] if used else [])]

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> forms.Field | None:
        field = super().formfield_for_manytomany(db_field, request, **kwargs)
        if field is not None:
            field.widget = UnfoldAdminCheckboxSelectMultipleWidget(choices=field.choices)
            field.help_text = _("The nodes on which this folder exists.")
        return field

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> forms.Field | None:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "nodes" and hasattr(field.widget, "widget"):
            field.widget = field.widget.widget  # nodes are enrolled, not added from here
        return field

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        nodes = access.visible(request.user, Node).exclude(enrolled_at=None)
        roots = {str(node.pk): (node.roots or {}).get("repositories", []) for node in nodes}
        extra = {"roots": roots, "nodes": nodes, **(extra_context or {})}
        return super().add_view(request, form_url, extra)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        first_run.home(request.user)
        nodes = list(access.visible(request.user, Node).exclude(enrolled_at=None)[:2])
        if len(nodes) != 1:
            return {}
        folders = (nodes[0].roots or {}).get("repositories") or [""]
        return {"nodes": [nodes[0].pk], "path": folders[0], "name": _("Backups on %s") % nodes[0].name}

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        self.message_user(request, _("The destination “%s” was added.") % obj)
        try:
            requests.test_destination(request.user, obj)  # so that its room is known from the start
        except DomainError as error:
            self.message_user(request, f"{error.message} {error.hint}", "warning")
        guided = any(not step.done for step in first_run.steps(request.user))
        return HttpResponseRedirect(reverse("admin:index") if guided else address(obj))

    def page_context(self, request: HttpRequest, obj: Destination) -> dict[str, Any]:
        mine = access.visible(request.user, Repository).filter(destination=obj).select_related("tenant")
        return {
            "fill": figures.fill(obj, request.user, timezone.now()),
            "repositories": mine,
            "jobs": access.visible(request.user, Job).filter(destination=obj).order_by("-created_at")[:RECENT],
            "subtitle": obj.path,
            "state": destination_state(obj),
        }

    @display(description=gettext_lazy("state"))
    def state(self, destination: Destination) -> SafeString:
        return look.badge(destination_state(destination))

    @display(description=gettext_lazy("filled"))
    def fill(self, destination: Destination) -> SafeString:
        if not destination.total_bytes:
            return format_html('<span class="brs-faint">{}</span>', _("not known yet"))
        used = destination.total_bytes - destination.free_bytes
        words = _("%(free)s free of %(total)s") % {
            "free": look.size_text(destination.free_bytes),
            "total": look.size_text(destination.total_bytes),
        }
        share = look.percent(used, destination.total_bytes)
        tone = "bad" if share >= 95 else "warn" if share >= 85 else "run"
        return format_html("{}<small>{}</small>", look.bar(used, destination.total_bytes, tone, words), words)

    @display(description=gettext_lazy("reached by"))
    def reached_by(self, destination: Destination) -> str:
        mine = set(access.visible(self.request.user, Node).values_list("pk", flat=True))
        return ", ".join(node.name for node in destination.nodes.all() if node.pk in mine) or _("no node")

    @display(description=gettext_lazy("tested"), ordering="tested_at")
    def tested(self, destination: Destination) -> SafeString:
        return look.ago(destination.tested_at)


def destination_state(destination: Destination) -> str:
    if destination.problem:
        return "problem"
    if destination.total_bytes and look.percent(destination.free_bytes, destination.total_bytes) < 5:
        return "full"
    return "fine" if destination.tested_at or destination.total_bytes else "untested"


def _kit(request: HttpRequest, repository: Repository, _data: dict[str, Any]) -> HttpResponse:
    text = repositories.kit(request.user, repository)
    name = f"brs-recovery-kit-{repository.tenant.slug}-{slugify(repository.destination.name) or 'repository'}.txt"
    response = HttpResponse(text, content_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"})
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


class VerifyForm(forms.Form):
    read_data = forms.BooleanField(
        label=gettext_lazy("Read all data, too (slow, finds damaged files)"),
        required=False,
        widget=UnfoldBooleanSwitchWidget,
    )


@admin.register(Repository)
class RepositoryAdmin(ReadOnlyAdmin):
    empty = Empty(
        icon="inventory_2",
        text=gettext_lazy("There is no repository yet. The first backup to a destination makes one there."),
        action=gettext_lazy("Protect something"),
        url="admin:protect",
    )
    list_display: ClassVar = ["shown_state", "destination", "tenant", "stored", "points", "verified", "kit"]
    list_display_links: ClassVar = ["destination"]
    list_filter: ClassVar = ["state", "destination", "tenant"]
    list_select_related: ClassVar = ["destination", "tenant"]
    search_fields: ClassVar = ["destination__name", "tenant__name", "repository_id"]
    change_form_template = "brs/repository.html"
    verbs: ClassVar = {
        "kit": Verb(
            label=gettext_lazy("Save the recovery kit"),
            icon="medical_services",
            right=Right.READ_KIT,
            primary=True,
            run=_kit,
            question=gettext_lazy(
                "A text file with the address, the password and the commands that restore without this server. "
                "Keep it offline, away from the backups. Reading it is recorded in the audit trail."
            ),
        ),
        "verify": Verb(
            label=gettext_lazy("Verify"),
            icon="fact_check",
            right=Right.OPERATE,
            run=lambda request, repository, data: requests.verify(
                request.user, repository, read_data=data["read_data"]
            ),
            form=lambda _request, _repository: VerifyForm,
            question=gettext_lazy("Checks that every restore point is whole in the repository."),
            when=lambda repository: repository.state != RepositoryState.NEW,
        ),
    }

    def page_context(self, request: HttpRequest, obj: Repository) -> dict[str, Any]:
        copies = PointCopy.objects.filter(repository=obj)
        held = copies.filter(state=CopyState.PRESENT)
        return {
            "held": held.count(),
            "protected_bytes": held.aggregate(total=Sum("point__size_bytes"))["total"] or 0,
            "hurt": copies.filter(state__in=(CopyState.DAMAGED, CopyState.MISSING)).count(),
            "jobs": access.visible(request.user, Job).filter(repository=obj).order_by("-created_at")[:RECENT],
            "title": _("Repository at %s") % obj.destination,
            "subtitle": str(obj.tenant),
        }

    @display(description=gettext_lazy("state"), ordering="state")
    def shown_state(self, repository: Repository) -> SafeString:
        return look.badge(repository.state)

    @display(description=gettext_lazy("stored"), ordering="stored_bytes")
    def stored(self, repository: Repository) -> SafeString:
        return look.size(figures.stored_in(repository))

    @display(description=gettext_lazy("restore points"))
    def points(self, repository: Repository) -> int:
        return repository.copies.filter(state=CopyState.PRESENT).count()

    @display(description=gettext_lazy("verified"), ordering="verified_at")
    def verified(self, repository: Repository) -> SafeString:
        return look.ago(repository.verified_at)

    @display(description=gettext_lazy("recovery kit"), ordering="kit_saved_at")
    def kit(self, repository: Repository) -> SafeString:
        if repository.kit_saved_at:
            return look.badge("succeeded", _("Saved"))
        return look.badge("attention", _("Not saved"))
