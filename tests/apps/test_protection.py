"""How protected a workload is, and what its policy promises."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from apps import display
from apps.catalog import protection
from apps.catalog.models import CopyState, PointCopy, PointOutcome, Protection, RestorePoint
from apps.inventory.models import Workload
from apps.jobs import objectives
from apps.policies.models import Assignment, Policy, Schedule
from apps.reports.templatetags.brs import point_state


@pytest.fixture
def now():
    return timezone.now()


def point(world, taken_at, **facts) -> RestorePoint:
    made = RestorePoint.objects.create(
        tenant=world.alpha.tenant,
        workload=world.alpha.workload,
        task=uuid.uuid4(),
        taken_at=taken_at,
        **{"outcome": PointOutcome.COMPLETE, **facts},
    )
    PointCopy.objects.create(
        point=made, repository=world.alpha.repository, snapshot_id=uuid.uuid4().hex * 2, tree_id="0" * 64
    )
    return made


def row(world) -> Protection:
    return Protection.objects.get(workload=world.alpha.workload)


def run(world, state: str, now, message: str = "") -> Protection:
    protection.after_run(world.alpha.workload, state, message, now)
    return row(world)


def test_a_good_run_within_the_objective_is_protected(world, now):
    found = run(world, "succeeded", now)
    assert (found.state, found.reason) == ("protected", "")
    assert found.last_good == world.alpha.point
    assert (found.points, found.size_bytes, found.last_run_at) == (1, 1_000_000, now)


def test_a_failed_run_needs_attention_while_an_older_point_is_good(world, now):
    found = run(world, "failed", now, "The destination has no space left.")
    assert found.state == "attention"
    assert found.reason == "The last run failed: The destination has no space left."
    assert found.last_good == world.alpha.point


def test_a_partial_run_needs_attention_and_does_not_become_the_last_good(world, now):
    point(world, now, outcome=PointOutcome.PARTIAL, left_out_count=3)
    found = run(world, "partial", now)
    assert (found.state, found.last_good) == ("attention", world.alpha.point)
    assert "3 items were left out" in found.reason


def test_a_point_that_should_be_locked_and_is_not_is_amber_until_one_is(world, now):
    note = {"path": "snapshot 1a2b3c4d", "code": "not-immutable", "message": "AccessDenied: retention", "note": True}
    unlocked = point(world, now, left_out=[note])
    found = run(world, "succeeded", now)
    assert (found.state, found.last_good) == ("attention", unlocked)
    assert found.reason == "The last backup is not immutable: AccessDenied: retention"
    assert point_state(unlocked) == "not-immutable" and display.LOOKS["not-immutable"].tone == "warn"
    assert point_state(world.alpha.point) == "complete"
    point(world, now + timedelta(hours=1))
    assert run(world, "succeeded", now + timedelta(hours=1)).state == "protected"


def test_only_partial_points_are_never_green(world, now):
    world.alpha.point.delete()
    point(world, now, outcome=PointOutcome.PARTIAL, left_out_count=1)
    found = run(world, "partial", now)
    assert (found.state, found.last_good_at) == ("attention", None)


def test_without_any_point_it_is_not_protected_and_says_why(world, now):
    world.alpha.point.delete()
    found = run(world, "failed", now, "The path does not exist.")
    assert found.state == "unprotected"
    assert "The path does not exist." in found.reason


@pytest.mark.parametrize("state", [CopyState.MISSING, CopyState.DAMAGED, CopyState.EXPIRING, CopyState.EXPIRED])
def test_a_point_whose_copy_is_not_present_is_no_good_point(world, now, state):
    world.alpha.point.copies.update(state=state)
    protection.refresh([world.alpha.workload], now)
    assert (row(world).state, row(world).last_good) == ("unprotected", None)


def test_a_missed_objective_shows_without_any_run(world, now):
    run(world, "succeeded", now)
    assert protection.refresh_stale(now + timedelta(hours=24)) == 0
    assert protection.refresh_stale(now + timedelta(hours=27)) == 2  # Beta's, too
    assert (row(world).state, row(world).reason) == ("attention", "Missed its 26 h objective by 2 h.")


def test_the_sentence_about_a_missed_objective_does_not_grow_old(world, now):
    run(world, "succeeded", now)
    for hours in (27, 30):
        Protection.objects.update(updated_at=now)
        protection.refresh_stale(now + timedelta(hours=hours))
    assert row(world).reason == "Missed its 26 h objective by 5 h."


def test_the_next_good_run_turns_it_green_again(world, now):
    run(world, "failed", now, "x")
    point(world, now)
    assert run(world, "succeeded", now).state == "protected"


def test_an_excluded_workload_is_grey_with_its_reason(world, now):
    Workload.objects.filter(pk=world.alpha.workload.pk).update(excluded=True, excluded_reason="being retired")
    protection.refresh([world.alpha.workload.pk], now)
    assert (row(world).state, row(world).reason) == ("excluded", "being retired")


def test_a_workload_without_a_row_gets_one(world, now):
    Protection.objects.all().delete()
    assert protection.refresh_stale(now) == 2
    assert row(world).points == 1


# --- what the policy promises -------------------------------------------------------------------------


def test_the_policys_objective_and_next_run_are_told(world, now):
    Policy.objects.filter(pk=world.alpha.policy.pk).update(objective_hours=5)
    Schedule.objects.create(policy=world.alpha.policy, cron="*/10 * * * *")
    objectives.refresh([world.alpha.workload.pk], now)
    found = row(world)
    assert found.objective_hours == 5
    assert now < found.next_run_at <= now + timedelta(minutes=10)


def test_without_a_policy_a_good_point_needs_attention(world, now):
    Assignment.objects.all().delete()
    objectives.refresh([world.alpha.workload], now)
    assert (row(world).state, row(world).next_run_at, row(world).objective_hours) == ("attention", None, None)
    assert "No policy" in row(world).reason


def test_a_policy_that_is_switched_off_promises_nothing(world, now):
    world.alpha.policy.enabled = False
    world.alpha.policy.save()
    objectives.refresh_policy(world.alpha.policy, now)
    assert (row(world).objective_hours, row(world).next_run_at) == (None, None)


def test_only_rows_that_differ_are_written(world, now):
    assert objectives.refresh_changed(now) == 2
    assert objectives.refresh_changed(now) == 0
    Policy.objects.filter(pk=world.alpha.policy.pk).update(objective_hours=1)
    assert objectives.refresh_changed(now) == 1


def test_an_excluded_workload_has_no_next_run_and_is_not_written_each_time(world, now):
    Workload.objects.filter(pk=world.alpha.workload.pk).update(excluded=True)
    objectives.refresh_changed(now)
    assert row(world).next_run_at is None
    assert objectives.refresh_changed(now) == 0


def test_a_schedule_that_cannot_be_read_does_not_stop_the_others(world, now):
    objectives.refresh_changed(now)
    Schedule.objects.filter(policy=world.alpha.policy).update(cron="nonsense")
    assert objectives.refresh_changed(now) == 1
    assert row(world).next_run_at is None
    assert Protection.objects.get(workload=world.beta.workload).next_run_at is not None


def test_an_exclusion_shows_within_a_tick_without_a_policy_too(world, now):
    Assignment.objects.all().delete()
    objectives.refresh_changed(now)
    Workload.objects.filter(pk=world.alpha.workload.pk).update(excluded=True)
    assert objectives.refresh_changed(now) == 1
    assert row(world).state == "excluded"
    Workload.objects.filter(pk=world.alpha.workload.pk).update(excluded=False)
    assert objectives.refresh_changed(now) == 1
    assert row(world).state == "attention"
