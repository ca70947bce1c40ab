"""The server's own chores as Celery tasks: idempotent, short, nothing that a user waits for.

Beat calls them (``fixtures/beat.json``). A chore that is called late or twice does no harm; one that finds its
forerunner still at work in another process waits for its row locks or does nothing.
"""

from __future__ import annotations

import logging

from celery import shared_task
from django.utils import timezone

from apps.catalog import protection
from apps.iam import audit
from apps.jobs import discovery, expiry, lease, maintenance, planner, spool, traces
from apps.jobs import objectives as promises

log = logging.getLogger(__name__)


@shared_task(name="jobs.plan")
def plan() -> None:
    now = timezone.now()
    made = planner.plan(now)
    expiry.put_back_stranded(now)
    if made:
        log.info("planned %s backups", made)
    discovery.plan(now)
    discovery.follow(now)
    if removals := traces.plan(now):
        log.info("planned %s removals of what is kept on platforms", removals)
    if looked := maintenance.plan(now):
        log.info("planned %s jobs of maintenance", looked)


@shared_task(name="jobs.expire")
def expire() -> None:
    """Every hour; who does not want to wait uses ``requests.apply_retention``."""
    jobs = expiry.expire(timezone.now())
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
