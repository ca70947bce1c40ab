# ruff: noqa: ARG002  the signatures are Django's
"""Inventory: destinations of every kind. The form shows what concerns the kind; secrets go in, never out."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from apps import display as look
from apps.errors import DomainError
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_grants import GrantedAdmin
from apps.iam.admin_scope import Empty, ScopedForm, Verb, address
from apps.inventory import stores
from apps.inventory.models import Destination, DestinationKind, Node, Repository
from apps.jobs import requests
from apps.jobs.models import Job
from apps.reports import figures, first_run

RECENT = 8
LABELS = {
    "host-key": gettext_lazy("Host key of the server"),
    "region": gettext_lazy("Region"),
    "bucket-lookup": gettext_lazy("Bucket in the address (path or dns)"),
    "object-lock": gettext_lazy("What is stored cannot be deleted"),
    "object-lock-days": gettext_lazy("Lock for (days)"),
    "cacert": gettext_lazy("Certificate of the authority (PEM)"),
    "account-name": gettext_lazy("Storage account"),
    "endpoint": gettext_lazy("Endpoint (empty: the provider's own)"),
    "endpoint-suffix": gettext_lazy("Endpoint suffix (empty: core.windows.net)"),
    "tenant-id": gettext_lazy("Directory (tenant) id"),
    "client-id": gettext_lazy("Application (client) id"),
    "user": gettext_lazy("User"),
    "password": gettext_lazy("Password"),
    "private-key": gettext_lazy("Private key"),
    "key-passphrase": gettext_lazy("Passphrase of the private key"),
    "access-key-id": gettext_lazy("Access key id"),
    "secret-access-key": gettext_lazy("Secret access key"),
    "session-token": gettext_lazy("Session token"),
    "account-key": gettext_lazy("Account key"),
    "account-sas": gettext_lazy("Shared access signature"),
    "client-secret": gettext_lazy("Client secret"),
    "service-account-key": gettext_lazy("Service account's key file (JSON)"),
    "access-token": gettext_lazy("Access token"),
    "limit-upload": gettext_lazy("Bandwidth when storing"),
    "limit-download": gettext_lazy("Bandwidth when reading"),
    "limit-windows": gettext_lazy("Other bandwidth at certain times"),
    "connections": gettext_lazy("Connections at the same time"),
}
HELP = {
    "host-key": gettext_lazy("“ssh-ed25519 AAAA…” or “SHA256:…”. The test shows the key that it met."),
    "object-lock": gettext_lazy("The bucket must have Object Lock. The test proves that it keeps what it locks."),
    "object-lock-days": gettext_lazy(
        "Every backup stays at least that long, whatever retention rules or attackers say."
    ),
    "limit-upload": gettext_lazy("Bytes a second, such as 20M. Empty: unlimited."),
    "limit-windows": gettext_lazy("For example: mon-fri 08:00-18:00=2M/10M, 22:00-06:00=0 (upload/download)."),
    "access-key-id": gettext_lazy("Without a key the node uses its own credentials, or the machine's role."),
}
MAINTENANCE = [
    "verify_every_days",
    "verify_cycle_days",
    "prune_every_days",
    "prune_max_minutes",
    "maintenance_from",
    "maintenance_until",
]
CHOICES = {
    "object-lock": [
        ("", gettext_lazy("Nothing is locked")),
        ("compliance", gettext_lazy("Nobody can delete it before its time (compliance)")),
        ("governance", gettext_lazy("Only accounts with the right to bypass can (governance)")),
    ]
}
LONG = ("cacert", "private-key", "service-account-key")


def _names(part: str) -> list[str]:
    """Of options, or of secrets, of all kinds, each once."""
    found = [name for kind in stores.KINDS.values() for name in getattr(kind, part)]
    return list(dict.fromkeys([*found, *(stores.COMMON if part == "options" else ())]))


def field_name(name: str) -> str:
    return "store_" + name.replace("-", "_")


STORE_FIELDS = {field_name(name): name for part in ("secrets", "options") for name in _names(part)}


def _field(name: str, part: str) -> forms.CharField:
    widget: forms.Widget = UnfoldAdminTextInputWidget()
    if name in LONG:
        widget = UnfoldAdminTextareaWidget(attrs={"rows": 4, "autocomplete": "off"})
    elif part == "secrets" and name != "access-key-id":
        widget = UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})
    elif name in CHOICES:
        widget = UnfoldAdminSelectWidget(choices=CHOICES[name])
    elif name == "object-lock-days":
        widget = UnfoldAdminTextInputWidget(attrs={"inputmode": "numeric", "placeholder": "30"})
    return forms.CharField(
        label=LABELS[name], required=False, max_length=stores.MAX_LENGTH, widget=widget, help_text=HELP.get(name, "")
    )


class DestinationForm(ScopedForm):
    class Meta:
        model = Destination
        fields = ["tenant", "name", "kind", "nodes", "path", *MAINTENANCE]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        known = self.instance.options or {}
        for name, field in self._store_fields("options"):
            field.initial = known.get(name, "")
        for name, field in self._store_fields("secrets"):
            if name in self.instance.secret_names:
                field.help_text = _("It is set and is never shown. Leave this empty to keep it.")
        for name in self.fields.keys() & set(MAINTENANCE):
            self.fields[name].required = False
        if "kind" in self.fields and not self.instance._state.adding:
            self.fields["kind"].disabled = True

    def _store_fields(self, part: str) -> list[tuple[str, forms.Field]]:
        return [(name, self.fields[field_name(name)]) for name in _names(part) if field_name(name) in self.fields]

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        for name in MAINTENANCE:  # left empty: as it is, and of a new one the default
            if name in self.fields and self.cleaned_data.get(name, 0) is None:
                self.cleaned_data[name] = getattr(self.instance, name)
        kind = self.cleaned_data.get("kind") or self.instance.kind
        given = {STORE_FIELDS[key]: value for key, value in self.cleaned_data.items() if key in STORE_FIELDS and value}
        self.options = self._checked(
            lambda: stores.clean_options(kind, _of(kind, "options", given)), default=self.instance.options
        )
        if not self.instance._state.adding:
            options = self.options
            self._checked(lambda: stores.refuse_unlock(self.instance, options), default=None)
        self.secrets = self._checked(lambda: stores.clean_secrets(kind, _of(kind, "secrets", given)), default={})
        if "path" in self.cleaned_data:
            self.cleaned_data["path"] = self._checked(
                lambda: stores.clean_address(kind, self.cleaned_data["path"]), default=self.cleaned_data["path"]
            )
            if not self.instance._state.adding:
                self._checked(lambda: stores.refuse_move(self.instance, self.cleaned_data["path"]), default=None)
        return cleaned

    def _checked(self, look_at: Any, *, default: Any) -> Any:
        try:
            return look_at()
        except DomainError as error:
            field = getattr(error, "field", None)
            self.add_error(field if field in self.fields else None, f"{error.message} {error.hint}")
            return default

    def _post_clean(self) -> None:
        super()._post_clean()
        self.instance.options = self.options
        if self.secrets:
            stores.set_secrets(self.instance, self.secrets)


def _of(kind: str, part: str, given: dict[str, str]) -> dict[str, str]:
    """What another kind was told in hidden fields is not this one's."""
    names = (*getattr(stores.KINDS[kind], part), *(stores.COMMON if part == "options" else ()))
    return {name: value for name, value in given.items() if name in names}


for _part in ("secrets", "options"):
    for _name in _names(_part):
        DestinationForm.base_fields[field_name(_name)] = _field(_name, _part)
        DestinationForm.declared_fields[field_name(_name)] = DestinationForm.base_fields[field_name(_name)]


def _shown_for(field: str) -> str:
    """For Alpine: the kinds that know the field."""
    name = STORE_FIELDS[field]
    kinds = [
        key for key, kind in stores.KINDS.items() if name in (*kind.options, *kind.secrets) or name in stores.COMMON
    ]
    return " || ".join(f"kind == '{kind}'" for kind in kinds)


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
    fieldsets: ClassVar = [
        (None, {"fields": ["tenant", "name", "kind", "path", "nodes"]}),
        (
            gettext_lazy("Access"),
            {"fields": [name for name in STORE_FIELDS if STORE_FIELDS[name] not in stores.COMMON]},
        ),
        (gettext_lazy("Maintenance"), {"fields": MAINTENANCE}),
        (gettext_lazy("Limits"), {"fields": [field_name(name) for name in stores.COMMON]}),
    ]
    conditional_fields: ClassVar = {
        name: _shown_for(name) for name in STORE_FIELDS if STORE_FIELDS[name] not in stores.COMMON
    }
    change_form_template = "brs/destination.html"
    add_form_template = "brs/destination_add.html"
    verbs: ClassVar = {
        "test": Verb(
            label=gettext_lazy("Test"),
            icon="network_check",
            right=Right.OPERATE,
            run=lambda request, destination, _data: requests.test_destination(request.user, destination),
            question=gettext_lazy(
                "Its nodes write, read, list and delete something there, and say what works and what does not."
            ),
        )
    }

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("nodes")

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> forms.Field | None:
        field = super().formfield_for_manytomany(db_field, request, **kwargs)
        if field is not None:
            field.widget = UnfoldAdminCheckboxSelectMultipleWidget(choices=field.choices)
            field.help_text = _("The nodes on which the folder exists, or which reach the store.")
        return field

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> forms.Field | None:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "kind":
            field.widget = UnfoldAdminSelectWidget(choices=DestinationKind.choices)
        if db_field.name == "path":
            field.help_text = format_html_join(
                "",
                "<span x-show=\"kind == '{}'\">{}</span>",  # of the kind that is chosen
                [
                    (kind, _("For example: %(address)s") % {"address": one.example})
                    for kind, one in stores.KINDS.items()
                ],
            )
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
