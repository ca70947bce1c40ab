"""What users start: rights, refusals, and the jobs that come of it."""

from __future__ import annotations

import threading
import uuid

import pytest
from django.db import connection
from django.utils import timezone

from apps.catalog.models import CopyState
from apps.errors import Conflict, Denied, DomainError, Invalid, NotFound
from apps.iam.models import AuditEvent
from apps.inventory.models import Destination, Repository, RepositoryState, Workload
from apps.jobs import lease, requests
from apps.jobs.models import Job, JobKind, State, Task
from apps.policies.models import Assignment, Policy
from node_agent.protocol import InitResult, ProbeCheck, ProbeResult, RestoreTarget, VerifyResult
from tests.apps.acting import ActingNode


@pytest.fixture
def alpha(world):
    return world.alpha


def ended(job: Job) -> Job:
    lease.cancel(job, "test", timezone.now())
    job.refresh_from_db()
    return job


# --- who may ------------------------------------------------------------------------------------------

ELSEWHERE = RestoreTarget(driver="files", path="/restore/here")
VERBS = {
    "backup_now": lambda user, house: requests.backup_now(user, house.workload),
    "verify": lambda user, house: requests.verify(user, house.repository),
    "test_destination": lambda user, house: requests.test_destination(user, house.destination),
    "test_platform": lambda user, house: requests.test_platform(user, house.platform),
    "probe_workload": lambda user, house: requests.probe_workload(user, house.workload),
    "retry": lambda user, house: requests.retry(user, house.job),
    "hold": lambda user, house: requests.hold(user, house.point, "why"),
    "browse": lambda user, house: requests.browse(user, house.point),
    "download": lambda user, house: requests.download(user, house.point, "/srv/a"),
    "restore": lambda user, house: requests.restore(user, house.point, chosen=[], target=ELSEWHERE, node=None),
    "restore in place": lambda user, house: requests.restore(
        user, house.point, chosen=[], target=RestoreTarget(driver="files", path="", in_place=True), node=None
    ),
    "unhold": lambda user, house: requests.unhold(user, house.point),
    "delete_point": lambda user, house: requests.delete_point(user, house.point, house.workload.name),
}


@pytest.mark.parametrize("verb", VERBS)
def test_for_a_stranger_nothing_of_it_exists(world, verb):
    for person in (world.stranger, world.nobody):
        with pytest.raises(NotFound):
            VERBS[verb](person, world.alpha)
    assert Job.objects.count() == 2  # the world's own


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "browse"])
def test_a_viewer_starts_nothing_but_sees_that_it_exists(world, verb):
    with pytest.raises(Denied):
        VERBS[verb](world.viewer, world.alpha)


@pytest.mark.parametrize("verb", ["restore in place", "unhold", "delete_point"])
def test_an_operator_may_not_overwrite_or_delete(world, verb):
    with pytest.raises(Denied):
        VERBS[verb](world.operator, world.alpha)


@pytest.mark.parametrize("verb", VERBS)
def test_the_owner_may_do_all_of_it_where_the_node_allows(world, verb):
    world.alpha.node.roots["write"].append("/srv")
    world.alpha.node.save()
    VERBS[verb](world.owner, world.alpha)
    assert AuditEvent.objects.filter(actor=world.owner).exists() or verb == "browse"


# --- backup ---------------------------------------------------------------------------------------------


def test_a_backup_now_is_what_a_node_can_lease(world, alpha):
    job = requests.backup_now(world.operator, alpha.workload, full=True)
    assert (job.requested_by, job.policy, job.repository) == (world.operator, alpha.policy, alpha.repository)
    assert job.start_before is None
    leased = ActingNode(alpha.node).take()
    spec = leased.spec
    assert leased.job_id == job.pk
    assert spec.source.paths == spec.snapshot_paths == ["/srv/documents"]
    assert spec.full and spec.parent is None
    assert spec.host == "alpha-documents"
    assert set(spec.tags) == {
        f"brs.task={leased.task_id}", f"brs.point={spec.point}", f"brs.workload={alpha.workload.pk}",
    }  # fmt: skip
    assert spec.repository.password == alpha.repository_password


def test_the_bandwidth_of_the_policy_goes_with_the_backup(world, alpha):
    alpha.policy.bandwidth_mib_s = 5
    alpha.policy.save()
    requests.backup_now(world.operator, alpha.workload)
    assert ActingNode(alpha.node).take().spec.bandwidth_bytes_s == 5 * 1024 * 1024


def test_no_secret_is_stored_with_a_task(world, alpha):
    requests.backup_now(world.operator, alpha.workload)
    requests.restore(world.operator, alpha.point, chosen=[], target=ELSEWHERE, node=None)
    requests.test_destination(world.operator, alpha.destination)
    ActingNode(alpha.node).take()
    for task in Task.objects.exclude(pk__in=[alpha.task.pk, world.beta.task.pk]):
        assert "password" not in str(task.spec)
        assert alpha.repository_password not in str(task.spec) + str(task.progress) + str(task.outcome)


def test_an_incremental_builds_on_the_newest_complete_point_of_the_moment_it_starts(world, alpha):
    requests.backup_now(world.operator, alpha.workload)
    node = ActingNode(alpha.node)
    first = node.back_up()
    assert first.spec.parent.snapshot_id == alpha.copy.snapshot_id
    requests.backup_now(world.operator, alpha.workload)
    second = node.take()
    newest = alpha.workload.points.order_by("-taken_at").first()
    assert second.spec.parent.snapshot_id == newest.copies.get().snapshot_id != alpha.copy.snapshot_id


def test_a_second_backup_beside_an_open_one_is_refused(world, alpha):
    job = requests.backup_now(world.operator, alpha.workload)
    with pytest.raises(Conflict, match="already waiting or running") as refused:
        requests.backup_now(world.operator, alpha.workload)
    assert refused.value.error_code == "already-running"
    ended(job)
    requests.backup_now(world.operator, alpha.workload)


def test_what_stands_in_the_way_of_a_backup_is_said(world, alpha):
    Workload.objects.filter(pk=alpha.workload.pk).update(excluded=True)
    alpha.workload.refresh_from_db()
    with pytest.raises(Conflict, match="excluded"):
        requests.backup_now(world.operator, alpha.workload)
    alpha.workload.excluded = False
    alpha.destination.nodes.clear()
    with pytest.raises(Conflict, match="does not reach the destination"):
        requests.backup_now(world.operator, alpha.workload)
    Assignment.objects.all().delete()
    with pytest.raises(Conflict, match="No policy covers"):
        requests.backup_now(world.operator, alpha.workload)


def test_the_first_backup_at_a_destination_makes_the_repository_first(world, alpha):
    other = Destination.objects.create(tenant=alpha.tenant, name="new", path="/backup/new")
    other.nodes.add(alpha.node)
    Policy.objects.filter(pk=alpha.policy.pk).update(destination=other)
    backup = requests.backup_now(world.operator, alpha.workload)
    node = ActingNode(alpha.node)
    init = node.take()
    assert init.spec.kind == "init"
    assert node.take() is None
    node.complete(init, InitResult(repository_id="a" * 64))
    assert node.take().job_id == backup.pk
    assert Repository.objects.get(destination=other).state == RepositoryState.READY


def test_a_repository_whose_making_failed_is_made_anew_by_the_next_backup(world, alpha):
    Repository.objects.filter(pk=alpha.repository.pk).update(state=RepositoryState.NEW)
    first = requests.backup_now(world.operator, alpha.workload)
    node = ActingNode(alpha.node)
    node.fail(node.take(), "The destination folder is not there.")
    ended(first)
    requests.backup_now(world.operator, alpha.workload)
    assert node.take().spec.kind == "init"
    assert Job.objects.filter(kind=JobKind.INIT).count() == 2


def test_changing_the_policy_later_does_not_rewrite_the_job(world, alpha):
    job = requests.backup_now(world.operator, alpha.workload)
    Policy.objects.filter(pk=alpha.policy.pk).update(name="other", keep_daily=1)
    job.refresh_from_db()
    assert (job.rule["policy"], job.rule["keep"]["daily"]) == ("alpha-nightly", 14)


# --- tests, verification --------------------------------------------------------------------------------


def test_each_node_of_a_destination_is_asked(world, alpha):
    alpha.destination.nodes.add(world.shared_node)
    job = requests.test_destination(world.operator, alpha.destination)
    assert sorted(task.requires[0] for task in job.tasks.all()) == sorted(
        [f"node:{alpha.node.pk}", f"node:{world.shared_node.pk}"]
    )
    node = ActingNode(alpha.node)
    node.complete(node.take(), ProbeResult(checks=[ProbeCheck(name="write", ok=True)], capacity_bytes=10, free_bytes=4))
    alpha.destination.refresh_from_db()
    assert (alpha.destination.total_bytes, alpha.destination.free_bytes) == (10, 4)


def test_a_destination_without_nodes_cannot_be_tested(world, alpha):
    alpha.destination.nodes.clear()
    with pytest.raises(Conflict, match="No node"):
        requests.test_destination(world.operator, alpha.destination)


def test_a_platform_test_looks_at_its_workloads_or_at_the_nodes_roots(world, alpha):
    job = requests.test_platform(world.operator, alpha.platform)
    assert [task.spec["path"] for task in job.tasks.all()] == ["/srv/documents"]
    Job.objects.filter(workload=alpha.workload).update(workload=None)
    alpha.point.delete()
    alpha.workload.delete()
    job = requests.test_platform(world.operator, alpha.platform)
    assert [task.spec["path"] for task in job.tasks.all()] == ["/srv"]


def test_a_verification_that_misses_a_point_marks_it(world, alpha):
    job = requests.verify(world.operator, alpha.repository, read_data=True)
    node = ActingNode(alpha.node)
    task = node.take()
    assert task.spec.read_data
    node.complete(task, VerifyResult(snapshots=[], checked_bytes=5))
    alpha.copy.refresh_from_db()
    assert alpha.copy.state == CopyState.MISSING
    job.refresh_from_db()
    assert job.state in {State.SUCCEEDED, State.FAILED}


def test_a_repository_that_was_not_made_cannot_be_verified(world, alpha):
    alpha.repository.state = RepositoryState.NEW
    with pytest.raises(Conflict):
        requests.verify(world.operator, alpha.repository)


# --- cancel and retry -----------------------------------------------------------------------------------


def test_who_asked_may_cancel_others_need_the_right(world, alpha):
    job = requests.browse(world.viewer, alpha.point)
    assert requests.cancel(world.viewer, job).state == State.CANCELLED
    backup = requests.backup_now(world.operator, alpha.workload)
    with pytest.raises(Denied):
        requests.cancel(world.viewer, backup)
    with pytest.raises(NotFound):
        requests.cancel(world.stranger, backup)
    assert requests.cancel(world.operator, backup).state == State.CANCELLED
    with pytest.raises(Conflict, match="ended"):
        requests.cancel(world.operator, backup)


@pytest.mark.parametrize(
    "verb", ["backup_now", "verify", "test_destination", "test_platform", "probe_workload", "browse", "restore"]
)
def test_what_ended_can_be_run_again_as_a_new_job(world, verb):
    job = ended(VERBS[verb](world.operator, world.alpha))
    again = requests.retry(world.operator, job)
    again.refresh_from_db()
    assert (again.retry_of, again.kind, again.title) == (job, job.kind, job.title)
    assert again.pk != job.pk
    same = [(task.kind, task.requires) for task in again.tasks.all()]
    assert same == [(task.kind, task.requires) for task in job.tasks.all()]


def test_a_download_is_run_again_for_who_asks_now(world, alpha):
    download = requests.download(world.operator, alpha.point, "/srv/documents/a.txt")
    ended(download.job)
    again = requests.retry(world.owner, download.job)
    assert again.download.user == world.owner


def test_a_restore_is_run_again_with_what_was_chosen(world, alpha):
    job = requests.restore(
        world.operator, alpha.point, chosen=["/srv/documents/a"], target=ELSEWHERE, node=alpha.node, staging="disk",
        verify=True,
    )  # fmt: skip
    again = requests.retry(world.operator, ended(job))
    assert [task.kind for task in again.tasks.order_by("ordinal")] == ["fetch", "import"]
    assert again.tasks.first().spec["include"] == ["/srv/documents/a"]
    assert again.tasks.first().spec["verify"] is True


def test_rights_are_looked_at_again_when_a_job_is_repeated(world, alpha):
    alpha.node.roots["write"].append("/srv")
    alpha.node.save()
    target = RestoreTarget(driver="files", path="", in_place=True)
    job = ended(requests.restore(world.admin, alpha.point, chosen=[], target=target, node=None))
    with pytest.raises(Denied):
        requests.retry(world.operator, job)


def test_an_open_job_is_not_repeated_and_a_lost_one_says_so(world, alpha):
    job = requests.browse(world.operator, alpha.point)
    with pytest.raises(Conflict, match="not ended"):
        requests.retry(world.operator, job)
    ended(job)
    alpha.point.delete()
    job.refresh_from_db()
    with pytest.raises(Conflict, match="is gone"):
        requests.retry(world.operator, job)


# --- points ---------------------------------------------------------------------------------------------


def test_deleting_asks_for_the_workloads_name(world, alpha):
    with pytest.raises(Invalid, match="alpha-documents"):
        requests.delete_point(world.admin, alpha.point, "alpha")
    assert alpha.point.copies.get().state == CopyState.PRESENT


def test_a_held_point_cannot_be_deleted(world, alpha):
    requests.hold(world.operator, alpha.point, "litigation 7")
    with pytest.raises(Conflict, match="litigation 7"):
        requests.delete_point(world.owner, alpha.point, "alpha-documents")


def test_a_point_in_use_cannot_be_deleted_and_one_being_deleted_cannot_be_used_or_held(world, alpha):
    job = requests.browse(world.operator, alpha.point)
    with pytest.raises(Conflict, match="using this point"):
        requests.delete_point(world.admin, alpha.point, "alpha-documents")
    ended(job)
    requests.delete_point(world.admin, alpha.point, "alpha-documents")
    for refused in (
        lambda: requests.hold(world.operator, alpha.point, "too late"),
        lambda: requests.browse(world.operator, alpha.point),
        lambda: VERBS["restore"](world.operator, alpha),
        lambda: requests.delete_point(world.admin, alpha.point, "alpha-documents"),
    ):
        with pytest.raises(Conflict):
            refused()


def test_a_hold_needs_a_reason(world, alpha):
    with pytest.raises(Invalid):
        requests.hold(world.operator, alpha.point, "  ")


@pytest.mark.django_db(transaction=True)
def test_a_double_click_makes_one_backup_and_one_repository():
    from tests.world import make_world

    world = make_world()
    Repository.objects.all().update(state=RepositoryState.NEW)
    made: list[Job] = []
    errors: list[BaseException] = []
    gate = threading.Barrier(4)

    def click() -> None:
        try:
            gate.wait(timeout=10)
            made.append(requests.backup_now(world.operator, world.alpha.workload))
        except DomainError as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=click) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(made) == 1
    assert [getattr(error, "error_code", error) for error in errors] == ["already-running"] * 3
    assert Job.objects.filter(kind=JobKind.INIT).count() == 1


def test_ids_that_are_none_are_not_found(world):
    from apps.iam import access

    for wrong in ("", "nonsense", str(uuid.uuid4())):
        with pytest.raises(NotFound):
            access.fetch(world.owner, Workload, wrong)
