"""Repositories looked after by themselves: when, by which job, what its result means, and who may ask for it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from apps.catalog import ingest
from apps.catalog.models import CopyState, PointCopy, RestorePoint
from apps.errors import Conflict, Denied
from apps.iam.models import AuditEvent
from apps.inventory.models import Destination, Repository
from apps.jobs import maintenance, requests
from apps.jobs.models import Job, JobKind, State, Task
from node_agent.protocol import CompleteReport, PruneResult, TaskKind, VerifyResult
from tests.api_client import person
from tests.apps.acting import ActingNode
from tests.apps.leasing import add_backup, take
from tests.apps.test_admin_scope import signed_in

pytestmark = pytest.mark.django_db
NIGHT = datetime(2026, 5, 6, 3, 30, tzinfo=UTC)
NOON = NIGHT.replace(hour=12)


@pytest.fixture
def repository(world) -> Repository:
    """Alpha's, made a month ago; Beta's is looked after by nobody."""
    Destination.objects.filter(tenant=world.beta.tenant).update(verify_every_days=0, prune_every_days=0)
    Repository.objects.filter(pk=world.alpha.repository.pk).update(created_at=NIGHT - timedelta(days=30))
    Job.objects.all().update(created_at=NIGHT - timedelta(days=40), finished_at=NIGHT - timedelta(days=40))
    return Repository.objects.get(pk=world.alpha.repository.pk)


def settle(kind: str, now: datetime) -> None:
    Job.objects.filter(kind=kind).update(state=State.SUCCEEDED, created_at=now, finished_at=now)


def removed_points(repository: Repository, at: datetime) -> None:
    job = Job.objects.create(
        tenant=repository.tenant,
        kind=JobKind.EXPIRE,
        state=State.SUCCEEDED,
        repository=repository,
        due_at=at,
        title="x",
    )
    Job.objects.filter(pk=job.pk).update(created_at=at, finished_at=at)


def test_each_night_a_share_is_verified_so_that_all_is_read_within_the_cycle(repository):
    assert maintenance.plan(NOON) == 0
    assert maintenance.plan(NIGHT) == 1
    assert maintenance.plan(NIGHT + timedelta(minutes=1)) == 0  # it is open
    job = Job.objects.get(kind=JobKind.VERIFY, trigger="system")
    assert job.start_before == NIGHT.replace(hour=6, minute=0)
    spec = job.tasks.get().spec
    assert spec["read_data"] is True and 1 / 30 < spec["share"] < 2 / 30
    assert spec["cycle_s"] == 30 * 86400
    settle("verify", NIGHT)
    assert maintenance.plan(NIGHT + timedelta(hours=2)) == 0  # this night's is done
    assert maintenance.plan(NIGHT + timedelta(hours=23)) == 1


def test_space_is_reclaimed_only_when_something_was_removed(repository):
    Destination.objects.update(verify_every_days=0)
    assert maintenance.plan(NIGHT) == 0
    removed_points(repository, NIGHT - timedelta(days=1))
    assert maintenance.plan(NIGHT) == 1
    task = Task.objects.get(kind=TaskKind.PRUNE.value)
    assert task.excludes == f"repository:{repository.pk}" and not task.shares
    assert task.spec["max_duration_s"] == 120 * 60
    settle("prune", NIGHT)
    Repository.objects.update(pruned_at=NIGHT)
    assert maintenance.plan(NIGHT + timedelta(days=7)) == 0  # nothing was removed since
    removed_points(repository, NIGHT + timedelta(days=2))
    assert maintenance.plan(NIGHT + timedelta(days=3)) == 0
    assert maintenance.plan(NIGHT + timedelta(days=7)) == 1


def test_what_is_switched_off_never_runs_by_itself(repository):
    Destination.objects.update(verify_every_days=0, prune_every_days=0)
    removed_points(repository, NIGHT - timedelta(days=1))
    assert maintenance.plan(NIGHT) == 0


@pytest.mark.parametrize(
    ("begin", "end", "hour", "until"),
    [(1, 6, 0, None), (1, 6, 1, 6), (1, 6, 6, None), (22, 4, 23, 4), (22, 4, 3, 4), (22, 4, 12, None), (0, 0, 15, 15)],
)
def test_hours_may_reach_over_midnight(begin, end, hour, until):
    place = Destination(maintenance_from=begin, maintenance_until=end)
    found = maintenance.window_end(place, NIGHT.replace(hour=hour, minute=0))
    assert (found.hour if found else None) == until
    assert found is None or timedelta(0) < found - NIGHT.replace(hour=hour, minute=0) <= timedelta(hours=24)


def test_a_prune_never_runs_beside_a_backup(world, repository):
    add_backup(world.alpha)
    running = take(world.alpha.node)
    job = requests.prune(world.admin, repository)
    assert ActingNode(world.alpha.node).take() is None
    task = job.tasks.get()
    from apps.jobs.placement import why_waiting

    assert "Waits until" in why_waiting(task, timezone.now())
    assert running.spec.kind == TaskKind.BACKUP


def test_what_a_prune_freed_is_kept_with_the_repository(world, repository):
    job = requests.prune(world.admin, repository)
    node = ActingNode(world.alpha.node)
    handed = node.take()
    assert handed.spec.kind == TaskKind.PRUNE and handed.lease_class == "exclusive"
    node.complete(
        handed,
        PruneResult(removed_packs=3, rewritten_packs=1, freed_bytes=5000, unused_bytes=70, stored_bytes=90_000),
    )
    repository.refresh_from_db()
    assert (repository.unused_bytes, repository.stored_bytes) == (70, 90_000) and repository.pruned_at
    job.refresh_from_db()
    assert job.state == State.SUCCEEDED
    shown = person(world.viewer).get(f"jobs/{job.pk}/").json()
    assert shown["tasks"][0]["outcome"]["freed_bytes"] == 5000


def test_a_prune_is_told_what_must_be_there_when_it_is_handed_out(world, repository):
    requests.prune(world.admin, repository)
    copies = list(PointCopy.objects.filter(repository=repository).order_by("snapshot_id"))
    point = copies[0].point
    for number, state in enumerate(CopyState):
        PointCopy.objects.create(
            point=RestorePoint.objects.create(
                tenant=point.tenant, workload=point.workload, task=uuid.uuid4(), taken_at=point.taken_at
            ),
            repository=repository,
            snapshot_id=f"{number}" * 64,
            tree_id="f" * 64,
            state=state,
        )
    told = ActingNode(world.alpha.node).take().spec.expected
    counted = PointCopy.objects.filter(repository=repository, state__in=["present", "missing", "damaged"])
    assert len(told) == len(copies) + 3
    assert told == sorted(counted.values_list("snapshot_id", flat=True))


def test_a_missing_point_that_nobody_wants_back_is_deleted_on_its_page_and_then_not_expected(world, repository):
    copy = PointCopy.objects.filter(repository=repository).first()
    PointCopy.objects.filter(point=copy.point).update(state=CopyState.MISSING)
    address = f"/admin/catalog/restorepoint/{copy.point_id}/do/delete/"
    page = signed_in(world.admin).get(f"/admin/catalog/restorepoint/{copy.point_id}/change/").content.decode()
    assert address in page
    assert copy.snapshot_id in ingest.expected_in(repository)
    signed_in(world.admin).post(address, {"typed_name": copy.point.workload.name})
    copy.refresh_from_db()
    assert copy.state == CopyState.EXPIRING
    assert copy.snapshot_id not in ingest.expected_in(repository)


def verified(world, repository, **facts) -> Job:
    job = requests.verify(world.admin, repository, read_data=True)
    node = ActingNode(world.alpha.node)
    handed = node.take()
    known = sorted(PointCopy.objects.filter(repository=repository).values_list("snapshot_id", flat=True))
    node.complete(handed, VerifyResult(**{"snapshots": known, "complete": True, **facts}))
    job.refresh_from_db()
    return job


def test_damage_marks_the_points_with_their_files_and_only_a_full_read_takes_it_back(world, repository):
    PointCopy.objects.filter(repository=repository).update(created_at=NIGHT)
    copy = PointCopy.objects.filter(repository=repository).first()
    hurt = {"damaged_snapshots": [copy.snapshot_id], "errors": ["pack 12: damaged"], "complete": False}
    job = verified(world, repository, damaged_paths={copy.snapshot_id: ["/srv/a", "/srv/b"]}, **hurt)
    assert job.state == State.FAILED and job.error_code == "repository-damaged"
    copy.refresh_from_db()
    assert (copy.state, copy.damaged_paths) == (CopyState.DAMAGED, ["/srv/a", "/srv/b"])
    point = person(world.viewer).get(f"restore-points/{copy.point_id}/").json()
    assert point["copies"][0]["damaged_paths"] == ["/srv/a", "/srv/b"]

    verified(world, repository, complete=False, debt_bytes=77)  # a share that did not look there
    copy.refresh_from_db()
    repository.refresh_from_db()
    assert copy.state == CopyState.DAMAGED and "damaged" in repository.problem and repository.debt_bytes == 77
    verified(world, repository)
    copy.refresh_from_db()
    assert (copy.state, copy.damaged_paths) == (CopyState.PRESENT, [])


def test_reclaiming_is_for_those_who_may_delete_and_audited(world, repository):
    path = f"repositories/{repository.pk}/prune/"
    for other, status in ((world.stranger, 404), (world.nobody, 404), (world.viewer, 403), (world.operator, 403)):
        assert person(other).post(path).status_code == status
    with pytest.raises(Denied):
        requests.prune(world.operator, repository)
    assert person(world.admin).get(path).status_code == 405
    answer = person(world.admin).post(path)
    assert answer.status_code == 202 and answer.json()["kind"] == "prune"
    assert AuditEvent.objects.filter(verb="prune.requested", actor=world.admin).exists()
    with pytest.raises(Conflict, match="already"):
        requests.prune(world.owner, repository)


def test_the_settings_of_a_destination_are_its_configurers(world):
    path = f"destinations/{world.alpha.destination.pk}/"
    shown = person(world.viewer).get(path).json()
    assert (shown["verify_every_days"], shown["verify_cycle_days"], shown["prune_every_days"]) == (1, 30, 7)
    assert person(world.operator).patch(path, {"verify_every_days": 0}).status_code == 403
    assert person(world.stranger).patch(path, {"verify_every_days": 0}).status_code == 404
    assert person(world.admin).patch(path, {"verify_every_days": 2}).json()["verify_every_days"] == 2
    assert person(world.admin).patch(path, {"maintenance_from": 24}).status_code == 400


def test_a_lease_report_of_another_kind_is_refused(world, repository):
    requests.prune(world.admin, repository)
    handed = take(world.alpha.node)
    from apps.errors import Invalid
    from apps.jobs import lease

    report = CompleteReport(token=handed.token, result=VerifyResult())
    with pytest.raises(Invalid):
        lease.complete(world.alpha.node, handed.task_id, report, timezone.now())
