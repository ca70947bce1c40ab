"""Acts on many jobs at once, and memberships, which go through ``iam.members``: a tenant keeps its owner."""

from __future__ import annotations

import pytest
from django.test import Client

from apps.iam.models import AuditEvent, Membership, Role
from apps.jobs.models import Job, JobKind, State, Task
from tests.apps.test_admin_scope import page, signed_in

JOBS = page(Job, "changelist")


@pytest.fixture
def client(world) -> Client:
    return signed_in(world.operator)


@pytest.fixture
def failed(world) -> list[Job]:
    """Two backups of Alpha's that failed, and one of Beta's."""
    jobs = []
    for house in (world.alpha, world.alpha, world.beta):
        facts = {"workload": house.workload, "repository": house.repository, "due_at": house.job.due_at}
        jobs.append(
            Job.objects.create(tenant=house.tenant, kind=JobKind.BACKUP, state=State.FAILED, title="x", **facts)
        )
    Job.objects.filter(pk__in=[world.alpha.job.pk, world.beta.job.pk]).update(state=State.SUCCEEDED)
    Task.objects.all().update(state=State.SUCCEEDED)
    return jobs


def act(client: Client, name: str, jobs: list[Job], *, apply: bool = True):
    data = {"action": name, "_selected_action": [str(job.pk) for job in jobs], **({"apply": "1"} if apply else {})}
    return client.post(JOBS, data, follow=True)


def test_failed_jobs_are_run_again_together(client, world, failed):
    asked = act(client, "retry_many", failed[:1], apply=False)
    assert "a new one does the same again" in asked.content.decode()
    assert not Job.objects.exclude(retry_of=None).exists(), "the question changes nothing"
    answer = act(client, "retry_many", failed[:2])
    said = [str(message) for message in answer.context["messages"]]
    assert "Jobs started: 2" in said or ("Jobs started: 1" in said and len(said) == 2), said
    assert Job.objects.filter(tenant=world.alpha.tenant, kind=JobKind.BACKUP, state=State.QUEUED).exists()


def test_open_jobs_are_cancelled_together(client, world, failed):
    Job.objects.filter(pk=world.alpha.job.pk).update(state=State.QUEUED)
    Task.objects.filter(pk=world.alpha.task.pk).update(state=State.QUEUED)
    answer = act(client, "cancel_many", [world.alpha.job, failed[0]])
    assert Job.objects.get(pk=world.alpha.job.pk).cancel_requested_at
    said = [str(message) for message in answer.context["messages"]]
    assert "Jobs being cancelled: 1" in said and len(said) == 2, "the one that has ended is named"


@pytest.mark.parametrize("name", ["retry_many", "cancel_many"])
def test_a_viewer_and_a_stranger_change_no_job_of_others(world, failed, name):
    Job.objects.filter(pk=world.alpha.job.pk).update(state=State.QUEUED)
    Task.objects.filter(pk=world.alpha.task.pk).update(state=State.QUEUED)
    before = Job.objects.count()
    for user in (world.viewer, world.stranger):
        act(signed_in(user), name, [world.alpha.job, failed[0]])
    assert Job.objects.count() == before
    assert not Job.objects.exclude(cancel_requested_at=None).exists()


def test_jobs_are_filtered_by_state_kind_workload_and_day(client, world, failed):
    queries = [
        {"state__exact": "failed"},
        {"kind__exact": "backup", "state__exact": "failed"},
        {"workload__id__exact": str(world.alpha.workload.pk), "state__exact": "failed"},
        {"created_at__gte": "2020-01-01 00:00:00+00:00", "state__exact": "failed"},
    ]
    for query in queries:
        assert client.get(JOBS, query).context["cl"].result_count == 2, query
    assert client.get(JOBS, {"kind__exact": "restore"}).context["cl"].result_count == 0
    assert client.get(JOBS, {"workload__id__exact": str(world.beta.workload.pk)}).context["cl"].result_count == 0


# --- memberships ----------------------------------------------------------------------------------


def member(user) -> Membership:
    return Membership.objects.get(user=user)


def test_the_last_owner_keeps_his_role_and_stays(world):
    client, own = signed_in(world.owner), member(world.owner)
    answer = client.post(page(Membership, "change", own.pk), {"role": Role.VIEWER}, follow=True)
    assert "would have no owner" in answer.content.decode()
    assert client.post(page(Membership, "delete", own.pk), {"post": "yes"}).status_code == 409
    assert member(world.owner).role == Role.OWNER


def test_an_owner_changes_and_removes_a_member_and_it_is_recorded_once(world):
    client, other = signed_in(world.owner), member(world.viewer)
    assert client.post(page(Membership, "change", other.pk), {"role": Role.OPERATOR}).status_code == 302
    assert member(world.viewer).role == Role.OPERATOR
    assert client.post(page(Membership, "delete", other.pk), {"post": "yes"}).status_code == 302
    assert not Membership.objects.filter(user=world.viewer).exists()
    verbs = list(AuditEvent.objects.filter(object_id=str(other.pk)).order_by("id").values_list("verb", flat=True))
    assert verbs == ["membership.changed", "membership.removed"]


def test_who_is_a_member_already_is_not_added_twice(world):
    data = {"user": world.viewer.pk, "tenant": world.alpha.tenant.pk, "role": Role.ADMIN}
    answer = signed_in(world.owner).post(page(Membership, "add"), data, follow=True)
    assert "already" in answer.content.decode()
    assert member(world.viewer).role == Role.VIEWER


def test_the_tenants_page_does_not_edit_members_behind_the_guard(world):
    own = member(world.owner)
    data = {
        "name": "Alpha", "memberships-TOTAL_FORMS": 1, "memberships-INITIAL_FORMS": 1, "memberships-MIN_NUM_FORMS": 0,
        "memberships-MAX_NUM_FORMS": 1000, "memberships-0-id": own.pk, "memberships-0-tenant": own.tenant_id,
        "memberships-0-user": own.user_id, "memberships-0-role": Role.VIEWER, "memberships-0-DELETE": "on",
    }  # fmt: skip
    signed_in(world.owner).post(page(type(own.tenant), "change", own.tenant_id), data)
    assert member(world.owner).role == Role.OWNER


def test_the_short_name_of_a_tenant_is_fixed_once_it_exists(world):
    client, tenant = signed_in(world.root), world.alpha.tenant
    client.post(page(type(tenant), "change", tenant.pk), {"name": "Alpha", "slug": "other", "is_active": "on"})
    tenant.refresh_from_db()
    assert tenant.slug == "alpha"
