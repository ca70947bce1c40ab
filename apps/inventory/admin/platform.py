# ruff: noqa: ARG002  the signatures are Django's
"""Inventory: platforms. Of machines: how they are reached, whom to believe, what was found. Secrets only go in."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from apps import display as look
from apps.catalog import traces as catalog_traces
from apps.catalog.admin import traces
from apps.catalog.models import Trace
from apps.errors import DomainError
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_grants import GrantedAdmin
from apps.iam.admin_scope import Empty, ScopedForm, Verb, address
from apps.inventory import platforms, presence
from apps.inventory.models import MACHINES, Node, Platform, PlatformKind, Workload
from apps.jobs import requests
from apps.jobs.models import OPEN, Job, JobKind, Task
from node_agent.protocol import fingerprint

RECENT = 8
SHOWN = 200
LABELS = {
    "uri": gettext_lazy("libvirt's address (empty: qemu:///system)"),
    "scratch": gettext_lazy("Scratch folder on the host (empty: /var/tmp)"),
    "rbd-snapshots": gettext_lazy("Increments of disks in Ceph by snapshots there (yes, or empty)"),
    "fsid": gettext_lazy("fsid of the cluster"),
    "pools": gettext_lazy("Pools, separated by commas"),
    "private-key": gettext_lazy("Private key"),
    "key-passphrase": gettext_lazy("Passphrase of the private key"),
    "password": gettext_lazy("Password"),
    "key": gettext_lazy("Key of the user"),
}
HELP = {
    "scratch": gettext_lazy("What a machine writes during its backup fills it; it needs room for that."),
    "password": gettext_lazy("Only without a private key."),
    "rbd-snapshots": gettext_lazy(
        "Otherwise such disks are read whole and compared. The node needs python3-rbd and reaches the cluster itself; "
        "a snapshot stays on each image, which keeps it from being deleted."
    ),
}
LONG = ("private-key",)


def field_name(name: str) -> str:
    return "told_" + name.replace("-", "_")


def _names(part: str) -> list[str]:
    """Of options, or of secrets, of all kinds, each once."""
    return list(dict.fromkeys(name for kind in platforms.KINDS.values() for name in getattr(kind, part)))


TOLD = {field_name(name): name for part in ("secrets", "options") for name in _names(part)}
MACHINE_FIELDS = ["addresses_text", "login", *TOLD, "discover_every_hours"]
LOAD_FIELDS = ["max_jobs", "bandwidth_mib_s"]
WITH_DEFAULT = ("discover_every_hours", *LOAD_FIELDS)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


class PlatformForm(ScopedForm):
    addresses_text = forms.CharField(
        label=gettext_lazy("Addresses"),
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text=gettext_lazy("One a line: a host, or host:port. Several hosts are one platform."),
    )

    class Meta:
        model = Platform
        fields = ["tenant", "name", "kind", "node", "login", *WITH_DEFAULT]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "addresses_text" not in self.fields or "discover_every_hours" not in self.fields:
            return  # somebody who may only look
        if not self.instance._state.adding:
            for name in {*MACHINE_FIELDS} - {*_of(self.instance.kind)}:
                del self.fields[name]
            if "kind" in self.fields:  # a field still, since what is shown beside it looks at it
                choices = [(self.instance.kind, self.instance.get_kind_display())]
                self.fields["kind"].choices = self.fields["kind"].widget.choices = choices
                self.fields["kind"].disabled = True
        self.fields["addresses_text"].initial = "\n".join(self.instance.addresses)
        for name in WITH_DEFAULT:
            self.fields[name].required = False
        for name in _names("options"):
            if field_name(name) in self.fields:
                self.fields[field_name(name)].initial = (self.instance.options or {}).get(name, "")
        for name in self.instance.secret_names:
            if field_name(name) in self.fields:
                self.fields[field_name(name)].help_text = _(
                    "It is set and is never shown. Leave this empty to keep it."
                )

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        kind = self.cleaned_data.get("kind") or self.instance.kind
        for name in WITH_DEFAULT:
            if self.cleaned_data.get(name, 0) is None:
                self.cleaned_data[name] = getattr(self.instance, name)
        self.secrets: dict[str, str] = {}
        self.told: dict[str, Any] = {}
        if kind in MACHINES and "addresses_text" in self.fields:
            self._clean_machines(kind)
        return cleaned

    def _clean_machines(self, kind: str) -> None:
        given = {TOLD[key]: value for key, value in self.cleaned_data.items() if key in TOLD and value}
        lines = _lines(self.cleaned_data.get("addresses_text", ""))
        options = {name: value for name, value in given.items() if name in platforms.KINDS[kind].options}
        secrets = {name: value for name, value in given.items() if name in platforms.KINDS[kind].secrets}
        try:
            self.told["addresses"] = platforms.clean_addresses(kind, lines)
            self.cleaned_data["login"] = platforms.clean_login(kind, self.cleaned_data.get("login", ""))
            self.told["options"] = platforms.clean_options(kind, options)
            self.secrets = platforms.clean_secrets(kind, secrets)
            platforms.refuse_theft(self.instance, self.told["addresses"], self.secrets)
        except DomainError as error:
            field = {"addresses": "addresses_text", "login": "login", "secrets": "told_password"}.get(error.field)
            self.add_error(field, f"{error.message} {error.hint}")

    def _post_clean(self) -> None:
        super()._post_clean()
        for name, value in self.told.items():
            setattr(self.instance, name, value)
        if self.secrets:
            platforms.set_secrets(self.instance, self.secrets)


def _field(name: str, part: str) -> forms.CharField:
    widget: forms.Widget = UnfoldAdminTextInputWidget()
    if name in LONG:
        widget = UnfoldAdminTextareaWidget(attrs={"rows": 4, "autocomplete": "off"})
    elif part == "secrets":
        widget = UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})
    return forms.CharField(
        label=LABELS[name], required=False, max_length=platforms.MAX_LENGTH, widget=widget, help_text=HELP.get(name, "")
    )


for _part in ("secrets", "options"):
    for _name in _names(_part):
        PlatformForm.base_fields[field_name(_name)] = _field(_name, _part)
        PlatformForm.declared_fields[field_name(_name)] = PlatformForm.base_fields[field_name(_name)]


def _shown_for(field: str) -> str:
    """For Alpine: the kinds that know the field."""
    name = TOLD.get(field)
    kinds = [key for key, kind in platforms.KINDS.items() if name is None or name in (*kind.options, *kind.secrets)]
    return " || ".join(f"kind == '{kind}'" for kind in kinds)


def keys_form(_request: HttpRequest, platform: Platform) -> type[forms.Form]:
    """One tick for each key, as it was shown: the key itself travels, so that no other one is confirmed."""
    waiting = platforms.unconfirmed(platform)

    class KeysForm(forms.Form):
        keys = forms.MultipleChoiceField(
            label=_("Keys"),
            choices=[(f"{one} {key}", f"{one}: {fingerprint(key)}") for one, key in waiting.items()],
            initial=[f"{one} {key}" for one, key in waiting.items()],
            widget=forms.CheckboxSelectMultiple,
        )

    return KeysForm


def _confirm(request: HttpRequest, platform: Platform, data: dict[str, Any]) -> Job:
    platforms.confirm_keys(request.user, platform, dict(one.split(" ", 1) for one in data["keys"]))
    return requests.test_platform(request.user, platform)


def _look(request: HttpRequest, platform: Platform, _data: dict[str, Any]) -> Job:
    """The look that is under way, such as the first one that follows a test by itself, is as good as another."""
    running = Job.objects.filter(platform=platform, kind=JobKind.DISCOVER, state__in=OPEN).first()
    return running or requests.discover(request.user, platform)


@admin.register(Platform)
class PlatformAdmin(GrantedAdmin):
    form = PlatformForm
    empty = Empty(
        icon="lan",
        text=gettext_lazy(
            "There is no platform yet. A platform is a system you protect; the first workload on a node brings its own."
        ),
        action=gettext_lazy("Protect something"),
        url="admin:protect",
    )
    list_display: ClassVar = ["state", "name", "kind", "node", "workload_count", "tenant"]
    list_display_links: ClassVar = ["name"]
    list_filter: ClassVar = ["kind", "node", "tenant"]
    list_select_related: ClassVar = ["node", "tenant"]
    search_fields: ClassVar = ["name", "node__name"]
    fieldsets: ClassVar = [
        (None, {"fields": ["tenant", "name", "kind", "node"]}),
        (gettext_lazy("How it is reached"), {"fields": MACHINE_FIELDS}),
        (gettext_lazy("How much it may be burdened"), {"fields": LOAD_FIELDS}),
    ]
    conditional_fields: ClassVar = {name: _shown_for(name) for name in (*MACHINE_FIELDS, *LOAD_FIELDS)}
    change_form_template = "brs/platform.html"
    add_form_template = "brs/platform_add.html"
    verbs: ClassVar = {
        "confirm": Verb(
            label=gettext_lazy("Confirm the host key"),
            icon="verified_user",
            right=Right.CONFIGURE,
            primary=True,
            run=_confirm,
            form=keys_form,
            question=gettext_lazy(
                "Compare it with the host's own: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. Nobody logs in to a "
                "host whose key is not confirmed. Afterwards the connection is tested again."
            ),
            when=lambda platform: bool(platforms.unconfirmed(platform)),
        ),
        "discover": Verb(
            label=gettext_lazy("Look for machines"),
            icon="search",
            right=Right.OPERATE,
            primary=True,
            run=_look,
            question=gettext_lazy("The node asks the platform what machines there are. Nothing is changed there."),
            when=lambda platform: platform.holds_machines and bool(platform.tested_at) and not platform.problem,
        ),
        "traces": Verb(
            label=gettext_lazy("Look for kept snapshots"),
            icon="photo_camera",
            right=Right.OPERATE,
            run=lambda request, platform, _data: requests.discover(request.user, platform, thorough=True),
            question=gettext_lazy(
                "As “Look for machines”, which also finds what backups keep; besides, running machines are asked what "
                "they hold. libvirt then notes “tainted: custom-monitor” in their logs, nothing else."
            ),
            when=lambda platform: platform.holds_machines and bool(platform.tested_at) and not platform.problem,
        ),
        "test": Verb(
            label=gettext_lazy("Test the connection"),
            icon="network_check",
            right=Right.OPERATE,
            run=lambda request, platform, _data: requests.test_platform(request.user, platform),
            question=gettext_lazy("The node looks whether it can reach and read this platform. Nothing is changed."),
        ),
    }

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).annotate(held=Count("workloads"))

    def get_form(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> type[forms.ModelForm]:
        machines = obj.holds_machines if obj is not None else bool(self._offered(request))
        return super().get_form(request, obj, **({} if machines else {"form": ScopedForm}), **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What is told of machines' platforms only concerns a form that has one of these, or may get one."""
        machines = obj.holds_machines if obj is not None else bool(self._offered(request))
        may = self.has_change_permission(request, obj) if obj is not None else True
        if obj is not None and machines and may:
            return [self.fieldsets[0], (_("How it is reached"), {"fields": _of(obj.kind)}), self.fieldsets[2]]
        return self.fieldsets if machines and may else self.fieldsets[:1]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        fixed = ["kind", "node"] if obj is not None and not obj.holds_machines else []
        return [*super().get_readonly_fields(request, obj), *fixed]

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> forms.Field | None:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "kind" and field is not None:
            plain = [one for one in PlatformKind if one not in MACHINES]
            kinds = [*self._offered(request), *plain]
            field.choices = [(kind, PlatformKind(kind).label) for kind in kinds]
            field.widget = UnfoldAdminSelectWidget(choices=field.choices)
        if db_field.name == "login" and field is not None:
            field.help_text = format_html_join(
                "",
                "<span x-show=\"kind == '{}'\">{}</span>",
                [(kind, _("Empty: %(name)s") % {"name": one.login}) for kind, one in platforms.KINDS.items()],
            )
        return field

    @staticmethod
    def _offered(request: HttpRequest) -> list[str]:
        """Kinds of machines that a node of the user's can use: the others are not shown."""
        return platforms.offered(access.visible(request.user, Node).exclude(enrolled_at=None))

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        offered = self._offered(request)
        return super().add_view(request, form_url, {"offered": offered, **(extra_context or {})})

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        given = super().get_changeform_initial_data(request)
        offered = self._offered(request)
        nodes = access.visible(request.user, Node).exclude(enrolled_at=None)
        able = [node for node in nodes if offered and offered[0] in node.drivers]
        return {"kind": offered[0], "node": able[0].pk, **given} if able else given

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        self.message_user(request, _("The platform “%s” was added.") % obj)
        if obj.holds_machines:
            try:
                requests.test_platform(request.user, obj)
            except DomainError as error:
                self.message_user(request, f"{error.message} {error.hint}", "warning")
        return HttpResponseRedirect(address(obj))

    def response_change(self, request: HttpRequest, obj: Any) -> HttpResponse:
        self.message_user(request, _("The changes were saved."))
        return HttpResponseRedirect(request.path)

    def page_context(self, request: HttpRequest, obj: Platform) -> dict[str, Any]:
        covered = access.visible(request.user, Workload).filter(platform=obj)
        jobs = access.visible(request.user, Job).filter(platform=obj, kind__in=(JobKind.PROBE, JobKind.DISCOVER))
        test = jobs.filter(kind=JobKind.PROBE, workload=None).order_by("-created_at").first()
        return {
            "node_state": presence.state(obj.node, timezone.now()),
            "state": platform_state(obj),
            "workloads": covered.select_related("protection", "assignment__policy").order_by("gone_at", "name")[:SHOWN],
            "workload_total": covered.count(),
            "jobs": jobs.order_by("-created_at")[:RECENT],
            "test": test,
            "testing": test is not None and test.state in OPEN,
            "checks": _checks(test),
            "unconfirmed": [(one, fingerprint(key)) for one, key in platforms.unconfirmed(obj).items()],
            "confirmed": [(one, fingerprint(key)) for one, key in obj.host_keys.items() if one in obj.addresses],
            "looking": jobs.filter(kind=JobKind.DISCOVER, state__in=OPEN).first(),
            "told": [(LABELS.get(name, name).split(" (")[0], value) for name, value in (obj.options or {}).items()],
            "secrets": [LABELS.get(name, name) for name in obj.secret_names],
            "kept": _not_needed(request, obj),
            "subtitle": obj.get_kind_display(),
        }

    @display(description=gettext_lazy("state"))
    def state(self, platform: Platform) -> SafeString:
        return look.badge(platform_state(platform)) if platform.holds_machines else SafeString("–")

    @display(description=gettext_lazy("workloads"), ordering="held")
    def workload_count(self, platform: Platform) -> SafeString:
        return format_html('<span class="brs-num">{}</span>', platform.held)


def _of(kind: str) -> list[str]:
    """The fields that a platform of this kind has."""
    names = (*platforms.KINDS[kind].secrets, *platforms.KINDS[kind].options)
    return [name for name in MACHINE_FIELDS if name not in TOLD or TOLD[name] in names]


def _not_needed(request: HttpRequest, platform: Platform) -> list[dict[str, Any]]:
    """What backups left there that nothing will be built upon, each with the way to remove it."""
    rows = access.visible(request.user, Trace).filter(catalog_traces.not_needed(), workload__platform=platform)
    own = admin.site._registry[Trace]
    return [
        {"row": row, "state": traces.state_of(row), "why": traces.why(row), "names": traces.shown(row),
         "verbs": own.verbs_for(request, row)}
        for row in rows.select_related("workload")[:SHOWN]
    ]  # fmt: skip


def _checks(test: Job | None) -> list[dict[str, Any]]:
    """Of a test under way those made so far, else those of its result."""
    task: Task | None = test.tasks.first() if test is not None else None
    if task is None:
        return []
    found: list[dict[str, Any]] = (task.outcome or {}).get("checks") or (task.progress or {}).get("checks") or []
    return found


def platform_state(platform: Platform) -> str:
    if platform.problem:
        first = platforms.unconfirmed(platform).keys().isdisjoint(platform.host_keys)
        return "confirm" if platforms.unconfirmed(platform) and first else "problem"
    return "fine" if platform.tested_at else "untested"
