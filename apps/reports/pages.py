"""Pages of the reports: what ran on which day."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext as _
from unfold.sites import UnfoldAdminSite

from apps.reports import figures

PERIODS = (7, 14, 30, 90)


def urls(site: UnfoldAdminSite) -> list[URLPattern]:
    def activity(request: HttpRequest) -> HttpResponse:
        asked = request.GET.get("days", "")
        days = int(asked) if asked.isdigit() and int(asked) in PERIODS else 14
        rows = figures.activity(request.user, timezone.now(), days)
        context = {
            **site.each_context(request),
            "title": _("Activity"),
            "subtitle": _("Runs per day"),
            "rows": rows,
            "most": max((row["backup"] + row["restore"] + row["other"] for row in rows), default=0),
            "days": days,
            "periods": PERIODS,
        }
        return TemplateResponse(request, "brs/activity.html", context)

    return [path("reports/activity/", site.admin_view(activity), name="report_activity")]
