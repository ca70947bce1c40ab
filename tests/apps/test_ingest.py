"""Points enter and leave the catalogue."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from apps.catalog import ingest
from apps.catalog.models import CopyState, PointCopy, PointOutcome, Protection, RestorePoint
from apps.errors import Conflict
from apps.iam.models import AuditEvent
from apps.inventory import repositories
from apps.inventory.models import Destination
from node_agent.protocol import LeftOut, VerifyResult
from tests.apps.acting import backup_result


@pytest.fixture
def now():
    return timezone.now()


def record(world, now, **more):
    facts = {
        "task_id": uuid.uuid4(),
        "point_id": uuid.uuid4(),
        "workload": world.alpha.workload,
        "repository": world.alpha.repository,
        "result": backup_result(),
        "outcome": "succeeded",
        "now": now,
    }
    return ingest.record_backup(**{**facts, **more})


def second_copy(world) -> PointCopy:
    """The same point in another repository of the tenant."""
    other = Destination.objects.create(tenant=world.alpha.tenant, name="second", path="/second")
    repository = repositories.ensure(world.alpha.tenant, other)
    return PointCopy.objects.create(
        point=world.alpha.point, repository=repository, snapshot_id="2" * 64, tree_id=world.alpha.copy.tree_id
    )


def test_a_finished_backup_becomes_a_point_with_a_copy(world, now):
    point_id = uuid.uuid4()
    result = backup_result(parent_id="9" * 64, started_age_s=90)
    point = record(world, now, point_id=point_id, result=result)
    assert (point.pk, point.outcome, point.incremental) == (point_id, PointOutcome.COMPLETE, True)
    assert point.taken_at == now - timedelta(seconds=90)
    (copy,) = point.copies.all()
    assert (copy.snapshot_id, copy.state, copy.stored_bytes) == (result.snapshot_id, CopyState.PRESENT, 1000)


def test_the_same_task_reported_again_is_the_same_point(world, now):
    task_id = uuid.uuid4()
    first = record(world, now, task_id=task_id)
    again = record(world, now + timedelta(hours=1), task_id=task_id, point_id=uuid.uuid4())
    assert first == again
    assert RestorePoint.objects.filter(task=task_id).count() == 1


def test_a_partial_backup_keeps_the_list_of_what_was_left_out(world, now):
    left_out = [
        LeftOut(path="/srv/a\x00", code="unreadable", message="Permission denied"),
        LeftOut(path="/srv/b", code="owner", message="not set", note=True),
    ]
    point = record(world, now, outcome="partial", left_out=left_out)
    assert point.outcome == PointOutcome.PARTIAL
    assert point.left_out_count == 1
    assert [item["path"] for item in point.left_out] == ["/srv/a\\0", "/srv/b"]


def test_a_snapshot_that_belongs_to_another_point_is_refused(world, now):
    taken = world.alpha.copy.snapshot_id
    with pytest.raises(Conflict, match="already belongs"):
        record(world, now, result=backup_result(snapshot_id=taken))


def test_the_parent_is_the_newest_complete_point_that_is_present_there(world, now):
    assert ingest.parent_of(world.alpha.workload.pk, world.alpha.repository).snapshot_id == world.alpha.copy.snapshot_id
    newer = record(world, now)
    record(world, now + timedelta(minutes=1), outcome="partial")
    assert ingest.parent_of(world.alpha.workload.pk, world.alpha.repository).tree_id == newer.copies.get().tree_id
    newer.copies.update(state=CopyState.DAMAGED)
    assert ingest.parent_of(world.alpha.workload.pk, world.alpha.repository).snapshot_id == world.alpha.copy.snapshot_id
    assert ingest.parent_of(world.beta.workload.pk, world.alpha.repository) is None


# --- leaving ----------------------------------------------------------------------------------------


def test_a_forgotten_point_is_gone_and_the_audit_trail_remembers_it(world, now):
    copy, point = world.alpha.copy, world.alpha.point
    ingest.mark_expiring([copy], "too old")
    assert ingest.mark_forgotten(world.alpha.repository, [copy.snapshot_id], now=now) == 1
    assert not RestorePoint.objects.filter(pk=point.pk).exists()
    assert not PointCopy.objects.filter(pk=copy.pk).exists()
    event = AuditEvent.objects.get(verb="point.removed")
    assert (event.object_id, event.detail, event.tenant) == (str(point.pk), {"reason": "too old"}, world.alpha.tenant)
    assert Protection.objects.get(workload=world.alpha.workload).state == "unprotected"


def test_a_snapshot_that_was_gone_before_counts_as_forgotten(world, now):
    assert ingest.mark_forgotten(world.alpha.repository, [], [world.alpha.copy.snapshot_id], now=now) == 1


def test_a_point_stays_while_another_repository_holds_it(world, now):
    second = second_copy(world)
    assert ingest.mark_forgotten(world.alpha.repository, [world.alpha.copy.snapshot_id], now=now) == 0
    world.alpha.copy.refresh_from_db()
    assert world.alpha.copy.state == CopyState.EXPIRED
    assert Protection.objects.get(workload=world.alpha.workload).last_good == world.alpha.point
    assert ingest.mark_forgotten(second.repository, [second.snapshot_id], now=now) == 1
    assert not RestorePoint.objects.filter(pk=world.alpha.point.pk).exists()


def test_a_foreign_snapshot_id_forgets_nothing(world, now):
    assert ingest.mark_forgotten(world.beta.repository, [world.alpha.copy.snapshot_id], now=now) == 0
    assert RestorePoint.objects.filter(pk=world.alpha.point.pk).exists()


def test_forgetting_twice_does_no_harm(world, now):
    ingest.mark_forgotten(world.alpha.repository, [world.alpha.copy.snapshot_id], now=now)
    assert ingest.mark_forgotten(world.alpha.repository, [world.alpha.copy.snapshot_id], now=now) == 0


def test_a_held_point_cannot_begin_to_expire(world):
    RestorePoint.objects.filter(pk=world.alpha.point.pk).update(hold=True)
    assert ingest.mark_expiring([world.alpha.copy], "too old") == []
    world.alpha.copy.refresh_from_db()
    assert world.alpha.copy.state == CopyState.PRESENT


def test_what_could_not_be_removed_is_present_again_and_says_why(world, now):
    ingest.mark_expiring([world.alpha.copy], "too old")
    assert (
        ingest.give_back(world.alpha.repository, [world.alpha.copy.snapshot_id], "repository is read-only", now=now)
        == 1
    )
    world.alpha.copy.refresh_from_db()
    assert world.alpha.copy.state == CopyState.PRESENT
    assert "read-only" in world.alpha.copy.expire_reason


# --- comparing with the repository ------------------------------------------------------------------


def verified(world, now, **facts) -> ingest.Reconciliation:
    result = VerifyResult(**{"snapshots": [world.alpha.copy.snapshot_id], **facts})
    return ingest.reconcile(world.alpha.repository, result, since=now, now=now)


def test_a_healthy_repository_marks_its_copies_verified(world, now):
    found = verified(world, now, stored_bytes=4711)
    world.alpha.copy.refresh_from_db()
    world.alpha.repository.refresh_from_db()
    assert found.summary() == world.alpha.repository.problem == ""
    assert world.alpha.copy.verified_at == world.alpha.repository.verified_at == now
    assert world.alpha.repository.stored_bytes == 4711


def test_a_missing_point_is_reported_and_found_again_when_it_is_back(world, now):
    found = verified(world, now, snapshots=[])
    world.alpha.copy.refresh_from_db()
    world.alpha.repository.refresh_from_db()
    assert found.missing == [world.alpha.copy.snapshot_id]
    assert world.alpha.copy.state == CopyState.MISSING
    assert "1 restore point is missing" in world.alpha.repository.problem
    protection = Protection.objects.get(workload=world.alpha.workload)
    assert protection.state == "unprotected"
    assert protection.last_good is None
    assert verified(world, now).found_again == [world.alpha.copy.snapshot_id]
    assert Protection.objects.get(workload=world.alpha.workload).state == "protected"


def test_a_missing_point_beside_a_good_one_needs_attention(world, now):
    newer = record(world, now - timedelta(minutes=5))
    PointCopy.objects.update(created_at=now - timedelta(minutes=5))
    verified(world, now, snapshots=[newer.copies.get().snapshot_id])
    protection = Protection.objects.get(workload=world.alpha.workload)
    assert (protection.state, protection.last_good) == ("attention", newer)
    assert "missing from its repository" in protection.reason


def test_a_damaged_point_is_marked_and_not_called_verified(world, now):
    found = verified(world, now, damaged_snapshots=[world.alpha.copy.snapshot_id], errors=["pack 12 is truncated"])
    world.alpha.copy.refresh_from_db()
    world.alpha.repository.refresh_from_db()
    assert found.damaged == [world.alpha.copy.snapshot_id]
    assert (world.alpha.copy.state, world.alpha.copy.verified_at) == (CopyState.DAMAGED, None)
    assert "pack 12 is truncated" in world.alpha.repository.problem


def test_an_unknown_snapshot_is_reported_and_not_adopted(world, now):
    found = verified(world, now, snapshots=[world.alpha.copy.snapshot_id, "f" * 64])
    assert found.unknown == ["f" * 64]
    assert "1 snapshot that the catalogue does not know" in found.summary()
    assert RestorePoint.objects.filter(workload=world.alpha.workload).count() == 1


def test_a_copy_that_came_after_the_look_is_not_judged(world, now):
    newer = record(world, now)
    found = ingest.reconcile(
        world.alpha.repository,
        VerifyResult(snapshots=[world.alpha.copy.snapshot_id]),
        since=newer.copies.get().created_at - timedelta(seconds=1),
        now=now,
    )
    assert found.missing == []
    assert newer.copies.get().state == CopyState.PRESENT


def test_a_copy_that_is_being_removed_is_not_called_missing(world, now):
    ingest.mark_expiring([world.alpha.copy], "too old")
    assert verified(world, now, snapshots=[]).missing == []
    world.alpha.copy.refresh_from_db()
    assert world.alpha.copy.state == CopyState.EXPIRING
