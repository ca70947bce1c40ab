"""Schedules that are due become jobs, once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from apps.inventory.models import Destination, Repository, RepositoryState, Workload
from apps.jobs import lease, objectives, planner
from apps.jobs.models import Job, JobKind, State, Task, Trigger
from apps.policies import assignment
from apps.policies.models import Assignment, Policy, Schedule, ScheduleMode
from tests.apps.acting import ActingNode

MIDNIGHT = datetime(2026, 5, 4, tzinfo=UTC)
DUE = MIDNIGHT + timedelta(hours=22)


@pytest.fixture
def alpha(world):
    """Alpha's schedule at 22:00 UTC, planned until midnight; Beta's is off."""
    Schedule.objects.filter(policy=world.beta.policy).update(enabled=False)
    Schedule.objects.filter(policy=world.alpha.policy).update(planned_until=MIDNIGHT)
    Assignment.objects.update(created_at=MIDNIGHT - timedelta(days=30))
    return world.alpha


def backups() -> list[Job]:
    return list(Job.objects.filter(kind=JobKind.BACKUP, trigger=Trigger.SCHEDULE).order_by("due_at"))


def cursor(alpha) -> datetime | None:
    return Schedule.objects.get(pk=alpha.schedule.pk).planned_until


def test_nothing_is_planned_before_its_time(alpha):
    assert planner.plan(DUE - timedelta(seconds=1)) == 0
    assert backups() == []


def test_a_due_schedule_makes_one_backup_however_often_it_is_planned(alpha):
    assert planner.plan(DUE + timedelta(seconds=5)) == 1
    assert planner.plan(DUE + timedelta(seconds=5)) == 0
    assert planner.plan(DUE + timedelta(seconds=40)) == 0
    (job,) = backups()
    assert (job.workload, job.state, job.due_at, job.full) == (alpha.workload, State.QUEUED, DUE, False)
    assert job.start_before == DUE + timedelta(minutes=240, seconds=5)
    assert job.rule["keep"]["daily"] == 14
    (task,) = job.tasks.all()
    assert task.kind == "backup"
    assert task.requires == [f"node:{alpha.node.pk}", "driver:files"]
    assert cursor(alpha) == DUE + timedelta(seconds=40)


def test_a_cursor_that_was_lost_does_not_make_the_job_again(alpha):
    planner.plan(DUE)
    (job,) = backups()
    lease.cancel(job, "test", DUE)
    Schedule.objects.update(planned_until=MIDNIGHT)
    assert planner.plan(DUE) == 0
    assert len(backups()) == 1


def test_three_days_away_make_one_catch_up_with_a_window_of_its_own(alpha):
    back = DUE + timedelta(days=3, hours=9)
    assert planner.plan(back) == 1
    (job,) = backups()
    assert job.due_at == DUE + timedelta(days=3)
    assert job.start_before == back + timedelta(minutes=240)
    assert job.state == State.QUEUED


def test_full_beats_incremental_when_both_are_due(alpha):
    Schedule.objects.create(policy=alpha.policy, mode=ScheduleMode.FULL, cron="0 21 * * *", planned_until=MIDNIGHT)
    assert planner.plan(DUE) == 1
    (job,) = backups()
    assert job.full
    assert job.due_at == DUE
    assert job.tasks.get().spec["full"] is True


def test_a_run_is_skipped_while_the_one_before_has_not_ended_and_its_log_says_so(alpha):
    planner.plan(DUE)
    assert planner.plan(DUE + timedelta(days=1)) == 0
    (job,) = backups()
    assert "2026-05-05 22:00 was skipped" in job.log.get().message
    lease.cancel(job, "test", DUE + timedelta(days=1, hours=1))
    assert planner.plan(DUE + timedelta(days=1, hours=2)) == 0
    assert planner.plan(DUE + timedelta(days=2)) == 1


def test_a_new_schedule_begins_with_its_next_time(alpha):
    Schedule.objects.update(planned_until=None)
    assert planner.plan(DUE + timedelta(minutes=1)) == 0
    assert planner.plan(DUE + timedelta(days=1)) == 1


def test_a_schedule_saved_right_before_its_time_does_not_miss_it(alpha):
    Schedule.objects.update(planned_until=None)
    objectives.refresh_policy(alpha.policy, DUE - timedelta(seconds=5))
    assert planner.plan(DUE + timedelta(seconds=20)) == 1


def test_what_was_switched_off_begins_anew_when_it_is_switched_on(alpha):
    Policy.objects.filter(pk=alpha.policy.pk).update(enabled=False)
    assert planner.plan(DUE) == 0
    Policy.objects.filter(pk=alpha.policy.pk).update(enabled=True)
    assert planner.plan(DUE + timedelta(hours=3)) == 0
    assert planner.plan(DUE + timedelta(days=1)) == 1


def test_a_workload_that_was_covered_after_the_due_time_waits_for_the_next(alpha):
    Assignment.objects.filter(workload=alpha.workload).update(created_at=DUE + timedelta(minutes=1))
    assert planner.plan(DUE + timedelta(minutes=2)) == 0
    assert planner.plan(DUE + timedelta(days=1)) == 1


def test_excluded_workloads_and_inactive_tenants_are_left_alone(alpha):
    Workload.objects.filter(pk=alpha.workload.pk).update(excluded=True)
    assert planner.plan(DUE) == 0
    Workload.objects.filter(pk=alpha.workload.pk).update(excluded=False)
    alpha.tenant.is_active = False
    alpha.tenant.save()
    assert planner.plan(DUE + timedelta(days=1)) == 0


def test_a_clock_that_runs_back_plans_nothing_twice(alpha):
    planner.plan(DUE)
    planner.plan(DUE - timedelta(hours=2))
    assert cursor(alpha) == DUE
    assert len(backups()) == 1


def test_an_unusable_schedule_does_not_stop_the_others(alpha):
    Schedule.objects.create(policy=alpha.policy, cron="not a schedule", planned_until=MIDNIGHT)
    assert planner.plan(DUE) == 1


def test_a_node_that_cannot_reach_the_destination_fails_the_run_with_the_reason(alpha):
    alpha.destination.nodes.clear()
    assert planner.plan(DUE) == 1
    (job,) = backups()
    assert (job.state, job.error_code) == (State.FAILED, "unreachable-destination")
    assert "does not reach" in job.error_message
    assert job.error_hint


def test_a_run_that_did_not_start_in_its_window_fails_and_says_what_it_waited_for(alpha):
    planner.plan(DUE)
    Job.objects.filter(trigger=Trigger.SCHEDULE).update(waiting_for="Node alpha-node is offline.")
    planner.plan(DUE + timedelta(hours=3, minutes=59))
    assert backups()[0].state == State.QUEUED
    planner.plan(DUE + timedelta(hours=4, minutes=1))
    (job,) = backups()
    assert (job.state, job.error_code) == (State.FAILED, "start-window")
    assert "240 minutes" in job.error_message
    assert "Node alpha-node is offline." in job.error_message


def test_a_run_that_has_started_may_take_longer_than_the_window(alpha):
    planner.plan(DUE)
    assert ActingNode(alpha.node).take(DUE) is not None
    planner.plan(DUE + timedelta(hours=9))
    assert backups()[0].state == State.LEASED


def test_the_window_counts_from_the_day_the_job_was_made_with_though_the_policy_was_edited(alpha):
    planner.plan(DUE)
    Policy.objects.filter(pk=alpha.policy.pk).update(start_window_minutes=1, keep_daily=1, name="renamed")
    planner.plan(DUE + timedelta(hours=1))
    (job,) = backups()
    assert job.state == State.QUEUED
    assert (job.rule["policy"], job.rule["keep"]["daily"]) == ("alpha-nightly", 14)


def test_a_new_repository_gets_one_init_job_for_all_its_backups(alpha):
    Repository.objects.filter(pk=alpha.repository.pk).update(state=RepositoryState.NEW)
    other = Workload.objects.create(
        tenant=alpha.tenant, platform=alpha.platform, name="other", source={"paths": ["/srv/other"]}
    )
    Assignment.objects.create(workload=other, policy=alpha.policy)
    Assignment.objects.update(created_at=MIDNIGHT)
    assert planner.plan(DUE) == 2
    assert Job.objects.filter(kind=JobKind.INIT).count() == 1


def test_a_destination_used_for_the_first_time_gets_its_repository(alpha):
    other = Destination.objects.create(tenant=alpha.tenant, name="other", path="/other")
    other.nodes.add(alpha.node)
    Policy.objects.filter(pk=alpha.policy.pk).update(destination=other)
    planner.plan(DUE)
    (job,) = backups()
    assert job.repository.destination == other
    assert job.repository.state == RepositoryState.NEW
    assert job.repository.jobs.filter(kind=JobKind.INIT).exists()


def test_staging_on_disk_makes_export_and_store_on_one_node(alpha):
    Policy.objects.filter(pk=alpha.policy.pk).update(staging="disk")
    planner.plan(DUE)
    export, store = backups()[0].tasks.order_by("ordinal")
    assert (export.kind, store.kind) == ("export", "store")
    assert (store.after, store.same_node) == (export, True)
    assert export.spec["staging"] == store.spec["staging"]
    assert export.repository is None


@pytest.mark.django_db(transaction=True)
def test_two_planners_at_one_moment_make_one_job():
    from tests.world import make_world

    world = make_world()
    Assignment.objects.update(created_at=MIDNIGHT)
    Repository.objects.update(state=RepositoryState.NEW)
    for number in range(5):
        Workload.objects.create(
            tenant=world.alpha.tenant,
            platform=world.alpha.platform,
            name=f"more {number}",
            source={"paths": [f"/srv/{number}"]},
        )
    assignment.assign(world.root, list(Workload.objects.filter(tenant=world.alpha.tenant)), world.alpha.policy)
    Assignment.objects.update(created_at=MIDNIGHT)
    for day in range(3):
        Schedule.objects.update(planned_until=MIDNIGHT + timedelta(days=day))
        Job.objects.filter(trigger=Trigger.SCHEDULE, state=State.QUEUED).update(state=State.CANCELLED)
        _at_once(4, lambda day=day: planner.plan(DUE + timedelta(days=day, seconds=1)))
        assert Job.objects.filter(trigger=Trigger.SCHEDULE, due_at=DUE + timedelta(days=day)).count() == 7
    assert Job.objects.filter(kind=JobKind.INIT).count() == 2
    assert Task.objects.filter(job__trigger=Trigger.SCHEDULE).count() == 21


def _at_once(count: int, act) -> None:
    """Run ``act`` in several threads that begin together; their errors are the test's."""
    errors: list[BaseException] = []
    gate = threading.Barrier(count)

    def run() -> None:
        try:
            gate.wait(timeout=10)
            act()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
