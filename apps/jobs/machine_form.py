"""Where a machine is restored to: the form of the wizard's fourth step for machines, and its summary in plain words."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from unfold.widgets import (
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from apps import display
from apps.errors import DomainError
from apps.iam import access
from apps.iam.access import Right
from apps.iam.models import User
from apps.inventory.models import Platform, PlatformKind
from apps.jobs import machine_restores
from apps.jobs.models import RestoreDraft
from node_agent.protocol import MachineTarget, RestoreTarget

ELSEWHERE, IN_PLACE = "elsewhere", "in-place"
WHERE = (
    (ELSEWHERE, gettext_lazy("As another machine beside it (safe: what is there now stays as it is)")),
    (IN_PLACE, gettext_lazy("Put it back as it was: the machine that is there now is replaced")),
)
FORMATS = (("", gettext_lazy("As it was")), ("qcow2", gettext_lazy("qcow2")), ("raw", gettext_lazy("raw")))


class MachineTargetForm(forms.Form):
    where = forms.ChoiceField(
        label=gettext_lazy("How"), choices=WHERE, initial=ELSEWHERE, widget=UnfoldAdminRadioSelectWidget
    )
    platform = forms.ModelChoiceField(
        Platform.objects.none(), label=gettext_lazy("To"), widget=UnfoldAdminSelectWidget, empty_label=None
    )
    name = forms.CharField(
        label=gettext_lazy("Name of the new machine"),
        required=False,
        max_length=machine_restores.LONGEST,
        widget=UnfoldAdminTextInputWidget,
    )
    host = forms.CharField(
        label=gettext_lazy("On which host"),
        required=False,
        max_length=300,
        widget=UnfoldAdminTextInputWidget,
        help_text=gettext_lazy("Empty: the one it was on, or the platform's first."),
    )
    storage = forms.CharField(
        label=gettext_lazy("Storage"),
        required=False,
        max_length=1000,
        widget=UnfoldAdminTextInputWidget,
        help_text=gettext_lazy("A folder on the host, or a pool. Empty: where its disks lay."),
    )
    format = forms.ChoiceField(
        label=gettext_lazy("Format of the disks"), choices=FORMATS, required=False, widget=UnfoldAdminSelectWidget
    )
    networks = forms.CharField(
        label=gettext_lazy("Other networks"),
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2, "placeholder": "default = lab"}),
        help_text=gettext_lazy("One a line: the network it was on = the one to use. Those not named stay."),
    )
    new_identity = forms.BooleanField(
        label=gettext_lazy("New UUID and MAC addresses"),
        required=False,
        initial=True,
        widget=UnfoldBooleanSwitchWidget,
        help_text=gettext_lazy("So that it does not collide with the machine it was made from."),
    )
    start = forms.BooleanField(
        label=gettext_lazy("Start it when it is there"), required=False, widget=UnfoldBooleanSwitchWidget
    )

    def __init__(self, user: User, draft: RestoreDraft, data: Any = None) -> None:
        kept = draft.target or {}
        machine = kept.get("machine") or {}
        own = draft.workload.platform
        initial = {
            "where": IN_PLACE if kept.get("in_place") else ELSEWHERE,
            "platform": machine.get("platform") or own.pk,
            "name": machine.get("name") or (machine_restores.default_name(draft.point) if draft.point else ""),
            "host": machine.get("host", ""),
            "storage": machine.get("storage", ""),
            "format": kept.get("format", ""),
            "networks": "\n".join(f"{one} = {other}" for one, other in (machine.get("networks") or {}).items()),
            "new_identity": machine.get("new_identity", True),
            "start": machine.get("start", False),
        }
        super().__init__(data, initial=initial)
        self.user, self.draft, self.order = user, draft, RestoreTarget(driver=own.kind, path="")
        same = Platform.objects.filter(tenant=draft.tenant_id, kind=own.kind)
        self.fields["platform"].queryset = access.visible(user, same, Right.RESTORE_ELSEWHERE)
        if own.kind == PlatformKind.RBD:  # an image is a disk: it has no networks, and is not started
            for name in ("host", "networks", "new_identity", "start", "format"):
                del self.fields[name]
            self.fields["name"].label = _("Name of the new image")
            self.fields["storage"].label = _("Pool")
            self.fields["storage"].help_text = _("One of the platform's. Empty: the one it was in.")
        if not access.can(user, Right.RESTORE_IN_PLACE, draft.workload):
            self.fields["where"].choices = WHERE[:1]
            self.fields["where"].help_text = _("Restoring to the same place needs the role Administrator.")

    def clean_networks(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in filter(str.strip, self.cleaned_data["networks"].splitlines()):
            one, equals, other = line.partition("=")
            if not equals or not one.strip() or not other.strip():
                raise forms.ValidationError(_("“%s” is not like: default = lab") % line.strip()[:100])
            found[one.strip()] = other.strip()
        return found

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if self.errors:
            return data
        machine = MachineTarget(
            platform=data["platform"].pk,
            name=data["name"],
            host=data.get("host", "").strip(),
            storage=data["storage"],
            networks=data.get("networks", {}),
            new_identity=data.get("new_identity", True),
            start=data.get("start", False),
        )
        told = RestoreTarget(
            driver=self.draft.workload.platform.kind,
            path="",
            in_place=data["where"] == IN_PLACE,
            format=data.get("format", ""),
            machine=machine,
        )
        try:
            self.order, platform = machine_restores.clean(self.user, self.draft.point, told)
        except DomainError as error:
            self.add_error(None, f"{error.message} {error.hint}")
        else:
            data["node"] = platform.node
        return data

    def target(self) -> dict[str, Any]:
        """``protocol.RestoreTarget`` as plain data."""
        return dict(self.order.model_dump(mode="json"))


def summary(draft: RestoreDraft) -> list[str]:
    """What will happen, in sentences."""
    point, target, machine = draft.point, draft.target, draft.target["machine"]
    if draft.chosen:
        what = ngettext("%d chosen disk", "%d chosen disks", len(draft.chosen)) % len(draft.chosen)
    else:
        what = _("all disks (%s)") % display.size_text(point.size_bytes)
    taken = display.exact(point.taken_at)
    lines = [_("Restore %(what)s of “%(name)s” as of %(at)s.") % {"what": what, "name": draft.workload, "at": taken}]
    there = Platform.objects.filter(pk=machine["platform"]).first()
    words = {"name": machine["name"], "platform": there}
    is_image = draft.workload.platform.kind == PlatformKind.RBD
    if target.get("in_place"):
        lines.append(_("“%(name)s” on “%(platform)s” is replaced: what it holds now is lost.") % words)
    elif is_image:
        lines.append(_("A new image “%(name)s” is made on “%(platform)s”.") % words)
    else:
        lines.append(_("A new machine “%(name)s” is made on “%(platform)s”.") % words)
        if machine["new_identity"]:
            lines.append(_("It gets another UUID and other MAC addresses."))
    if machine["host"]:
        lines.append(_("It goes to the host %s.") % machine["host"])
    if machine["storage"]:
        lines.append(_("Its disks are written to %s.") % machine["storage"])
    if target["format"]:
        lines.append(_("The disks' format is %s.") % target["format"])
    for one, other in machine["networks"].items():
        lines.append(_("Instead of the network %(one)s it uses %(other)s.") % {"one": one, "other": other})
    if not is_image:
        lines.append(_("It is started when it is there.") if machine["start"] else _("It is not started."))
    if point.outcome == "partial":
        lines.append(_("This point is partial: %d items are not in it.") % point.left_out_count)
    return lines
