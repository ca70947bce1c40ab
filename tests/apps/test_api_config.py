"""What is configured through the API: workloads, policies with schedules, nodes, destinations; and the overview."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from apps.catalog.models import PointCopy, PointOutcome, RestorePoint
from apps.iam.models import AuditEvent
from apps.inventory.models import Destination, EnrolmentCode, Repository
from apps.policies.models import Assignment
from brs import pki
from tests.api_client import ids, person

pytestmark = pytest.mark.django_db
TREE = "ab" * 32


@pytest.fixture
def admin(world):
    return person(world.admin)


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
    moved = admin.patch(path, {"path": "/backup/x"})
    assert moved.status_code == 400 and "There is a repository here" in moved.json()["message"]
    answer = admin.patch(path, {"name": "store 2", "path": "/backup//"})
    assert answer.status_code == 200
    assert answer.json()["path"] == "/backup"
    assert admin.patch(path, {"free_bytes": 1}).status_code == 400
    assert Destination.objects.get(pk=world.alpha.destination.pk).tenant == world.alpha.tenant


def test_what_nobody_needs_can_be_deleted(world, admin):
    body = {"tenant": str(world.alpha.tenant.pk), "name": "x", "path": "/backup/x", "nodes": [str(world.alpha.node.pk)]}
    made = admin.post("destinations/", body).json()["id"]
    assert admin.delete(f"destinations/{made}/").status_code == 204
    assert AuditEvent.objects.get(verb="destination.removed").detail["before"]["path"] == "/backup/x"


def test_the_overview_counts_ones_own_tenants_only(world):
    shown = person(world.viewer).get("overview/").json()
    assert shown["workloads"] == 1
    assert shown["counts"]["protected"] == 1
    assert "beta" not in str(shown)
    assert person(world.nobody).get("overview/").json()["workloads"] == 0
    assert person(world.root).get("overview/").json()["workloads"] == 2
