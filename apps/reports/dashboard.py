"""The overview: are we protected, is something wrong, what is happening now."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.iam import access
from apps.iam.access import Right
from apps.reports import alerts, figures, first_run


def context(request: HttpRequest, given: dict[str, Any]) -> dict[str, Any]:
    """Called by the theme with the index page's context (UNFOLD["DASHBOARD_CALLBACK"])."""
    now = timezone.now()
    guide = first_run.steps(request.user)
    return {
        **given,
        "title": _("Overview"),
        "now": now,
        "figures": figures.overview(request.user, now),
        "alerts": alerts.alerts(request.user, now),
        "guide": guide,
        "guide_left": sum(not step.done for step in guide),
        "may_configure": access.tenants(request.user, Right.CONFIGURE).exists() or request.user.is_superuser,
    }
