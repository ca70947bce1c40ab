"""Leaving a workload out on purpose: it is not backed up, and does not count as unprotected. Its points stay."""

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

REASON_LONGEST = 300


@transaction.atomic
def exclude(user: User, workloads: Iterable[Workload], reason: str, *, request: Any = None) -> int:
    """Excludes all of them or none; how many changed. The reason is asked for because somebody will ask later.

    The workloads' protection follows with ``jobs.objectives.refresh`` (or within a minute by itself).
    """
    reason = reason.strip()
    if not reason:
        raise Invalid(_("reason: say why it is excluded."), hint=_("It is shown wherever the workload is."))
    if len(reason) > REASON_LONGEST:
        raise Invalid(_("reason: at most %d characters.") % REASON_LONGEST)
    return sum(_set(user, workload, True, reason, request) for workload in workloads)


@transaction.atomic
def include(user: User, workloads: Iterable[Workload], *, request: Any = None) -> int:
    """Takes the exclusion back; how many changed."""
    return sum(_set(user, workload, False, "", request) for workload in workloads)


def _set(user: User, workload: Workload, excluded: bool, reason: str, request: Any) -> bool:
    access.require(user, Right.CONFIGURE, workload)
    before = [workload.excluded, workload.excluded_reason]
    if before == [excluded, reason]:
        return False
    workload.excluded, workload.excluded_reason = excluded, reason
    workload.save(update_fields=["excluded", "excluded_reason"])
    detail = {"excluded": [before[0], excluded], "reason": [before[1], reason]}
    verb = "workload.excluded" if excluded else "workload.included"
    audit.record(user, verb, workload, detail=detail, request=request)
    return True
