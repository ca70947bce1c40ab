"""The forms of workloads: what of each kind of platform is protected, and the questions that acts ask."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from apps import display as look
from apps.errors import DomainError
from apps.iam import access
from apps.iam.admin_scope import ScopedForm
from apps.inventory import exclusion, sources
from apps.inventory.models import PlatformKind, Workload
from apps.policies import assignment
from apps.policies.models import Policy


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


class WorkloadForm(ScopedForm):
    paths = forms.CharField(label=gettext_lazy("Paths"), widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}))
    excludes = forms.CharField(
        label=gettext_lazy("Leave out"), required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2})
    )
    policy = forms.ModelChoiceField(
        Policy.objects.none(),
        label=gettext_lazy("Policy"),
        required=False,
        widget=UnfoldAdminSelectWidget,
        empty_label=gettext_lazy("None: it is backed up by hand only, and points are kept"),
    )

    class Meta:
        model = Workload
        fields = ["name"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        source = self.instance.source or {}
        self.image = self.instance.platform.kind == PlatformKind.IMAGE
        if "paths" not in self.fields:
            return  # somebody who may only look
        self.fields["paths"].initial = "\n".join([source["path"]] if "path" in source else source.get("paths", []))
        self.fields["excludes"].initial = "\n".join(source.get("excludes", []))
        policy = assignment.policy_of(self.instance)
        self.fields["policy"].initial = policy.pk if policy else None
        if self.image:
            self.fields["paths"].label = _("Disk image")
            self.fields["excludes"].widget = forms.HiddenInput()

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        lines = _lines(self.cleaned_data.get("paths", ""))
        source = dict(self.instance.source or {})
        if self.image:
            if len(lines) != 1:
                self.add_error("paths", _("A disk image is one file."))
                return cleaned
            source["path"] = lines[0]
        else:
            source |= {"paths": lines, "excludes": _lines(self.cleaned_data.get("excludes", ""))}
        try:
            self.instance.source = sources.clean(self.instance.platform.kind, source)
        except DomainError as error:
            self.add_error("paths", f"{error.message} {error.hint}")
        return cleaned


FREEZES = (
    ("try", gettext_lazy("If its agent answers (else as after a power cut)")),
    ("require", gettext_lazy("Always (without it there is no backup)")),
    ("no", gettext_lazy("Never (as after a power cut)")),
)


class MachineForm(ScopedForm):
    """A discovered machine: what of it is protected, and how it stands still."""

    policy = WorkloadForm.base_fields["policy"]
    disks = forms.MultipleChoiceField(
        label=gettext_lazy("Disks"),
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text=gettext_lazy("What is not ticked is left out on purpose, and missing from every point."),
    )
    freeze = forms.ChoiceField(
        label=gettext_lazy("Hold the guest's file systems"), choices=FREEZES, widget=UnfoldAdminSelectWidget
    )
    freeze_limit_s = forms.IntegerField(
        label=gettext_lazy("For at most (seconds)"), min_value=1, max_value=600, widget=UnfoldAdminIntegerFieldWidget
    )

    class Meta:
        model = Workload
        fields = ["name"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "disks" not in self.fields:
            return  # somebody who may only look
        source, left_out = self.instance.source, self.instance.source.get("leave_out", [])
        known = {disk["name"]: disk for disk in self.instance.facts.get("disks", [])}
        names = list(dict.fromkeys([*known, *left_out]))
        self.fields["disks"].choices = [(name, _disk_words(name, known.get(name))) for name in names]
        self.fields["disks"].initial = [name for name in names if name not in left_out]
        self.fields["freeze"].initial = source.get("freeze", "try")
        self.fields["freeze_limit_s"].initial = source.get("freeze_limit_s", sources.FREEZE_LIMIT_S)
        policy = assignment.policy_of(self.instance)
        self.fields["policy"].initial = policy.pk if policy else None

    def protectable(self, name: str) -> bool:
        disks = self.instance.facts.get("disks", [])
        return not any(disk.get("why_left_out") for disk in disks if disk["name"] == name)

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        given = self.cleaned_data
        if {"disks", "freeze", "freeze_limit_s"} <= given.keys():
            offered = [name for name, _words in self.fields["disks"].choices]
            if offered and not any(self.protectable(name) for name in given["disks"]):
                self.add_error("disks", _("At least one disk is protected; or exclude the machine."))
                return cleaned
            left_out = [name for name in offered if name not in given["disks"]]
            told = {"leave_out": left_out, "freeze": given["freeze"], "freeze_limit_s": given["freeze_limit_s"]}
            self.instance.source = sources.clean(self.instance.platform.kind, {**self.instance.source, **told})
        return cleaned


def _disk_words(name: str, disk: dict[str, Any] | None) -> str:
    if disk is None:
        return name
    if why := disk.get("why_left_out"):
        return _("%(name)s – cannot be protected: %(why)s") % {"name": name, "why": why}
    return f"{name} ({look.size_text(disk['size_bytes'])})"


class ReasonForm(forms.Form):
    reason = forms.CharField(
        label=gettext_lazy("Why"), max_length=exclusion.REASON_LONGEST, widget=UnfoldAdminTextInputWidget
    )


def policy_form(request: HttpRequest, _workload: Any = None) -> type[forms.Form]:
    class PolicyForm(forms.Form):
        policy = forms.ModelChoiceField(
            access.visible(request.user, Policy),
            label=gettext_lazy("Policy"),
            required=False,
            widget=UnfoldAdminSelectWidget,
            empty_label=gettext_lazy("None"),
        )

    return PolicyForm
