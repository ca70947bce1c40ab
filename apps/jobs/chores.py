"""The server's own chores as Celery tasks: idempotent, short, nothing that a user waits for.

Beat calls them (``fixtures/beat.json``). A chore that is called late or twice does no harm; one that finds its
forerunner still at work in another process waits for its row locks or does nothing.
"""

from __future__ import annotations

import logging
from uuid import UUID

from celery import shared_task
from django.utils import timezone

from apps.catalog import protection
from apps.iam import audit
from apps.jobs import expiry, lease, planner, spool
from apps.jobs import objectives as promises
from apps.policies.models import Policy

log = logging.getLogger(__name__)


@shared_task(name="jobs.plan")
def plan() -> None:
    now = timezone.now()
    made = planner.plan(now)
    expiry.put_back_stranded(now)
    if made:
        log.info("planned %s backups", made)


@shared_task(name="jobs.expire")
def expire(policies: list[str] | None = None) -> None:
    """Every hour for all; for single policies when they were changed by hand (:func:`policy_changed`)."""
    chosen = None if policies is None else Policy.objects.filter(pk__in=[UUID(pk) for pk in policies])
    jobs = expiry.expire(timezone.now(), chosen)
    if jobs:
        log.info("expiring points in %s repositories", len(jobs))


@shared_task(name="jobs.sweep_leases")
def sweep_leases() -> None:
    lease.sweep(timezone.now())


@shared_task(name="jobs.refresh_protection")
def refresh_protection() -> None:
    now = timezone.now()
    promises.refresh_changed(now)
    protection.refresh_stale(now)


@shared_task(name="jobs.purge_downloads")
def purge_downloads() -> None:
    spool.purge(timezone.now())


@shared_task(name="jobs.sweep_lists")
def sweep_lists() -> None:
    expiry.sweep_lists(timezone.now())


@shared_task(name="jobs.chain_audit")
def chain_audit() -> None:
    audit.link()
