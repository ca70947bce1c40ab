"""Leases: how a node gets a task, what it reports, and what a late or repeated word gets as an answer."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from apps.catalog.models import PointOutcome, Protection, RestorePoint
from apps.errors import Invalid, LeaseLost, NotFound
from apps.inventory.models import Node
from apps.jobs import lease
from apps.jobs.models import Job, LogLine, State, Task
from node_agent.protocol import (
    LeaseClass,
    LeftOut,
    LogEntry,
    Outcome,
    ReleaseReport,
)
from tests.apps.leasing import (
    add_backup,
    ask,
    done,
    failing,
    forgotten,
    make_job,
    make_task,
    other_node,
    state_of,
    take,
    working,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def lease_times(settings):
    settings.BRS_LEASE_TTL_S, settings.BRS_LEASE_MARGIN_S = 60, 10


@pytest.fixture
def alpha(world):
    return world.alpha


# --- from the queue to a node -------------------------------------------------------------------


def test_a_node_gets_a_queued_task_with_its_repository_opened(alpha):
    task = add_backup(alpha)

    handed = take(alpha.node)

    assert handed.task_id == task.pk
    assert handed.spec.repository.password == alpha.repository_password
    assert handed.spec.repository.url == alpha.repository.url
    assert (handed.attempt, handed.ttl_s, handed.lease_class) == (1, 60, LeaseClass.APPEND)
    assert state_of(task) == (State.LEASED, State.LEASED)


def test_the_password_is_not_written_into_the_task(alpha):
    task = add_backup(alpha)
    take(alpha.node)
    row = Task.objects.filter(pk=task.pk).values().get()
    assert alpha.repository_password not in str(row)


def test_a_repeated_request_gets_the_same_tasks(alpha):
    add_backup(alpha)
    add_backup(alpha)
    first = ask(alpha.node, request_id=(request_id := uuid.uuid4()))
    again = ask(alpha.node, request_id=request_id)

    assert len(first.tasks) == 2
    assert {(task.task_id, task.token) for task in again.tasks} == {(task.task_id, task.token) for task in first.tasks}


def test_another_request_gets_nothing_of_what_is_held(alpha):
    add_backup(alpha)
    ask(alpha.node)
    assert ask(alpha.node).tasks == []


def test_urgent_tasks_come_first_then_older_ones(alpha):
    now = timezone.now()
    late = make_task(alpha, available_at=now - timedelta(seconds=1))
    early = make_task(alpha, available_at=now - timedelta(seconds=9))
    urgent = make_task(alpha, available_at=now)
    for task, priority in ((late, 50), (early, 50), (urgent, 90)):
        lease.add(make_job(alpha, priority=priority), [task])

    order = [take(alpha.node, now + timedelta(seconds=1), free_slots=1) for _ in range(2)]
    assert [handed.task_id for handed in order] == [urgent.pk, early.pk]


def test_a_node_gets_no_more_than_its_slots(alpha):
    for _ in range(4):
        add_backup(alpha)
    assert len(ask(alpha.node, free_slots=8).tasks) == 2  # slots=2
    assert ask(alpha.node, free_slots=8).tasks == []


def test_the_same_job_is_added_once(alpha):
    first, second = (make_job(alpha, dedupe_key="schedule/2026-11-23T22:00") for _ in range(2))
    assert lease.add(first, [make_task(alpha)])
    assert not lease.add(second, [make_task(alpha)])
    assert Job.objects.filter(dedupe_key="schedule/2026-11-23T22:00").count() == 1


def test_a_task_whose_description_is_broken_fails_instead_of_blocking_the_queue(alpha):
    broken, good = add_backup(alpha, spec={"nonsense": 1}), add_backup(alpha)
    handed = ask(alpha.node)
    assert [task.task_id for task in handed.tasks] == [good.pk]
    assert state_of(broken) == (State.FAILED, State.FAILED)


# --- reports ------------------------------------------------------------------------------------------


def test_progress_makes_it_running_renews_the_lease_and_keeps_the_log(alpha):
    add_backup(alpha)
    start = timezone.now()
    handed = take(alpha.node, start)
    entry = LogEntry(seq=1, message="reading /srv", age_s=3)

    reply = lease.progress(
        alpha.node, handed.task_id, working(handed.token, done_bytes=7, log=[entry]), start + timedelta(seconds=30)
    )

    task = Task.objects.get(pk=handed.task_id)
    assert state_of(task) == (State.RUNNING, State.RUNNING)
    assert task.lease_expires_at == start + timedelta(seconds=90)
    assert (reply.ttl_s, reply.cancel, task.phase, task.progress["done_bytes"]) == (60, False, "store", 7)
    line = LogLine.objects.get(task=task, seq=1)
    assert (line.message, line.at) == ("reading /srv", start + timedelta(seconds=27))


def test_repeated_log_lines_are_kept_once(alpha):
    add_backup(alpha)
    handed = take(alpha.node)
    report = working(handed.token, log=[LogEntry(seq=1, message="one"), LogEntry(seq=2, message="two")])
    for _ in range(2):
        lease.progress(alpha.node, handed.task_id, report, timezone.now())
    assert list(LogLine.objects.filter(task=handed.task_id, seq__gt=0).values_list("message", flat=True)) == [
        "one",
        "two",
    ]


@pytest.mark.parametrize("phase", ["first word", "later word"])
def test_lines_of_the_log_are_written_behind_the_tasks_lock(alpha, django_assert_max_num_queries, phase):
    """A repeated line waits for the transaction that wrote it first. Written before the task was locked, two reports
    with the same line (progress and complete) ended in a deadlock on PostgreSQL."""
    add_backup(alpha)
    handed = take(alpha.node)
    if phase == "later word":
        lease.progress(alpha.node, handed.task_id, working(handed.token), timezone.now())
    lines = [LogEntry(seq=1, message="Half of it.")]
    with django_assert_max_num_queries(50) as said:
        lease.progress(alpha.node, handed.task_id, working(handed.token, log=lines), timezone.now())
    writes = [query["sql"] for query in said.captured_queries if query["sql"].startswith(("UPDATE", "INSERT"))]
    task = next(place for place, sql in enumerate(writes) if sql.startswith('UPDATE "jobs_task"'))
    line = next(place for place, sql in enumerate(writes) if sql.startswith("INSERT") and '"jobs_logline"' in sql)
    assert task < line


def test_frequent_progress_is_not_stored_each_time_and_says_truly_how_long_the_lease_lasts(alpha):
    add_backup(alpha)
    start = timezone.now()
    handed = take(alpha.node, start)
    lease.progress(alpha.node, handed.task_id, working(handed.token, done_bytes=1), start)
    reply = lease.progress(
        alpha.node, handed.task_id, working(handed.token, done_bytes=2), start + timedelta(seconds=2)
    )
    assert Task.objects.get(pk=handed.task_id).progress["done_bytes"] == 1
    assert reply.ttl_s == 58


def test_complete_ends_the_job_and_puts_the_point_into_the_catalogue(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)

    lease.complete(alpha.node, handed.task_id, done(handed.token, snapshot_id="a" * 64), timezone.now())

    assert state_of(task) == (State.SUCCEEDED, State.SUCCEEDED)
    point = RestorePoint.objects.get(task=task.pk)
    assert str(point.pk) == task.spec["point"]
    assert point.copies.get().snapshot_id == "a" * 64
    assert Protection.objects.get(workload=alpha.workload).last_run_outcome == State.SUCCEEDED


def test_a_repeated_complete_gets_the_same_answer_and_makes_no_second_point(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    report = done(handed.token)
    answers = [lease.complete(alpha.node, task.pk, report, timezone.now()) for _ in range(2)]
    assert answers[0] == answers[1]
    assert RestorePoint.objects.filter(task=task.pk).count() == 1


def test_left_out_items_make_it_partial_with_the_list(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    left = LeftOut(path="/srv/secret", code="no-access", message="Permission denied.")
    report = done(handed.token).model_copy(update={"outcome": Outcome.PARTIAL, "left_out": [left], "left_out_count": 1})
    lease.complete(alpha.node, task.pk, report, timezone.now())
    assert state_of(task) == (State.PARTIAL, State.PARTIAL)
    assert RestorePoint.objects.get(task=task.pk).outcome == PointOutcome.PARTIAL
    assert Task.objects.get(pk=task.pk).left_out[0]["path"] == "/srv/secret"


def test_a_result_that_does_not_fit_the_task_is_refused(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    with pytest.raises(Invalid):
        lease.complete(alpha.node, task.pk, forgotten(handed.token), timezone.now())
    assert state_of(task) == (State.LEASED, State.LEASED)


def test_a_stale_token_is_told_that_the_lease_is_lost(alpha):
    task = add_backup(alpha)
    take(alpha.node)
    now = timezone.now()
    for verb, report in (
        (lease.progress, working("stale")),
        (lease.complete, done("stale")),
        (lease.fail, failing("stale")),
        (lease.release, ReleaseReport(token="stale")),
    ):
        with pytest.raises(LeaseLost):
            verb(alpha.node, task.pk, report, now)
    assert state_of(task) == (State.LEASED, State.LEASED)


def test_an_empty_token_does_not_fit_a_task_that_was_never_leased(alpha):
    task = add_backup(alpha)
    with pytest.raises(LeaseLost):
        lease.complete(alpha.node, task.pk, done(""), timezone.now())


def test_another_tenants_task_does_not_exist(world):
    task = add_backup(world.alpha)
    handed = take(world.alpha.node)
    with pytest.raises(NotFound):
        lease.complete(world.beta.node, task.pk, done(handed.token), timezone.now())


def test_the_token_of_one_node_is_no_use_to_another_of_the_tenant(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    with pytest.raises(LeaseLost):
        lease.complete(other_node(alpha), task.pk, done(handed.token), timezone.now())


# --- failing and giving back -----------------------------------------------------------------------------


def test_a_failure_that_may_pass_is_tried_again_after_a_rest_up_to_the_last_attempt(alpha):
    task = add_backup(alpha)
    now = timezone.now()
    rests = []
    for _attempt in range(3):
        handed = take(alpha.node, now)
        lease.fail(alpha.node, task.pk, failing(handed.token, retryable=True), now)
        rest = Task.objects.get(pk=task.pk).available_at - now
        rests.append(rest.total_seconds())
        assert ask(alpha.node, now).tasks == []
        now += rest
    assert rests[:2] == [5, 20]
    assert state_of(task) == (State.FAILED, State.FAILED)
    assert Job.objects.get(tasks=task.pk).error_message == "The disk is gone."
    assert Protection.objects.get(workload=alpha.workload).last_run_outcome == State.FAILED


def test_a_failure_for_good_is_not_tried_again(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    lease.fail(alpha.node, task.pk, failing(handed.token), timezone.now())
    assert state_of(task) == (State.FAILED, State.FAILED)


def test_a_repeated_fail_gets_the_same_answer_and_counts_once(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    report = failing(handed.token, retryable=True)
    answers = [lease.fail(alpha.node, task.pk, report, timezone.now()) for _ in range(2)]
    assert answers[0] == answers[1]
    assert Task.objects.get(pk=task.pk).attempt == 1
    with pytest.raises(LeaseLost):
        lease.complete(alpha.node, task.pk, done(handed.token), timezone.now())


def test_a_released_task_waits_again_at_once_and_has_used_no_attempt(alpha):
    task = add_backup(alpha, max_attempts=1)
    second = other_node(alpha)
    handed = take(alpha.node)
    for _ in range(2):
        lease.release(alpha.node, task.pk, ReleaseReport(token=handed.token, reason="drain"), timezone.now())
    assert state_of(task) == (State.QUEUED, State.QUEUED)
    again = take(second)
    lease.complete(second, task.pk, done(again.token), timezone.now())
    assert state_of(task) == (State.SUCCEEDED, State.SUCCEEDED)


def test_a_draining_node_gets_nothing(alpha):
    add_backup(alpha)
    reply = ask(alpha.node, draining=True)
    assert reply.tasks == []
    assert Node.objects.get(pk=alpha.node.pk).draining
    assert len(ask(alpha.node, draining=False).tasks) == 1
