"""Long work through the API: 202 with the job, once per Idempotency-Key; what jobs, points and policies answer."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone

from apps.catalog import browse
from apps.catalog.models import PointCopy, PointOutcome, RestorePoint
from apps.iam.models import AuditEvent
from apps.inventory.models import Destination, EnrolmentCode, Node, Repository
from apps.jobs.models import Download, Job, LogLine, State
from apps.policies.models import Assignment, Policy
from brs import pki
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


# --- workloads, policies, inventory ---------------------------------------------------------------


def test_excluding_needs_a_reason_and_stops_backups(world, admin):
    path = f"workloads/{world.alpha.workload.pk}"
    assert admin.post(f"{path}/exclude/", {"reason": "  "}).status_code == 400
    shown = admin.post(f"{path}/exclude/", {"reason": "a test machine"}).json()
    assert shown["excluded"] is True
    assert shown["protection"]["state"] == "excluded"
    assert admin.post(f"{path}/backup/").status_code == 409
    assert admin.post(f"{path}/include/").json()["excluded"] is False
    verbs = AuditEvent.objects.filter(object_id=str(world.alpha.workload.pk)).values_list("verb", flat=True)
    assert {"workload.excluded", "workload.included"} <= set(verbs)


def test_policies_are_assigned_one_by_one_and_in_bulk(world, admin):
    shown = admin.post(f"workloads/{world.alpha.workload.pk}/assign/", {"policy": None}).json()
    assert shown["policy"] is None
    assert ids(admin.get("workloads/?covered=false")) == {str(world.alpha.workload.pk)}
    body = {"workloads": [str(world.alpha.workload.pk)], "policy": str(world.alpha.policy.pk)}
    assert admin.post("workloads/assign/", body).json() == {"changed": 1}
    assert ids(admin.get(f"workloads/?policy={world.alpha.policy.pk}")) == {str(world.alpha.workload.pk)}
    assert Assignment.objects.get(workload=world.alpha.workload).policy == world.alpha.policy
    assert admin.post("workloads/assign/", {"workloads": [], "policy": None}).status_code == 400


def test_a_policy_comes_and_changes_with_its_schedules(world, admin):
    body = {
        "tenant": str(world.alpha.tenant.pk),
        "name": "Nightly",
        "destination": str(world.alpha.destination.pk),
        "time_zone": "Europe/Berlin",
        "schedules": [{"cron": "0 22 * * *"}, {"cron": "0 3 * * 0", "mode": "full"}],
    }
    made = admin.post("policies/", body)
    assert made.status_code == 201, made.content
    policy = made.json()
    assert len(policy["schedules"]) == 2
    assert policy["schedules"][0]["next_run"] and policy["schedules"][0]["description"]
    keep = next(row for row in policy["schedules"] if row["mode"] == "full")
    changed = admin.patch(
        f"policies/{policy['id']}/",
        {"keep_last": 3, "schedules": [{**keep, "cron": "0 4 * * 0"}, {"cron": "0 1 * * *"}]},
    )
    assert changed.status_code == 200, changed.content
    now = changed.json()["schedules"]
    assert {row["cron"] for row in now} == {"0 4 * * 0", "0 1 * * *"}
    assert keep["id"] in {row["id"] for row in now}
    event = AuditEvent.objects.filter(verb="policy.changed").latest("id")
    assert event.detail["keep_last"] == [7, 3]
    assert "schedules" in event.detail
    whole = admin.get(f"policies/{policy['id']}/").json()
    assert admin.put(f"policies/{policy['id']}/", whole).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"schedules": [{"cron": "not a cron"}]},
        {"schedules": [{"cron": "0 0 31 2 *"}]},
        {"schedules": [{"cron": "0 22 * * *", "id": "11111111-2222-4333-8444-555555555555"}]},
        {"schedules": [{"cron": "0 1 * * *"}] * 21},
        {"schedules": "x"},
        {"schedules": [3]},
        {"time_zone": "Mars/Olympus"},
        {"priority": 101},
        {"keep_last": -1},
        {"keep_last": 10**12},
        {"objective_hours": 2**63},
        {"staging": "tape"},
    ],
)
def test_policies_that_make_no_sense_are_refused(world, admin, change):
    path = f"policies/{world.alpha.policy.pk}/"
    before = admin.get(path).json()
    answer = admin.patch(path, change)
    assert answer.status_code == 400, answer.content
    after = admin.get(path).json()
    assert {**after, "schedules": 0} == {**before, "schedules": 0}
    assert [row["cron"] for row in after["schedules"]] == [row["cron"] for row in before["schedules"]]


def test_another_policys_schedule_cannot_be_taken(world, admin):
    foreign = {"id": str(world.beta.schedule.pk), "cron": "0 5 * * *"}
    assert admin.patch(f"policies/{world.alpha.policy.pk}/", {"schedules": [foreign]}).status_code == 400
    world.beta.schedule.refresh_from_db()
    assert world.beta.schedule.policy == world.beta.policy


def test_the_simulator_shows_what_would_go_and_changes_nothing(world, admin):
    for days in range(1, 11):
        point = RestorePoint.objects.create(
            tenant=world.alpha.tenant,
            workload=world.alpha.workload,
            task=uuid.uuid4(),
            taken_at=timezone.now() - timedelta(days=days),
            outcome=PointOutcome.COMPLETE,
        )
        PointCopy.objects.create(
            point=point, repository=world.alpha.repository, snapshot_id=uuid.uuid4().hex, tree_id=TREE
        )
    rule = {f"keep_{name}": 0 for name in ("hourly", "daily", "weekly", "monthly", "yearly", "within_days")}
    answer = admin.post(f"policies/{world.alpha.policy.pk}/simulate/", {**rule, "keep_last": 3})
    assert answer.status_code == 200, answer.content
    assert (answer.json()["kept"], answer.json()["removed"]) == (3, 8)
    assert all(row["reasons"] for row in answer.json()["points"])
    assert PointCopy.objects.filter(repository=world.alpha.repository, state="present").count() == 11
    foreign = {"workload": str(world.beta.workload.pk)}
    assert admin.post(f"policies/{world.alpha.policy.pk}/simulate/", foreign).status_code == 400


def test_a_policy_is_run_by_hand_and_tells_what_could_not_start(world, admin):
    path = f"policies/{world.alpha.policy.pk}/run/"
    first = admin.post(path)
    assert first.status_code == 202
    assert [job["workload"] for job in first.json()["jobs"]] == [str(world.alpha.workload.pk)]
    second = admin.post(path).json()
    assert second["jobs"] == []
    assert second["refused"][0]["code"] == "already-running"
    assert person(world.viewer).post(path).status_code == 403


def test_retention_is_applied_by_hand_by_those_who_may_delete(world, admin):
    path = f"policies/{world.alpha.policy.pk}/expire/"
    assert person(world.operator).post(path).status_code == 403
    assert admin.post(path).json() == {"jobs": [], "refused": []}  # the newest complete point always stays


def test_a_policy_in_use_is_not_deleted(world, admin):
    path = f"policies/{world.alpha.policy.pk}/"
    assert person(world.viewer).delete(path).status_code == 403
    assert admin.delete(path).status_code == 409
    admin.post(f"workloads/{world.alpha.workload.pk}/assign/", {"policy": None})
    assert admin.delete(path).status_code == 204


def test_a_node_is_renamed_and_paused_and_nothing_else(world, admin):
    path = f"nodes/{world.alpha.node.pk}/"
    answer = admin.patch(path, {"name": "rack 3", "labels": ["zone:a"], "slots": 4, "paused": True})
    assert answer.status_code == 200, answer.content
    assert answer.json()["state"] == "paused"
    event = AuditEvent.objects.get(verb="node.changed")
    assert event.detail["paused"] == [False, True]
    for wrong in (
        {"slots": 0},
        {"slots": 65},
        {"labels": "x"},
        {"labels": [{}]},
        {"token_hash": "x"},
        {"version": "9"},
    ):
        assert admin.patch(path, wrong).status_code == 400, wrong
    assert "hash" not in answer.content.decode()


def test_an_enrolment_code_is_shown_once_with_its_command(world, admin):
    pki.ensure()
    answer = admin.post("enrolment-codes/", {"tenant": str(world.alpha.tenant.pk), "node_name": "n2"})
    assert answer.status_code == 201, answer.content
    assert answer.json()["code"] in answer.json()["command"]
    assert "code" not in admin.get(f"enrolment-codes/{answer.json()['id']}/").json()
    assert EnrolmentCode.objects.get().node_name == "n2"
    assert admin.post("enrolment-codes/", {"tenant": None}).status_code == 403
    assert admin.post("enrolment-codes/", {"tenant": str(world.beta.tenant.pk)}).status_code == 400


def test_the_recovery_kit_is_for_owners_and_audited(world):
    path = f"repositories/{world.alpha.repository.pk}/kit/"
    assert person(world.admin).post(path).status_code == 403
    answer = person(world.owner).post(path)
    assert answer.status_code == 200
    assert world.alpha.repository_password in answer.content.decode()
    assert answer.headers["Cache-Control"] == "no-store"
    assert AuditEvent.objects.filter(verb="repository.kit-read", actor=world.owner).exists()
    assert Repository.objects.get(pk=world.alpha.repository.pk).kit_saved_at is not None
    assert person(world.owner).get(path).status_code == 405


def test_a_destination_keeps_its_tenant_and_kind(world, admin):
    path = f"destinations/{world.alpha.destination.pk}/"
    answer = admin.patch(path, {"name": "store 2", "path": "/backup//x/"})
    assert answer.status_code == 200
    assert answer.json()["path"] == "/backup/x"
    assert admin.patch(path, {"free_bytes": 1}).status_code == 400
    assert Destination.objects.get(pk=world.alpha.destination.pk).tenant == world.alpha.tenant


def test_what_nobody_needs_can_be_deleted(world, admin):
    body = {"tenant": str(world.alpha.tenant.pk), "name": "x", "path": "/backup/x", "nodes": [str(world.alpha.node.pk)]}
    made = admin.post("destinations/", body).json()["id"]
    assert admin.delete(f"destinations/{made}/").status_code == 204
    assert AuditEvent.objects.get(verb="destination.removed").detail["before"]["path"] == "/backup/x"
    assert Download.objects.count() == 0


def test_the_overview_counts_ones_own_tenants_only(world):
    shown = person(world.viewer).get("overview/").json()
    assert shown["workloads"] == 1
    assert shown["counts"]["protected"] == 1
    assert "beta" not in str(shown)
    assert person(world.nobody).get("overview/").json()["workloads"] == 0
    assert person(world.root).get("overview/").json()["workloads"] == 2
