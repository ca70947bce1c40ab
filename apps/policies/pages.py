"""The retention simulator and the preview of a schedule, asked by the policy editor while one types."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext as _
from unfold.sites import UnfoldAdminSite

from apps.errors import DomainError
from apps.iam import access
from apps.iam.models import Tenant
from apps.policies import retention, rules, schedule

RULE_FIELDS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
RUNS_MAX = 1500
RULES_MAX = 50
DAYS = 420
SHOWN_DAYS = 371  # 53 weeks


def urls(site: UnfoldAdminSite) -> list[URLPattern]:
    return [
        path("policies/simulate/", site.admin_view(simulate), name="policy_simulate"),
        path("policies/matches/", site.admin_view(matches), name="policy_matches"),
        path("policies/when/", site.admin_view(when), name="policy_when"),
    ]


def _number(given: str | None) -> int:
    return min(int(given), 100_000) if given and given.isdigit() else 0


def _rule(query: Any) -> retention.Rule:
    counts = {name: _number(query.get(f"keep_{name}")) for name in RULE_FIELDS}
    return retention.Rule(**counts, within_days=_number(query.get("keep_within_days")))


def _runs(query: Any, now: datetime, zone: str) -> list[datetime]:
    """The runs that this schedule would have had until now, newest first."""
    crons = [cron for key, cron in query.items() if key.endswith("-cron") and cron.strip()] or ["0 22 * * *"]
    found: set[datetime] = set()
    for cron in crons:
        found.update(schedule.newest_due(cron, zone, now - timedelta(days=DAYS), now, RUNS_MAX))
    return sorted(found, reverse=True)[:RUNS_MAX]


def simulate(request: HttpRequest) -> HttpResponse:
    """A fragment: a year of days; which restore points would exist today under this rule, and why."""
    now = timezone.now()
    zone = request.GET.get("time_zone") or "UTC"
    context: dict[str, Any] = {}
    try:
        tz: ZoneInfo = schedule.zone(zone)
        runs = _runs(request.GET, now, zone)
        facts = [retention.Fact(id=at.isoformat(), taken_at=at, complete=True, held=False) for at in runs]
        decisions = retention.decide(facts, _rule(request.GET), now, tz)
    except DomainError as error:
        context["error"] = f"{error.message} {error.hint}"
    else:
        kept = [one for one in decisions if one.keep]
        context |= {"kept": len(kept), "runs": len(runs), "weeks": _calendar(decisions, runs, now, tz)}
        context["oldest"] = min((datetime.fromisoformat(str(one.id)) for one in kept), default=None)
    return TemplateResponse(request, "brs/simulator.html", context)


def _calendar(decisions: list[Any], runs: list[datetime], now: datetime, tz: ZoneInfo) -> list[list[dict[str, Any]]]:
    """Columns of weeks, as squares: how many points are kept on each day, and for which reasons."""
    days: dict[Any, dict[str, Any]] = {}
    for run in runs:
        days.setdefault(run.astimezone(tz).date(), {"kept": 0, "reasons": []})
    for one in decisions:
        if one.keep:
            day = days[datetime.fromisoformat(str(one.id)).astimezone(tz).date()]
            day["kept"] += 1
            day["reasons"] += [str(reason) for reason in one.reasons if str(reason) not in day["reasons"]]
    today = now.astimezone(tz).date()
    begin = today - timedelta(days=SHOWN_DAYS - 1)
    begin -= timedelta(days=begin.weekday())
    weeks: list[list[dict[str, Any]]] = []
    for offset in range((today - begin).days + 1):
        date = begin + timedelta(days=offset)
        if date.weekday() == 0:
            weeks.append([])
        weeks[-1].append({"date": date, "run": date in days, **days.get(date, {"kept": 0, "reasons": []})})
    return weeks


def when(request: HttpRequest) -> HttpResponse:
    """A fragment: a cron line in words, and its next three runs."""
    cron, zone = request.GET.get("cron", ""), request.GET.get("time_zone") or "UTC"
    try:
        schedule.validate(cron, zone)
        tz, at, runs = schedule.zone(zone), timezone.now(), []
        for _run in range(3):
            at = schedule.next_run(cron, zone, at)
            if at is None:
                break
            runs.append(at.astimezone(tz))
        context = {"words": schedule.describe(cron), "runs": runs, "zone": zone}
    except DomainError as error:
        context = {"error": f"{error.message} {error.hint}"}
    except (ValueError, TypeError):
        context = {"error": _("This is no valid schedule.")}
    return TemplateResponse(request, "brs/when.html", context)


def matches(request: HttpRequest) -> HttpResponse:
    """A fragment: the machines that the rules typed so far match, in the tenant of the policy."""
    tenant = access.fetch(request.user, Tenant, request.GET.get("tenant", ""))
    wanted = []
    for key, pattern in request.GET.items():
        if key.endswith("-pattern") and pattern.strip():
            wanted.append((request.GET.get(f"{key.removesuffix('pattern')}by", ""), pattern))
    found = rules.preview(request.user, tenant, wanted[:RULES_MAX])
    return TemplateResponse(request, "brs/matches.html", {"found": found[: rules.SHOWN], "count": len(found)})
