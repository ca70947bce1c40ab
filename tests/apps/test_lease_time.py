"""Leases in time: expiry, renewal, restarts of nodes and of the server, wrong clocks, and gates."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from apps.catalog.models import RestorePoint
from apps.errors import LeaseLost
from apps.inventory.models import Node
from apps.jobs import lease
from apps.jobs.models import Job, State, Task
from node_agent.protocol import (
    LeaseClass,
    TaskKind,
)
from tests.apps.leasing import (
    add,
    add_backup,
    ask,
    done,
    failing,
    forgotten,
    other_node,
    request_for,
    state_of,
    take,
    working,
)

pytestmark = pytest.mark.django_db
TTL, MARGIN = timedelta(seconds=60), timedelta(seconds=10)


@pytest.fixture(autouse=True)
def lease_times(settings):
    settings.BRS_LEASE_TTL_S, settings.BRS_LEASE_MARGIN_S = 60, 10


@pytest.fixture
def alpha(world):
    return world.alpha


# --- expiry ------------------------------------------------------------------------------------------------


def test_an_expired_task_goes_to_another_node(alpha):
    task = add_backup(alpha)
    second = other_node(alpha)
    start = timezone.now()
    take(alpha.node, start)
    after = start + TTL + timedelta(seconds=1)

    assert lease.sweep(after) == 1
    assert state_of(task) == (State.QUEUED, State.QUEUED)
    handed = take(second, after + timedelta(seconds=5))
    lease.complete(second, task.pk, done(handed.token), after + timedelta(seconds=6))
    assert state_of(task) == (State.SUCCEEDED, State.SUCCEEDED)


def test_a_lease_is_not_swept_before_its_time(alpha):
    task = add_backup(alpha)
    start = timezone.now()
    take(alpha.node, start)
    assert lease.sweep(start + TTL - timedelta(seconds=1)) == 0
    assert state_of(task) == (State.LEASED, State.LEASED)


def test_replaying_an_expired_lease_that_another_took_is_refused(alpha):
    task = add_backup(alpha)
    second = other_node(alpha)
    start = timezone.now()
    stale = take(alpha.node, start)
    after = start + TTL + timedelta(seconds=1)
    lease.sweep(after)
    fresh = take(second, after + timedelta(seconds=5))
    for verb, report in ((lease.progress, working(stale.token)), (lease.complete, done(stale.token))):
        with pytest.raises(LeaseLost):
            verb(alpha.node, task.pk, report, after + timedelta(seconds=6))
    assert RestorePoint.objects.filter(task=task.pk).count() == 0
    lease.complete(second, task.pk, done(fresh.token), after + timedelta(seconds=7))
    with pytest.raises(LeaseLost):
        lease.complete(alpha.node, task.pk, done(stale.token), after + timedelta(seconds=8))


@pytest.mark.parametrize("how", ["progress", "complete", "poll"])
def test_the_holder_of_an_append_task_may_renew_an_expired_lease_that_nobody_took(alpha, how):
    task = add_backup(alpha)
    start = timezone.now()
    handed = take(alpha.node, start)
    lease.sweep(start + TTL + timedelta(seconds=1))
    back = start + timedelta(hours=3)

    if how == "progress":
        lease.progress(alpha.node, task.pk, working(handed.token), back)
    elif how == "poll":
        reply = ask(alpha.node, back, holding=[task.pk], free_slots=0)
        assert reply.lost == []
    if how != "complete":
        assert state_of(task) == (State.RUNNING, State.RUNNING)
        assert Task.objects.get(pk=task.pk).lease_expires_at == back + TTL
    lease.complete(alpha.node, task.pk, done(handed.token), back + timedelta(seconds=1))
    assert state_of(task) == (State.SUCCEEDED, State.SUCCEEDED)


def test_an_expired_exclusive_lease_cannot_be_renewed(alpha):
    task = add(alpha, TaskKind.FORGET)
    start = timezone.now()
    handed = take(alpha.node, start)
    lease.sweep(start + TTL + MARGIN + timedelta(seconds=1))
    with pytest.raises(LeaseLost):
        lease.progress(alpha.node, task.pk, working(handed.token), start + TTL + MARGIN + timedelta(seconds=2))
    assert ask(alpha.node, start + TTL + MARGIN + timedelta(seconds=2), holding=[task.pk], free_slots=0).lost == [
        task.pk
    ]


def test_exclusive_tasks_are_handed_on_only_at_the_deadline_plus_the_margin(alpha):
    task = add(alpha, TaskKind.FORGET)
    start = timezone.now()
    take(alpha.node, start)
    assert lease.sweep(start + TTL + MARGIN - timedelta(seconds=1)) == 0
    assert lease.sweep(start + TTL + MARGIN + timedelta(seconds=1)) == 1
    assert state_of(task) == (State.QUEUED, State.QUEUED)


def test_a_task_whose_last_attempt_expires_fails_with_the_reason(alpha):
    task = add_backup(alpha, max_attempts=1)
    start = timezone.now()
    take(alpha.node, start)
    lease.sweep(start + TTL + timedelta(seconds=1))
    assert state_of(task) == (State.FAILED, State.FAILED)
    job = Job.objects.get(tasks=task.pk)
    assert job.error_code == "lease-expired" and alpha.node.name in job.error_message and job.error_hint


def test_polls_renew_what_the_node_holds_and_tell_what_it_lost(alpha):
    task = add_backup(alpha)
    start = timezone.now()
    take(alpha.node, start)
    foreign = uuid.uuid4()
    reply = ask(alpha.node, start + timedelta(seconds=40), holding=[task.pk, foreign], free_slots=1)
    assert reply.lost == [foreign]
    assert Task.objects.get(pk=task.pk).lease_expires_at == start + timedelta(seconds=100)


def test_a_task_that_was_reported_while_the_poll_was_under_way_is_not_called_lost(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    lease.complete(alpha.node, task.pk, done(handed.token), timezone.now())
    assert ask(alpha.node, holding=[task.pk]).lost == []


# --- restarts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TaskKind.BACKUP, TaskKind.FORGET])
def test_a_restarted_node_frees_its_earlier_leases_at_once(alpha, kind):
    task = add(alpha, kind)
    stale = take(alpha.node)
    (again,) = ask(alpha.node, incarnation=uuid.uuid4()).tasks
    assert (again.task_id, again.attempt) == (task.pk, 2)
    with pytest.raises(LeaseLost):
        lease.progress(alpha.node, task.pk, working(stale.token), timezone.now())


def test_a_restart_voids_an_expired_lease_that_might_have_been_renewed(alpha):
    task = add_backup(alpha)
    start = timezone.now()
    stale = take(alpha.node, start)
    after = start + TTL + timedelta(seconds=1)
    lease.sweep(after)
    handed = take(alpha.node, after, incarnation=uuid.uuid4())
    assert handed.task_id == task.pk
    with pytest.raises(LeaseLost):
        lease.complete(alpha.node, task.pk, done(stale.token), after)


def test_a_poll_left_behind_by_a_dead_process_frees_and_takes_nothing(alpha):
    task = add_backup(alpha)
    old = request_for(alpha.node)
    take(alpha.node, incarnation=uuid.uuid4())
    add_backup(alpha)
    node = Node.objects.get(pk=alpha.node.pk)

    reply = lease.acquire(node, old, timezone.now(), first_look=False)

    assert reply.tasks == []
    assert state_of(task)[0] == State.LEASED


def test_a_node_killed_many_times_does_not_use_up_the_attempts_of_its_task(alpha):
    task = add_backup(alpha)
    for _ in range(8):
        handed = take(alpha.node, incarnation=uuid.uuid4())
    lease.fail(alpha.node, task.pk, failing(handed.token, retryable=True), timezone.now())
    assert state_of(task) == (State.QUEUED, State.QUEUED)


def test_a_task_that_keeps_killing_its_node_fails_in_the_end(alpha):
    task = add_backup(alpha)
    deaths = 0
    while ask(alpha.node, incarnation=uuid.uuid4()).tasks:
        deaths += 1
        assert deaths < 20
    assert deaths == 12  # the tenth and the two after it count
    assert state_of(task) == (State.FAILED, State.FAILED)


def test_a_restarted_server_extends_the_leases_that_it_finds(alpha):
    task = add_backup(alpha)
    start = timezone.now()
    handed = take(alpha.node, start)
    up_again = start + timedelta(minutes=20)

    assert lease.server_started(up_again) == 1
    assert lease.sweep(up_again + timedelta(seconds=59)) == 0
    lease.progress(alpha.node, task.pk, working(handed.token), up_again + timedelta(seconds=59))
    assert lease.sweep(up_again + timedelta(seconds=61)) == 0
    assert state_of(task) == (State.RUNNING, State.RUNNING)


# --- clocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_node_whose_clock_is_an_hour_off_backs_up_but_gets_no_exclusive_task(alpha, hours):
    forget = add(alpha, TaskKind.FORGET)
    now = timezone.now() + timedelta(seconds=1)
    wrong = now + timedelta(hours=hours)
    assert ask(alpha.node, now, node_time=wrong).tasks == []
    backup = add_backup(alpha)

    handed = take(alpha.node, now, node_time=wrong)
    assert handed.task_id == backup.pk
    lease.progress(alpha.node, backup.pk, working(handed.token), now + timedelta(seconds=50))
    lease.complete(alpha.node, backup.pk, done(handed.token), now + timedelta(seconds=55))
    assert state_of(backup) == (State.SUCCEEDED, State.SUCCEEDED)

    assert take(alpha.node, now + timedelta(minutes=1)).task_id == forget.pk  # its clock was set right


def test_five_minutes_are_borne(alpha):
    add(alpha, TaskKind.FORGET)
    now = timezone.now()
    assert len(ask(alpha.node, now, node_time=now + timedelta(seconds=299)).tasks) == 1


# --- gates -----------------------------------------------------------------------------------------------------


def test_backups_share_a_repository(alpha):
    add_backup(alpha)
    add_backup(alpha)
    assert len(ask(alpha.node).tasks) == 2


def test_an_exclusive_task_waits_for_those_inside_and_they_for_it(alpha):
    second = other_node(alpha)
    backup = add_backup(alpha)
    running = take(alpha.node)
    forget = add(alpha, TaskKind.FORGET)
    assert ask(second).tasks == []

    lease.complete(alpha.node, backup.pk, done(running.token), timezone.now())
    exclusive = take(second)
    assert exclusive.task_id == forget.pk

    another = add_backup(alpha)
    also = add(alpha, TaskKind.FORGET)
    assert ask(alpha.node).tasks == []
    lease.complete(second, forget.pk, forgotten(exclusive.token), timezone.now())
    assert take(alpha.node, free_slots=1).task_id in {another.pk, also.pk}


def test_an_expired_holder_may_not_come_back_into_a_gate_that_is_now_held_alone(alpha):
    second = other_node(alpha)
    backup = add_backup(alpha)
    start = timezone.now()
    stale = take(alpha.node, start)
    after = start + TTL + timedelta(seconds=1)
    lease.sweep(after)
    add(alpha, TaskKind.FORGET, available_at=after)
    assert take(second, after, free_slots=1).lease_class is LeaseClass.EXCLUSIVE
    with pytest.raises(LeaseLost):
        lease.progress(alpha.node, backup.pk, working(stale.token), after)
