"""What nodes tell of platforms: machines in pieces, how a look ended, how a connection test went.

Inside the transactions of the reports that bring it (``jobs.results``, ``jobs.node_api``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.catalog import traces
from apps.errors import Invalid
from apps.inventory import discovery
from apps.inventory.models import MACHINES, Platform, Workload
from apps.jobs import objectives, publish
from apps.jobs.faults import Fault
from apps.jobs.models import Job, Task
from apps.policies import rules
from node_agent.protocol import DiscoverResult, MachineFacts, TaskKind

log = logging.getLogger(__name__)
KEYS_MOST = 50


def piece(task: Task, machines: Sequence[MachineFacts], now: datetime) -> None:
    if task.kind != TaskKind.DISCOVER or task.job.platform_id is None:
        raise Invalid(_("This task does not look for machines."))
    new = discovery.write_down(task.job.platform_id, task.pk, machines, now)
    told = {discovery.plain(one.id): one.traces for one in machines if one.traces is not None}
    traces.found(Workload.objects.filter(platform=task.job.platform_id, external_id__in=told), told, now)
    if new:
        objectives.refresh(new, now)
        publish.nudge(task.job.tenant_id, "platforms")


def completed(job: Job, task: Task, result: DiscoverResult, now: datetime) -> Fault | None:
    if job.platform is None:
        return None
    gone = discovery.finish(job.platform.pk, task.pk, now, whole=result.whole, problems=result.problems)
    if gone:
        log.info("platform %s: %s machines are gone", job.platform.pk, len(gone))
    objectives.refresh([*gone, *rules.apply(job.tenant)], now)
    publish.nudge(job.tenant_id, "platforms")
    if result.whole:
        return None
    count = len(result.problems) or 1
    words = ngettext(
        "Not all of the platform could be asked: %(first)s",
        "Not all of the platform could be asked; %(n)d problems, first: %(first)s",
        count,
    )
    return Fault(
        "discovery-incomplete",
        words % {"n": count, "first": next(iter(result.problems), "")},
        _("What was found is shown; nothing is taken for gone until all of it has been asked."),
    )


def tested(platform: Platform, problem: str, keys: Mapping[str, str], now: datetime) -> None:
    met = {one: key[:2000] for one, key in list(keys.items())[:KEYS_MOST] if one in platform.addresses}
    facts: dict[str, Any] = {"tested_at": now, "problem": problem[:500]}
    if met:
        facts["offered_keys"] = met
    Platform.objects.filter(pk=platform.pk).update(**facts)


def failed(platform_id: UUID, kind: TaskKind, fault: Fault, now: datetime) -> None:
    """The test, or the look for machines, came to nothing."""
    rows = Platform.objects.filter(pk=platform_id, kind__in=MACHINES)
    if kind == TaskKind.PROBE:
        rows.update(tested_at=now, problem=fault.message[:500])
    else:
        rows.update(discovery_problem=fault.message[:500])
