"""Expiry really forgets: from the policy's decision to the snapshot that is gone."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from apps.catalog import browse
from apps.catalog.models import CopyState, Directory, PointCopy, PointOutcome, Protection, RestorePoint
from apps.errors import Conflict, Denied, NotFound
from apps.iam.models import AuditEvent
from apps.jobs import expiry, lease, requests
from apps.jobs.models import Job, JobKind, State, Task, Trigger
from apps.policies.models import Assignment, Policy
from node_agent import protocol
from node_agent.protocol import ForgetResult, RestoreTarget
from tests.apps.acting import ActingNode

KEEP = {f"keep_{name}": 0 for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within_days")}


@pytest.fixture
def now():
    return timezone.now()


def make_points(house, count: int, now, outcome=PointOutcome.COMPLETE) -> list[RestorePoint]:
    """Points a day apart, the newest first, all older than the world's own."""
    points = []
    for number in range(1, count + 1):
        point = RestorePoint.objects.create(
            tenant=house.tenant,
            workload=house.workload,
            task=uuid.uuid4(),
            taken_at=now - timedelta(days=number),
            outcome=outcome,
        )
        PointCopy.objects.create(
            point=point, repository=house.repository, snapshot_id=uuid.uuid4().hex * 2, tree_id=uuid.uuid4().hex * 2
        )
        points.append(point)
    return points


def keep(house, **rule) -> None:
    Policy.objects.filter(pk=house.policy.pk).update(**{**KEEP, **{f"keep_{name}": n for name, n in rule.items()}})


def state_of(point: RestorePoint) -> str:
    return point.copies.get().state


@pytest.fixture
def alpha(world, now):
    """Alpha with its own point and four older ones; the policy keeps the last two."""
    house = world.alpha
    house.points = [house.point, *make_points(house, 4, now)]
    keep(house, last=2)
    return house


def test_what_the_policy_does_not_keep_is_announced_and_handed_to_a_node(alpha, now):
    (job,) = expiry.expire(now)
    assert (job.kind, job.trigger, job.state) == (JobKind.EXPIRE, Trigger.RETENTION, State.QUEUED)
    assert [state_of(point) for point in alpha.points] == ["present", "present", "expiring", "expiring", "expiring"]
    task = job.tasks.get()
    assert set(task.spec["snapshot_ids"]) == {point.copies.get().snapshot_id for point in alpha.points[2:]}
    assert task.excludes == f"repository:{alpha.repository.pk}"
    reason = alpha.points[4].copies.get().expire_reason
    assert reason == "policy “alpha-nightly”: no rule of the policy keeps it"


def test_the_node_forgets_and_the_points_are_gone_everywhere(alpha, now):
    expiry.expire(now)
    node = ActingNode(alpha.node)
    task = node.take()
    assert task.spec.repository.password == alpha.repository_password
    node.complete(task, ForgetResult(removed=task.spec.snapshot_ids[:2], missing=task.spec.snapshot_ids[2:]))
    assert list(alpha.workload.points.order_by("-taken_at")) == alpha.points[:2]
    assert PointCopy.objects.filter(repository=alpha.repository).count() == 2
    assert Protection.objects.get(workload=alpha.workload).points == 2
    assert AuditEvent.objects.filter(verb="point.removed", tenant=alpha.tenant).count() == 3
    assert Job.objects.get(kind=JobKind.EXPIRE).state == State.SUCCEEDED
    assert expiry.expire(now) == []


def test_a_forget_that_failed_leaves_the_points_present_with_the_reason(alpha, now):
    expiry.expire(now)
    node = ActingNode(alpha.node)
    node.fail(node.take(), "The destination cannot be written.")
    assert [state_of(point) for point in alpha.points] == ["present"] * 5
    assert "The destination cannot be written." in alpha.points[3].copies.get().expire_reason
    assert Protection.objects.get(workload=alpha.workload).points == 5
    (again,) = expiry.expire(now)
    assert len(again.tasks.get().spec["snapshot_ids"]) == 3


def test_a_forget_that_is_tried_again_keeps_the_points_announced(alpha, now):
    expiry.expire(now)
    node = ActingNode(alpha.node)
    node.fail(node.take(), "Locked by another program.", retryable=True)
    assert state_of(alpha.points[4]) == "expiring"


def test_a_cancelled_forget_gives_the_points_back(alpha, now):
    (job,) = expiry.expire(now)
    lease.cancel(job, "owner", now)
    expiry.put_back_stranded(now)
    assert [state_of(point) for point in alpha.points] == ["present"] * 5


def test_copies_whose_job_vanished_are_given_back(alpha, now):
    (job,) = expiry.expire(now)
    job.delete()
    assert expiry.put_back_stranded(now) == 3
    assert state_of(alpha.points[4]) == "present"


def test_what_a_node_did_not_remove_of_what_it_was_asked_is_given_back(alpha, now):
    expiry.expire(now)
    node = ActingNode(alpha.node)
    task = node.take()
    node.complete(task, ForgetResult(removed=task.spec.snapshot_ids[:1]))
    assert alpha.workload.points.count() == 4
    assert not PointCopy.objects.filter(state=CopyState.EXPIRING).exists()


def test_one_job_a_repository_and_none_beside_an_open_one(alpha, now):
    assert len(expiry.expire(now)) == 1
    keep(alpha, last=1)
    assert expiry.expire(now) == []
    assert state_of(alpha.points[1]) == "present"


def test_workloads_of_one_repository_share_the_job(alpha, now):
    other = type(alpha.workload).objects.create(
        tenant=alpha.tenant, platform=alpha.platform, name="other", source={"paths": ["/srv/other"]}
    )
    Assignment.objects.create(workload=other, policy=alpha.policy)
    point = alpha.points[0]
    for old in make_points(alpha, 4, now):
        RestorePoint.objects.filter(pk=old.pk).update(workload=other)
    (job,) = expiry.expire(now)
    assert len(job.tasks.get().spec["snapshot_ids"]) == 5
    assert state_of(point) == "present"


def test_the_current_policy_decides_not_the_one_of_the_backup(alpha, now):
    keep(alpha, last=50)
    assert expiry.expire(now) == []
    other = Policy.objects.create(
        tenant=alpha.tenant, name="short", destination=alpha.destination, **{**KEEP, "keep_last": 1}
    )
    Assignment.objects.filter(workload=alpha.workload).update(policy=other)
    (job,) = expiry.expire(now)
    assert len(job.tasks.get().spec["snapshot_ids"]) == 4


def test_without_a_policy_or_with_one_that_is_off_every_point_is_kept(alpha, now):
    Policy.objects.filter(pk=alpha.policy.pk).update(enabled=False)
    assert expiry.expire(now) == []
    Assignment.objects.all().delete()
    assert expiry.expire(now) == []


def test_a_held_point_stays_and_goes_when_the_hold_is_taken_off(world, alpha, now):
    requests.hold(world.operator, alpha.points[4], "litigation 7")
    (job,) = expiry.expire(now)
    assert state_of(alpha.points[4]) == "present"
    node = ActingNode(alpha.node)
    task = node.take()
    node.complete(task, ForgetResult(removed=task.spec.snapshot_ids))
    assert expiry.expire(now) == []
    requests.unhold(world.admin, alpha.points[4])
    (job,) = expiry.expire(now)
    assert job.tasks.get().spec["snapshot_ids"] == [alpha.points[4].copies.get().snapshot_id]


def test_a_point_that_is_being_restored_is_not_removed_under_the_restore(world, alpha, now):
    target = RestoreTarget(driver="files", path="/restore/x")
    requests.restore(world.operator, alpha.points[4], chosen=[], target=target, node=None)
    (job,) = expiry.expire(now)
    assert state_of(alpha.points[4]) == "present"
    assert len(job.tasks.get().spec["snapshot_ids"]) == 2


def test_partial_points_go_before_complete_ones(alpha, now):
    RestorePoint.objects.filter(pk__in=[alpha.points[0].pk, alpha.points[1].pk]).update(outcome="partial")
    keep(alpha, last=1)
    expiry.expire(now)
    # The newest complete one is the third; the two partial ones are newer than it.
    assert [state_of(point) for point in alpha.points] == ["present", "present", "present", "expiring", "expiring"]


def test_a_damaged_copy_never_displaces_a_good_one(alpha, now):
    alpha.points[0].copies.update(state=CopyState.DAMAGED)
    keep(alpha, last=1)
    expiry.expire(now)
    assert [state_of(point) for point in alpha.points][:3] == ["damaged", "present", "expiring"]


def test_missing_copies_are_not_judged(alpha, now):
    alpha.points[4].copies.update(state=CopyState.MISSING)
    (job,) = expiry.expire(now)
    assert len(job.tasks.get().spec["snapshot_ids"]) == 2
    assert state_of(alpha.points[4]) == "missing"


def test_expiring_for_one_policy_leaves_the_others_points(world, alpha, now):
    make_points(world.beta, 4, now)
    keep(world.beta, last=1)
    jobs = expiry.expire(now, [world.beta.policy])
    assert [job.tenant for job in jobs] == [world.beta.tenant]


def test_a_great_many_points_go_in_pieces(alpha, now, monkeypatch):
    monkeypatch.setattr(expiry, "AT_ONCE", 2)
    (job,) = expiry.expire(now)
    oldest = {alpha.points[number].copies.get().snapshot_id for number in (3, 4)}
    assert set(job.tasks.get().spec["snapshot_ids"]) == oldest


def test_a_backup_does_not_run_beside_the_forgetting(world, alpha, now):
    expiry.expire(now)
    node = ActingNode(alpha.node)
    assert node.take().spec.kind == "forget"
    requests.backup_now(world.operator, alpha.workload)
    assert node.take() is None


def test_retention_can_be_applied_by_hand_by_who_may_delete(world, alpha, now):
    for person, error in ((world.operator, Denied), (world.stranger, NotFound)):
        with pytest.raises(error):
            requests.apply_retention(person, alpha.policy)
    assert expiry.would_go(alpha.policy, now) == 3
    (job,) = requests.apply_retention(world.admin, alpha.policy)
    assert expiry.would_go(alpha.policy, now) == 0
    assert len(job.tasks.get().spec["snapshot_ids"]) == 3
    assert requests.apply_retention(world.admin, alpha.policy) == []
    Policy.objects.filter(pk=alpha.policy.pk).update(enabled=False)
    alpha.policy.refresh_from_db()
    with pytest.raises(Conflict, match="switched off"):
        requests.apply_retention(world.admin, alpha.policy)


# --- by hand ------------------------------------------------------------------------------------------


def test_a_deleted_point_is_gone_when_the_node_has_forgotten_it(world, alpha, now):
    point = alpha.points[2]
    job = requests.delete_point(world.admin, point, "alpha-documents")
    assert state_of(point) == "expiring"
    node = ActingNode(alpha.node)
    task = node.take()
    assert task.spec.snapshot_ids == [point.copies.get().snapshot_id]
    node.complete(task, ForgetResult(removed=task.spec.snapshot_ids))
    assert not RestorePoint.objects.filter(pk=point.pk).exists()
    job.refresh_from_db()
    assert (job.state, job.restore_point) == (State.SUCCEEDED, None)
    assert AuditEvent.objects.get(verb="point.removed").detail == {"reason": "deleted by admin"}


def test_a_missing_point_can_be_deleted(world, alpha, now):
    point = alpha.points[2]
    point.copies.update(state=CopyState.MISSING)
    requests.delete_point(world.admin, point, "alpha-documents")
    node = ActingNode(alpha.node)
    task = node.take()
    node.complete(task, ForgetResult(removed=[], missing=task.spec.snapshot_ids))
    assert not RestorePoint.objects.filter(pk=point.pk).exists()


# --- lists of files -------------------------------------------------------------------------------------


def test_names_of_forgotten_points_leave_the_server_too(world, alpha, now):
    point = alpha.points[4]
    browse.add(
        alpha.repository,
        [protocol.Directory(tree_id=point.copies.get().tree_id, entries=[protocol.Entry(name="secret", type="file")])],
    )
    assert expiry.sweep_lists(now) == 0
    expiry.expire(now)
    node = ActingNode(alpha.node)
    task = node.take()
    node.complete(task, ForgetResult(removed=task.spec.snapshot_ids))
    running = requests.backup_now(world.operator, alpha.workload)
    assert expiry.sweep_lists(now) == 0  # its lists lead nowhere yet
    lease.cancel(running, "test", now)
    assert expiry.sweep_lists(now) == 1
    assert not Directory.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_two_that_expire_at_once_make_one_job():
    from tests.world import make_world

    world, now = make_world(), timezone.now()
    make_points(world.alpha, 6, now)
    keep(world.alpha, last=1)
    errors: list[BaseException] = []
    gate = threading.Barrier(4)

    def run() -> None:
        try:
            gate.wait(timeout=10)
            expiry.expire(now)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    assert Job.objects.filter(kind=JobKind.EXPIRE).count() == 1
    assert len(Task.objects.get(job__kind=JobKind.EXPIRE).spec["snapshot_ids"]) == 6


def test_the_api_and_the_admin_apply_retention_too(world, alpha, now, client):
    def post():
        return client.post(f"/api/v1/policies/{alpha.policy.pk}/expire/", {}, content_type="application/json")

    client.force_login(world.operator)
    assert post().status_code == 403
    client.force_login(world.stranger)
    assert post().status_code == 404
    client.force_login(world.admin)
    answer = post()
    assert answer.status_code == 202
    assert [job["kind"] for job in answer.json()["jobs"]] == ["expire"]
    ActingNode(alpha.node).fail(ActingNode(alpha.node).take())
    page = f"/admin/policies/policy/{alpha.policy.pk}/do/expire/"
    assert "3 restore points will be removed for good" in client.get(page).content.decode()
    client.post(page)
    assert Job.objects.filter(kind=JobKind.EXPIRE).count() == 2
