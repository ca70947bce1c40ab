"""The server's own chores and the ticks that call them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from apps.jobs import chores
from apps.jobs.models import Job, Trigger
from apps.policies.models import Assignment, Schedule
from brs.celery import app

CHORES = [
    chores.plan,
    chores.expire,
    chores.sweep_leases,
    chores.refresh_protection,
    chores.purge_downloads,
    chores.sweep_lists,
    chores.chain_audit,
]


def test_every_tick_calls_a_chore_that_exists_and_every_chore_has_a_tick(db):
    app.loader.import_default_modules()
    call_command("loaddata", "beat", verbosity=0)
    ticks = PeriodicTask.objects.filter(enabled=True, task__startswith="jobs.")
    assert sorted(ticks.values_list("task", flat=True)) == sorted(chore.name for chore in CHORES)
    assert {tick.task for tick in ticks} <= set(app.tasks)
    assert all(tick.interval.period == "seconds" for tick in ticks)


def test_loading_the_ticks_again_changes_nothing(db):
    for _time in range(2):
        call_command("loaddata", "beat", verbosity=0)
        assert PeriodicTask.objects.filter(task__startswith="jobs.").count() == len(CHORES)


@pytest.mark.parametrize("chore", CHORES, ids=lambda chore: chore.name)
def test_a_chore_may_run_twice_in_a_world_and_in_an_empty_database(db, chore):
    from tests.world import make_world

    chore()
    make_world()
    chore()
    chore()


def test_the_tick_makes_the_backup_that_is_due(world):
    Assignment.objects.update(created_at=timezone.now() - timedelta(days=2))
    Schedule.objects.update(planned_until=timezone.now() - timedelta(days=1, minutes=1))
    chores.plan()
    assert Job.objects.filter(trigger=Trigger.SCHEDULE).count() == 2
