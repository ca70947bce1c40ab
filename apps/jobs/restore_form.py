"""Where a restore goes: the form of the wizard's fourth step, its safe defaults and the summary in plain words."""

from __future__ import annotations

import posixpath
from typing import Any

from django import forms
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from unfold.widgets import (
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from apps import display
from apps.iam import access
from apps.iam.access import Right
from apps.iam.models import User
from apps.inventory.models import Node, PlatformKind
from apps.jobs.models import RestoreDraft

ELSEWHERE, IN_PLACE = "elsewhere", "in-place"
WHERE = (
    (ELSEWHERE, gettext_lazy("To another folder (safe: what is there now stays as it is)")),
    (IN_PLACE, gettext_lazy("To the same place it came from")),
)
OVERWRITE = (
    ("never", gettext_lazy("Keep what is there; restore only what is missing")),
    ("changed", gettext_lazy("Replace files that differ")),
    ("always", gettext_lazy("Replace everything")),
)
FORMATS = (("raw", gettext_lazy("raw")), ("qcow2", gettext_lazy("qcow2")))


def kind_of(draft: RestoreDraft) -> str:
    return str(draft.workload.platform.kind)


def default_target(draft: RestoreDraft) -> str:
    """A new folder (or file) of its own below the first place where the node may write."""
    node = draft.node or draft.workload.platform.node
    writable = (node.roots or {}).get("write") or ["/"]
    taken = timezone.localtime(draft.point.taken_at) if draft.point else timezone.now()
    safe = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in draft.workload.name).strip("-.")
    name = f"{safe or 'restore'}-{taken:%Y%m%d-%H%M}"
    return posixpath.join(writable[0], f"{name}.raw" if kind_of(draft) == PlatformKind.IMAGE else name)


class TargetForm(forms.Form):
    where = forms.ChoiceField(
        label=gettext_lazy("Where to"), choices=WHERE, initial=ELSEWHERE, widget=UnfoldAdminRadioSelectWidget
    )
    node = forms.ModelChoiceField(
        Node.objects.none(), label=gettext_lazy("Node"), widget=UnfoldAdminSelectWidget, empty_label=None
    )
    path = forms.CharField(
        label=gettext_lazy("Folder"), required=False, max_length=4000, widget=UnfoldAdminTextInputWidget
    )
    format = forms.ChoiceField(
        label=gettext_lazy("Format"), choices=FORMATS, required=False, widget=UnfoldAdminSelectWidget
    )
    overwrite = forms.ChoiceField(
        label=gettext_lazy("What exists already"),
        choices=OVERWRITE,
        initial="never",
        widget=UnfoldAdminSelectWidget,
    )
    verify = forms.BooleanField(
        label=gettext_lazy("Read everything again afterwards and compare"),
        required=False,
        widget=UnfoldBooleanSwitchWidget,
    )

    def __init__(self, user: User, draft: RestoreDraft, data: Any = None) -> None:
        kept = draft.target or {}
        initial = {
            "where": IN_PLACE if kept.get("in_place") else ELSEWHERE,
            "node": (draft.node or draft.workload.platform.node).pk,
            "path": kept.get("path") or default_target(draft),
            "overwrite": kept.get("overwrite", "never"),
            "format": kept.get("format", "raw"),
            "verify": kept.get("verify", False),
        }
        super().__init__(data, initial=initial)
        self.draft = draft
        self.image = kind_of(draft) == PlatformKind.IMAGE
        nodes = access.visible(user, Node).exclude(enrolled_at=None)
        self.fields["node"].queryset = nodes.filter(tenant=draft.tenant) | nodes.filter(tenant=None)
        if not access.can(user, Right.RESTORE_IN_PLACE, draft.workload):
            self.fields["where"].choices = WHERE[:1]
            self.fields["where"].help_text = _("Restoring to the same place needs the role Administrator.")
        if self.image:
            words = dict(self.fields["where"].choices) | {
                ELSEWHERE: _("To another file (safe: the disk stays as it is)")
            }
            self.fields["where"].choices = list(words.items())
            self.fields["path"].label = _("File to write")
            self.fields["path"].help_text = _("The disk image is written to this file.")
        else:
            del self.fields["format"]
            self.fields["path"].help_text = _("Made if it does not exist. The node's own rules say where it may write.")

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        given = data.get("path", "").strip()
        if data.get("where") == ELSEWHERE:
            if not given.startswith("/"):
                self.add_error("path", _("Give the full path, beginning with /."))
            elif ".." in given.split("/"):
                self.add_error("path", _("The path must not contain “..”."))
        elif data.get("node") and data["node"].pk != self.draft.workload.platform.node_id:
            self.add_error("node", _("The same place is on “%s”.") % self.draft.workload.platform.node)
        return data

    def target(self) -> dict[str, Any]:
        """``protocol.RestoreTarget`` as plain data, with ``verify`` beside it."""
        data = self.cleaned_data
        in_place = data["where"] == IN_PLACE
        source = self.draft.workload.source or {}
        here = source.get("path", "") if self.image else "/"
        return {
            "driver": kind_of(self.draft),
            "path": here if in_place else data["path"].strip(),
            "in_place": in_place,
            "overwrite": data["overwrite"],
            "format": data.get("format") or "raw",
            "verify": data["verify"],
        }


def summary(draft: RestoreDraft) -> list[str]:
    """What will happen, in sentences."""
    point, target = draft.point, draft.target
    if draft.chosen:
        count = len(draft.chosen)
        what = ngettext("%d chosen item", "%d chosen items", count) % count
    else:
        what = _("everything (%s)") % display.size_text(point.size_bytes)
    taken = display.exact(point.taken_at)
    lines = [_("Restore %(what)s of “%(name)s” as of %(at)s.") % {"what": what, "name": draft.workload, "at": taken}]
    if target.get("in_place"):
        lines.append(_("It goes to the place it came from, on node “%s”.") % draft.node)
    else:
        lines.append(_("It goes to %(path)s on node “%(node)s”.") % {"path": target["path"], "node": draft.node})
    lines.append(f"{dict(OVERWRITE)[target['overwrite']]}.")
    if target.get("verify"):
        lines.append(_("Afterwards everything is read again and compared."))
    if point.outcome == "partial":
        lines.append(_("This point is partial: %d items are not in it.") % point.left_out_count)
    return lines
