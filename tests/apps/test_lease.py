"""Leases: who holds a task, how it comes to an end, and what a late or repeated word gets as an answer."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from apps.catalog.models import PointOutcome, Protection, RestorePoint
from apps.errors import Invalid, LeaseLost, NotFound
from apps.inventory.models import Destination, Node, Repository, RepositoryState
from apps.jobs import lease
from apps.jobs.models import Job, JobKind, LogLine, State, Task
from node_agent.protocol import (
    CompleteReport,
    InitResult,
    LeaseClass,
    LeftOut,
    LogEntry,
    Outcome,
    ProbeCheck,
    ProbeResult,
    ReleaseReport,
    TaskKind,
    VerifyResult,
)
from tests.apps.leasing import (
    add,
    add_backup,
    ask,
    done,
    failing,
    forgotten,
    make_job,
    make_task,
    request_for,
    state_of,
    take,
    working,
)
from tests.world import make_node

pytestmark = pytest.mark.django_db
TTL, MARGIN = timedelta(seconds=60), timedelta(seconds=10)


@pytest.fixture(autouse=True)
def lease_times(settings):
    settings.BRS_LEASE_TTL_S, settings.BRS_LEASE_MARGIN_S = 60, 10


@pytest.fixture
def alpha(world):
    return world.alpha


def other_node(house) -> Node:
    """A second node of the tenant that reaches its destination."""
    node, _token = make_node("second-node", house.tenant)
    house.destination.nodes.add(node)
    return node


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


# --- steps of one job ------------------------------------------------------------------------------------------


def disk_job(house) -> tuple[Task, Task]:
    export = make_task(house, TaskKind.EXPORT)
    store = make_task(house, TaskKind.STORE, after=export, same_node=True)
    lease.add(make_job(house), [export, store])
    return export, store


def exported(token: str) -> CompleteReport:
    return CompleteReport.model_validate(
        {"token": token, "result": {"kind": "export", "size_bytes": 1, "files": 1, "started_age_s": 0}}
    )


def test_the_second_step_waits_for_the_first_and_runs_on_the_same_node(alpha):
    second = other_node(alpha)
    export, store = disk_job(alpha)
    handed = take(alpha.node)
    assert handed.task_id == export.pk and ask(second).tasks == []

    lease.complete(alpha.node, export.pk, exported(handed.token), timezone.now())
    assert state_of(store) == (State.QUEUED, State.QUEUED)
    assert ask(second).tasks == []
    last = take(alpha.node)
    lease.complete(alpha.node, store.pk, done(last.token), timezone.now())
    assert state_of(store) == (State.SUCCEEDED, State.SUCCEEDED)


def test_when_the_first_step_fails_the_second_is_dropped_and_the_job_failed(alpha):
    export, store = disk_job(alpha)
    handed = take(alpha.node)
    lease.fail(alpha.node, export.pk, failing(handed.token), timezone.now())
    assert state_of(store) == (State.CANCELLED, State.FAILED)
    assert Job.objects.get(tasks=store.pk).error_message == "The disk is gone."


# --- cancelling ------------------------------------------------------------------------------------------------


def test_cancelling_a_queued_job_ends_it_at_once(alpha):
    task = add_backup(alpha)
    job = lease.cancel(task.job, "Ann", timezone.now())
    assert job.state == State.CANCELLED and "Ann" in job.error_message
    assert ask(alpha.node).tasks == []


@pytest.mark.parametrize("answer", ["fail", "release", "silence"])
def test_a_held_job_is_cancelled_when_its_node_has_heard_of_it(alpha, answer):
    task = add_backup(alpha)
    start = timezone.now()
    handed = take(alpha.node, start)
    assert lease.cancel(task.job, "Ann", start).state == State.LEASED
    assert lease.progress(alpha.node, task.pk, working(handed.token), start).cancel
    assert ask(alpha.node, start, holding=[task.pk]).cancel == [task.pk]

    if answer == "fail":
        lease.fail(alpha.node, task.pk, failing(handed.token, code="cancelled", retryable=True), start)
    elif answer == "release":
        lease.release(alpha.node, task.pk, ReleaseReport(token=handed.token), start)
    else:
        lease.sweep(start + TTL + timedelta(seconds=1))
    assert state_of(task) == (State.CANCELLED, State.CANCELLED)


def test_a_backup_that_finishes_before_it_hears_of_the_cancel_counts(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    lease.cancel(task.job, "Ann", timezone.now())
    lease.complete(alpha.node, task.pk, done(handed.token), timezone.now())
    assert state_of(task) == (State.SUCCEEDED, State.SUCCEEDED)


def test_cancelling_an_ended_job_changes_nothing(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    lease.complete(alpha.node, task.pk, done(handed.token), timezone.now())
    assert lease.cancel(task.job, "Ann", timezone.now()).state == State.SUCCEEDED


def test_an_expired_holder_of_a_cancelled_job_may_not_come_back(alpha):
    task = add_backup(alpha)
    start = timezone.now()
    handed = take(alpha.node, start)
    lease.sweep(start + TTL + timedelta(seconds=1))
    lease.cancel(task.job, "Ann", start + TTL + timedelta(seconds=2))
    assert state_of(task) == (State.CANCELLED, State.CANCELLED)
    with pytest.raises(LeaseLost):
        lease.progress(alpha.node, task.pk, working(handed.token), start + TTL + timedelta(seconds=3))


def test_giving_up_fails_a_job_that_never_started_and_leaves_a_running_one(alpha):
    waiting, running = add_backup(alpha, requires=["zone:mars"]), add_backup(alpha)
    take(alpha.node)
    assert lease.give_up(waiting.job, "start-window", "It could not start in time.", timezone.now())
    assert not lease.give_up(running.job, "start-window", "It could not start in time.", timezone.now())
    assert state_of(waiting) == (State.FAILED, State.FAILED)
    assert state_of(running) == (State.LEASED, State.LEASED)


# --- what results do ---------------------------------------------------------------------------------------------


def new_repository(house) -> None:
    Repository.objects.filter(pk=house.repository.pk).update(state=RepositoryState.NEW, repository_id="")


def test_a_backup_waits_until_its_repository_is_made(alpha):
    new_repository(alpha)
    backup = add_backup(alpha)
    assert ask(alpha.node).tasks == []
    init = add(alpha, TaskKind.INIT, JobKind.INIT)
    handed = take(alpha.node)
    assert handed.task_id == init.pk

    report = CompleteReport(token=handed.token, result=InitResult(repository_id="c" * 64))
    lease.complete(alpha.node, init.pk, report, timezone.now())

    made = Repository.objects.get(pk=alpha.repository.pk)
    assert (made.state, made.repository_id) == (RepositoryState.READY, "c" * 64)
    assert take(alpha.node).spec.repository.repository_id == "c" * 64
    assert state_of(backup)[0] == State.LEASED


def test_a_backup_whose_repository_could_not_be_made_fails_with_that_reason(alpha):
    new_repository(alpha)
    backup, init = add_backup(alpha), add(alpha, TaskKind.INIT, JobKind.INIT)
    handed = take(alpha.node)
    lease.fail(alpha.node, init.pk, failing(handed.token, message="The folder is read-only."), timezone.now())
    lease.sweep(timezone.now() + timedelta(minutes=1))
    assert state_of(backup) == (State.FAILED, State.FAILED)
    assert "read-only" in Job.objects.get(tasks=backup.pk).error_message


def test_a_repository_keeps_the_id_it_was_made_with(alpha):
    init = add(alpha, TaskKind.INIT, JobKind.INIT)
    handed = take(alpha.node)
    report = CompleteReport(token=handed.token, result=InitResult(repository_id="d" * 64))
    with pytest.raises(Invalid):
        lease.complete(alpha.node, init.pk, report, timezone.now())
    assert Repository.objects.get(pk=alpha.repository.pk).repository_id == alpha.repository.repository_id


def test_a_connection_test_with_a_failed_check_fails_and_keeps_what_it_found(alpha):
    task = add(alpha, TaskKind.PROBE, JobKind.PROBE)
    handed = take(alpha.node)
    checks = [
        ProbeCheck(name="Folder", ok=True),
        ProbeCheck(name="Write", ok=False, detail="read-only", hint="Remount."),
    ]
    report = CompleteReport(token=handed.token, result=ProbeResult(checks=checks, total_bytes=100, free_bytes=40))
    for _ in range(2):
        lease.complete(alpha.node, task.pk, report, timezone.now())
    assert state_of(task) == (State.FAILED, State.FAILED)
    assert Task.objects.get(pk=task.pk).outcome["checks"][1]["detail"] == "read-only"
    place = Destination.objects.get(pk=alpha.destination.pk)
    assert (place.total_bytes, place.free_bytes, place.problem) == (100, 40, "Write: read-only")


def test_a_check_that_finds_damage_fails(alpha):
    task = add(alpha, TaskKind.VERIFY, JobKind.VERIFY)
    handed = take(alpha.node)
    result = VerifyResult(snapshots=[alpha.copy.snapshot_id], errors=["pack 0123: digest differs"])
    lease.complete(alpha.node, task.pk, CompleteReport(token=handed.token, result=result), timezone.now())
    assert state_of(task) == (State.FAILED, State.FAILED)
    assert "pack 0123" in Job.objects.get(tasks=task.pk).error_message
