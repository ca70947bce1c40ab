"""Put something under protection in one go: platform, workload, policy. Used by the first-run guide and its form."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from apps.errors import Conflict, Invalid
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.models import Tenant, User
from apps.inventory import sources
from apps.inventory.models import Destination, Node, Platform, PlatformKind, Workload
from apps.jobs import objectives
from apps.policies import assignment
from apps.policies.models import Policy, Schedule

DAILY = "0 22 * * *"


def protect(
    user: User, *, tenant: Tenant, node: Node, kind: str, name: str, source: dict[str, Any], policy: Policy
) -> Workload:
    """A workload under ``policy``. Raises Invalid for a bad source, Conflict when the name is taken."""
    access.require(user, Right.CONFIGURE, tenant)
    access.require(user, Right.VIEW, node)
    access.require(user, Right.VIEW, policy)
    if policy.tenant_id != tenant.pk or (node.tenant_id and node.tenant_id != tenant.pk):
        raise Invalid(_("Node, policy and workload must belong to one tenant."))
    cleaned = sources.clean(kind, source)
    with transaction.atomic():
        if Workload.objects.filter(tenant=tenant, name=name).exists():
            raise Conflict(_("There is a workload “%s” already.") % name, hint=_("Choose another name."))
        platform = platform_on(user, tenant, node, kind)
        workload = Workload.objects.create(tenant=tenant, platform=platform, name=name, source=cleaned)
        audit.record(user, "workload.added", workload, detail={"after": audit.snapshot(workload)})
        assignment.assign(user, [workload], policy)
        objectives.refresh([workload])
    return workload


def platform_on(user: User, tenant: Tenant, node: Node, kind: str) -> Platform:
    """The node's place of this kind, made when it is the first."""
    found = Platform.objects.filter(tenant=tenant, node=node, kind=kind).first()
    if found:
        return found
    words = _("Files on %s") if kind == PlatformKind.FILES else _("Disk images on %s")
    platform = Platform.objects.create(tenant=tenant, node=node, kind=kind, name=(words % node.name)[:100])
    audit.record(user, "platform.added", platform)
    return platform


def daily_policy(user: User, tenant: Tenant, destination: Destination) -> Policy:
    """Every day at 22:00 to ``destination``; the one made before when there is one."""
    access.require(user, Right.CONFIGURE, tenant)
    name = _("Daily to %s") % destination.name
    policy = Policy.objects.filter(tenant=tenant, name=name[:100]).first()
    if policy is None:
        with transaction.atomic():
            policy = Policy.objects.create(tenant=tenant, name=name[:100], destination=destination)
            Schedule.objects.create(policy=policy, cron=DAILY)
            audit.record(user, "policy.added", policy, detail={"after": audit.snapshot(policy)})
    return policy
