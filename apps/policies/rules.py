"""Puts machines under the policies whose rules they match.

A rule never touches what a person assigned or excluded. What a rule assigned, rules may change again, or take away when
none matches any more (the points stay, and the machine shows as unprotected). Of several policies the one with the
higher priority counts, then the name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from apps.errors import Invalid
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.models import Tenant, User
from apps.inventory.models import Workload
from apps.policies import matching
from apps.policies.models import Assignment, AssignmentRule, Policy

SYSTEM = "rules"
SHOWN = 100  # matches of a preview


def machines(tenant: Tenant) -> QuerySet[Workload]:
    """Those that rules look at."""
    return Workload.objects.filter(tenant=tenant, gone_at=None, excluded=False).exclude(external_id="")


def of(policies: Iterable[Policy] | QuerySet[Policy]) -> list[matching.Rule]:
    rows = AssignmentRule.objects.filter(policy__in=policies, policy__enabled=True).select_related("policy")
    return [
        matching.Rule(row.by, row.pattern, row.policy_id, (-row.policy.priority, row.policy.name, str(row.policy_id)))
        for row in rows
    ]


def told(policy: Policy) -> list[tuple[str, str]]:
    """A policy's rules as plain pairs of what they look at and the pattern."""
    return list(policy.rules.order_by("by", "pattern").values_list("by", "pattern"))


@transaction.atomic
def keep(user: User, policy: Policy, wanted: Iterable[tuple[str, str]]) -> None:
    """Make the policy's rules these. They reach for all of the tenant's machines: so must the right to change them."""
    pairs = set(wanted)
    if any(not pattern for _by, pattern in pairs):
        raise Invalid(_("A rule matches nothing without a pattern."), hint=_("Write * for everything."))
    if pairs == set(told(policy)):
        return
    access.require(user, Right.CONFIGURE, policy.tenant)
    policy.rules.all().delete()
    AssignmentRule.objects.bulk_create([AssignmentRule(policy=policy, by=by, pattern=one) for by, one in pairs])


def preview(user: User, tenant: Tenant, wanted: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """The machines, of those the user sees, that rules match now, and what covers them."""
    tried = [matching.Rule(by, pattern) for by, pattern in wanted]
    rows = access.visible(user, machines(tenant)).select_related("assignment__policy").order_by("name")
    found = []
    for workload in rows:
        if not any(matching.matches(rule, matching.Seen.of(workload.facts)) for rule in tried):
            continue
        now: Assignment | None = getattr(workload, "assignment", None)
        found.append(
            {
                "workload": workload.pk,
                "name": workload.name,
                "policy": now.policy_id if now else None,
                "policy_name": now.policy.name if now else None,
                "by_hand": bool(now and not now.by_rule),
            }
        )
    return found


@transaction.atomic
def apply(tenant: Tenant) -> list[Workload]:
    """The workloads whose policy changed. Their protection follows with ``jobs.objectives.refresh``."""
    rules = of(Policy.objects.filter(tenant=tenant))
    covered = Assignment.objects.filter(workload__tenant=tenant)
    if not rules and not covered.filter(by_rule=True).exists():
        return []
    rows = machines(tenant).select_related("assignment__policy")
    changed: list[Workload] = []
    for workload in rows:
        before: Assignment | None = getattr(workload, "assignment", None)
        if before is not None and not before.by_rule:
            continue
        wanted = matching.choose(rules, matching.Seen.of(workload.facts))
        if wanted != (before.policy_id if before else None):
            _set(workload, before, wanted)
            changed.append(workload)
    return changed


def _set(workload: Workload, before: Assignment | None, wanted: object) -> None:
    if wanted is None:
        Assignment.objects.filter(workload=workload, by_rule=True).delete()
    else:
        Assignment.objects.update_or_create(workload=workload, defaults={"policy_id": wanted, "by_rule": True})
    name = Policy.objects.get(pk=wanted).name if wanted else None
    change = [str(before.policy) if before else None, name]
    audit.record(SYSTEM, "policy.assigned", workload, tenant=workload.tenant, detail={"policy": change})
