"""Bad input to the API: refused with what is wrong, as {code, message, hint}; never a 500, never in silence."""

from __future__ import annotations

import json
import uuid

import pytest
from django.core.cache import cache
from django.test import Client

from apps.iam.api_http import LIMIT_MOST
from apps.iam.models import AuditEvent
from apps.inventory.models import Destination, Node, Platform, Workload
from tests.api_client import ids, person
from tests.world import PASSWORD, make_node

pytestmark = pytest.mark.django_db
ERROR = {"code", "message", "hint"}


@pytest.fixture
def admin(world):
    return person(world.admin)


def refused(answer, status, *words, code=None):
    assert answer.status_code == status, answer.content
    assert answer.headers["Content-Type"] == "application/json"
    said = answer.json()
    assert set(said) == ERROR
    for word in words:
        assert word in said["message"] + " " + said["hint"]
    if code:
        assert said["code"] == code


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b'{"name": NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"name": ' + b"9" * 5000 + b"}",
        b"",
    ],
    ids=["cut", "not utf-8", "NaN", "deep list", "deep object", "huge number", "empty"],
)
def test_a_malformed_body_is_told_as_such(world, admin, body):
    answer = admin.client.post(
        "/api/v1/platforms/",
        data=body,
        content_type="application/json",
        headers={"Authorization": f"Bearer {admin.clear}"},
    )
    refused(answer, 400)


@pytest.mark.parametrize("body", [[], "text", 3, None, [{"name": "x"}]])
def test_a_body_that_is_no_object_is_refused(admin, world, body):
    for path in ("platforms/", f"workloads/{world.alpha.workload.pk}/backup/", "workloads/assign/"):
        answer = admin.client.post(
            f"/api/v1/{path}",
            data=json.dumps(body),
            content_type="application/json",
            headers={"Authorization": f"Bearer {admin.clear}"},
        )
        refused(answer, 400)


def test_other_content_types_are_refused(admin):
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = admin.client.post(
            "/api/v1/platforms/",
            data=b"name=x",
            content_type=content_type,
            headers={"Authorization": f"Bearer {admin.clear}"},
        )
        refused(answer, 415, code="unsupported-media-type")


def test_fields_that_nobody_knows_are_refused_by_name(world, admin):
    workload = f"workloads/{world.alpha.workload.pk}/"
    refused(admin.patch(workload, {"nmae": "x"}), 400, "nmae")
    refused(admin.post(f"{workload}backup/", {"ful": True}), 400, "ful")
    refused(admin.post(f"jobs/{world.alpha.job.pk}/retry/", {"x": 1}), 400, "x")
    refused(admin.patch(f"policies/{world.alpha.policy.pk}/", {"schedules": [{"corn": "0 1 * * *"}]}), 400, "corn")
    refused(admin.post(f"restore-points/{world.alpha.point.pk}/restore/", {"target": {"pth": "/x"}}), 400, "pth")
    refused(admin.patch(workload, {"source": {"paths": ["/srv"], "pahts": []}}), 400, "pahts")


def test_read_only_fields_cannot_be_set_but_may_come_back_unchanged(world, admin):
    path = f"workloads/{world.alpha.workload.pk}/"
    refused(admin.patch(path, {"excluded": True}), 400, "excluded")
    refused(admin.patch(path, {"id": str(uuid.uuid4())}), 400, "id")
    whole = admin.get(path).json()
    whole["name"] = "renamed"
    answer = admin.put(path, whole)
    assert answer.status_code == 200, answer.content
    assert Workload.objects.get(pk=world.alpha.workload.pk).name == "renamed"
    assert Workload.objects.get(pk=world.alpha.workload.pk).excluded is False


def test_query_names_that_nobody_reads_are_refused(world, admin):
    refused(admin.get("workloads/?polcy=x"), 400, "polcy", "policy")
    refused(admin.get("jobs/?format=xml"), 400, "format")
    refused(admin.get(f"jobs/{world.alpha.job.pk}/?limit=1"), 400, "limit")
    refused(admin.get(f"restore-points/{world.alpha.point.pk}/files/?dir=/"), 400, "dir", "path")
    refused(admin.get("overview/?x=1"), 400, "x")


@pytest.mark.parametrize(
    "query",
    [
        "state=sleeping",
        "workload=not-a-uuid",
        "open=maybe",
        "since=yesterday",
        "limit=0",
        "limit=201",
        "limit=abc",
        "limit=-1",
        "offset=-1",
        "offset=999999999999999999999999",
        "ordering=secret",
        "ordering=created_at,-nothing",
        "limit=١",
    ],
)
def test_query_values_that_make_no_sense_are_refused(admin, query):
    refused(admin.get(f"jobs/?{query}"), 400)


def test_a_search_for_odd_characters_finds_nothing(world, admin):
    for text in ("%00", "%ff", "%ed%a0%80", "'", '"', "%25", "\\", "%F0%9F%98%80"):
        answer = admin.get(f"workloads/?search={text}")
        assert answer.status_code in (200, 400), answer.content
        if answer.status_code == 200:
            assert ids(answer) == set()


def test_addresses_that_lead_nowhere_are_404_as_json(world, admin):
    for path in ("nothing/", "workloads/not-a-uuid/", "jobs/1/", "audit-events/9999999999999999999999/", "../x"):
        refused(admin.get(path), 404, code="not-found")
    refused(admin.get(f"workloads/{uuid.uuid4()}/"), 404, code="not-found")
    refused(admin.post("nothing/"), 404, code="not-found")


def test_methods_that_a_resource_has_not_are_405(world, admin):
    refused(admin.delete(f"restore-points/{world.alpha.point.pk}/"), 405, code="method-not-allowed")
    refused(admin.post("jobs/", {}), 405)
    refused(admin.put(f"nodes/{world.alpha.node.pk}/", {}), 405)
    refused(admin.get(f"workloads/{world.alpha.workload.pk}/backup/"), 405)
    refused(admin.delete(f"audit-events/{AuditEvent.objects.latest('id').pk}/"), 405)


def test_both_forms_of_an_address_work(world, admin):
    assert admin.get("workloads").status_code == 200
    assert admin.post(f"workloads/{world.alpha.workload.pk}/backup").status_code == 202


def test_whatever_is_asked_for_json_is_answered(admin):
    for accept in ("text/html", "image/png", "x", "*/*;q=0"):
        answer = admin.get("workloads/", Accept=accept)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "application/json"


def test_a_name_that_is_taken_is_a_plain_error(world, admin):
    body = {"tenant": str(world.alpha.tenant.pk), "kind": "files", "name": world.alpha.platform.name}
    refused(admin.post("platforms/", {**body, "node": str(world.alpha.node.pk)}), 400)
    make_node("taken", world.alpha.tenant)
    refused(admin.patch(f"nodes/{world.alpha.node.pk}/", {"name": "taken"}), 400, "name")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"name": ["x"]}, "name"),
        ({"path": "relative"}, "relative"),
        ({"path": "/a/../b"}, ".."),
        ({"path": "/a\x00"}, "path"),
        ({"kind": "tape"}, "kind"),
        ({"nodes": []}, "nodes"),
        ({"nodes": "x"}, "nodes"),
        ({"nodes": ["x"]}, "nodes"),
        ({"nodes": [None]}, "nodes"),
        ({"tenant": {}}, "tenant"),
        ({"tenant": 3}, "tenant"),
        ({"tenant": None}, "tenant"),
    ],
)
def test_fields_of_a_wrong_form_are_named(world, admin, body, word):
    good = {
        "tenant": str(world.alpha.tenant.pk),
        "name": "x",
        "path": "/backup/x",
        "nodes": [str(world.alpha.node.pk)],
    }
    before = Destination.objects.count()
    refused(admin.post("destinations/", {**good, **body}), 400, word)
    assert Destination.objects.count() == before


@pytest.mark.parametrize(
    "source",
    [
        None,
        [],
        "x",
        {},
        {"paths": []},
        {"paths": ["relative"]},
        {"paths": ["/a/../../etc"]},
        {"paths": ["/a\x00"]},
        {"paths": ["/\ud800"]},
        {"paths": [["/a"]]},
        {"paths": "/a"},
        {"paths": ["/a"], "excludes": [3]},
        {"paths": ["/a"], "x": {"y": {"z": {"a": {"b": {"c": {"d": {"e": {"f": {}}}}}}}}}},
    ],
)
def test_a_source_that_cannot_be_backed_up_is_refused(world, admin, source):
    body = {
        "tenant": str(world.alpha.tenant.pk),
        "platform": str(world.alpha.platform.pk),
        "name": "x",
        "source": source,
    }
    refused(admin.post("workloads/", body), 400)
    refused(admin.patch(f"workloads/{world.alpha.workload.pk}/", {"source": source}), 400)
    assert Workload.objects.filter(tenant=world.alpha.tenant).count() == 1


def test_what_others_need_is_not_deleted(world, admin):
    for path in (
        f"platforms/{world.alpha.platform.pk}/",
        f"destinations/{world.alpha.destination.pk}/",
        f"workloads/{world.alpha.workload.pk}/",
    ):
        refused(admin.delete(path), 409, "still used", code="conflict")
    assert Platform.objects.filter(pk=world.alpha.platform.pk).exists()
    assert AuditEvent.objects.filter(verb__endswith=".removed").count() == 0


def test_pages_are_bounded_and_complete(world, admin):
    Node.objects.bulk_create(Node(name=f"n{number:03}", tenant=world.alpha.tenant) for number in range(120))
    first = admin.get("nodes/").json()
    assert first["count"] == 122  # with Alpha's own and the shared one
    assert len(first["results"]) == 50
    assert len(admin.get(f"nodes/?limit={LIMIT_MOST}").json()["results"]) == 122
    seen, address = set(), "nodes/?limit=50&ordering=-name"
    while address:
        page = admin.get(address).json()
        seen |= {row["id"] for row in page["results"]}
        address = page["next"].partition("/api/v1/")[2] if page["next"] else None
    assert len(seen) == 122


def test_ordering_and_search_do_what_they_say(world, admin):
    Platform.objects.create(tenant=world.alpha.tenant, kind="image", name="zebra", node=world.alpha.node)
    names = [row["name"] for row in admin.get("platforms/?ordering=-name").json()["results"]]
    assert names == ["zebra", "alpha-files"]
    assert [row["name"] for row in admin.get("platforms/?search=zeb").json()["results"]] == ["zebra"]
    assert [row["name"] for row in admin.get("platforms/?kind=files").json()["results"]] == ["alpha-files"]


def test_a_session_needs_the_csrf_token(world, client):
    strict = Client(enforce_csrf_checks=True)
    assert strict.login(username="admin", password=PASSWORD)
    body = {"tenant": str(world.alpha.tenant.pk), "kind": "files", "name": "x", "node": str(world.alpha.node.pk)}
    assert strict.get("/api/v1/platforms/").status_code == 200
    answer = strict.post("/api/v1/platforms/", data=body, content_type="application/json")
    refused(answer, 403, "X-CSRFToken", code="csrf")
    assert Platform.objects.filter(name="x").count() == 0
    client.force_login(world.admin)
    answer = client.post("/api/v1/platforms/", data=body, content_type="application/json")
    assert answer.status_code == 201


def test_strangers_who_knock_often_are_told_to_wait(world, client, monkeypatch):
    cache.clear()
    monkeypatch.setattr("apps.iam.api_http.AnonymousThrottle.get_rate", lambda _self: "3/min")
    answers = [client.get("/api/v1/workloads/", headers={"Authorization": "Bearer brs_wrong"}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    refused(answers[-1], 429, code="too-many")
    assert int(answers[-1].headers["Retry-After"]) > 0
    # The header names another address; it is not believed.
    answer = client.get("/api/v1/workloads/", headers={"X-Forwarded-For": "203.0.113.9"})
    assert answer.status_code == 429
    assert person(world.admin).get("workloads/").status_code == 200  # who shows a valid token is not shut out


def test_users_who_ask_too_much_are_slowed_down(world, monkeypatch):
    cache.clear()
    monkeypatch.setattr("apps.iam.api_http.UserThrottle.get_rate", lambda _self: "3/min")
    admin = person(world.admin)
    codes = [admin.get("workloads/").status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    cache.clear()
