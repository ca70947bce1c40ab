"""Repositories looked after by themselves: verified, and their space reclaimed, as their destination says.

    verify   every ``verify_every_days``: the structure, and a share of the data, least recently read first, so that
             all is read within ``verify_cycle_days``
    prune    every ``prune_every_days``, when points were removed or runs broken off since the last one

Both start within the destination's hours, one of each kind a repository at a time. A job that could not start in time
fails with what it waited for; the next day brings the next one. Keys make it one job however many plan at once.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import Q

from apps.inventory.models import Destination, Repository, RepositoryState
from apps.jobs import building, lease
from apps.jobs.models import OPEN, Job, JobKind, State, Trigger

EARLY = timedelta(hours=2)  # a run of yesterday that began a little later does not push today's to tomorrow


def plan(now: datetime) -> int:
    """How many jobs were made."""
    made = 0
    ready = Repository.objects.filter(tenant__is_active=True).exclude(state=RepositoryState.NEW)
    for repository in ready.select_related("destination", "tenant").order_by("pk"):
        until = window_end(repository.destination, now)
        if until is None:
            continue
        made += _verify(repository, now, until)
        made += _prune(repository, now, until)
    return made


def window_end(destination: Destination, now: datetime) -> datetime | None:
    """Until when maintenance may start; None outside of its hours."""
    begin, end = destination.maintenance_from, destination.maintenance_until
    hour = now.hour
    inside = begin <= hour < end if begin < end else hour >= begin or hour < end
    if begin == end:
        return now + timedelta(hours=24)
    if not inside:
        return None
    whole = now.replace(minute=0, second=0, microsecond=0)
    return whole + timedelta(hours=(end - hour) % 24)


def share(destination: Destination) -> float:
    """Of the data that each verification reads: a little more than needed, since runs are missed."""
    cycle = max(1, destination.verify_cycle_days)
    return min(1.0, 1.2 * max(1, destination.verify_every_days) / cycle)


def _verify(repository: Repository, now: datetime, until: datetime) -> bool:
    if not _due(repository, JobKind.VERIFY, repository.destination.verify_every_days, now):
        return False
    made, tasks = building.verify(
        repository, now, read_data=True, share=share(repository.destination),
        key=_key("verify", repository, now), trigger=Trigger.SYSTEM, priority=30, start_before=until,
    )  # fmt: skip
    return lease.add(made, tasks)


def _prune(repository: Repository, now: datetime, until: datetime) -> bool:
    if not _due(repository, JobKind.PRUNE, repository.destination.prune_every_days, now):
        return False
    waste = Job.objects.filter(repository=repository, finished_at__gt=repository.pruned_at or repository.created_at)
    broken = Q(kind=JobKind.BACKUP, state__in=[State.FAILED, State.CANCELLED])
    if not waste.filter(Q(kind=JobKind.EXPIRE, state=State.SUCCEEDED) | broken).exists():
        return False
    made, tasks = building.prune(
        repository, now, key=_key("prune", repository, now), trigger=Trigger.SYSTEM, priority=30, start_before=until
    )
    return lease.add(made, tasks)


def _due(repository: Repository, kind: JobKind, days: int, now: datetime) -> bool:
    if not days:
        return False
    jobs = Job.objects.filter(repository=repository, kind=kind)
    if jobs.filter(state__in=OPEN).exists():
        return False
    last = jobs.order_by("-created_at").values_list("created_at", flat=True).first() or repository.created_at
    return now - last >= timedelta(days=days) - EARLY


def _key(what: str, repository: Repository, now: datetime) -> str:
    return f"{what}:{repository.pk}/{now:%Y-%m-%d}"
