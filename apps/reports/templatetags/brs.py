"""The looks of ``apps.display`` for templates: ``{% load brs %}``."""

from __future__ import annotations

from datetime import datetime

from django import template
from django.utils.safestring import SafeString

from apps import display

register = template.Library()

register.filter("size", display.size)
register.filter("size_text", display.size_text)
register.filter("duration", display.duration)
register.filter("ago", display.ago)
register.filter("ago_text", display.ago_text)
register.filter("moment", display.moment)
register.simple_tag(display.bar, name="bar")


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
