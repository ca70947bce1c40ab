"""Commands around a policy's backups. Who sets them runs programs with the login of every platform that the policy
reaches, so that is a right of its own, over the whole tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.iam import access
from apps.iam.access import Right
from apps.iam.models import Tenant, User
from apps.inventory.models import PlatformKind, Workload
from apps.policies.models import CommandsWhere, Policy
from node_agent.protocol import Commands

FIELDS = (
    "command_before",
    "command_after",
    "command_where",
    "command_limit_s",
    "command_accepts",
    "command_on_error",
)


def may_set(user: User, tenant: Tenant | None) -> bool:
    """Without a tenant yet: whether there is one in which the user may."""
    if tenant is None:
        return access.tenants(user, Right.COMMANDS).exists()
    return access.can(user, Right.COMMANDS, tenant)


def require_right(user: User, tenant: Tenant, before: Policy | None, told: Mapping[str, Any]) -> None:
    """Denied when ``told`` would change a command, and the user may not. ``before``: None for a new policy."""
    default = before or Policy()
    if any(told[name] != getattr(default, name) for name in FIELDS if name in told):
        access.require(user, Right.COMMANDS, tenant)


def of(policy: Policy) -> Commands | None:
    """In the words of the wire."""
    if not policy.command_before and not policy.command_after:
        return None
    before, after = (
        text.replace("\r\n", "\n") for text in (policy.command_before, policy.command_after)
    )  # of browsers
    return Commands(
        where=policy.command_where,
        before=before,
        after=after,
        limit_s=policy.command_limit_s,
        exit_codes=[int(code) for code in policy.command_accepts.split(",")],
        on_error=policy.command_on_error,
    )


def fit(policy: Policy, workload: Workload) -> bool:
    """Only a machine of a KVM host has a hypervisor to run commands on."""
    if of(policy) is None or policy.command_where != CommandsWhere.HOST:
        return True
    return bool(workload.platform.kind == PlatformKind.KVM)
