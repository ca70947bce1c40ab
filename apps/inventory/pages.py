"""Pages that put things into the inventory: enrol a node, protect something, save the recovery kits."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.sites import UnfoldAdminSite
from unfold.widgets import (
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from apps.errors import DomainError
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_scope import address
from apps.iam.models import Tenant
from apps.inventory import enrolment
from apps.inventory.models import Destination, EnrolmentCode, Node, PlatformKind, Repository
from apps.jobs import protect
from apps.policies.models import Policy
from apps.reports import first_run


def urls(site: UnfoldAdminSite) -> list[URLPattern]:
    pages = Pages(site)
    return [
        path("enrol/", site.admin_view(pages.enrol), name="enrol"),
        path("enrol/<uuid:code>/state/", site.admin_view(pages.enrol_state), name="enrol_state"),
        path("protect/", site.admin_view(pages.protect), name="protect"),
        path("kits/", site.admin_view(pages.kits), name="kits"),
    ]


class TenantField(forms.ModelChoiceField):
    """Hidden when there is no choice; the first tenant of all is made when the form is sent."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(Tenant.objects.none(), widget=UnfoldAdminSelectWidget, label=gettext_lazy("Tenant"), **kwargs)

    def offer(self, request: HttpRequest) -> None:
        self.queryset = access.tenants(request.user, Right.CONFIGURE)
        if self.queryset.count() < 2:
            self.initial, self.widget = self.queryset.values_list("pk", flat=True).first(), forms.HiddenInput()


class EnrolForm(forms.Form):
    node_name = forms.CharField(
        label=gettext_lazy("Name of the node"),
        max_length=100,
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": gettext_lazy("empty: the machine's own name")}),
    )
    tenant = TenantField()
    shared = forms.BooleanField(
        label=gettext_lazy("Shared by all tenants"),
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text=gettext_lazy("A node that has served a tenant can read that tenant's repositories."),
    )

    def __init__(self, request: HttpRequest, data: Any = None) -> None:
        super().__init__(data)
        self.fields["tenant"].offer(request)
        if not request.user.is_superuser or self.fields["tenant"].queryset.count() < 2:
            del self.fields["shared"]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


class ProtectForm(forms.Form):
    tenant = TenantField()
    node = forms.ModelChoiceField(
        Node.objects.none(), label=gettext_lazy("On which node"), widget=UnfoldAdminSelectWidget, empty_label=None
    )
    kind = forms.ChoiceField(
        label=gettext_lazy("What"),
        choices=[(kind.value, kind.label) for kind in (PlatformKind.FILES, PlatformKind.IMAGE)],
        initial=PlatformKind.FILES,
        widget=UnfoldAdminRadioSelectWidget,
    )
    paths = forms.CharField(
        label=gettext_lazy("Path"),
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text=gettext_lazy("Folders or files, one a line; for a disk image the one file (raw or qcow2)."),
    )
    excludes = forms.CharField(
        label=gettext_lazy("Leave out"),
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text=gettext_lazy("Patterns such as *.tmp, one a line."),
    )
    name = forms.CharField(label=gettext_lazy("Name"), max_length=200, widget=UnfoldAdminTextInputWidget)
    policy = forms.ModelChoiceField(
        Policy.objects.none(),
        label=gettext_lazy("Policy"),
        required=False,
        widget=UnfoldAdminSelectWidget,
        empty_label=gettext_lazy("A new one: every day at 22:00"),
    )
    destination = forms.ModelChoiceField(
        Destination.objects.none(),
        label=gettext_lazy("Where to"),
        required=False,
        widget=UnfoldAdminSelectWidget,
        empty_label=None,
        help_text=gettext_lazy("Only for a new policy; an existing one has its destination."),
    )
    start_now = forms.BooleanField(
        label=gettext_lazy("Start the first backup now"),
        required=False,
        initial=True,
        widget=UnfoldBooleanSwitchWidget,
    )

    def __init__(self, request: HttpRequest, data: Any = None, initial: Any = None) -> None:
        super().__init__(data, initial=initial)
        self.fields["tenant"].offer(request)
        self.fields["node"].queryset = access.visible(request.user, Node).exclude(enrolled_at=None)
        self.fields["policy"].queryset = access.visible(request.user, Policy)
        self.fields["destination"].queryset = access.visible(request.user, Destination)
        if policy := self.fields["policy"].queryset.first():
            self.fields["policy"].initial = policy.pk

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if not data.get("policy") and not data.get("destination"):
            self.add_error("destination", _("Choose a destination, or add one first."))
        if data.get("kind") == PlatformKind.IMAGE and len(_lines(data.get("paths", ""))) > 1:
            self.add_error("paths", _("A disk image is one file. Protect each image as a workload of its own."))
        return data

    def source(self) -> dict[str, Any]:
        paths = _lines(self.cleaned_data["paths"])
        if self.cleaned_data["kind"] == PlatformKind.IMAGE:
            return {"path": paths[0], "format": "", "disk": "disk"}
        return {"paths": paths, "excludes": _lines(self.cleaned_data["excludes"])}


class Pages:
    def __init__(self, site: UnfoldAdminSite) -> None:
        self.site = site

    def _page(self, request: HttpRequest, template: str, **context: Any) -> HttpResponse:
        return TemplateResponse(request, template, {**self.site.each_context(request), **context})

    def enrol(self, request: HttpRequest) -> HttpResponse:
        """GET: a short form. POST: the command to paste, with the code that is seen this once."""
        context: dict[str, Any] = {"title": _("Enrol a node"), "server": server_address(request)}
        context["after"] = reverse(
            "admin:index" if first_run.steps(request.user) else "admin:inventory_node_changelist"
        )
        if request.method == "POST":
            data = request.POST.copy()
            if not data.get("tenant") and (home := first_run.home(request.user)):
                data["tenant"] = str(home.pk)
            form = EnrolForm(request, data)
            if form.is_valid():
                tenant = None if form.cleaned_data.get("shared") else form.cleaned_data["tenant"]
                try:
                    code, clear = enrolment.issue_code(request.user, tenant, form.cleaned_data["node_name"])
                except DomainError as error:
                    form.add_error(None, f"{error.message} {error.hint}")
                else:
                    context |= {"code": code, "command": command(context["server"], clear)}
        else:
            form = EnrolForm(request)
        context["form"] = form
        response = self._page(request, "brs/enrol.html", **context)
        response["Cache-Control"] = "no-store"
        return response

    def enrol_state(self, request: HttpRequest, code: Any) -> HttpResponse:
        """A fragment, asked every two seconds: ticks as soon as the node has come."""
        found = EnrolmentCode.objects.filter(pk=code, created_by=request.user).select_related("node").first()
        if found is None:
            raise Http404
        context = {"code": found, "expired": found.expires_at < timezone.now()}
        return TemplateResponse(request, "brs/enrol_state.html", context)

    def protect(self, request: HttpRequest) -> HttpResponse:
        nodes = access.visible(request.user, Node).exclude(enrolled_at=None)
        initial = {"node": request.GET.get("node") or getattr(nodes.first(), "pk", None)}
        form = ProtectForm(request, request.POST if request.method == "POST" else None, initial=initial)
        if request.method == "POST" and form.is_valid():
            try:
                return HttpResponseRedirect(self._protect(request, form))
            except DomainError as error:
                form.add_error(None, f"{error.message} {error.hint}")
        roots = {str(node.pk): (node.roots or {}).get("read", []) for node in nodes}
        destinations = access.visible(request.user, Destination).exists()
        context = {"title": _("Protect something"), "form": form, "roots": roots}
        return self._page(request, "brs/protect.html", **context, nodes=nodes, has_destination=destinations)

    def _protect(self, request: HttpRequest, form: ProtectForm) -> str:
        from apps.jobs import requests

        data = form.cleaned_data
        with transaction.atomic():
            policy = data["policy"] or protect.daily_policy(request.user, data["tenant"], data["destination"])
            workload = protect.protect(
                request.user,
                tenant=data["tenant"],
                node=data["node"],
                kind=data["kind"],
                name=data["name"].strip(),
                source=form.source(),
                policy=policy,
            )
            job = requests.backup_now(request.user, workload) if data["start_now"] else None
        return address(job or workload)

    def kits(self, request: HttpRequest) -> HttpResponse:
        repositories = access.visible(request.user, Repository).select_related("destination", "tenant")
        rows = [(one, access.can(request.user, Right.READ_KIT, one)) for one in repositories]
        return self._page(request, "brs/kits.html", title=_("Recovery kits"), rows=rows)


def server_address(request: HttpRequest) -> str:
    """How nodes reach this server: as configured, or, when nothing is, as this browser does."""
    configured = str(settings.BRS_PUBLIC_URL)
    return configured if "//localhost" not in configured else f"https://{request.get_host()}"


def command(server: str, clear: str, *, anew: bool = False) -> str:
    words = f"python -m node_agent enroll --server {server} --code {clear}"
    return f"{words} --force" if anew else words
