"""Jobs of several steps, cancelling, and what the results of tasks do to the rest."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from apps.errors import Invalid, LeaseLost
from apps.inventory.models import Destination, Repository, RepositoryState
from apps.jobs import lease
from apps.jobs.models import Job, JobKind, State, Task
from node_agent.protocol import (
    CompleteReport,
    ForgetResult,
    InitResult,
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
    make_job,
    make_task,
    other_node,
    state_of,
    take,
    working,
)

pytestmark = pytest.mark.django_db
TTL = timedelta(seconds=60)


@pytest.fixture(autouse=True)
def lease_times(settings):
    settings.BRS_LEASE_TTL_S, settings.BRS_LEASE_MARGIN_S = 60, 10


@pytest.fixture
def alpha(world):
    return world.alpha


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
    report = CompleteReport(token=handed.token, result=ProbeResult(checks=checks, capacity_bytes=100, free_bytes=40))
    for _ in range(2):
        lease.complete(alpha.node, task.pk, report, timezone.now())
    assert state_of(task) == (State.FAILED, State.FAILED)
    assert Task.objects.get(pk=task.pk).outcome["checks"][1]["detail"] == "read-only"
    place = Destination.objects.get(pk=alpha.destination.pk)
    assert (place.total_bytes, place.free_bytes, place.problem) == (100, 40, "Write: read-only")


def test_every_result_tells_how_full_the_destination_is(alpha):
    """Without a test of the destination; where a store does not tell, what was known stays."""
    for told in ({"capacity_bytes": 100, "free_bytes": 7}, {}):
        task = add(alpha, TaskKind.FORGET, JobKind.EXPIRE)
        report = CompleteReport(token=take(alpha.node).token, result=ForgetResult(removed=[], **told))
        lease.complete(alpha.node, task.pk, report, timezone.now())
        place = Destination.objects.get(pk=alpha.destination.pk)
        assert (place.total_bytes, place.free_bytes, place.tested_at) == (100, 7, None)


def test_a_check_that_finds_damage_fails(alpha):
    task = add(alpha, TaskKind.VERIFY, JobKind.VERIFY)
    handed = take(alpha.node)
    result = VerifyResult(snapshots=[alpha.copy.snapshot_id], errors=["pack 0123: digest differs"])
    lease.complete(alpha.node, task.pk, CompleteReport(token=handed.token, result=result), timezone.now())
    assert state_of(task) == (State.FAILED, State.FAILED)
    assert "pack 0123" in Job.objects.get(tasks=task.pk).error_message
