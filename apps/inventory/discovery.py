"""What nodes found on platforms becomes workloads: the only writer of machines' names, facts and whether they are gone.

A machine is known by ``external_id``: renamed, it is the same workload; gone, it is marked so and its points stay;
back again, it is the same. Pieces come while the task runs and are written down at once, each stamped with the task;
when the task completes, what it did not see is gone. Repetitions do no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction

from apps.iam import audit
from apps.inventory import sources
from apps.inventory.models import Platform, Workload
from node_agent.protocol import MachineFacts

SYSTEM = "discovery"


@transaction.atomic
def write_down(platform_id: UUID, task_id: UUID, machines: Sequence[MachineFacts], now: datetime) -> list[Workload]:
    """A piece of what was found. Returns the workloads that are new, or back."""
    platform = (
        Platform.objects.select_for_update(no_key=True, of=("self",)).select_related("tenant").get(pk=platform_id)
    )
    told = {plain(one.id): one for one in machines}
    known = {row.external_id: row for row in Workload.objects.filter(platform=platform, external_id__in=told)}
    new: list[Workload] = []
    for external_id, machine in told.items():
        facts = _facts(machine)
        row = known.get(external_id)
        if row is None:
            row = Workload(tenant=platform.tenant, platform=platform, external_id=external_id)
            row.name = _free_name(row, facts["name"])
            row.source = sources.clean(platform.kind, {"known_as": row.name})
        elif facts["name"] != row.facts.get("name"):
            row.name = _free_name(row, facts["name"])
        came_back = row.gone_at is not None
        row.facts, row.seen_at, row.seen_by, row.gone_at = facts, now, task_id, None
        row.save()
        if external_id not in known or came_back:
            new.append(row)
            audit.record(SYSTEM, "workload.discovered", row, tenant=platform.tenant, detail={"back": came_back})
    return new


@transaction.atomic
def finish(platform_id: UUID, task_id: UUID, now: datetime, *, whole: bool, problems: Sequence[str]) -> list[Workload]:
    """The task is done: if it asked all of the platform, what it did not see is gone. Returns that."""
    platform = (
        Platform.objects.select_for_update(no_key=True, of=("self",)).select_related("tenant").get(pk=platform_id)
    )
    platform.discovered_at, platform.discovery_problem = now, plain("; ".join(problems))[:500]
    platform.save(update_fields=["discovered_at", "discovery_problem"])
    if not whole:
        return []
    missed = Workload.objects.filter(platform=platform, gone_at=None).exclude(external_id="").exclude(seen_by=task_id)
    gone = list(missed)
    Workload.objects.filter(pk__in=[row.pk for row in gone]).update(gone_at=now)
    for row in gone:
        audit.record(SYSTEM, "workload.gone", row, tenant=platform.tenant)
    return gone


def _locked(platform_id: UUID) -> Platform:
    rows = Platform.objects.select_for_update(no_key=True, of=("self",))
    return rows.select_related("tenant").get(pk=platform_id)


def _facts(machine: MachineFacts) -> dict[str, Any]:
    facts: dict[str, Any] = plain(machine.model_dump(mode="json", exclude={"id", "traces"}))
    facts["name"] = facts["name"].strip() or plain(machine.id)
    return facts


def plain(told: Any) -> Any:
    """Without NUL, which PostgreSQL cannot hold."""
    if isinstance(told, str):
        return told.replace("\x00", "\\0")
    if isinstance(told, list):
        return [plain(one) for one in told]
    return {plain(name): plain(value) for name, value in told.items()} if isinstance(told, dict) else told


def _free_name(row: Workload, wanted: str) -> str:
    """Names are unique within a tenant, and two platforms may well have a "web01" each."""
    taken = Workload.objects.filter(tenant=row.tenant_id).exclude(pk=row.pk)
    for name in (wanted, f"{wanted[:90]} ({row.platform.name})", f"{wanted[:90]} ({row.external_id[-100:]})"):
        if not taken.filter(name=name[:200]).exists():
            return name[:200]
    return str(row.pk)
