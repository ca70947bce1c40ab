"""The admin's own pages: wizard, guide, verbs, simulator; and that names out of backups stay text."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta

import pytest
from django.contrib.admin import site
from django.template.loader import get_template
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from apps import display
from apps.catalog import browse
from apps.catalog.models import PointCopy, Protection, RestorePoint
from apps.iam.models import AuditEvent, Membership, Tenant, User
from apps.inventory.models import EnrolmentCode, Node, Platform, Repository, Workload
from apps.jobs import estimate, restore_search
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
        reverse("admin:restore") + "?q=img",
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


def test_a_file_is_found_without_knowing_the_workload(client, world):
    keep_list(world, "Report 2026.txt", "other.txt")
    shown = client.get(reverse("admin:restore"), {"q": "report"})
    assert [item.name for _copy, item in shown.context["files"].entries] == ["Report 2026.txt"]
    link = re.search(r'href="([^"]*restore/new/[^"]*path=[^"]*)"', shown.content.decode())
    assert link is not None
    answer = client.get(link[1].replace("&amp;", "&"))
    draft = RestoreDraft.objects.get(user=world.owner)
    assert answer.url == reverse("admin:restore_files", args=[draft.pk])
    assert draft.point == world.alpha.point
    assert draft.chosen == ["/Report 2026.txt"]


def test_a_search_for_files_shows_a_stranger_nothing_and_says_when_it_stopped(client, world, monkeypatch):
    keep_list(world, "report-1.txt", "report-2.txt")
    other = signed_in(world.stranger).get(reverse("admin:restore"), {"q": "report"})
    assert other.context["files"].entries == []
    assert "report-1.txt" not in other.content.decode()
    assert client.get(reverse("admin:restore"), {"q": "re"}).context["files"].entries == []
    monkeypatch.setattr(restore_search, "MATCHES", 1)
    shown = client.get(reverse("admin:restore"), {"q": "report"})
    assert len(shown.context["files"].entries) == 1
    assert "There may be more than is shown." in shown.content.decode()


def test_the_estimate_names_what_it_goes_by(client, world):
    keep_list(world, "report.txt")
    draft = draft_for(client, world)
    assert "not known yet" in estimate.sentence(draft)
    done = timezone.now()
    job = Job.objects.create(tenant=world.alpha.tenant, kind=JobKind.RESTORE, title="earlier", due_at=done)
    Task.objects.create(
        job=job,
        kind="restore",
        state=State.SUCCEEDED,
        repository=world.alpha.repository,
        available_at=done,
        started_at=done - timedelta(seconds=13),
        finished_at=done,
        outcome={"kind": "restore", "files": 1, "bytes_written": 100 << 20, "target": "/x"},
    )
    RestorePoint.objects.filter(pk=draft.point_id).update(size_bytes=1 << 30)
    draft.refresh_from_db()
    said = estimate.sentence(draft)
    assert "1.0 GiB will take about 1 min 45 s" in said
    assert "by the last restore from this repository" in said
    draft.chosen = ["/report.txt"]
    assert estimate.chosen_bytes(draft) == 5
    draft.chosen = ["/gone.txt"]
    assert "sizes of what was chosen are not on the server" in estimate.sentence(draft)


def test_an_estimate_goes_by_the_large_restores():
    assert estimate.seconds(100, []) is None
    assert estimate.seconds(100, [(0, 5.0)]) is None
    small, large = (10, 3.5), (1_000_000, 103.0)
    assert estimate.seconds(1_000_000, [small, large]) == pytest.approx(103, abs=1)


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


def dated(now, *ages: timedelta, outcome: str = "complete") -> list[RestorePoint]:
    points = [RestorePoint(taken_at=now - age, outcome=outcome) for age in ages]
    for point in points:
        point._prefetched_objects_cache = {"copies": []}
    return points


def test_points_too_close_to_be_told_apart_are_one_dot_as_bad_as_the_worst():
    now = timezone.now()
    points = dated(now, timedelta(days=9), timedelta(minutes=3), timedelta(minutes=2))
    points += dated(now, timedelta(minutes=1), outcome="partial")
    line = timeline.build(points, now)
    assert [(len(dot.points), dot.tone) for dot in line.dots] == [(1, "ok"), (3, "warn")]
    assert line.dots[-1].point.taken_at == now - timedelta(minutes=1), "the newest of them"


def test_a_timeline_is_zoomed_to_what_it_is_long_enough_for():
    now = timezone.now()
    points = dated(now, timedelta(days=9), timedelta(hours=30), timedelta(hours=3))
    whole, week, day = (timeline.build(points, now, zoom) for zoom in ("", "7d", "24h"))
    assert [zoom.key for zoom in whole.zooms] == ["", "7d", "24h"], "30 days would show nothing more"
    assert [len(line.dots) for line in (whole, week, day)] == [3, 2, 1]
    assert [line.hidden for line in (whole, week, day)] == [0, 1, 2]
    assert timeline.build(points, now, "nonsense").begins == whole.begins
    assert timeline.build(dated(now, timedelta(hours=1)), now).zooms == []


def test_a_workload_without_any_backup_is_not_passed_over_in_silence(client, world):
    """The ring said 1 of 2 while nothing needed attention and every backup was “as fresh as its policy asks”."""
    reassured = "as fresh as its policy asks"
    Protection.objects.update(state="protected", last_run_outcome="", last_good_at=timezone.now(), objective_hours=26)
    assert reassured in client.get(reverse("admin:index")).content.decode()
    row = Protection.objects.get(workload=world.alpha.workload)
    Protection.objects.filter(pk=row.pk).update(state="unprotected", last_good_at=None)
    text = client.get(reverse("admin:index")).content.decode()
    assert "1 workload has no backup yet" in text
    assert page(Workload, "change", world.alpha.workload.pk) in text
    assert reassured not in text
    Protection.objects.filter(pk=row.pk).update(last_run_outcome="failed", last_run_message="No room.")
    text = client.get(reverse("admin:index")).content.decode()
    assert "No room." in text
    assert "has no backup yet" not in text, "said once"


def test_a_repository_that_nothing_measured_yet_is_not_said_to_be_empty(client, world):
    """Two of them, one measured: the other's points were not counted at all."""
    alpha = world.alpha
    PointCopy.objects.filter(repository=alpha.repository).update(stored_bytes=5 << 20)
    Repository.objects.filter(pk=alpha.repository.pk).update(stored_bytes=0)
    assert figures.stored_in(alpha.repository) == 5 << 20
    for address in (page(Repository, "changelist"), page(Repository, "change", alpha.repository.pk)):
        assert "5.0 MiB" in client.get(address).content.decode()
    Repository.objects.filter(pk=alpha.repository.pk).update(stored_bytes=3 << 20)
    alpha.repository.refresh_from_db()
    assert figures.stored_in(alpha.repository) == 3 << 20


def test_a_platforms_page_shows_what_is_protected_on_it_and_whether_its_node_is_there(client, world):
    text = client.get(page(Platform, "change", world.alpha.workload.platform_id)).content.decode()
    assert page(Workload, "change", world.alpha.workload.pk) in text
    assert page(Node, "change", world.alpha.workload.platform.node_id) in text
    assert world.beta.workload.name not in text


def test_a_damaged_point_is_not_offered_for_restore(client, world):
    alpha = world.alpha
    offered = f"{reverse('admin:restore_new')}?point={alpha.point.pk}"
    assert offered in client.get(page(Workload, "change", alpha.workload.pk)).content.decode()
    PointCopy.objects.filter(point=alpha.point).update(state="damaged")
    text = client.get(page(Workload, "change", alpha.workload.pk)).content.decode()
    assert "Damaged" in text
    assert offered not in text


def test_a_repository_in_which_a_check_found_damage_does_not_look_ready(client, world):
    """It stayed green, with the finding as plain text beside it, and nobody was told."""
    repository = world.alpha.repository
    Repository.objects.filter(pk=repository.pk).update(state="ready", problem="pack 4c77 is damaged")
    for address in (page(Repository, "changelist"), page(Repository, "change", repository.pk)):
        assert "Problem" in client.get(address).content.decode()
    assert "pack 4c77 is damaged" in client.get(reverse("admin:index")).content.decode()


def test_the_last_hours_show_each_outcome_in_its_share():
    hour = figures.Hour(begins=timezone.now(), succeeded=9, failed=1)
    assert hour.parts == [("bad", 1), ("ok", 9)]
    assert figures.Hour(begins=timezone.now()).parts == []


# --- what an empty place says ----------------------------------------------------------------------


def test_every_empty_list_names_its_next_step(world):
    """An empty tenant's owner: no list ends in “no results”."""
    tenant = Tenant.objects.create(name="Empty", slug="empty")
    owner = User.objects.create_user("newcomer", password="long enough")
    Membership.objects.create(user=owner, tenant=tenant, role="owner")
    client = signed_in(owner)
    Node.objects.filter(tenant=None).update(tenant=world.alpha.tenant)  # a shared one is everybody's
    for model, admin_of in site._registry.items():
        if not getattr(admin_of, "empty", None):
            continue
        text = client.get(page(model, "changelist")).content.decode()
        assert escape(str(admin_of.empty.text)) in text, model
        assert f'href="{reverse(admin_of.empty.url)}"' in text, model
        assert client.get(reverse(admin_of.empty.url)).status_code in (200, 302), model
        searched = client.get(page(model, "changelist"), {"q": "zzz"}).content.decode()
        assert "Nothing matches what you look for." in searched, model


def test_a_token_is_made_on_a_page_with_a_form(client):
    text = client.get(reverse("admin:iam_apitoken_add")).content.decode()
    assert 'name="name"' in text
    assert 'name="expires_at_0"' in text or 'name="expires_at"' in text


def test_the_list_of_workloads_backs_up_and_restores_at_a_click(client, world):
    text = client.get(page(Workload, "changelist")).content.decode()
    assert reverse("admin:inventory_workload_do", args=[world.alpha.workload.pk, "backup"]) in text
    assert "Back up now" not in signed_in(world.colleague).get(page(Workload, "changelist")).content.decode()


# --- error pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 403, 404, 500])
def test_an_error_page_says_what_it_is_and_leads_back(code):
    text = get_template(f"{code}.html").render()
    assert str(code) in text
    assert f'href="{reverse("admin:index")}"' in text
    assert len(re.findall("<p>", text)) == 1


def test_what_is_not_there_is_said_in_the_products_own_words(client):
    answer = client.get(page(Workload, "change", uuid.uuid4()))
    assert answer.status_code == 404
    assert "There is nothing here" in answer.content.decode()


def test_an_expired_form_is_said_so(world):
    strict = Client(enforce_csrf_checks=True)
    answer = strict.post(reverse("admin:login"), {"username": "x", "password": "y"})
    assert answer.status_code == 403
    assert "The form has expired" in answer.content.decode()


def test_a_list_is_called_what_the_side_bar_calls_it(client):
    called = re.compile(r'title="[^"]*">\s*Members and roles\s*<')
    assert called.search(client.get(page(Membership, "changelist")).content.decode())


def test_long_ids_are_cut_to_what_tells_them_apart():
    assert display.brief(f"pack {'4c' * 32} is damaged") == "pack 4c4c4c4c… is damaged"
    assert display.brief("a cafe of 12345678 bytes") == "a cafe of 12345678 bytes"


def test_the_audit_trail_speaks_in_words():
    assert display.event("enrolment.code-issued") == "Enrolment code issued"


def test_the_simulator_answers_and_refuses_in_words(client):
    answer = client.get(reverse("admin:policy_simulate"), {"keep_daily": "7", "schedules-0-cron": "0 22 * * *"})
    assert answer.context["kept"] >= 7
    for query in ({"schedules-0-cron": "nonsense"}, {"time_zone": "Mars/Base"}, {"keep_daily": "-1"}):
        assert client.get(reverse("admin:policy_simulate"), query).status_code == 200
    assert "22:00" in client.get(reverse("admin:policy_when"), {"cron": "0 22 * * *"}).content.decode()
    assert client.get(reverse("admin:policy_when"), {"cron": "nonsense"}).context["error"]
