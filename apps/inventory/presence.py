"""What a node tells of itself, and whether it can be reckoned with.

The only writer of a node's incarnation, capabilities, clock offset and ``last_seen_at``. A poll that brings
nothing new is written down every ten seconds at most: a thousand idle nodes should not keep the database busy.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from apps.inventory.models import Node
from node_agent.protocol import API_VERSION, Capabilities

SEEN_EVERY = timedelta(seconds=10)
OFFLINE_AFTER = timedelta(seconds=90)  # a long poll lasts up to 60 s
CLOCK_LIMIT_S = 300.0
OLDEST_PROTOCOL = API_VERSION - 1
RESERVED = ("node:", "driver:", "tenant:", "platform:", "destination:")  # labels that the server alone gives


class NodeState(models.TextChoices):
    """How a node stands, worst first."""

    QUARANTINED = "quarantined", _("Quarantined")
    NEVER = "never", _("Not enrolled yet")
    OFFLINE = "offline", _("Offline")
    OUTDATED = "outdated", _("Too old")
    PAUSED = "paused", _("Paused")
    DRAINING = "draining", _("Stopping")
    CLOCK = "clock", _("Clock is wrong")
    ONLINE = "online", _("Online")


def state(node: Node, now: datetime) -> NodeState:
    if node.quarantined_at is not None:
        return NodeState.QUARANTINED
    if node.last_seen_at is None:
        return NodeState.NEVER
    if now - node.last_seen_at > OFFLINE_AFTER:
        return NodeState.OFFLINE
    if not speaks_our_protocol(node):
        return NodeState.OUTDATED
    if node.paused:
        return NodeState.PAUSED
    if node.draining:
        return NodeState.DRAINING
    return NodeState.CLOCK if clock_is_off(node) else NodeState.ONLINE


def clock_is_off(node: Node) -> bool:
    """More than five minutes: locks and exclusive work cannot be trusted to it."""
    return abs(node.clock_offset_s) > CLOCK_LIMIT_S


def speaks_our_protocol(node: Node) -> bool:
    """Server N serves nodes of N and N-1; newer nodes speak down to their server."""
    return node.protocol >= OLDEST_PROTOCOL


def restarted(node: Node, incarnation: UUID) -> bool:
    """Take over a new start of the node. True for exactly one of several concurrent callers."""
    changed = (
        Node.objects.filter(pk=node.pk)
        .filter(Q(incarnation__isnull=True) | ~Q(incarnation=incarnation))
        .update(incarnation=incarnation)
    )
    node.incarnation = incarnation
    return changed == 1


def seen(
    node: Node, now: datetime, *, node_time: datetime | None, capabilities: Capabilities | None, draining: bool
) -> None:
    """Write down what a poll told. ``node`` is brought up to date, too."""
    told = _facts(capabilities) if capabilities else {}
    told["draining"] = draining
    if node_time is not None:
        told["clock_offset_s"] = _offset_s(node_time, now)
    stale = node.last_seen_at is None or now - node.last_seen_at >= SEEN_EVERY
    if not stale and not _news(node, told):
        return
    told["last_seen_at"] = now
    Node.objects.filter(pk=node.pk).update(**told)
    for name, value in told.items():
        setattr(node, name, value)


def labels(node: Node) -> set[str]:
    """Everything a task may require: what the node and the administrator say, and what follows from the inventory."""
    own = {label for label in [*node.labels, *node.told_labels] if not str(label).startswith(RESERVED)}
    own.add(f"node:{node.pk}")
    own.update(f"driver:{driver}" for driver in node.drivers)
    if node.tenant_id:
        own.add(f"tenant:{node.tenant_id}")
    own.update(f"platform:{pk}" for pk in node.platforms.values_list("pk", flat=True))
    own.update(f"destination:{pk}" for pk in node.destinations.values_list("pk", flat=True))
    return own


def _facts(told: Capabilities) -> dict[str, Any]:
    return {
        "version": told.version[:40],
        "protocol": max(0, min(told.protocol, 32767)),
        "hostname": told.hostname[:255],
        "system": told.system[:200],
        "kinds": [str(kind) for kind in told.kinds],
        "drivers": list(told.drivers),
        "told_labels": list(told.labels),
        "roots": told.roots.model_dump(),
        "slots": max(1, min(told.slots, 64)),
        "staging_bytes": max(0, told.staging_bytes),
    }


def _offset_s(node_time: datetime, now: datetime) -> float:
    """Node minus server. A time without zone is taken as UTC."""
    aware = node_time if node_time.tzinfo else node_time.replace(tzinfo=UTC)
    return round((aware - now).total_seconds(), 1)


def _news(node: Node, told: dict[str, Any]) -> bool:
    def differs(name: str, value: Any) -> bool:
        if name == "clock_offset_s":
            return abs(node.clock_offset_s - value) > 5
        return bool(getattr(node, name) != value)

    return any(differs(name, value) for name, value in told.items())
