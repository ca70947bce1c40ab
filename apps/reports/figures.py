"""The numbers of the overview, as one user sees them. Only reads; every query goes through ``iam.access``."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Q, QuerySet, Sum

from apps.catalog.models import CopyState, PointCopy, Protection, ProtectionState
from apps.iam import access
from apps.iam.models import User
from apps.inventory.models import Destination, Repository, Workload
from apps.jobs.models import ACTIVE, OPEN, Job, JobKind, State

STRIP_HOURS = 24
SHOWN_JOBS = 6
SHOWN_WAITING = 3
SHOWN_RUNS = 6


@dataclass(frozen=True)
class RingPart:
    state: str
    count: int
    share: float
    rest: float
    offset: float  # where the part begins, as stroke-dashoffset


@dataclass(frozen=True)
class Fill:
    destination: Destination
    used_bytes: int
    percent: int
    days_to_full: int | None
    tone: str


@dataclass(frozen=True)
class Hour:
    """One hour of the strip: runs that ended in it, by outcome."""

    begins: datetime
    succeeded: int = 0
    partial: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.succeeded + self.partial + self.failed

    @property
    def parts(self) -> list[tuple[str, int]]:
        """The parts of its bar, worst on top; one failed run among many good ones does not paint all of them red."""
        counted = (("bad", self.failed), ("warn", self.partial), ("ok", self.succeeded))
        return [(tone, count) for tone, count in counted if count]


@dataclass
class Overview:
    workloads: int = 0
    counted: int = 0  # without the excluded ones
    ring: list[RingPart] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    missed: list[Protection] = field(default_factory=list)
    missed_count: int = 0
    running: list[Job] = field(default_factory=list)
    running_count: int = 0
    waiting_count: int = 0
    waiting: list[Job] = field(default_factory=list)
    hours: list[Hour] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    protected_bytes: int = 0
    stored_bytes: int = 0
    saved_percent: int = 0
    points: int = 0
    fills: list[Fill] = field(default_factory=list)
    next_runs: list[Protection] = field(default_factory=list)


def overview(user: User, now: datetime) -> Overview:
    found = Overview()
    _protection(found, user, now)
    _jobs(found, user, now)
    _bytes(found, user)
    found.fills = [fill(one, user, now) for one in access.visible(user, Destination).order_by("name")[:6]]
    return found


def _protection(found: Overview, user: User, now: datetime) -> None:
    workloads = access.visible(user, Workload)
    rows = access.visible(user, Protection).select_related("workload", "last_good")
    counts = {row["state"]: row["n"] for row in rows.values("state").annotate(n=Count("pk"))}
    found.workloads = workloads.count()
    # A workload that nothing has looked at yet has no row: it is not protected.
    unseen = found.workloads - sum(counts.values())
    counts[ProtectionState.UNPROTECTED] = counts.get(ProtectionState.UNPROTECTED, 0) + max(0, unseen)
    found.counts = {state.value: counts.get(state, 0) for state in ProtectionState}
    found.ring = ring({state: n for state, n in found.counts.items() if state != ProtectionState.EXCLUDED})
    found.counted = sum(part.count for part in found.ring)
    missed = [row for row in rows.exclude(state=ProtectionState.EXCLUDED) if is_late(row, now)]
    missed.sort(key=lambda row: row.last_good_at or row.updated_at)
    found.missed, found.missed_count = missed[:5], len(missed)
    found.next_runs = list(rows.filter(next_run_at__gte=now).order_by("next_run_at")[:SHOWN_RUNS])


def ring(counts: dict[str, int]) -> list[RingPart]:
    """The parts of a circle whose length is 100 (radius 15.9155), beginning at the top."""
    total = sum(counts.values())
    parts, begin = [], 0.0
    for state, count in counts.items():
        if not count:
            continue
        share = 100 * count / total
        parts.append(
            RingPart(
                state=state,
                count=count,
                share=round(share, 3),
                rest=round(100 - share, 3),
                offset=round(125 - begin, 3),
            )
        )
        begin += share
    return parts


def is_late(row: Protection, now: datetime) -> bool:
    """Whether the last good backup is older than the policy's objective."""
    if row.objective_hours is None or row.last_good_at is None:
        return False
    return now - row.last_good_at > timedelta(hours=row.objective_hours)


def _jobs(found: Overview, user: User, now: datetime) -> None:
    jobs = access.visible(user, Job)
    running = jobs.filter(state__in=ACTIVE).order_by("started_at")
    found.running = list(running.select_related("workload").prefetch_related("tasks__node")[:SHOWN_JOBS])
    found.running_count = running.count()
    waiting = jobs.filter(state=State.QUEUED)
    found.waiting_count = waiting.count()
    found.waiting = list(waiting.order_by("-priority", "created_at")[:SHOWN_WAITING])
    found.hours = strip(jobs, now)
    found.runs = {
        "succeeded": sum(hour.succeeded for hour in found.hours),
        "partial": sum(hour.partial for hour in found.hours),
        "failed": sum(hour.failed for hour in found.hours),
    }


def strip(jobs: QuerySet[Job], now: datetime, hours: int = STRIP_HOURS) -> list[Hour]:
    """The runs that ended in the last hours, oldest hour first."""
    begin = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours - 1)
    tally = [dict.fromkeys(("succeeded", "partial", "failed"), 0) for _hour in range(hours)]
    ended = jobs.filter(finished_at__gte=begin, kind__in=(JobKind.BACKUP, JobKind.RESTORE))
    for finished_at, state in ended.values_list("finished_at", "state"):
        slot = int((finished_at - begin).total_seconds() // 3600)
        if state in tally[0] and 0 <= slot < hours:
            tally[slot][state] += 1
    return [Hour(begins=begin + timedelta(hours=slot), **counts) for slot, counts in enumerate(tally)]


def _bytes(found: Overview, user: User) -> None:
    copies = access.visible(user, PointCopy).filter(state=CopyState.PRESENT)
    sums = copies.aggregate(protected=Sum("point__size_bytes"), points=Count("pk"))
    found.protected_bytes = sums["protected"] or 0
    found.stored_bytes = stored_bytes(access.visible(user, Repository))
    found.points = sums["points"]
    if found.protected_bytes:
        found.saved_percent = max(0, int(100 * (1 - found.stored_bytes / found.protected_bytes)))


def stored_bytes(repositories: QuerySet[Repository]) -> int:
    """As a verification measured it; until the first one, what its points added when they were made."""
    measured = repositories.aggregate(total=Sum("stored_bytes"))["total"] or 0
    unmeasured = PointCopy.objects.filter(repository__in=repositories.filter(stored_bytes=0), state=CopyState.PRESENT)
    return measured + (unmeasured.aggregate(total=Sum("stored_bytes"))["total"] or 0)


def stored_in(repository: Repository) -> int:
    return stored_bytes(Repository.objects.filter(pk=repository.pk))


def fill(destination: Destination, user: User, now: datetime) -> Fill:
    """How full a destination is, and when it will be full if it grows as in the last two weeks."""
    used = max(0, destination.total_bytes - destination.free_bytes)
    percent = round(100 * used / destination.total_bytes) if destination.total_bytes else 0
    tone = "bad" if percent >= 95 else "warn" if percent >= 85 else "run"
    return Fill(destination, used, percent, _days_to_full(destination, user, now), tone)


def _days_to_full(destination: Destination, user: User, now: datetime) -> int | None:
    since = now - timedelta(days=14)
    copies = access.visible(user, PointCopy).filter(repository__destination=destination, created_at__gte=since)
    first = copies.order_by("created_at").values_list("created_at", flat=True).first()
    grown = copies.aggregate(total=Sum("stored_bytes"))["total"] or 0
    days = (now - first).total_seconds() / 86400 if first else 0
    if days < 2 or not grown or not destination.free_bytes:
        return None  # too little history to say something honest
    return int(destination.free_bytes / (grown / days))


def activity(user: User, now: datetime, days: int = 14) -> list[dict[str, Any]]:
    """Runs per day, newest first: how many ended how, and what they stored."""
    jobs = access.visible(user, Job).filter(finished_at__gte=now - timedelta(days=days)).exclude(state__in=OPEN)
    rows: dict[Any, dict[str, Any]] = {}
    for job in jobs.values("finished_at", "state", "kind"):
        day = job["finished_at"].date()
        row = rows.setdefault(day, {"day": day, "backup": 0, "restore": 0, "other": 0, "partial": 0, "failed": 0})
        row[job["kind"] if job["kind"] in ("backup", "restore") else "other"] += 1
        if job["state"] in ("partial", "failed"):
            row[job["state"]] += 1
    copies = access.visible(user, PointCopy).filter(Q(created_at__gte=now - timedelta(days=days)))
    for created_at, stored in copies.values_list("created_at", "stored_bytes"):
        if (row := rows.get(created_at.date())) is not None:
            row["stored"] = row.get("stored", 0) + stored
    return sorted(rows.values(), key=lambda row: row["day"], reverse=True)
