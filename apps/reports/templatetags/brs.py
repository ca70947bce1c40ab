"""The looks of ``apps.display`` for templates: ``{% load brs %}``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django import template
from django.utils.formats import number_format
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from apps import display
from apps.catalog.models import NOT_IMMUTABLE, PointOutcome, RestorePoint
from apps.reports import figures, timeline

register = template.Library()

register.filter("size", display.size)
register.filter("size_text", display.size_text)
register.filter("duration", display.duration)
register.filter("ago", display.ago)
register.filter("ago_text", display.ago_text)
register.filter("event", display.event)
register.filter("brief", display.brief)
register.filter("moment", display.moment)
register.simple_tag(display.bar, name="bar")


register.filter("stored_in", figures.stored_in)


@register.filter
def badge(state: str) -> SafeString:
    return display.badge(state)


@register.filter
def tone(state: str) -> str:
    return display.look(state).tone


@register.filter
def icon(state: str) -> str:
    return display.look(state).icon


@register.filter
def word(state: str) -> str:
    return str(display.look(state).word)


@register.filter
def percent_of(part: float, whole: float) -> int:
    return display.percent(part, whole)


@register.filter
def lasted(started: datetime | None, ended: datetime | None) -> str:
    return display.duration((ended - started).total_seconds()) if started and ended else "–"


@register.filter
def plain(value: Any) -> str:
    """A fact of the audit trail as a person writes it: yes, no, – for nothing, an old and a new value."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return f"{plain(value[0])} → {plain(value[1])}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "–"
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return "–" if value in (None, "") else str(value)


@register.filter
def count(number: int | None) -> str:
    """Digits in groups, as the language writes them."""
    return number_format(number or 0, force_grouping=True)


@register.filter
def point_state(point: RestorePoint) -> str:
    """Complete or partial; damaged when no copy of it is whole; what should be locked and is not says so."""
    if timeline.is_hurt(point):
        return "damaged"
    unlocked = point.outcome == PointOutcome.COMPLETE and point.immutable_refused is not None
    return NOT_IMMUTABLE if unlocked else str(point.outcome)


@register.filter
def last_of(rows: Iterable[Any]) -> Any:
    """The last row; unlike Django's ``last`` also of a queryset that was fetched already."""
    found = list(rows.all()) if hasattr(rows, "all") else list(rows)
    return found[-1] if found else None
