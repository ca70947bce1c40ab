"""Which policy covers which workload, and a policy's rule as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from apps.errors import Invalid
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.models import User
from apps.inventory.models import Workload
from apps.policies.models import Assignment, Policy
from apps.policies.retention import Rule


@transaction.atomic
def assign(user: User, workloads: Iterable[Workload], policy: Policy | None) -> int:
    """Cover the workloads with the policy, or with none. All or nothing; how many changed.

    The workloads' protection follows with ``jobs.objectives.refresh`` (or within a minute by itself).
    """
    chosen = list(workloads)
    if policy is not None:
        access.require(user, Right.VIEW, policy)
    for workload in chosen:
        access.require(user, Right.CONFIGURE, workload)
        if policy is not None and policy.tenant_id != workload.tenant_id:
            raise Invalid(
                _("The policy “%(policy)s” belongs to another tenant than “%(workload)s”.")
                % {"policy": policy, "workload": workload},
                hint=_("Choose a policy of the workload's own tenant."),
            )
    return sum(_set(user, workload, policy) for workload in chosen)


def _set(user: User, workload: Workload, policy: Policy | None) -> bool:
    before = Assignment.objects.filter(workload=workload).select_related("policy").first()
    if (before.policy_id if before else None) == (policy.pk if policy else None):
        Assignment.objects.filter(workload=workload).update(by_rule=False)  # a person has said it
        return False
    if policy is None:
        Assignment.objects.filter(workload=workload).delete()
    else:
        Assignment.objects.update_or_create(workload=workload, defaults={"policy": policy, "by_rule": False})
    change = [str(before.policy) if before else None, str(policy) if policy else None]
    audit.record(user, "policy.assigned", workload, tenant=workload.tenant, detail={"policy": change})
    return True


def policy_of(workload: Workload) -> Policy | None:
    """The policy that covers the workload now."""
    assignment = Assignment.objects.filter(workload=workload).select_related("policy__destination").first()
    return assignment.policy if assignment else None


def retention_of(policy: Policy) -> Rule:
    return Rule(
        last=policy.keep_last,
        hourly=policy.keep_hourly,
        daily=policy.keep_daily,
        weekly=policy.keep_weekly,
        monthly=policy.keep_monthly,
        yearly=policy.keep_yearly,
        within_days=policy.keep_within_days,
    )


def rule_of(policy: Policy) -> dict[str, Any]:
    """The policy as it is now, in plain values; a job keeps it, so that later edits do not rewrite its history."""
    return {
        "policy": policy.name,
        "destination": policy.destination.name,
        "staging": policy.staging,
        "time_zone": policy.time_zone,
        "start_window_minutes": policy.start_window_minutes,
        "objective_hours": policy.objective_hours,
        "priority": policy.priority,
        "list_files": policy.list_files,
        "bandwidth_mib_s": policy.bandwidth_mib_s,
        "keep": {
            name.removeprefix("keep_"): getattr(policy, name)
            for name in (field.name for field in Policy._meta.concrete_fields)
            if name.startswith("keep_")
        },
        "schedules": [
            {"cron": schedule.cron, "mode": schedule.mode, "enabled": schedule.enabled}
            for schedule in policy.schedules.order_by("mode", "cron")
        ],
    }
