# ruff: noqa: ARG002  the signatures are Django's
"""Nodes: which there are, how they are, how one joins and what it may do."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from apps import display as look
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.admin_grants import GrantedAdmin
from apps.iam.admin_scope import Empty, ScopedForm, Verb, address
from apps.inventory import enrolment, pages, presence
from apps.inventory.models import Node
from apps.jobs.models import Task

RECENT = 8


def _pause(paused: bool) -> Any:
    def run(request: HttpRequest, node: Node, _data: dict[str, Any]) -> None:
        Node.objects.filter(pk=node.pk).update(paused=paused)
        audit.record(request.user, "node.paused" if paused else "node.resumed", node, request=request)

    return run


def _enrol_anew(request: HttpRequest, node: Node, _data: dict[str, Any]) -> HttpResponse:
    """The command with a new code for exactly this node; what it had before stops being valid when it is used."""
    code, clear = enrolment.issue_code(request.user, node.tenant, node.name)
    context = {
        **admin.site.each_context(request),
        "title": _("Enrol “%s” anew") % node,
        "command": pages.command(pages.server_address(request), clear, anew=True),
        "code": code,
        "after": address(node),
    }
    return TemplateResponse(request, "brs/enrol.html", context, headers={"Cache-Control": "no-store"})


LABEL = re.compile(r"[a-z][a-z0-9_-]*:[A-Za-z0-9._-]+")


class LabelsField(forms.CharField):
    """Labels as words between commas; in the model a list."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        return ", ".join(map(str, value)) if isinstance(value, list) else value

    def clean(self, value: Any) -> list[str]:
        labels = list(dict.fromkeys(str(super().clean(value)).replace(",", " ").split()))
        for label in labels:
            if not LABEL.fullmatch(label) or len(label) > 100:
                raise forms.ValidationError(_("“%s” is not a label: write key:value, such as zone:a.") % label)
            if label.startswith(presence.RESERVED):
                raise forms.ValidationError(_("“%s” is a label that the server gives by itself.") % label)
        return labels


class NodeForm(ScopedForm):
    labels = LabelsField(
        label=gettext_lazy("Labels"),
        required=False,
        max_length=2000,
        help_text=gettext_lazy("Words of the form key:value between commas, such as zone:a. Tasks may ask for them."),
    )

    class Meta:
        model = Node
        fields = ["name", "tenant", "labels", "slots"]


@admin.register(Node)
class NodeAdmin(GrantedAdmin):
    form = NodeForm
    empty = Empty(
        icon="dns",
        text=gettext_lazy("There is no node yet. A node is the agent that reads your data."),
        action=gettext_lazy("Enrol a node"),
        url="admin:enrol",
        dialog=True,
    )
    list_display: ClassVar = ["state", "name", "host", "version", "last_seen", "clock", "tasks", "serves"]
    list_display_links: ClassVar = ["name"]
    list_filter: ClassVar = ["paused", "tenant"]
    list_select_related: ClassVar = ["tenant"]
    search_fields: ClassVar = ["name", "hostname"]
    fields: ClassVar = ["name", "tenant", "labels", "slots"]
    change_form_template = "brs/node.html"
    list_before_template = "brs/node_list_before.html"
    verbs: ClassVar = {
        "pause": Verb(
            label=gettext_lazy("Pause"),
            icon="pause",
            right=Right.CONFIGURE,
            run=_pause(True),
            question=gettext_lazy("The node finishes what it does and gets no new tasks until you resume it."),
            done=gettext_lazy("The node is paused."),
            when=lambda node: not node.paused,
        ),
        "resume": Verb(
            label=gettext_lazy("Resume"),
            icon="play_arrow",
            right=Right.CONFIGURE,
            primary=True,
            run=_pause(False),
            question=gettext_lazy("The node gets tasks again."),
            done=gettext_lazy("The node gets tasks again."),
            when=lambda node: node.paused,
        ),
        "enrol": Verb(
            label=gettext_lazy("Enrol anew"),
            icon="key",
            right=Right.CONFIGURE,
            run=_enrol_anew,
            question=gettext_lazy(
                "For a machine that lost its token, was replaced, or is quarantined. You get a command to paste there; "
                "the node keeps its name, its platforms and its history."
            ),
        ),
    }

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """A node adds itself with a code; there is nothing to type in here."""
        return HttpResponseRedirect(reverse("admin:enrol"))

    def page_context(self, request: HttpRequest, obj: Node) -> dict[str, Any]:
        now = timezone.now()
        tasks = access.visible(request.user, Task).filter(node=obj).select_related("job")
        roots = obj.roots or {}
        words = {"read": _("May read"), "write": _("May write to"), "repositories": _("May keep repositories in")}
        words["stores"] = _("May use the stores")
        return {
            "state": presence.state(obj, now),
            "clock_off": presence.clock_is_off(obj),
            "labels": sorted({*obj.labels, *obj.told_labels}),
            "tasks": tasks.order_by("-leased_at")[:RECENT],
            "roots": [(word, roots.get(key) or []) for key, word in words.items()],
            "subtitle": obj.hostname,
        }

    @display(description=gettext_lazy("state"))
    def state(self, node: Node) -> SafeString:
        return look.badge(presence.state(node, timezone.now()))

    @display(description=gettext_lazy("host"), ordering="hostname")
    def host(self, node: Node) -> str:
        return node.hostname or "–"

    @display(description=gettext_lazy("last seen"), ordering="last_seen_at")
    def last_seen(self, node: Node) -> SafeString:
        return look.ago(node.last_seen_at)

    @display(description=gettext_lazy("clock"), ordering="clock_offset_s")
    def clock(self, node: Node) -> str:
        offset = node.clock_offset_s
        return _("right") if abs(offset) < 2 else _("off by %s") % look.duration(abs(offset))

    @display(description=gettext_lazy("tasks"))
    def tasks(self, node: Node) -> str:
        running = node.tasks.filter(state__in=("leased", "running")).count()
        return _("%(busy)d of %(slots)d") % {"busy": running, "slots": node.slots}

    @display(description=gettext_lazy("serves"), ordering="tenant__name")
    def serves(self, node: Node) -> str:
        return str(node.tenant) if node.tenant else _("every tenant")
