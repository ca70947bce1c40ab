"""The stranger, the colleague and the owner, kept apart on every route that the API's router knows."""

from __future__ import annotations

import pytest

from apps.iam import tokens
from apps.iam.models import AuditEvent, Membership, Role
from apps.inventory.models import Destination, Platform, Workload
from apps.jobs.models import Job
from apps.policies.models import Assignment, Policy
from tests.api_client import alphas_things, ids, person, routes

pytestmark = pytest.mark.django_db
ERROR = {"code", "message", "hint"}
DETAILS = [pytest.param(route, id=route.path) for route in routes() if route.detail]
LISTS = [pytest.param(route, id=route.path) for route in routes() if not route.detail]
READ_LISTS = [param for param in LISTS if "get" in param.values[0].methods]


@pytest.fixture(autouse=True)
def no_throttle(monkeypatch):
    monkeypatch.setattr("apps.iam.api_http.AnonymousThrottle.get_rate", lambda _self: None)


def test_the_walk_knows_every_resource(world):
    assert {route.basename for route in routes()} == set(alphas_things(world))
    assert len(DETAILS) > 30


@pytest.mark.parametrize("route", DETAILS)
@pytest.mark.parametrize("who", ["stranger", "nobody"])
def test_to_those_outside_nothing_exists(world, route, who):
    path = route.path.replace("{pk}", str(alphas_things(world)[route.basename].pk))
    outsider = person(getattr(world, who))
    for method in route.methods:
        answer = outsider.call(method, path, {} if method in {"post", "put", "patch"} else None)
        assert answer.status_code == 404, (method, path, answer.content)
        if method != "head":
            assert set(answer.json()) == ERROR
            assert answer.json()["code"] == "not-found"


@pytest.mark.parametrize("route", READ_LISTS)
def test_lists_hold_nothing_of_another_tenant(world, route):
    things = alphas_things(world)
    stranger = person(world.stranger)
    answer = stranger.get(route.path)
    assert answer.status_code == 200, answer.content
    text = answer.content.decode()
    for thing in things.values():
        if len(str(thing.pk)) > 8:
            assert str(thing.pk) not in text
    assert "alpha" not in text.lower()
    # the same for searches and filters by an id of the other tenant
    if "search" in route.path or (route.basename == "user" and route.path.endswith("me/")):
        return
    for name in ("workload", "tenant", "platform", "user", "destination"):
        answer = stranger.get(f"{route.path}?{name}={world.alpha.workload.pk}")
        assert answer.status_code == 400 or answer.json()["count"] == 0


@pytest.mark.parametrize("route", [*DETAILS, *LISTS])
def test_without_a_login_everything_is_401(world, client, route):
    path = route.path.replace("{pk}", str(alphas_things(world)[route.basename].pk))
    for method in route.methods:
        answer = getattr(client, method)(f"/api/v1/{path}")
        assert answer.status_code == 401, (method, path)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        if method != "head":
            assert set(answer.json()) == ERROR


@pytest.mark.parametrize("route", DETAILS)
def test_the_owner_finds_what_is_his(world, route):
    path = route.path.replace("{pk}", str(alphas_things(world)[route.basename].pk))
    assert person(world.owner).call("options", path).status_code == 200


def test_shared_nodes_show_their_name_and_state_only(world):
    shown = person(world.viewer).get(f"nodes/{world.shared_node.pk}/").json()
    assert shown["name"] == "shared-node"
    assert shown["state"] == "online"
    assert shown["hostname"] is None
    assert shown["labels"] is None
    assert person(world.root).get(f"nodes/{world.shared_node.pk}/").json()["hostname"] == "shared-node.example"
    assert person(world.owner).patch(f"nodes/{world.shared_node.pk}/", {"paused": True}).status_code == 403


def bodies(world):
    """What an owner could post, by resource."""
    alpha = world.alpha
    tenant = str(alpha.tenant.pk)
    return {
        "platforms": {"tenant": tenant, "kind": "files", "name": "new", "node": str(alpha.node.pk)},
        "destinations": {"tenant": tenant, "name": "new", "path": "/backup/new", "nodes": [str(alpha.node.pk)]},
        "policies": {"tenant": tenant, "name": "new", "destination": str(alpha.destination.pk)},
        "workloads": {
            "tenant": tenant,
            "platform": str(alpha.platform.pk),
            "name": "new",
            "source": {"paths": ["/srv/new"]},
        },
    }


@pytest.mark.parametrize("resource", ["platforms", "destinations", "policies", "workloads"])
def test_only_those_who_configure_create(world, resource):
    body = bodies(world)[resource]
    for who in (world.viewer, world.operator):
        answer = person(who).post(f"{resource}/", body)
        assert answer.status_code == 403
        assert answer.json()["code"] == "denied"
    answer = person(world.admin).post(f"{resource}/", body)
    assert answer.status_code == 201, answer.content
    event = AuditEvent.objects.filter(verb=f"{resource.removesuffix('s').replace('icie', 'icy')}.added").get()
    assert event.actor == world.admin
    assert event.tenant == world.alpha.tenant
    assert event.detail["after"]["name"] == "new"


@pytest.mark.parametrize("resource", ["platforms", "destinations", "policies", "workloads"])
def test_foreign_ids_in_a_body_do_not_exist(world, resource):
    """Each reference of an acceptable body is replaced by Alpha's, sent by Beta's owner."""
    alpha, beta = world.alpha, world.beta
    swap = {
        str(getattr(alpha, name).pk): str(getattr(beta, name).pk)
        for name in ("tenant", "node", "platform", "destination")
    }
    foreign = bodies(world)[resource]
    own = {
        name: [swap[one] for one in value] if name == "nodes" else swap.get(value, value) if name != "source" else value
        for name, value in foreign.items()
    }
    stranger = person(world.stranger)
    for name in set(foreign) & {"tenant", "node", "nodes", "platform", "destination"}:
        answer = stranger.post(f"{resource}/", {**own, name: foreign[name]})
        absent = stranger.post(f"{resource}/", {**own, name: _absent(foreign[name])})
        assert answer.status_code == absent.status_code == 400, answer.content
        assert name in answer.json()["message"]
        strip = str(foreign[name]).strip("[]'")
        nowhere = str(_absent(foreign[name])).strip("[]'")
        assert answer.json()["message"].replace(strip, "") == absent.json()["message"].replace(nowhere, "")
    assert stranger.post(f"{resource}/", own).status_code == 201


def _absent(value):
    absent = "11111111-2222-4333-8444-555555555555"
    return [absent] if isinstance(value, list) else absent


def test_one_who_is_in_two_tenants_cannot_join_their_things(world):
    Membership.objects.create(user=world.owner, tenant=world.beta.tenant, role=Role.OWNER)
    owner = person(world.owner)
    body = bodies(world)
    for resource, name, value in (
        ("platforms", "node", str(world.beta.node.pk)),
        ("destinations", "nodes", [str(world.beta.node.pk)]),
        ("policies", "destination", str(world.beta.destination.pk)),
        ("workloads", "platform", str(world.beta.platform.pk)),
    ):
        answer = owner.post(f"{resource}/", {**body[resource], name: value})
        assert answer.status_code == 400, answer.content
        assert name in answer.json()["message"]
    answer = owner.patch(f"workloads/{world.alpha.workload.pk}/", {"platform": str(world.beta.platform.pk)})
    assert answer.status_code == 400
    answer = owner.patch(f"workloads/{world.alpha.workload.pk}/", {"tenant": str(world.beta.tenant.pk)})
    assert answer.status_code == 400
    assert Workload.objects.get(pk=world.alpha.workload.pk).tenant == world.alpha.tenant


def test_a_foreign_policy_cannot_be_assigned(world):
    stranger = person(world.stranger)
    answer = stranger.post(f"workloads/{world.beta.workload.pk}/assign/", {"policy": str(world.alpha.policy.pk)})
    assert answer.status_code == 400
    both = {"policy": None, "workloads": [str(world.beta.workload.pk), str(world.alpha.workload.pk)]}
    assert stranger.post("workloads/assign/", both).status_code == 400
    assert Assignment.objects.get(workload=world.beta.workload).policy == world.beta.policy
    assert Assignment.objects.get(workload=world.alpha.workload).policy == world.alpha.policy


def test_a_foreign_node_is_no_target_of_a_restore(world):
    body = {"target": {"path": "/restore/x"}, "node": str(world.alpha.node.pk)}
    answer = person(world.stranger).post(f"restore-points/{world.beta.point.pk}/restore/", body)
    assert answer.status_code == 400
    assert not Job.objects.filter(kind="restore").exists()


@pytest.mark.parametrize("who", ["viewer", "operator"])
def test_those_who_may_not_configure_change_and_delete_nothing(world, who):
    weak = person(getattr(world, who))
    for path, body in (
        (f"nodes/{world.alpha.node.pk}/", {"paused": True}),
        (f"platforms/{world.alpha.platform.pk}/", {"name": "x"}),
        (f"destinations/{world.alpha.destination.pk}/", {"name": "x"}),
        (f"policies/{world.alpha.policy.pk}/", {"name": "x"}),
        (f"workloads/{world.alpha.workload.pk}/", {"name": "x"}),
        (f"tenants/{world.alpha.tenant.pk}/", {"name": "x"}),
    ):
        assert weak.get(path).status_code == 200
        assert weak.patch(path, body).status_code == 403, path
        if path.split("/")[0] not in {"nodes", "tenants"}:
            assert weak.delete(path).status_code == 403, path
    assert weak.post(f"repositories/{world.alpha.repository.pk}/kit/").status_code == 403
    assert weak.post(f"workloads/{world.alpha.workload.pk}/exclude/", {"reason": "no"}).status_code == 403
    assert weak.post(f"workloads/{world.alpha.workload.pk}/assign/", {"policy": None}).status_code == 403
    assert weak.post("tenants/", {"name": "x", "slug": "x"}).status_code == 403


def test_a_viewer_starts_nothing(world):
    viewer = person(world.viewer)
    for path, body in (
        (f"workloads/{world.alpha.workload.pk}/backup/", {}),
        (f"repositories/{world.alpha.repository.pk}/verify/", {}),
        (f"restore-points/{world.alpha.point.pk}/restore/", {"target": {"path": "/restore/x"}}),
        (f"restore-points/{world.alpha.point.pk}/download/", {"path": "/srv/documents/a"}),
        (f"restore-points/{world.alpha.point.pk}/hold/", {"reason": "no"}),
        (f"restore-points/{world.alpha.point.pk}/delete/", {"typed_name": world.alpha.workload.name}),
        (f"jobs/{world.alpha.job.pk}/retry/", {}),
        (f"jobs/{world.alpha.job.pk}/cancel/", {}),
    ):
        answer = viewer.post(path, body)
        assert answer.status_code == 403, (path, answer.content)
    assert Job.objects.filter(tenant=world.alpha.tenant).count() == 1


def test_in_place_restore_is_a_right_of_its_own(world):
    body = {"target": {"in_place": True, "overwrite": "always"}}
    path = f"restore-points/{world.alpha.point.pk}/restore/"
    assert person(world.operator).post(path, body).status_code == 403
    world.alpha.node.roots = {**world.alpha.node.roots, "write": ["/"]}
    world.alpha.node.save()
    assert person(world.admin).post(path, body).status_code == 202


def test_the_superuser_sees_every_tenant(world):
    assert ids(person(world.root).get("workloads/")) == {str(world.alpha.workload.pk), str(world.beta.workload.pk)}


def test_members_of_a_tenant_that_was_switched_off_see_nothing_of_it(world):
    world.alpha.tenant.is_active = False
    world.alpha.tenant.save()
    owner = person(world.owner)
    assert owner.get(f"workloads/{world.alpha.workload.pk}/").status_code == 404
    assert ids(owner.get("workloads/")) == set()
    assert owner.post("platforms/", bodies(world)["platforms"]).status_code == 400
    assert Platform.objects.filter(name="new").count() == 0


def test_owners_tokens_are_nobody_elses(world):
    row, _clear = tokens.issue(world.owner, "mine")
    for who in (world.viewer, world.admin, world.root):
        assert person(who).get(f"api-tokens/{row.pk}/").status_code == 404
        assert person(who).post(f"api-tokens/{row.pk}/revoke/").status_code == 404
    assert Destination.objects.count() == Policy.objects.count() == 2
