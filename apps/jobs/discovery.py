"""Looking for machines when it is due, and what follows from a machine that is new.

``inventory.discovery`` writes machines down, ``policies.rules`` finds their policies; a policy that wants it gets a new
machine's first backup started. All of it is done by the planner's tick, so that nothing is lost with a server that dies
in between; keys make it one job however often that is.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.db.models import Q

from apps.errors import Conflict, DomainError
from apps.iam.models import Tenant
from apps.inventory import repositories
from apps.inventory.models import MACHINES, Platform, Workload
from apps.jobs import building, lease, objectives
from apps.jobs.models import OPEN, Job, JobKind, Trigger
from apps.jobs.requests import make_ready, refuse_unfit
from apps.policies import rules
from apps.policies.assignment import policy_of
from apps.policies.models import Assignment, AssignmentRule

log = logging.getLogger(__name__)
RETRY_AFTER = timedelta(minutes=15)  # after a look that failed


def plan(now: datetime) -> int:
    """Look where it is due; how many jobs were made."""
    ready = Platform.objects.filter(kind__in=MACHINES, tenant__is_active=True, discover_every_hours__gt=0)
    # Before a test has gone well there is nobody to ask.
    return sum(_plan_one(platform, now) for platform in ready.exclude(tested_at=None).filter(problem=""))


def _plan_one(platform: Platform, now: datetime) -> bool:
    last = Job.objects.filter(platform=platform, kind=JobKind.DISCOVER).order_by("-created_at").first()
    pace = timedelta(hours=platform.discover_every_hours)
    if platform.discovery_problem:
        pace = min(pace, RETRY_AFTER)
    if last is not None and (last.state in OPEN or now - last.created_at < pace):
        return False
    key = f"discover:{platform.pk}/{last.pk if last else 'first'}"
    made, tasks = building.discover(platform, now, key=key, trigger=Trigger.SYSTEM, priority=40)
    return lease.add(made, tasks)


def follow(now: datetime) -> int:
    """Policies by rule, and first backups, for every tenant with rules; how many workloads changed."""
    changed = 0
    ruled = AssignmentRule.objects.values("policy__tenant")
    taken = Assignment.objects.filter(by_rule=True).values("policy__tenant")  # their rule may have been removed
    for tenant in Tenant.objects.filter(Q(pk__in=ruled) | Q(pk__in=taken), is_active=True):
        try:
            moved = rules.apply(tenant)
            objectives.refresh(moved, now)
            changed += len(moved)
            _first_backups(tenant, now)
        except DomainError as error:  # one tenant's trouble must not keep the others waiting
            log.error("rules of tenant %s: %s %s", tenant.pk, error.message, error.hint)
    return changed


def _first_backups(tenant: Tenant, now: datetime) -> None:
    waiting = rules.machines(tenant).filter(
        assignment__by_rule=True, assignment__policy__backup_new=True, assignment__policy__enabled=True
    )
    for workload in waiting.exclude(jobs__kind=JobKind.BACKUP).select_related("platform__node", "tenant"):
        _first_backup(workload, now)


def _first_backup(workload: Workload, now: datetime) -> None:
    policy = policy_of(workload)
    try:
        refuse_unfit(workload, policy)
    except Conflict as error:
        log.info("no first backup of workload %s yet: %s", workload.pk, error.message)
        return
    assert policy is not None  # refuse_unfit
    repository = repositories.ensure(workload.tenant, policy.destination)
    made, tasks = building.backup(workload, policy, repository, now, key=f"first:{workload.pk}", trigger=Trigger.EVENT)
    if lease.add(made, tasks):
        make_ready(repository)
