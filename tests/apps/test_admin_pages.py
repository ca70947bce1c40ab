"""The admin's own pages: wizard, guide, verbs, simulator; and that names out of backups stay text."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps import display
from apps.catalog import browse
from apps.catalog.models import PointCopy, RestorePoint
from apps.iam.models import AuditEvent, Tenant, User
from apps.inventory.models import EnrolmentCode, Workload
from apps.jobs.models import Job, JobKind, LogLine, RestoreDraft, State, Task
from apps.reports import alerts, figures, first_run, timeline
from node_agent.protocol import Directory, Entry
from tests.apps.test_admin_scope import page, signed_in

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def client(world) -> Client:
    return signed_in(world.owner)


def draft_for(client: Client, world) -> RestoreDraft:
    client.get(reverse("admin:restore_new"), {"point": world.alpha.point.pk})
    return RestoreDraft.objects.get(user=world.owner)


def keep_list(world, *names: str) -> None:
    entries = [Entry(name=name, type="file", size=5) for name in names]
    browse.add(world.alpha.repository, [Directory(tree_id=world.alpha.copy.tree_id, entries=entries)])


# --- hostile names --------------------------------------------------------------------------------


def test_names_out_of_backups_are_text_everywhere(client, world):
    alpha = world.alpha
    Workload.objects.filter(pk=alpha.workload.pk).update(name=HOSTILE, source={"paths": [f"/srv/{HOSTILE}"]})
    Job.objects.filter(pk=alpha.job.pk).update(title=HOSTILE, error_message=HOSTILE, error_hint=HOSTILE)
    figures_told = {"current": HOSTILE, "done_bytes": 1, "total_bytes": 2}
    left_out = [{"path": HOSTILE, "code": "x", "message": HOSTILE}]
    Task.objects.filter(pk=alpha.task.pk).update(state=State.RUNNING, progress=figures_told, left_out=left_out)
    RestorePoint.objects.filter(pk=alpha.point.pk).update(left_out=left_out, left_out_count=1)
    LogLine.objects.create(
        job=alpha.job, task=alpha.task, attempt=1, seq=9, at=timezone.now(), level="info", message=HOSTILE
    )
    keep_list(world, HOSTILE)
    draft = draft_for(client, world)
    pages = [
        reverse("admin:index"),
        reverse("admin:restore"),
        page(Workload, "changelist"),
        page(Workload, "change", alpha.workload.pk),
        page(RestorePoint, "change", alpha.point.pk),
        page(Job, "changelist"),
        page(Job, "change", alpha.job.pk),
        reverse("admin:restore_files", args=[draft.pk]),
        reverse("admin:restore_tree", args=[draft.pk]),
        reverse("admin:restore_tree", args=[draft.pk]) + "?q=img",
        reverse("admin:search") + "?s=img&extended=1",
    ]
    for url in pages:
        text = client.get(url).content.decode()
        assert HOSTILE not in text, url
        assert "&lt;img src=x" in text or url == reverse("admin:index"), url


# --- the wizard -----------------------------------------------------------------------------------


def test_the_wizard_leads_from_a_point_to_a_restore_job(client, world):
    keep_list(world, "report.txt", "other.txt")
    draft = draft_for(client, world)
    answer = client.post(reverse("admin:restore_files", args=[draft.pk]), {"what": "chosen", "chosen": "/report.txt"})
    assert answer.url == reverse("admin:restore_target", args=[draft.pk])
    target = {"where": "elsewhere", "node": world.alpha.node.pk, "path": "/restore/here", "overwrite": "never"}
    answer = client.post(answer.url, target)
    assert answer.url == reverse("admin:restore_confirm", args=[draft.pk])
    assert "1 chosen item" in client.get(answer.url).content.decode()
    answer = client.post(answer.url)
    job = Job.objects.get(kind=JobKind.RESTORE)
    assert answer.url == page(Job, "change", job.pk)
    assert job.requested_by == world.owner
    draft.refresh_from_db()
    assert draft.job == job


def test_the_newest_good_point_is_chosen_beforehand(client, world):
    now = timezone.now()
    for hours, outcome, state in ((1, "partial", "present"), (2, "complete", "damaged"), (3, "complete", "present")):
        point = RestorePoint.objects.create(
            tenant=world.alpha.tenant,
            workload=world.alpha.workload,
            task=uuid.uuid4(),
            taken_at=now + timedelta(hours=10 - hours),
            outcome=outcome,
        )
        PointCopy.objects.create(
            point=point, repository=world.alpha.repository, snapshot_id=f"{hours}" * 64, tree_id="a" * 64, state=state
        )
    client.get(reverse("admin:restore_new"), {"workload": world.alpha.workload.pk})
    draft = RestoreDraft.objects.get(user=world.owner)
    shown = client.get(reverse("admin:restore_point", args=[draft.pk]))
    assert shown.context["selected"].taken_at == now + timedelta(hours=7)


def test_a_draft_is_its_users_alone(client, world):
    draft = draft_for(client, world)
    for person in (world.admin, world.stranger, world.root):
        for name in ("restore_point", "restore_files", "restore_target", "restore_confirm", "restore_tree"):
            url = reverse(f"admin:{name}", args=[draft.pk])
            assert signed_in(person).get(url).status_code == 404, (person, name)
            assert signed_in(person).post(url).status_code == 404, (person, name)


def test_a_stranger_cannot_begin_with_a_foreign_point_or_workload(world):
    client = signed_in(world.stranger)
    for query in ({"point": world.alpha.point.pk}, {"workload": world.alpha.workload.pk}, {"workload": "x"}, {}):
        assert client.get(reverse("admin:restore_new"), query).status_code == 404
    assert not RestoreDraft.objects.exists()


def test_a_foreign_point_cannot_be_posted_into_ones_own_draft(client, world):
    draft = draft_for(client, world)
    url = reverse("admin:restore_point", args=[draft.pk])
    assert client.post(url, {"point": world.beta.point.pk}).status_code == 404
    draft.refresh_from_db()
    assert draft.point == world.alpha.point


def test_a_foreign_node_cannot_be_the_target(client, world):
    draft = draft_for(client, world)
    target = {"where": "elsewhere", "node": world.beta.node.pk, "path": "/restore/x", "overwrite": "never"}
    answer = client.post(reverse("admin:restore_target", args=[draft.pk]), target)
    assert answer.status_code == 200
    assert "node" in answer.context["form"].errors


@pytest.mark.parametrize("path", ["relative", "/a/../etc", ""])
def test_a_target_that_is_no_full_path_is_an_error_beside_the_field(client, world, path):
    draft = draft_for(client, world)
    target = {"where": "elsewhere", "node": world.alpha.node.pk, "path": path, "overwrite": "never"}
    answer = client.post(reverse("admin:restore_target", args=[draft.pk]), target)
    assert "path" in answer.context["form"].errors


def test_an_operator_is_not_offered_the_same_place_and_may_not_post_it(world):
    client = signed_in(world.operator)
    client.get(reverse("admin:restore_new"), {"point": world.alpha.point.pk})
    draft = RestoreDraft.objects.get(user=world.operator)
    target = {"where": "in-place", "node": world.alpha.node.pk, "overwrite": "always"}
    answer = client.post(reverse("admin:restore_target", args=[draft.pk]), target)
    assert "where" in answer.context["form"].errors
    assert not Job.objects.filter(kind=JobKind.RESTORE).exists()


def test_a_viewer_who_confirms_is_told_and_nothing_starts(world):
    client = signed_in(world.viewer)
    client.get(reverse("admin:restore_new"), {"point": world.alpha.point.pk})
    draft = RestoreDraft.objects.get(user=world.viewer)
    target = {"where": "elsewhere", "node": world.alpha.node.pk, "path": "/restore/x", "overwrite": "never"}
    client.post(reverse("admin:restore_target", args=[draft.pk]), target)
    answer = client.post(reverse("admin:restore_confirm", args=[draft.pk]))
    assert answer.status_code == 200
    assert answer.context["error"] is not None
    assert not Job.objects.filter(kind=JobKind.RESTORE).exists()


def test_reading_a_wizards_pages_starts_nothing(client, world):
    draft = draft_for(client, world)
    before = Job.objects.count()
    for name in ("restore_confirm", "restore_list", "restore_download"):
        client.get(reverse(f"admin:{name}", args=[draft.pk]))
    assert Job.objects.count() == before


# --- acts on objects ------------------------------------------------------------------------------


def test_back_up_now_asks_first_and_starts_on_post_only(client, world):
    url = page(Workload, "do", world.alpha.workload.pk, "backup")
    before = Job.objects.count()
    assert client.get(url).status_code == 200
    assert Job.objects.count() == before
    answer = client.post(url)
    assert answer.status_code == 302
    assert Job.objects.count() == before + 1


def test_a_refused_act_is_a_sentence_in_the_dialog(client, world):
    url = page(Workload, "do", world.alpha.workload.pk, "backup")
    client.post(url)
    again = client.post(url)  # one is open
    assert again.status_code == 200
    assert again.context["form"].non_field_errors()


def test_deleting_a_point_takes_its_workloads_name(client, world):
    url = page(RestorePoint, "do", world.alpha.point.pk, "delete")
    assert client.post(url, {"typed_name": "yes"}).status_code == 200
    assert not Job.objects.filter(kind=JobKind.EXPIRE).exists()
    assert client.post(url, {"typed_name": "alpha-documents"}).status_code == 302
    assert Job.objects.filter(kind=JobKind.EXPIRE).exists()


def test_the_recovery_kit_is_for_owners_is_recorded_and_not_stored_by_browsers(client, world):
    url = page(type(world.alpha.repository), "do", world.alpha.repository.pk, "kit")
    assert signed_in(world.admin).post(url).status_code == 403
    answer = client.post(url)
    assert "no-store" in answer["Cache-Control"]
    assert world.alpha.repository_password in answer.content.decode()
    assert AuditEvent.objects.filter(object_id=str(world.alpha.repository.pk)).exists()


def test_a_new_token_is_shown_once(client, world):
    answer = client.post(reverse("admin:iam_apitoken_add"), {"name": "backup script"})
    assert "brs_" in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    clear = answer.context["clear"]
    assert clear not in client.get(reverse("admin:iam_apitoken_changelist")).content.decode()


# --- the guide and the overview -------------------------------------------------------------------


def test_an_empty_installation_is_given_a_tenant_with_its_first_code(db, settings, folders_of_its_own):
    from brs import pki

    pki.ensure()
    root = User.objects.create_superuser("root", password="correct horse battery")
    client = signed_in(root)
    assert [step.key for step in first_run.steps(root)] == ["node", "destination", "protect"]
    assert "Three steps" in client.get(reverse("admin:index")).content.decode()
    answer = client.post(reverse("admin:enrol"), {"node_name": ""})
    assert "python -m node_agent enroll --server" in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    assert Tenant.objects.get().memberships.get().user == root
    state = client.get(reverse("admin:enrol_state", args=[EnrolmentCode.objects.get().pk]))
    assert "Waiting" in state.content.decode()


def test_an_enrolment_code_is_watched_by_who_issued_it_only(world):
    code = EnrolmentCode.objects.create(
        tenant=world.alpha.tenant, code_hash="x", created_by=world.owner, expires_at=timezone.now()
    )
    url = reverse("admin:enrol_state", args=[code.pk])
    assert signed_in(world.owner).get(url).status_code == 200
    assert signed_in(world.stranger).get(url).status_code == 404


def test_a_viewer_cannot_enrol_nodes_or_protect_things(world):
    client = signed_in(world.viewer)
    client.post(reverse("admin:enrol"), {"tenant": world.alpha.tenant.pk})
    assert not EnrolmentCode.objects.exists()
    data = {"tenant": world.alpha.tenant.pk, "node": world.alpha.node.pk, "kind": "files", "paths": "/srv/x"}
    client.post(reverse("admin:protect"), data | {"name": "x", "policy": world.alpha.policy.pk})
    assert not Workload.objects.filter(name="x").exists()


def test_protecting_a_bad_path_is_a_sentence_and_leaves_nothing_behind(client, world):
    data = {"tenant": world.alpha.tenant.pk, "node": world.alpha.node.pk, "kind": "files", "paths": "not/absolute"}
    answer = client.post(reverse("admin:protect"), data | {"name": "x", "policy": world.alpha.policy.pk})
    assert answer.status_code == 200
    assert "absolute" in str(answer.context["form"].non_field_errors())
    assert not Workload.objects.filter(name="x").exists()


def test_the_overviews_figures_are_ones_own(world):
    seen = figures.overview(world.stranger, timezone.now())
    assert seen.workloads == 1
    assert seen.protected_bytes == world.beta.point.size_bytes
    assert seen.runs["succeeded"] == 1


def test_an_unsaved_kit_needs_the_attention_of_who_may_read_it(world):
    def kits(user):
        return [one for one in alerts.alerts(user, timezone.now()) if one.icon == "medical_services"]

    assert len(kits(world.owner)) == 1
    assert kits(world.viewer) == []


def test_a_node_that_is_away_needs_attention(world):
    world.alpha.node.last_seen_at = timezone.now() - timedelta(hours=1)
    world.alpha.node.save()
    titles = [str(one.title) for one in alerts.alerts(world.owner, timezone.now())]
    assert any("alpha-node" in title for title in titles)
    assert not any("alpha-node" in str(one.title) for one in alerts.alerts(world.stranger, timezone.now()))


def test_the_ring_is_closed():
    parts = figures.ring({"protected": 1, "attention": 1, "unprotected": 1})
    assert sum(part.share for part in parts) == pytest.approx(100, abs=0.01)


# --- small things ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1536, "1.5 KiB"), (123 * 2**30, "123 GiB")]
)
def test_sizes_are_three_digits_and_a_unit(count, words):
    assert display.size_text(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (65, "1 min 5 s"), (3600, "1 h"), (90000, "25 h"), (200000, "2 d 7 h")]
)
def test_durations_are_two_units_at_most(seconds, words):
    assert display.duration(seconds) == words


def test_a_timeline_ends_now_and_keeps_its_order():
    now = timezone.now()
    points = [RestorePoint(taken_at=now - timedelta(days=day), outcome="complete") for day in (3, 1, 9)]
    for point in points:
        point._prefetched_objects_cache = {"copies": []}
    line = timeline.build(points, now)
    assert [dot.x for dot in line.dots] == sorted(dot.x for dot in line.dots)
    assert line.ticks[-1].x == timeline.WIDTH - timeline.MARGIN


def test_the_simulator_answers_and_refuses_in_words(client):
    answer = client.get(reverse("admin:policy_simulate"), {"keep_daily": "7", "schedules-0-cron": "0 22 * * *"})
    assert answer.context["kept"] >= 7
    for query in ({"schedules-0-cron": "nonsense"}, {"time_zone": "Mars/Base"}, {"keep_daily": "-1"}):
        assert client.get(reverse("admin:policy_simulate"), query).status_code == 200
    assert "22:00" in client.get(reverse("admin:policy_when"), {"cron": "0 22 * * *"}).content.decode()
    assert client.get(reverse("admin:policy_when"), {"cron": "nonsense"}).context["error"]
