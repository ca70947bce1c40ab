"""How facts look to people: sizes, ages, durations, and each state as an icon with a word (never colour alone).

Everything that may come from a backup or a user goes through ``format_html``; nothing here trusts its input.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

Words = str | Promise


class Look(NamedTuple):
    """``tone`` is one of ok, warn, bad, run, idle (classes of brs.css); ``icon`` a Material symbol."""

    tone: str
    icon: str
    word: Words


UNKNOWN = Look("idle", "help", gettext_lazy("Unknown"))

LOOKS: dict[str, Look] = {
    # protection of a workload
    "protected": Look("ok", "verified_user", gettext_lazy("Protected")),
    "attention": Look("warn", "warning", gettext_lazy("Needs attention")),
    "unprotected": Look("bad", "gpp_bad", gettext_lazy("Not protected")),
    "excluded": Look("idle", "block", gettext_lazy("Excluded")),
    # jobs and tasks
    "queued": Look("idle", "schedule", gettext_lazy("Waiting")),
    "leased": Look("run", "progress_activity", gettext_lazy("Starting")),
    "running": Look("run", "progress_activity", gettext_lazy("Running")),
    "succeeded": Look("ok", "check_circle", gettext_lazy("Complete")),
    "partial": Look("warn", "warning", gettext_lazy("Partial")),
    "failed": Look("bad", "error", gettext_lazy("Failed")),
    "cancelled": Look("idle", "cancel", gettext_lazy("Cancelled")),
    "unbegun": Look("idle", "remove", gettext_lazy("Not begun")),
    # restore points and their copies
    "complete": Look("ok", "check_circle", gettext_lazy("Complete")),
    "not-immutable": Look("warn", "lock_open", gettext_lazy("Not immutable")),
    "present": Look("ok", "check_circle", gettext_lazy("Present")),
    "expiring": Look("idle", "auto_delete", gettext_lazy("Being removed")),
    "expired": Look("idle", "delete", gettext_lazy("Removed")),
    "missing": Look("bad", "gpp_bad", gettext_lazy("Missing")),
    "damaged": Look("bad", "broken_image", gettext_lazy("Damaged")),
    "held": Look("idle", "lock", gettext_lazy("Held")),
    # repositories
    "new": Look("idle", "hourglass_empty", gettext_lazy("Not made yet")),
    "ready": Look("ok", "check_circle", gettext_lazy("Ready")),
    "problem": Look("bad", "error", gettext_lazy("Problem")),
    # nodes
    "online": Look("ok", "check_circle", gettext_lazy("Online")),
    "offline": Look("bad", "cloud_off", gettext_lazy("Offline")),
    "paused": Look("idle", "pause_circle", gettext_lazy("Paused")),
    "draining": Look("idle", "hourglass_bottom", gettext_lazy("Finishing its tasks")),
    "quarantined": Look("bad", "gpp_maybe", gettext_lazy("Quarantined")),
    "clock": Look("warn", "history_toggle_off", gettext_lazy("Clock is off")),
    "expected": Look("idle", "hourglass_empty", gettext_lazy("Not seen yet")),
    # machines
    "confirm": Look("warn", "verified_user", gettext_lazy("Confirm its key")),
    "gone": Look("warn", "cloud_off", gettext_lazy("Gone")),
    # what is kept on platforms
    "needed": Look("ok", "check_circle", gettext_lazy("Needed")),
    "unneeded": Look("idle", "auto_delete", gettext_lazy("Not needed")),
    "foreign": Look("warn", "help", gettext_lazy("Unknown mark")),
    # destinations
    "untested": Look("idle", "help", gettext_lazy("Not tested yet")),
    "fine": Look("ok", "check_circle", gettext_lazy("Fine")),
    "full": Look("bad", "storage", gettext_lazy("Almost full")),
}


LONG_ID = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{32,56}\b")


def brief(text: object) -> str:
    """A sentence with its long ids cut to what tells them apart; the log keeps them whole."""
    return LONG_ID.sub(r"\1…", str(text))


def event(verb: str) -> str:
    """An audit event's code as words: ``enrolment.code-issued`` is “Enrolment code issued”."""
    return verb.replace(".", " ").replace("-", " ").capitalize()


def look(state: str) -> Look:
    return LOOKS.get(str(state), UNKNOWN)


def badge(state: str, word: Words = "") -> SafeString:
    """The state as a coloured pill with icon and word."""
    seen = look(state)
    return format_html(
        '<span class="brs-badge brs-{}"><span class="material-symbols-outlined" aria-hidden="true">{}</span>{}</span>',
        seen.tone,
        seen.icon,
        word or seen.word,
    )


UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size_text(count: float | None) -> str:
    """``1.2 GiB``; three digits at most, so that columns of sizes can be compared at a glance."""
    amount = float(count or 0)
    for unit in UNITS:
        if abs(amount) < 1000 or unit == UNITS[-1]:
            break
        amount /= 1024
    digits = 0 if unit == "B" or abs(amount) >= 100 else 1
    return f"{number_format(round(amount, digits), digits)} {unit}"


def size(count: float | None) -> SafeString:
    """The size in plain units, the exact bytes on hover."""
    exact = number_format(int(count or 0), use_l10n=True, force_grouping=True)
    return format_html('<span class="brs-num" title="{}">{}</span>', _("%s bytes") % exact, size_text(count))


def duration(seconds: float | None) -> str:
    """``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``4 d 6 h``."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return _("%d s") % whole
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return _("%(m)d min %(s)d s") % {"m": minutes, "s": rest} if rest and minutes < 10 else _("%d min") % minutes
    if whole < 2 * 86400:
        hours, rest = divmod(whole, 3600)
        minutes = rest // 60
        return _("%(h)d h %(m)d min") % {"h": hours, "m": minutes} if minutes else _("%d h") % hours
    days, rest = divmod(whole, 86400)
    hours = rest // 3600
    return _("%(d)d d %(h)d h") % {"d": days, "h": hours} if hours and days < 7 else _("%d d") % days


def _coarse(seconds: float) -> str:
    """One unit only: an age is read at a glance."""
    whole = max(0, int(seconds))
    if whole < 60:
        return _("less than a minute")
    if whole < 3600:
        return ngettext("%d minute", "%d minutes", whole // 60) % (whole // 60)
    if whole < 2 * 86400:
        return ngettext("%d hour", "%d hours", whole // 3600) % (whole // 3600)
    return ngettext("%d day", "%d days", whole // 86400) % (whole // 86400)


def ago_text(at: datetime | None, now: datetime | None = None) -> str:
    if at is None:
        return _("never")
    seconds = ((now or timezone.now()) - at).total_seconds()
    return _("%s ago") % _coarse(seconds) if seconds >= 0 else _("in %s") % _coarse(-seconds)


def exact(at: datetime) -> str:
    local = timezone.localtime(at)
    return f"{date_format(local, 'Y-m-d H:i:s')} {local.tzname() or ''}".strip()


def ago(at: datetime | None, now: datetime | None = None) -> SafeString:
    """``3 hours ago`` with the exact time and zone on hover."""
    if at is None:
        return format_html('<span class="brs-faint">{}</span>', _("never"))
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), exact(at), ago_text(at, now))


def moment(at: datetime | None) -> SafeString:
    """The exact time, the age on hover."""
    if at is None:
        return format_html('<span class="brs-faint">{}</span>', "–")
    local = timezone.localtime(at)
    return format_html(
        '<time class="brs-num" datetime="{}" title="{} · {}">{}</time>',
        at.isoformat(),
        ago_text(at),
        exact(at),
        date_format(local, "Y-m-d H:i"),
    )


def percent(part: float, whole: float) -> int:
    return max(0, min(100, round(100 * part / whole))) if whole else 0


def bar(part: float, whole: float, tone: str = "run", label: str = "") -> SafeString:
    """A bar of ``part`` in ``whole``; the label is what a screen reader says."""
    share = percent(part, whole)
    return format_html(
        '<span class="brs-bar brs-{}" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{}"'
        ' aria-label="{}"><span style="width:{}%"></span></span>',
        tone,
        share,
        label or f"{share} %",
        share,
    )
