"""Inventory: repositories. Platforms, destinations, nodes and workloads have modules of their own beside it."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import Sum
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import (
    UnfoldBooleanSwitchWidget,
)

from apps import display as look
from apps.catalog.models import CopyState, PointCopy
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_scope import Empty, ReadOnlyAdmin, Verb
from apps.inventory import repositories
from apps.inventory.admin import destination, node, platform, workload
from apps.inventory.models import Repository, RepositoryState
from apps.jobs import requests
from apps.jobs.models import Job
from apps.reports import figures

RECENT = 8

__all__ = ["destination", "node", "platform", "workload"]  # these register their pages


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
        "prune": Verb(
            label=gettext_lazy("Reclaim space"),
            icon="cleaning_services",
            right=Right.DELETE,
            run=lambda request, repository, _data: requests.prune(request.user, repository),
            question=gettext_lazy(
                "Data that no restore point needs any more is removed. Backups into this repository wait meanwhile."
            ),
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
        return look.badge(repository.seen_state)

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
