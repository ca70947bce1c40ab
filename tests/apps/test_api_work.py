"""Long work through the API: 202 with the job, once per Idempotency-Key; what jobs, points and policies answer."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections
from django.utils import timezone

from apps.catalog import browse
from apps.catalog.models import PointCopy, PointOutcome, RestorePoint
from apps.inventory.models import Node
from apps.jobs.models import Job, LogLine, State
from apps.policies.models import Policy
from node_agent.protocol import Directory, Entry
from tests.api_client import ids, person
from tests.world import make_world

pytestmark = pytest.mark.django_db
TREE = "ab" * 32


@pytest.fixture
def admin(world):
    return person(world.admin)


@pytest.fixture
def listed(world):
    """Alpha's point with a known list: /srv/a.txt, /srv/b.txt, /srv/sub (unknown), and an odd name."""
    copy = world.alpha.copy
    PointCopy.objects.filter(pk=copy.pk).update(tree_id=TREE)
    entries = [
        Entry(name="a.txt", type="file", size=3),
        Entry(name="b.txt", type="file", size=4),
        Entry(name="odd\\xff", type="file"),
        Entry(name="sub", type="dir", tree="ef" * 32),
    ]
    top = Directory(tree_id=TREE, entries=[Entry(name="srv", type="dir", tree="cd" * 32)])
    browse.add(copy.repository, [top, Directory(tree_id="cd" * 32, entries=entries)])
    return world.alpha.point


# --- starting -------------------------------------------------------------------------------------


def test_a_backup_answers_202_with_the_job_and_its_address(world, admin):
    answer = admin.post(f"workloads/{world.alpha.workload.pk}/backup/", {"full": True})
    assert answer.status_code == 202
    job = answer.json()
    assert job["kind"] == "backup"
    assert job["full"] is True
    assert job["state"] == "queued"
    assert job["requested_by"] == "admin"
    assert job["workload"] == str(world.alpha.workload.pk)
    assert [task["kind"] for task in job["tasks"]] == ["backup"]
    assert answer.headers["Location"] == job["url"]
    again = admin.client.get(answer.headers["Location"], headers={"Authorization": f"Bearer {admin.clear}"})
    assert again.json()["id"] == job["id"]


def test_nothing_secret_is_in_a_job(world, admin):
    job = admin.post(f"workloads/{world.alpha.workload.pk}/backup/").content.decode()
    whole = job + admin.get("jobs/").content.decode() + admin.get("repositories/").content.decode()
    assert world.alpha.repository_password not in whole
    assert "spec" not in whole and "lease_token" not in whole


def test_each_kind_of_long_work_can_be_started(world, admin, listed):
    alpha = world.alpha
    Node.objects.filter(pk=alpha.node.pk).update(staging_bytes=10**9)
    for path, body, kind in (
        (f"repositories/{alpha.repository.pk}/verify/", {"read_data": True}, "verify"),
        (f"destinations/{alpha.destination.pk}/test/", {}, "probe"),
        (f"platforms/{alpha.platform.pk}/test/", {}, "probe"),
        (f"workloads/{alpha.workload.pk}/probe/", {}, "probe"),
        (f"restore-points/{listed.pk}/restore/", {"target": {"path": "/restore/x"}}, "restore"),
        (
            f"restore-points/{listed.pk}/restore/",
            {"chosen": ["/srv/a.txt"], "target": {"path": "/restore/y"}},
            "restore",
        ),
        (f"restore-points/{listed.pk}/download/", {"path": "/srv/a.txt"}, "download"),
        (f"restore-points/{listed.pk}/browse/", {}, "browse"),
        (f"jobs/{alpha.job.pk}/retry/", {}, "backup"),
    ):
        answer = admin.post(path, body)
        assert answer.status_code == 202, (path, answer.content)
        assert answer.json()["kind"] == kind
        assert answer.json()["id"] in answer.headers["Location"]


def test_what_the_domain_refuses_is_told_with_its_hint(world, admin):
    path = f"workloads/{world.alpha.workload.pk}/backup/"
    assert admin.post(path).status_code == 202
    answer = admin.post(path)
    assert answer.status_code == 409
    assert answer.json()["code"] == "already-running"
    assert answer.json()["hint"]


def test_the_same_request_with_the_same_key_starts_one_job(world, admin):
    path = f"repositories/{world.alpha.repository.pk}/verify/"
    first = admin.post(path, {}, **{"Idempotency-Key": "k1"})
    second = admin.post(path, {}, **{"Idempotency-Key": "k1"})
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    others = [
        admin.post(path, {}, **{"Idempotency-Key": "k2"}),
        admin.post(path, {"read_data": True}, **{"Idempotency-Key": "k1"}),
        person(world.operator).post(path, {}, **{"Idempotency-Key": "k1"}),
        admin.post(path, {}),
    ]
    assert len({first.json()["id"], *(answer.json()["id"] for answer in others)}) == 5


@pytest.mark.parametrize("key", ["", "x" * 201, "a\tb"])
def test_a_key_that_cannot_be_kept_is_refused(world, admin, key):
    answer = admin.post(f"repositories/{world.alpha.repository.pk}/verify/", {}, **{"Idempotency-Key": key})
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["message"]


@pytest.mark.django_db(transaction=True)
def test_two_requests_at_once_with_one_key_start_one_job():
    world = make_world()
    path = f"repositories/{world.alpha.repository.pk}/verify/"
    people = [person(world.admin) for _ in range(4)]

    def ask(one):
        try:
            return one.post(path, {}, **{"Idempotency-Key": "race"})
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, people))
    assert {answer.status_code for answer in answers} == {202}, [answer.content for answer in answers]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert Job.objects.filter(kind="verify").count() == 1


def test_cancelling_answers_the_job(world, admin):
    job = admin.post(f"workloads/{world.alpha.workload.pk}/backup/").json()
    answer = admin.post(f"jobs/{job['id']}/cancel/")
    assert answer.status_code == 200
    assert answer.json()["state"] == "cancelled"
    assert admin.post(f"jobs/{job['id']}/cancel/").status_code == 409


# --- jobs -----------------------------------------------------------------------------------------


def test_a_jobs_log_comes_in_pieces(world, admin):
    job = world.alpha.job
    for number in range(5):
        LogLine.objects.create(job=job, at=timezone.now(), level="info", message=f"line {number}")
    first = admin.get(f"jobs/{job.pk}/log/?limit=4").json()
    assert [line["message"] for line in first["lines"]] == ["12 files read", "line 0", "line 1", "line 2"]
    assert first["more"] is True and first["ended"] is True
    rest = admin.get(f"jobs/{job.pk}/log/?after={first['last']}").json()
    assert [line["message"] for line in rest["lines"]] == ["line 3", "line 4"]
    assert rest["more"] is False
    none = admin.get(f"jobs/{job.pk}/log/?after={rest['last']}").json()
    assert none["lines"] == [] and none["last"] == rest["last"]
    assert admin.get(f"jobs/{job.pk}/log/?after=x").status_code == 400


def test_jobs_are_filtered_by_state_kind_and_openness(world, admin):
    job = admin.post(f"workloads/{world.alpha.workload.pk}/backup/").json()["id"]
    done = str(world.alpha.job.pk)
    assert ids(admin.get("jobs/?open=true")) == {job}
    assert ids(admin.get("jobs/?open=false")) == {done}
    assert ids(admin.get("jobs/?state=queued&state=succeeded")) == {job, done}
    assert ids(admin.get("jobs/?kind=restore")) == set()
    assert ids(admin.get(f"jobs/?workload={world.alpha.workload.pk}")) == {job, done}
    assert ids(admin.get(f"jobs/?workload={world.beta.workload.pk}")) == set()
    assert admin.get(f"jobs/{job}/progress/").json()["tasks"][0]["state"] == "queued"


def test_a_finished_backup_names_the_point_it_made(world, admin):
    Job.objects.filter(pk=world.alpha.job.pk).update(restore_point=None)
    assert admin.get(f"jobs/{world.alpha.job.pk}/").json()["restore_point"] == str(world.alpha.point.pk)


def test_lists_do_not_ask_the_database_for_each_row(world, admin, django_assert_max_num_queries):
    for number in range(30):
        Job.objects.create(
            tenant=world.alpha.tenant, kind="backup", state=State.FAILED, title=str(number), due_at=timezone.now()
        )
        point = RestorePoint.objects.create(
            tenant=world.alpha.tenant,
            workload=world.alpha.workload,
            task=uuid.uuid4(),
            taken_at=timezone.now(),
            outcome=PointOutcome.COMPLETE,
        )
        PointCopy.objects.create(
            point=point, repository=world.alpha.repository, snapshot_id=uuid.uuid4().hex, tree_id=TREE
        )
        Policy.objects.create(
            tenant=world.alpha.tenant, name=f"p{number}", destination=world.alpha.destination
        ).schedules.create()
    for path in ("jobs/", "restore-points/", "policies/", "workloads/", "nodes/", "destinations/", "repositories/"):
        with django_assert_max_num_queries(18):
            assert admin.get(path).status_code == 200


# --- points ---------------------------------------------------------------------------------------


def test_files_of_a_point_are_listed_by_directory_and_searched(world, admin, listed):
    path = f"restore-points/{listed.pk}/files/"
    top = admin.get(path).json()
    assert [(entry["path"], entry["type"]) for entry in top["entries"]] == [("/srv", "dir")]
    inside = admin.get(f"{path}?path=/srv&limit=2").json()
    assert inside["count"] == 4 and len(inside["entries"]) == 2
    assert inside["entries"][0]["name"] == "sub"
    found = admin.get(f"{path}?search=A.TXT").json()
    assert [entry["path"] for entry in found["entries"]] == ["/srv/a.txt"]
    assert found["complete"] is False  # /srv/sub is not known here


def test_a_directory_without_a_list_says_how_to_get_one(world, admin, listed):
    answer = admin.get(f"restore-points/{listed.pk}/files/?path=/srv/sub")
    assert answer.status_code == 409
    assert answer.json()["code"] == "files-unknown"
    assert "browse" in answer.json()["hint"]
    assert admin.get(f"restore-points/{listed.pk}/files/?path=/srv/none").status_code == 404
    for bad in ("srv", "/srv/../etc", "%2Fa%00"):
        assert admin.get(f"restore-points/{listed.pk}/files/?path={bad}").status_code == 400


def test_a_hold_keeps_a_point_from_being_deleted(world, admin):
    path = f"restore-points/{world.alpha.point.pk}"
    answer = admin.post(f"{path}/hold/", {"reason": "court case"})
    assert answer.json()["hold_reason"] == "court case"
    refused = admin.post(f"{path}/delete/", {"typed_name": world.alpha.workload.name})
    assert (refused.status_code, refused.json()["code"]) == (409, "held")
    assert admin.post(f"{path}/unhold/").json()["hold"] is False
    wrong = admin.post(f"{path}/delete/", {"typed_name": "something"})
    assert wrong.status_code == 400
    answer = admin.post(f"{path}/delete/", {"typed_name": world.alpha.workload.name})
    assert answer.status_code == 202
    assert admin.get(f"{path}/").json()["copies"][0]["state"] == "expiring"


def test_a_restore_outside_the_nodes_roots_is_refused_early(world, admin):
    body = {"target": {"path": "/etc"}}
    answer = admin.post(f"restore-points/{world.alpha.point.pk}/restore/", body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "outside-roots"
    for bad in ("relative", "/restore/../etc", "/restore/\x00", ""):
        answer = admin.post(f"restore-points/{world.alpha.point.pk}/restore/", {"target": {"path": bad}})
        assert answer.status_code == 400, bad
    assert Job.objects.filter(kind="restore").count() == 0


def test_points_of_a_workload_are_paged(world, admin):
    answer = admin.get(f"workloads/{world.alpha.workload.pk}/points/?limit=1").json()
    assert answer["count"] == 1
    assert answer["results"][0]["id"] == str(world.alpha.point.pk)
    assert ids(admin.get(f"restore-points/?workload={world.alpha.workload.pk}&outcome=complete")) == {
        str(world.alpha.point.pk)
    }
    assert ids(admin.get("restore-points/?copy=damaged")) == set()
